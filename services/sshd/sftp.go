package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pkg/sftp"

	"weft/init/unit"
)

// SFTP speaks the SSH File Transfer Protocol on standard input and output, with
// the rights of its user, from the user's home.
func SFTP(ctx context.Context, c *unit.Call) int {
	s, err := sftp.NewServer(stream{c.Stdin, c.Stdout}, sftp.WithServerWorkingDirectory(c.Dir))
	if err == nil {
		stop := context.AfterFunc(ctx, func() { s.Close() })
		defer stop()
		err = s.Serve()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintf(c.Stderr, "sftp-server: %v\n", err)
		return 1
	}
	return 0
}

// stream is standard input and output in one.
type stream struct {
	io.Reader
	io.Writer
}

// Close closes what can be closed, so that a reader wakes up.
func (s stream) Close() error {
	var errs []error
	for _, v := range []any{s.Reader, s.Writer} {
		if c, ok := v.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
