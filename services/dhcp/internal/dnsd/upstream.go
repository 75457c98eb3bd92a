package dnsd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// upstreams knows the servers and how they have done.
type upstreams struct {
	mu    sync.Mutex
	stats map[netip.AddrPort]*serverStat
}

type serverStat struct {
	srtt  time.Duration // smoothed time to an answer
	fails int           // without an answer, in a row
	last  time.Time     // of the last failure
	used  time.Time
}

const (
	// maxServers bounds the record of servers, past ones included.
	maxServers = 64
	// sulk is how long a server that failed comes last.
	sulk = 20 * time.Second
	// Waits until the next server is asked as well, and in all. Clients ask
	// again after 5 s (resolv.conf(5)).
	minHedge, maxHedge = 150 * time.Millisecond, time.Second
	totalWait          = 4500 * time.Millisecond
	// maxAttempts bounds the questions sent for one question.
	maxAttempts = 6
)

func (u *upstreams) stat(a netip.AddrPort) *serverStat {
	s := u.stats[a]
	if s == nil {
		if u.stats == nil {
			u.stats = map[netip.AddrPort]*serverStat{}
		}
		for k, v := range u.stats {
			if len(u.stats) < maxServers {
				break
			}
			if time.Since(v.used) > time.Minute || len(u.stats) >= 2*maxServers {
				delete(u.stats, k)
			}
		}
		s = &serverStat{}
		u.stats[a] = s
	}
	s.used = time.Now()
	return s
}

// order sorts the servers: the quick ones that answer come first. Now and then
// another one is tried first, or it could never show that it got better.
func (u *upstreams) order(servers []netip.AddrPort, strict bool) []netip.AddrPort {
	out := slices.Clone(servers)
	if len(out) < 2 || strict {
		return out
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int {
		x, y := u.stat(a), u.stat(b)
		bad := func(s *serverStat) bool { return s.fails > 0 && now.Sub(s.last) < sulk }
		switch {
		case bad(x) != bad(y):
			if bad(x) {
				return 1
			}
			return -1
		default:
			return int(x.srtt - y.srtt)
		}
	})
	if rand.IntN(32) == 0 {
		i := 1 + rand.IntN(len(out)-1)
		out[0], out[i] = out[i], out[0]
	}
	return out
}

// hedge is how long to wait for a server before the next one is asked as well.
func (u *upstreams) hedge(a netip.AddrPort) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stat(a)
	if s.srtt == 0 {
		return maxHedge / 2
	}
	return min(max(3*s.srtt, minHedge), maxHedge)
}

func (u *upstreams) note(a netip.AddrPort, d time.Duration, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stat(a)
	if !ok {
		s.fails++
		s.last = time.Now()
		return
	}
	s.fails = 0
	if s.srtt == 0 {
		s.srtt = d
	} else {
		s.srtt += (d - s.srtt) / 8
	}
}

// errNoServers means that nobody can be asked.
var errNoServers = errors.New("no upstream server is known")

// ask asks the servers until one gives an answer that settles the question.
// Another answer (a failure, a refusal) is returned only if all say nothing
// better.
func (u *upstreams) ask(ctx context.Context, servers []netip.AddrPort, q *dns.Msg, strict, all bool) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errNoServers
	}
	ctx, cancel := context.WithTimeout(ctx, totalWait)
	defer cancel()
	list := u.order(servers, strict)
	type result struct {
		m   *dns.Msg
		err error
	}
	results := make(chan result, maxAttempts)
	sent, open := 0, 0
	send := func() time.Duration {
		a := list[sent%len(list)]
		sent++
		open++
		go func() {
			m, err := u.exchange(ctx, a, q)
			results <- result{m, err}
		}()
		return u.hedge(a)
	}
	wait := send()
	if all {
		for sent < min(len(list), maxAttempts) {
			send()
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var poor *dns.Msg
	var last error
	poorCount := 0
	for {
		select {
		case r := <-results:
			open--
			switch {
			case r.err != nil:
				last = r.err
			case r.m.Rcode == dns.RcodeSuccess || r.m.Rcode == dns.RcodeNameError:
				return r.m, nil
			default:
				poor = r.m
				poorCount++
			}
			if poorCount >= len(list) {
				return poor, nil
			}
			if sent < maxAttempts && ctx.Err() == nil && (poor == nil || sent < len(list)) {
				if r.err != nil && sent >= len(list) && open > 0 {
					continue // all have been asked; the timer paces what comes after
				}
				if r.err != nil && sent >= len(list) {
					// A refused port comes back at once: do not spin.
					if !pause(ctx, minHedge) {
						continue
					}
				}
				timer.Reset(send())
				continue
			}
			if open == 0 {
				if poor != nil {
					return poor, nil
				}
				return nil, last
			}
		case <-timer.C:
			if sent < maxAttempts {
				timer.Reset(send() * time.Duration(1+sent/len(list)))
			}
		case <-ctx.Done():
			if poor != nil {
				return poor, nil
			}
			if last == nil {
				last = fmt.Errorf("none of %d servers has answered: %w", len(list), ctx.Err())
			}
			return nil, last
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// buffers are for answers by UDP.
var buffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// exchange asks one server, by UDP from a port of its own, and by TCP if the
// answer does not fit.
func (u *upstreams) exchange(ctx context.Context, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	start, patience := time.Now(), u.hedge(server)
	m, err := exchangeUDP(ctx, server, q)
	if err == nil && m.Truncated {
		var t *dns.Msg
		if t, err = exchangeTCP(ctx, server, q); err == nil {
			m = t
		} else {
			err = nil // cut is better than nothing
		}
	}
	// A question that somebody else has answered in the meantime tells
	// nothing about this server, unless it had its time: then it is what the
	// answer had to wait for.
	if err == nil || ctx.Err() == nil || time.Since(start) >= patience {
		u.note(server, time.Since(start), err == nil)
	}
	return m, err
}

func exchangeUDP(ctx context.Context, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	q = q.Copy()
	q.Id = uint16(rand.Uint32()) // ChaCha8, seeded by the kernel
	b, err := q.Pack()
	if err != nil {
		return nil, fmt.Errorf("make a question: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(b); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := conn.Read(*buf)
		if err != nil {
			return nil, fmt.Errorf("ask %s: %w", server, err)
		}
		if m := acceptable((*buf)[:n], q); m != nil {
			return m, nil
		}
	}
}

// acceptable reads an answer; nil if it is none to this question, as forgeries
// are.
func acceptable(b []byte, q *dns.Msg) *dns.Msg {
	if len(b) < headerLen || binary.BigEndian.Uint16(b) != q.Id || b[2]&0x80 == 0 {
		return nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil && !m.Truncated {
		return nil
	}
	if len(m.Question) != 1 {
		// Some answer errors without the question.
		if len(m.Question) == 0 && m.Rcode != dns.RcodeSuccess && len(m.Answer) == 0 {
			m.Question = q.Question
			return m
		}
		return nil
	}
	a, w := m.Question[0], q.Question[0]
	if a.Qtype != w.Qtype || a.Qclass != w.Qclass || !strings.EqualFold(a.Name, w.Name) {
		return nil
	}
	return m
}

func exchangeTCP(ctx context.Context, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	q = q.Copy()
	q.Id = uint16(rand.Uint32())
	b, err := q.Pack()
	if err != nil {
		return nil, fmt.Errorf("make a question: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, fmt.Errorf("ask %s by TCP: %w", server, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
		return nil, fmt.Errorf("ask %s by TCP: %w", server, err)
	}
	var n [2]byte
	if _, err := io.ReadFull(conn, n[:]); err != nil {
		return nil, fmt.Errorf("ask %s by TCP: %w", server, err)
	}
	buf := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, fmt.Errorf("ask %s by TCP: %w", server, err)
	}
	m := acceptable(buf, q)
	if m == nil {
		return nil, fmt.Errorf("ask %s by TCP: the answer is none to the question", server)
	}
	return m, nil
}

// resolvFile follows a file of resolv.conf's format.
type resolvFile struct {
	mu      sync.Mutex
	path    string
	looked  time.Time
	mtime   time.Time
	size    int64
	servers []netip.AddrPort
}

// lookEvery is how often the file is looked at, when there is something to ask.
const lookEvery = time.Second

// get returns the servers, reading the file if it has changed.
func (f *resolvFile) get() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.path == "" {
		return nil
	}
	now := time.Now()
	if !f.looked.IsZero() && now.Sub(f.looked) < lookEvery {
		return f.servers
	}
	f.looked = now
	fi, err := os.Stat(f.path)
	if err != nil {
		f.servers, f.mtime = nil, time.Time{}
		return nil
	}
	if fi.ModTime().Equal(f.mtime) && fi.Size() == f.size {
		return f.servers
	}
	file, err := os.Open(f.path)
	if err != nil {
		return f.servers
	}
	defer file.Close()
	f.servers = ReadResolv(io.LimitReader(file, 1<<20))
	f.mtime, f.size = fi.ModTime(), fi.Size()
	return f.servers
}

// set lets another file be followed.
func (f *resolvFile) set(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = time.Time{} // look again in any case
	if path != f.path {
		f.path, f.servers, f.mtime = path, nil, time.Time{}
	}
}

// ReadResolv reads the nameserver lines of a resolv.conf.
func ReadResolv(r io.Reader) []netip.AddrPort {
	const most = 32
	var out []netip.AddrPort
	sc := bufio.NewScanner(r)
	for sc.Scan() && len(out) < most {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || a.IsUnspecified() || a.IsMulticast() {
			continue
		}
		if ap := netip.AddrPortFrom(a, 53); !slices.Contains(out, ap) {
			out = append(out, ap)
		}
	}
	return out
}
