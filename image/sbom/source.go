package sbom

import "embed"

// Source is this package's own source: a part of the key under which the
// builder keeps what the package makes.
//
//go:embed *.go
var Source embed.FS
