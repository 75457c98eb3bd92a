package uci

import (
	"bufio"
	"fmt"
	"io"
)

// Words splits command lines into words, with the quoting of configuration
// files, as `uci batch` does. It reads no further than the line it returns.
type Words struct {
	l    lexer
	r    *bufio.Reader
	err  error
	room int
}

// NewWords reads lines from r.
func NewWords(r *bufio.Reader) *Words {
	w := &Words{r: r}
	w.l.feed = w.line
	return w
}

func (w *Words) line() []byte {
	var line []byte
	for {
		part, err := w.r.ReadSlice('\n')
		if w.room -= len(part); w.room < 0 {
			w.err = fmt.Errorf("command is longer than %d bytes: %w", MaxSize, ErrInvalid)
			return nil
		}
		line = append(line, part...)
		switch {
		case err == bufio.ErrBufferFull:
			continue
		case err != nil && err != io.EOF:
			w.err = fmt.Errorf("read commands: %w", err)
			return nil
		}
		return line
	}
}

// Next returns the words of the next line; none for an empty line, a comment,
// or what comes before a ` ; `. The error is io.EOF at the end, a *ParseError
// for an unterminated quote, or that of reading.
func (w *Words) Next() ([]string, error) {
	w.room = MaxSize
	if !w.l.next() {
		if w.err != nil {
			return nil, w.err
		}
		return nil, io.EOF
	}
	var words []string
	for {
		word := w.l.arg(false, anyText)
		if w.err != nil {
			return nil, w.err
		}
		if pe := w.l.err; pe != nil {
			w.l.err = nil
			pe.File = "command"
			return nil, pe
		}
		if word == "" {
			return words, nil
		}
		words = append(words, word)
	}
}
