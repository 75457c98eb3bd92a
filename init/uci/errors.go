package uci

import (
	"errors"
	"fmt"
)

// Kinds of failure, for errors.Is. A failure of none of these kinds comes from
// the file system.
var (
	// ErrNotFound: the package, section or option does not exist.
	ErrNotFound = errors.New("entry not found")
	// ErrInvalid: a name, type, value or address is not acceptable.
	ErrInvalid = errors.New("invalid argument")
	// ErrParse: text does not follow the grammar.
	ErrParse = errors.New("parse error")
	// ErrDuplicate: one import holds a package twice.
	ErrDuplicate = errors.New("duplicate entry")
)

// ParseError is one line of a file that does not follow the grammar. It is an
// [ErrParse].
type ParseError struct {
	File string // name of the package or path of the file
	Line int    // 1-based line at which the fault was noticed
	Byte int    // offset in the statement, continuation lines joined, as upstream counts
	Msg  string // what is wrong, in upstream's words
	// Start is the line on which the statement begins; it differs from Line
	// where a quoted value runs over several lines.
	Start int
}

func (e *ParseError) Error() string {
	if e.Start > 0 && e.Start != e.Line {
		return fmt.Sprintf("%s:%d: %s (at line %d, byte %d)", e.File, e.Start, e.Msg, e.Line, e.Byte)
	}
	return fmt.Sprintf("%s:%d: %s (byte %d)", e.File, e.Line, e.Msg, e.Byte)
}

// Is makes every ParseError an ErrParse.
func (e *ParseError) Is(target error) bool { return target == ErrParse }
