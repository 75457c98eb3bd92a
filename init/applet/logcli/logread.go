package logcli

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/applet/options"
	"weft/init/applet/posixre"
	"weft/init/bus"
	"weft/init/unit"
)

const logreadUsage = `[OPTION]...
Show the log.
  -l COUNT         the last COUNT messages     -f  go on with what comes
  -e PATTERN       those that match a basic regular expression
  -z, -Z FACILITY  only, or all but, that facility (0 to 23; may be repeated)
  -t               add a time stamp with milliseconds
  -F FILE -S KIB   write to FILE, which is turned over at KIB
  -r SERVER PORT   send to a syslog server     -u  by UDP     -0  end TCP lines with NUL
  -h HOSTNAME, -P PREFIX   what to put before each line sent
  -p FILE          write the process id to FILE     -s SOCKET  of the bus
Example: logread -f -e dnsmasq`

// entry is a line of the log as the object log hands it out.
type entry struct {
	msg      string
	priority uint32
	source   uint32
	time     int64 // ms since 1970
}

// Logread shows, follows, stores or sends the log.
func Logread(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "l:e:r:F:S:p:h:P:z:Z:s:fu0t", logreadUsage)
	if code >= 0 {
		return code
	}
	r := reader{c: c, o: o, follow: o.Has('f'), socket: o.Value('s', bus.DefaultSocket)}
	if r.lines, code = o.Int('l', 0); code >= 0 {
		return code
	}
	if pattern := o.Value('e', ""); pattern != "" {
		re, err := posixre.Compile(pattern, posixre.Options{})
		if err != nil {
			return o.Fail("-e: %v", err)
		}
		r.match = re
	}
	for _, l := range []byte("zZ") {
		for _, v := range o.Values(l) {
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil || n > 23 {
				return o.Fail("-%c: %q is not a facility (0 to 23)", l, v)
			}
			if l == 'z' {
				r.only = append(r.only, uint32(n))
			} else {
				r.not = append(r.not, uint32(n))
			}
		}
	}
	operands := 0
	if o.Has('r') {
		operands = 1
	}
	if code := o.Operands(operands, operands); code >= 0 {
		return code
	}
	if pid := o.Value('p', ""); pid != "" {
		if err := os.WriteFile(c.Path(pid), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return r.fail("write the process id: %v", err)
		}
		defer os.Remove(c.Path(pid))
	}
	var out sink
	switch {
	case o.Has('r'):
		out = &server{r: &r, addr: net.JoinHostPort(o.Value('r', ""), o.Args[0]), udp: o.Has('u')}
	case o.Has('F'):
		size, code := o.Int('S', 0)
		if code >= 0 {
			return code
		}
		out = &file{r: &r, path: c.Path(o.Value('F', "")), most: int64(max(size, 0)) * 1024}
	default:
		out = &screen{r: &r, w: bufio.NewWriter(c.Stdout)}
	}
	defer out.close()
	return r.run(ctx, out)
}

// sink is where lines go. flush is called when no more are at hand.
type sink interface {
	put(ctx context.Context, e *entry) error
	flush() error
	close()
}

type reader struct {
	c         *unit.Call
	o         *options.Set
	socket    string
	follow    bool
	lines     int
	match     *regexp.Regexp
	only, not []uint32
}

func (r *reader) fail(format string, args ...any) int {
	fmt.Fprintf(r.c.Stderr, "logread: %s\n", fmt.Sprintf(format, args...))
	return 1
}

// run reads the log; when following, across restarts of logd and the broker.
func (r *reader) run(ctx context.Context, out sink) int {
	args := map[string]any{"stream": true, "oneshot": !r.follow}
	if r.lines > 0 || r.follow {
		args["lines"] = r.lines
	}
	seen := false
	for {
		err := r.session(ctx, args, out, &seen)
		switch {
		case ctx.Err() != nil:
			return 0
		case err == nil && !r.follow:
			return 0
		case err != nil && (!r.follow || !seen):
			return r.fail("%v", err)
		}
		// Followed and lost: logd is being restarted. What is new comes next.
		args["lines"] = 0
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(time.Second):
		}
	}
}

func (r *reader) session(ctx context.Context, args any, out sink, seen *bool) error {
	client, err := bus.Dial(ctx, r.socket)
	if err != nil {
		return fmt.Errorf("connect to the bus: %w", err)
	}
	defer client.Close()
	_, f, err := client.CallFD(ctx, "log", "read", args)
	if err != nil {
		return fmt.Errorf("failed to find log object: %w", err)
	}
	if f == nil {
		return errors.New("the log service sent no stream")
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	defer f.Close()
	*seen = true
	in := bufio.NewReaderSize(f, 64*1024)
	for {
		if in.Buffered() == 0 {
			if err := out.flush(); err != nil {
				return err
			}
		}
		e, err := readEntry(in)
		if err == io.EOF || ctx.Err() != nil {
			return out.flush()
		}
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if r.wanted(&e) {
			if err := out.put(ctx, &e); err != nil {
				return err
			}
		}
	}
}

func (r *reader) wanted(e *entry) bool {
	f := e.priority >> 3
	return (r.match == nil || r.match.MatchString(e.msg)) &&
		(len(r.only) == 0 || slices.Contains(r.only, f)) && !slices.Contains(r.not, f)
}

// maxBlob bounds an entry on the wire; logd cuts lines at a fraction of that.
const maxBlob = 64 * 1024

// readEntry reads one blob of the stream (libubox blob.h, blobmsg.h).
func readEntry(r io.Reader) (entry, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return entry{}, err // io.EOF between entries is the end
	}
	n := int(binary.BigEndian.Uint32(head[:]) & 0xffffff)
	if n < 4 || n > maxBlob {
		return entry{}, fmt.Errorf("an entry of %d bytes: not a log stream", n)
	}
	b := make([]byte, n-4)
	if _, err := io.ReadFull(r, b); err != nil {
		return entry{}, io.ErrUnexpectedEOF
	}
	return parseEntry(b)
}

// parseEntry takes the attributes of an entry apart; unknown ones are skipped.
func parseEntry(b []byte) (entry, error) {
	var e entry
	bad := errors.New("a malformed entry: not a log stream")
	for len(b) > 0 {
		if len(b) < 8 {
			return e, bad
		}
		n := int(binary.BigEndian.Uint32(b) & 0xffffff)
		nameLen := int(binary.BigEndian.Uint16(b[4:]))
		dataAt := (4 + 2 + nameLen + 1 + 3) &^ 3
		if n < dataAt || n > len(b) {
			return e, bad
		}
		name, data := string(b[6:6+nameLen]), b[dataAt:n]
		number := func(size int) (v uint64) {
			if len(data) != size {
				return 0
			}
			for _, c := range data {
				v = v<<8 | uint64(c)
			}
			return v
		}
		switch name {
		case "msg":
			e.msg = strings.TrimRight(string(data), "\x00")
		case "priority":
			e.priority = uint32(number(4))
		case "source":
			e.source = uint32(number(4))
		case "time":
			e.time = int64(number(8))
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return e, nil
}

// line is the form of logread on LEDE.
func (r *reader) line(e *entry) string {
	t := time.UnixMilli(e.time)
	stamp, kernel := "", ""
	if r.o.Has('t') {
		stamp = fmt.Sprintf("[%d.%03d] ", t.Unix(), e.time%1000)
	}
	if e.source == 0 {
		kernel = " kernel:"
	}
	return t.Format("Mon Jan _2 15:04:05 2006") + " " + stamp + priorityName(e.priority) + kernel + " " + e.msg + "\n"
}

// screen prints.
type screen struct {
	r *reader
	w *bufio.Writer
}

func (s *screen) put(_ context.Context, e *entry) error {
	_, err := s.w.WriteString(s.r.line(e))
	return err
}

func (s *screen) flush() error { return s.w.Flush() }
func (s *screen) close()       { s.w.Flush() }

// file appends to a file that becomes FILE.0 when it is full.
type file struct {
	r    *reader
	path string
	most int64 // bytes; 0: no bound
	f    *os.File
	size int64
}

func (o *file) put(_ context.Context, e *entry) error {
	if o.f == nil {
		f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		o.f = f
		st, err := f.Stat()
		if err != nil {
			return err
		}
		o.size = st.Size()
	}
	n, err := o.f.WriteString(o.r.line(e))
	o.size += int64(n)
	if err == nil && o.most > 0 && o.size >= o.most {
		err = errors.Join(o.f.Close(), os.Rename(o.path, o.path+".0"))
		o.f = nil
	}
	return err
}

func (o *file) flush() error { return nil }

func (o *file) close() {
	if o.f != nil {
		o.f.Close()
	}
}

// server sends to a syslog server (RFC 3164) and comes back when it is lost.
type server struct {
	r    *reader
	addr string
	udp  bool
	conn net.Conn
}

func (o *server) put(ctx context.Context, e *entry) error {
	proto := "tcp"
	if o.udp {
		proto = "udp"
	}
	b := o.packet(e)
	pause := time.Second
	for {
		if o.conn == nil {
			d := net.Dialer{Timeout: 10 * time.Second}
			conn, err := d.DialContext(ctx, proto, o.addr)
			if err != nil {
				if !o.r.follow {
					return err
				}
				fmt.Fprintf(o.r.c.Stderr, "logread: reach %s: %v; trying again in %v\n", o.addr, err, pause)
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(pause):
				}
				pause = min(2*pause, time.Minute)
				continue
			}
			o.conn = conn
		}
		_, err := o.conn.Write(b)
		if err == nil || o.udp {
			return nil // UDP reports the loss of an earlier line: nothing to be done about it
		}
		o.conn.Close()
		o.conn = nil
	}
}

func (o *server) packet(e *entry) []byte {
	b := fmt.Appendf(nil, "<%d>%s ", e.priority, time.UnixMilli(e.time).Format(time.Stamp))
	if h := o.r.o.Value('h', ""); h != "" {
		b = append(append(b, h...), ' ')
	}
	if p := o.r.o.Value('P', ""); p != "" {
		b = append(append(b, p...), ": "...)
	}
	if e.source == 0 {
		b = append(b, "kernel: "...)
	}
	b = append(b, e.msg...)
	switch {
	case o.udp:
	case o.r.o.Has('0'):
		b = append(b, 0)
	default:
		b = append(b, '\n')
	}
	return b
}

func (o *server) flush() error { return nil }

func (o *server) close() {
	if o.conn != nil {
		o.conn.Close()
	}
}
