package overlay

import "io"

// Check says whether Restore would take a config archive; the error wraps
// ErrArchive if not. Nothing is written.
func Check(archive io.Reader) error { return checkArchive(archive) }
