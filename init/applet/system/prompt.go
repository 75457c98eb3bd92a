package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// maxAnswer bounds what is typed or piped as an answer.
const maxAnswer = 1024

// errInterrupted is Ctrl-C at a prompt.
var errInterrupted = errors.New("interrupted")

// ask prints the question and reads a line, without echo where secret and on a
// terminal. It takes no more than the line from the input, and ends with ctx or
// a signal, the terminal as it was. The error is io.EOF where nothing came.
func ask(ctx context.Context, c *unit.Call, question string, secret bool) (string, error) {
	in := file(c.Stdin)
	if in == nil {
		fmt.Fprint(c.Stdout, question)
		return line(func(b []byte) (int, error) { return c.Stdin.Read(b) }, false)
	}
	fd := int(in.Fd())
	raw := false
	if old, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil && secret {
		// Not canonical either: then Ctrl-C comes as a byte, and no signal can
		// leave the terminal without echo.
		mute := *old
		mute.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		mute.Cc[unix.VMIN], mute.Cc[unix.VTIME] = 1, 0
		var stop func()
		ctx, stop = signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
		defer stop()
		// What was typed before the question is not an answer to it.
		if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &mute); err != nil {
			return "", fmt.Errorf("turn the terminal's echo off: %w", err)
		}
		defer func() {
			unix.IoctlSetTermios(fd, unix.TCSETS, old)
			fmt.Fprintln(c.Stdout)
		}()
		raw = true
	}
	fmt.Fprint(c.Stdout, question) // now that an answer is waited for
	return line(func(b []byte) (int, error) {
		for {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			// A signal may come just before poll(2): look again each half second.
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 500)
			if err != nil && err != unix.EINTR {
				return 0, os.NewSyscallError("poll", err)
			}
			if n > 0 {
				return in.Read(b)
			}
		}
	}, raw)
}

// line reads bytes one by one up to the end of the line. With edit it does what
// the terminal does not do then.
func line(read func([]byte) (int, error), edit bool) (string, error) {
	var text []byte
	b := make([]byte, 1)
	for {
		n, err := read(b)
		if n == 0 {
			if err == nil {
				continue
			}
			if err == io.EOF && len(text) > 0 {
				return string(text), nil
			}
			return "", err
		}
		switch ch := b[0]; {
		case ch == '\n' || edit && ch == '\r':
			return string(text), nil
		case edit && ch == 3:
			return "", errInterrupted
		case edit && ch == 4:
			if len(text) == 0 {
				return "", io.EOF
			}
			return string(text), nil
		case edit && ch == 21:
			text = nil
		case edit && (ch == 8 || ch == 127):
			if len(text) > 0 {
				_, size := utf8.DecodeLastRune(text)
				text = text[:len(text)-size]
			}
		default:
			if len(text) == maxAnswer {
				return "", fmt.Errorf("a line has more than %d bytes", maxAnswer)
			}
			text = append(text, ch)
		}
	}
}
