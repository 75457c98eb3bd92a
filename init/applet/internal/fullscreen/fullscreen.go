// Package fullscreen lets an applet use the whole terminal: raw input as keys,
// output as rows of which only those that changed are sent, since a serial line
// is slow. Whatever happens to the applet, a signal included, the terminal is
// given back as it was.
//
// The sequences sent are those that every terminal since the VT100 knows. Rows
// are taken to be one cell for each character.
package fullscreen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// escapeWait is how long a lone ESC waits for the rest of a sequence; a serial
// line at 9600 baud sends three bytes in 3 ms.
const escapeWait = 60 * time.Millisecond

// Key is what was typed: a character, or one of the constants, which no
// character equals.
type Key rune

// Keys that have no character.
const (
	None Key = -iota - 1 // nothing was typed
	Up
	Down
	Left
	Right
	Home
	End
	PageUp
	PageDown
	Resize // the terminal has another size now
	Other  // a key without a meaning here
)

// Ctrl is the key of a letter held with Ctrl.
func Ctrl(letter rune) Key { return Key(letter & 0x1f) }

// Escape is the Esc key.
const Escape Key = 27

// Screen is a terminal in use.
type Screen struct {
	in, out    *os.File
	old        *term.State
	Rows, Cols int // at least 2 each

	stop    func()
	resized chan os.Signal
	last    []string
	pending []byte
}

// ErrNoTerminal says that there is no terminal to be used.
var ErrNoTerminal = errors.New("not a terminal")

// Open takes over the terminal that in reads from and out writes to. The error
// is ErrNoTerminal where one of them is none. The context returned ends with
// ctx, and when a signal asks the program to end.
func Open(ctx context.Context, in, out *os.File) (*Screen, context.Context, error) {
	if !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(out.Fd())) {
		return nil, nil, ErrNoTerminal
	}
	s := &Screen{in: in, out: out, resized: make(chan os.Signal, 1)}
	ctx, s.stop = signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
	signal.Notify(s.resized, unix.SIGWINCH)
	s.measure()
	var err error
	if s.old, err = term.MakeRaw(int(in.Fd())); err != nil {
		s.stop()
		signal.Stop(s.resized)
		return nil, nil, fmt.Errorf("set the terminal raw: %w", err)
	}
	return s, ctx, nil
}

// Close gives the terminal back, the cursor on an empty line at the bottom.
func (s *Screen) Close() error {
	fmt.Fprintf(s.out, "\x1b[0m\x1b[%d;1H\x1b[K", s.Rows)
	signal.Stop(s.resized)
	s.stop()
	if err := term.Restore(int(s.in.Fd()), s.old); err != nil {
		return fmt.Errorf("restore the terminal: %w", err)
	}
	return nil
}

func (s *Screen) measure() {
	cols, rows, err := term.GetSize(int(s.out.Fd()))
	if err != nil || rows < 2 || cols < 2 {
		rows, cols = 24, 80 // a serial line tells no size
	}
	s.Rows, s.Cols = rows, cols
}

// Redraw makes the next Paint send all rows.
func (s *Screen) Redraw() { s.last = nil }

// Paint shows the rows, from the top. Rows too long are cut; inverse names the
// row that stands out, -1 for none. The cursor is left at the end of the last
// row.
func (s *Screen) Paint(rows []string, inverse int) error {
	var b strings.Builder
	if len(s.last) != s.Rows {
		s.last = make([]string, s.Rows)
		b.WriteString("\x1b[2J")
	}
	last := 0
	for i := range s.Rows {
		row := ""
		if i < len(rows) {
			row = cut(rows[i], s.Cols)
			last = utf8.RuneCountInString(row)
		}
		if i == inverse {
			row = "\x1b[7m" + row + "\x1b[0m"
		}
		if row != s.last[i] {
			fmt.Fprintf(&b, "\x1b[%d;1H%s", i+1, row)
			if utf8.RuneCountInString(row) < s.Cols || i == inverse {
				b.WriteString("\x1b[K")
			}
			s.last[i] = row
		}
	}
	fmt.Fprintf(&b, "\x1b[%d;%dH", max(min(len(rows), s.Rows), 1), min(last+1, s.Cols))
	if _, err := s.out.WriteString(b.String()); err != nil {
		return fmt.Errorf("write to the terminal: %w", err)
	}
	return nil
}

func cut(s string, cols int) string {
	n := 0
	for i := range s {
		if n == cols {
			return s[:i]
		}
		n++
	}
	return s
}

// Key waits for a key, None where nothing was typed in that time. It also
// returns, with Resize, when the terminal's size has changed. The error is
// io.EOF when the terminal has gone, ctx's when ctx has ended.
func (s *Screen) Key(ctx context.Context, wait time.Duration) (Key, error) {
	k, _, err := s.KeyOr(ctx, wait, -1)
	return k, err
}

// KeyOr is Key, but returns as soon as fd has something to be read: ready.
func (s *Screen) KeyOr(ctx context.Context, wait time.Duration, fd int) (k Key, ready bool, err error) {
	end := time.Now().Add(wait)
	for {
		if err := ctx.Err(); err != nil {
			return None, false, err
		}
		select {
		case <-s.resized:
			s.measure()
			s.Redraw()
			return Resize, false, nil
		default:
		}
		if k, n := decode(s.pending, true); n > 0 {
			s.pending = s.pending[n:]
			return k, false, nil
		}
		slice := time.Until(end)
		if len(s.pending) > 0 {
			slice = escapeWait
		}
		// A signal may come just before poll(2): look again each half second.
		slice = max(min(slice, 500*time.Millisecond), 0)
		fds := []unix.PollFd{{Fd: int32(s.in.Fd()), Events: unix.POLLIN}}
		if fd >= 0 && len(s.pending) == 0 {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
		n, err := unix.Poll(fds, int((slice+time.Millisecond-1)/time.Millisecond))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return None, false, fmt.Errorf("wait for a key: %w", err)
		case fds[0].Revents != 0:
			buf := make([]byte, 256)
			n, err := s.in.Read(buf)
			if err != nil {
				return None, false, err
			}
			s.pending = append(s.pending, buf[:n]...)
		case len(fds) > 1 && fds[1].Revents != 0:
			return None, true, nil
		case n == 0 && len(s.pending) > 0:
			k, n := decode(s.pending, false)
			s.pending = s.pending[n:]
			return k, false, nil
		case !time.Now().Before(end):
			return None, false, nil
		}
	}
}

// decode takes one key from the front of b, as ECMA-48 terminals send them. n
// is 0 where more bytes are needed; with more false (the terminal has fallen
// silent) what is there is taken as it is, so that a lone ESC is a key.
func decode(b []byte, more bool) (k Key, n int) {
	switch {
	case len(b) == 0:
		return None, 0
	case b[0] != byte(Escape):
		if more && !utf8.FullRune(b) {
			return None, 0
		}
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			return Other, 1
		}
		return Key(r), n
	case len(b) == 1:
		if more {
			return None, 0
		}
		return Escape, 1
	case b[1] != '[' && b[1] != 'O':
		return Escape, 1
	}
	for i := 2; i < len(b) && i < 16; i++ {
		switch c := b[i]; {
		case c == '~':
			switch string(b[2:i]) {
			case "1", "7":
				return Home, i + 1
			case "4", "8":
				return End, i + 1
			case "5":
				return PageUp, i + 1
			case "6":
				return PageDown, i + 1
			}
			return Other, i + 1
		case c >= 0x40 && c <= 0x7e:
			if j := strings.IndexByte("ABCDHF", c); j >= 0 {
				return []Key{Up, Down, Right, Left, Home, End}[j], i + 1
			}
			return Other, i + 1
		case c < 0x20:
			return Escape, 1
		}
	}
	if more && len(b) < 16 {
		return None, 0
	}
	return Escape, 1
}
