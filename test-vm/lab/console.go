package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// ErrConsoleClosed is returned by a wait when the machine ended before what was waited for appeared.
var ErrConsoleClosed = errors.New("the machine has ended")

// ErrReset is returned for a command that was running when the machine was reset.
var ErrReset = errors.New("the machine was reset")

// Line is one line that a console printed, without its end and without escape sequences.
type Line struct {
	Text string
	At   time.Time // when its first byte arrived here
}

// Console is one character device of a machine, recorded over all its starts. All methods may be called from any
// goroutine; waits share one cursor: what a wait has matched, a later wait does not see again.
type Console struct {
	name string

	mu      sync.Mutex
	raw     []byte // as the guest sent it
	clean   []byte // without CR and escape sequences
	starts  []lineStart
	newLine bool
	esc     escState
	pos     int // cursor into clean
	conn    net.Conn
	life    int           // counts starts and resets of the machine
	changed chan struct{} // closed and renewed when something arrives or the console ends
	tee     io.Writer
}

type lineStart struct {
	off int // in clean
	at  time.Time
}

type escState int

const (
	escNone escState = iota
	escStart
	escCSI
)

func newConsole(name string) *Console {
	return &Console{name: name, changed: make(chan struct{}), newLine: true}
}

// Name is the kernel's name of the device: ttyS0, hvc0 or ttyS1.
func (c *Console) Name() string { return c.name }

// connect makes conn the console's other end; serve must follow.
func (c *Console) connect(conn net.Conn) {
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	c.reset()
}

// reset tells whoever waits for a command that the system it ran on is gone.
func (c *Console) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life++
	c.wake()
}

// serve records what comes from conn until it ends.
func (c *Console) serve(conn net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			c.record(buf[:n], time.Now())
		}
		if err != nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
	}
	if !c.newLine { // the next start begins a line of its own
		c.clean = append(c.clean, '\n')
		c.newLine = true
	}
	c.esc = escNone
	c.wake()
}

func (c *Console) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// record appends what the guest sent.
func (c *Console) record(p []byte, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, p...)
	for _, b := range p {
		switch c.esc {
		case escStart:
			if b == '[' {
				c.esc = escCSI
			} else {
				c.esc = escNone
			}
			continue
		case escCSI:
			if b >= 0x40 && b <= 0x7e { // ECMA-48 final byte
				c.esc = escNone
			}
			continue
		}
		switch b {
		case 0x1b:
			c.esc = escStart
			continue
		case '\r', 0:
			continue
		}
		if c.newLine {
			c.starts = append(c.starts, lineStart{len(c.clean), at})
			c.newLine = false
		}
		c.clean = append(c.clean, b)
		if b == '\n' {
			c.newLine = true
		}
	}
	if c.tee != nil {
		c.tee.Write(p) // a person's terminal: an error there must not end the recording
	}
	c.wake()
}

// Tee copies everything that the guest sends from now on to w as well; nil ends that.
func (c *Console) Tee(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tee = w
}

// Write sends p to the guest as typed.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return 0, fmt.Errorf("write to console %s: %w", c.name, ErrConsoleClosed)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(Timeout(10 * time.Second))); err != nil {
		return 0, fmt.Errorf("write to console %s: %w", c.name, err)
	}
	n, err := conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, fmt.Errorf("write to console %s: the guest takes no input: %w", c.name, err)
	}
	return n, err
}

// Raw is everything the guest sent so far, byte for byte.
func (c *Console) Raw() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]byte(nil), c.raw...)
}

// Text is everything the guest sent so far, without carriage returns and escape sequences.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.clean)
}

// Mark is the present end of Text, for [Console.Since].
func (c *Console) Mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.clean)
}

// Since is the part of Text after mark.
func (c *Console) Since(mark int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.clean[min(mark, len(c.clean)):])
}

// Skip moves the cursor to the end: later waits see only what arrives from now on.
func (c *Console) Skip() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pos = len(c.clean)
}

// Tail is the last n lines.
func (c *Console) Tail(n int) string {
	lines := strings.Split(strings.TrimRight(c.Text(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// WaitLine waits for the next complete line that matches, and moves the cursor behind it. A kernel message that landed
// in the middle of such a line is taken out before matching. It ends early when ctx or the machine does.
func (c *Console) WaitLine(ctx context.Context, re *regexp.Regexp) (Line, error) {
	line, _, err := c.wait(ctx, "a line matching "+re.String(), func(text string) (int, int, string) {
		return findLine(text, re.MatchString)
	})
	return line, err
}

// WaitAny is WaitLine for several patterns; it also tells which one matched first.
func (c *Console) WaitAny(ctx context.Context, res ...*regexp.Regexp) (Line, int, error) {
	names := make([]string, len(res))
	for i, re := range res {
		names[i] = re.String()
	}
	which := -1
	line, _, err := c.wait(ctx, "a line matching one of "+strings.Join(names, " , "), func(text string) (int, int, string) {
		return findLine(text, func(s string) bool {
			for i, re := range res {
				if re.MatchString(s) {
					which = i
					return true
				}
			}
			return false
		})
	})
	if err != nil {
		which = -1
	}
	return line, which, err
}

// WaitText waits for text that matches anywhere after the cursor, complete line or not: prompts, menus.
func (c *Console) WaitText(ctx context.Context, re *regexp.Regexp) (string, error) {
	_, s, err := c.wait(ctx, "text matching "+re.String(), func(text string) (int, int, string) {
		m := re.FindStringIndex(text)
		if m == nil {
			return -1, 0, ""
		}
		return m[0], m[1], text[m[0]:m[1]]
	})
	return s, err
}

// wait calls find with the text after the cursor until it answers with a start >= 0.
func (c *Console) wait(ctx context.Context, what string, find func(string) (start, end int, match string)) (Line, string, error) {
	began := time.Now()
	for {
		c.mu.Lock()
		start, end, match := find(string(c.clean[c.pos:]))
		if start >= 0 {
			line := Line{Text: match, At: c.timeOf(c.pos + start)}
			c.pos += end
			c.mu.Unlock()
			return line, match, nil
		}
		changed, alive := c.changed, c.conn != nil
		c.mu.Unlock()
		if !alive {
			return Line{}, "", fmt.Errorf("wait on console %s for %s: %w; its last lines:\n%s", c.name, what, ErrConsoleClosed, c.Tail(20))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Line{}, "", fmt.Errorf("wait on console %s for %s: not seen in %.1f s (%w); its last lines:\n%s",
				c.name, what, time.Since(began).Seconds(), context.Cause(ctx), c.Tail(20))
		}
	}
}

// timeOf is when the line that holds offset off began to arrive. The caller holds the lock.
func (c *Console) timeOf(off int) time.Time {
	lo, hi := 0, len(c.starts)
	for lo < hi {
		mid := (lo + hi) / 2
		if c.starts[mid].off <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return time.Time{}
	}
	return c.starts[lo-1].at
}

// kernelStamp is the head of a kernel message: "[    1.234567] ".
var kernelStamp = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\[ *[0-9]+\.[0-9]{6}\] `) })

// findLine finds the first complete line of text that matches, with or without the kernel messages that landed inside.
func findLine(text string, match func(string) bool) (start, end int, found string) {
	for off := 0; ; {
		n := strings.IndexByte(text[off:], '\n')
		if n < 0 {
			return -1, 0, ""
		}
		line, next := text[off:off+n], off+n+1
		if match(line) {
			return off, next, line
		}
		if joined, after, ok := splice(text, line, next); ok && match(joined) {
			return off, after, joined
		}
		off = next
	}
}

// splice takes the kernel messages out of a line that was torn by them: the head of the line stands before the first
// message, its tail is the first following line that is not a message itself.
func splice(text, line string, next int) (joined string, after int, ok bool) {
	m := kernelStamp().FindStringIndex(line)
	if m == nil || m[0] == 0 {
		return "", 0, false
	}
	head := line[:m[0]]
	for {
		n := strings.IndexByte(text[next:], '\n')
		if n < 0 {
			return "", 0, false
		}
		tail := text[next : next+n]
		next += n + 1
		m := kernelStamp().FindStringIndex(tail)
		if m == nil {
			return head + tail, next, true
		}
		head += tail[:m[0]]
	}
}
