package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Syslog severities, RFC 5424 table 2.
const (
	SevErr     = 3
	SevWarning = 4
	SevNotice  = 5
	SevInfo    = 6
	SevDebug   = 7
)

// MaxLine is the longest line of output kept whole; a longer one is cut into
// several. logd and RFC 3164 (section 4.1) speak of 1024 bytes a packet.
const MaxLine = 900

// Forwarder brings lines to the log daemon's socket. While nobody listens there
// it keeps what fits its bound; beyond, the oldest lines go, and their number
// is logged once somebody listens.
type Forwarder struct {
	addr string
	max  int

	mu      sync.Mutex
	queue   []string
	size    int
	dropped int
	total   int // dropped ever
	wake    chan struct{}
}

// retryInterval is how often a socket that nobody listens at is tried again,
// when no Retry comes first.
const retryInterval = time.Second

// NewForwarder returns a Forwarder to the datagram socket at addr that holds at
// most max bytes.
func NewForwarder(addr string, max int) *Forwarder {
	return &Forwarder{addr: addr, max: max, wake: make(chan struct{}, 1)}
}

// Log queues one line. It never blocks.
func (f *Forwarder) Log(facility, severity int, tag string, pid int, text string) {
	var b strings.Builder
	b.Grow(len(text) + len(tag) + 16)
	b.WriteByte('<')
	b.WriteString(strconv.Itoa(facility<<3 | severity))
	b.WriteByte('>')
	b.WriteString(tag)
	if pid > 0 {
		b.WriteByte('[')
		b.WriteString(strconv.Itoa(pid))
		b.WriteByte(']')
	}
	b.WriteString(": ")
	b.WriteString(text)

	f.mu.Lock()
	f.queue = append(f.queue, b.String())
	f.size += b.Len()
	for f.size > f.max && len(f.queue) > 1 {
		f.size -= len(f.queue[0])
		f.queue[0] = ""
		f.queue = f.queue[1:]
		f.dropped++
		f.total++
	}
	f.mu.Unlock()
	f.Retry()
}

// Retry says that somebody may listen now.
func (f *Forwarder) Retry() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Dropped is how many lines were lost since the start.
func (f *Forwarder) Dropped() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}

// Run delivers until ctx ends, and then once more what is left and can be
// delivered at once.
func (f *Forwarder) Run(ctx context.Context) {
	var conn net.Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	timer := time.NewTimer(retryInterval)
	defer timer.Stop()
	for {
		conn = f.deliver(ctx, conn)
		timer.Reset(retryInterval)
		select {
		case <-ctx.Done():
			conn = f.deliver(ctx, conn)
			return
		case <-f.wake:
		case <-timer.C:
		}
	}
}

// deliver sends what is queued; it stops early when nobody takes it. It returns
// the connection to go on with.
func (f *Forwarder) deliver(ctx context.Context, conn net.Conn) net.Conn {
	fresh := conn == nil
	for {
		line, lost, ok := f.head()
		if !ok {
			return conn
		}
		if conn == nil {
			c, err := net.Dial("unixgram", f.addr)
			if err != nil {
				return nil
			}
			conn = c
		}
		wait := time.Now().Add(retryInterval)
		if ctx.Err() != nil {
			wait = time.Now().Add(100 * time.Millisecond)
		}
		conn.SetWriteDeadline(wait)
		if _, err := io.WriteString(conn, line); err != nil {
			conn.Close()
			conn = nil
			if fresh {
				return nil
			}
			fresh = true // the log daemon may have restarted: one try with a new connection
			continue
		}
		f.sent(line, lost)
	}
}

// head is the line to send next: word of a loss first, with the number of lines
// it speaks of.
func (f *Forwarder) head() (line string, lost int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.dropped; n > 0 {
		return fmt.Sprintf("<%d>weft: %d log lines lost: the buffer was full and nobody took them", 3<<3|SevWarning, n), n, true
	}
	if len(f.queue) == 0 {
		return "", 0, false
	}
	return f.queue[0], 0, true
}

// sent takes what head gave off the queue, unless it was dropped meanwhile.
func (f *Forwarder) sent(line string, lost int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case lost > 0:
		f.dropped -= lost
	case len(f.queue) > 0 && f.queue[0] == line:
		f.size -= len(line)
		f.queue[0] = ""
		f.queue = f.queue[1:]
		if len(f.queue) == 0 {
			f.queue = nil // lets the array go
		}
	}
}

// Lines reads r to its end and hands each line over without its line break; a
// line longer than max comes in parts.
func Lines(r io.Reader, max int, line func(string)) {
	buf := make([]byte, 0, 4096)
	chunk := make([]byte, 2048)
	for {
		n, err := r.Read(chunk)
		buf = append(buf, chunk[:n]...)
		for {
			i := bytes.IndexByte(buf, '\n')
			end, next := i, i+1
			if i < 0 || i > max {
				if len(buf) <= max && i < 0 {
					break
				}
				end, next = max, max
			}
			line(strings.TrimSuffix(string(buf[:end]), "\r"))
			buf = append(buf[:0], buf[next:]...)
		}
		if err != nil {
			if len(buf) > 0 {
				line(strings.TrimSuffix(string(buf), "\r"))
			}
			return
		}
	}
}

// cutPriority takes the priority prefix of sd-daemon(3), "<4>", off a line.
func cutPriority(line string, otherwise int) (severity int, text string) {
	if len(line) >= 3 && line[0] == '<' && line[2] == '>' && line[1] >= '0' && line[1] <= '7' {
		return int(line[1] - '0'), line[3:]
	}
	return otherwise, line
}
