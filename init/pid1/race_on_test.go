//go:build race

package pid1

const raceBuild = true
