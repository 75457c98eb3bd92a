// Package paths is the path manager of the proxy: it keeps one subflow of
// every trunk on every usable path.
package paths
