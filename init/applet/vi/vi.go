package vi

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/init/unit"
)

// escapeWait is how long a lone ESC waits for the rest of a sequence; a serial
// line at 9600 baud sends three bytes in 3 ms.
const escapeWait = 60 * time.Millisecond

// Vi edits a file on the terminal. Exit code 0; 1 where the file cannot be read
// or there is no terminal; 2 for a wrong call.
func Vi(ctx context.Context, c *unit.Call) int {
	name := filepath.Base(c.Args[0])
	args := c.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	} else if len(args) > 0 && strings.HasPrefix(args[0], "-") && len(args[0]) > 1 {
		fmt.Fprintf(c.Stderr, "%s: unknown option %s\nusage: %s [FILE]\n", name, args[0], name)
		return 2
	}
	if len(args) > 1 {
		fmt.Fprintf(c.Stderr, "%s: one file at a time\nusage: %s [FILE]\n", name, name)
		return 2
	}
	in, ok := c.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		fmt.Fprintf(c.Stderr, "%s: standard input is not a terminal; to change a file in a script use sed or uci\n", name)
		return 1
	}
	path := ""
	t := decode(nil)
	isNew := true
	if len(args) == 1 {
		path = c.Path(args[0])
		var err error
		if t, isNew, err = load(path); err != nil {
			fmt.Fprintf(c.Stderr, "%s: %v\n", name, err)
			return 1
		}
	}
	rows, cols := size(in)
	e := newEditor(path, t, rows, cols)
	e.resolvePath = c.Path
	if path != "" {
		e.message = opened(path, t, isNew)
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		fmt.Fprintf(c.Stderr, "%s: set the terminal raw: %v\n", name, err)
		return 1
	}
	defer term.Restore(int(in.Fd()), old)
	if err := edit(ctx, e, in, c.Stdout); err != nil {
		fmt.Fprintf(c.Stderr, "\r\n%s: %v\r\n", name, err)
		return 1
	}
	return 0
}

func size(f *os.File) (rows, cols int) {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil || rows < 2 || cols < 2 {
		return 24, 80 // a serial line tells no size
	}
	return rows, cols
}

// edit is the loop between terminal and editor.
func edit(ctx context.Context, e *editor, in *os.File, out io.Writer) error {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	p := painter{out: out}
	p.paint(e)
	defer func() { fmt.Fprintf(out, "\x1b[%d;1H\x1b[K", e.rows) }()
	var pending []byte
	buf := make([]byte, 256)
	for !e.quit {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-resized:
			e.rows, e.cols = size(in)
			e.clamp()
			p = painter{out: out}
			p.paint(e)
		default:
		}
		wait := time.Second // bounds how late a resize is seen
		if len(pending) > 0 {
			wait = escapeWait
		}
		ready, err := readable(in, wait)
		if err != nil {
			return err
		}
		if ready {
			n, err := in.Read(buf)
			if err != nil {
				return fmt.Errorf("read the terminal: %w", err)
			}
			pending = append(pending, buf[:n]...)
		} else if len(pending) == 0 {
			continue
		}
		for len(pending) > 0 && !e.quit {
			k, n := decodeKey(pending, ready)
			if n == 0 {
				break
			}
			pending = pending[n:]
			if k == ctrl('l') {
				p = painter{out: out}
			}
			e.key(k)
		}
		p.paint(e)
	}
	return nil
}

// readable waits for input; a signal counts as none.
func readable(f *os.File, wait time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(wait.Milliseconds()))
	if err == unix.EINTR {
		return false, nil
	}
	return n > 0, err
}

// painter sends the rows that changed: a serial line is slow.
type painter struct {
	out  io.Writer
	last []string
}

func (p *painter) paint(e *editor) {
	screen, row, col := e.view()
	var b strings.Builder
	if len(p.last) != len(screen) {
		p.last = make([]string, len(screen))
		b.WriteString("\x1b[2J")
	}
	for i, s := range screen {
		if s != p.last[i] {
			fmt.Fprintf(&b, "\x1b[%d;1H%s\x1b[K", i+1, s)
		}
	}
	copy(p.last, screen)
	fmt.Fprintf(&b, "\x1b[%d;%dH", row+1, col+1)
	io.WriteString(p.out, b.String())
}
