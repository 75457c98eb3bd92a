package nettools

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

const pingUsage = `[-4|-6] [-c COUNT] [-i SECONDS] [-W SECONDS] [-w SECONDS] [-s BYTES] [-t TTL] [-I ADDRESS|INTERFACE] [-q] HOST
Send ICMP echo requests (RFC 792, RFC 4443) and show the answers.
  -c COUNT    stop after so many          -i SECONDS  between two (default 1)
  -W SECONDS  wait for an answer (10)     -w SECONDS  stop after so long
  -s BYTES    of payload (56)             -q          only the summary
Exit code 0: answers came; 1: none; 2: cannot send.
Example: ping -c 3 192.168.1.1`

// pingFamily is what differs between ICMP for IPv4 and IPv6.
type pingFamily struct {
	echo, reply icmp.Type
	proto       int // as IANA numbers it
}

var (
	ping4 = pingFamily{ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, 1}
	ping6 = pingFamily{ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58}
)

// Ping is ping and ping6.
func Ping(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "46c:i:W:w:s:t:I:qn", pingUsage)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, 1); code >= 0 {
		return code
	}
	count, code := o.Int('c', 0)
	if code >= 0 {
		return code
	}
	size, code := o.Int('s', 56)
	if code >= 0 {
		return code
	}
	ttl, code := o.Int('t', 0)
	if code >= 0 {
		return code
	}
	if size < 0 || size > 65507 || ttl < 0 || ttl > 255 || count < 0 {
		return o.Fail("-s takes 0 to 65507, -t 1 to 255, -c 1 or more")
	}
	interval, err := seconds(o.Value('i', "1"))
	if err != nil || interval < 2*time.Millisecond {
		return o.Fail("-i: %q is not a number of seconds above 0.002", o.Value('i', ""))
	}
	wait, err := seconds(o.Value('W', "10"))
	if err != nil {
		return o.Fail("-W: %v", err)
	}
	deadline, err := seconds(o.Value('w', "0"))
	if err != nil {
		return o.Fail("-w: %v", err)
	}
	network := "ip"
	switch {
	case o.Has('6') || strings.HasSuffix(c.Args[0], "6"):
		network = "ip6"
	case o.Has('4'):
		network = "ip4"
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	dst, err := resolve(ctx, network, o.Args[0])
	if err != nil {
		fmt.Fprintf(c.Stderr, "ping: %v\n", err)
		return 2
	}
	fam := ping6
	if dst.IP.To4() != nil {
		fam = ping4
	}
	p := &pinger{family: fam, dst: dst, size: size, wait: wait, interval: interval, count: count, quiet: o.Has('q'), call: c, host: o.Args[0]}
	if err := p.open(o.Value('I', ""), ttl); err != nil {
		fmt.Fprintf(c.Stderr, "ping: %v\n", err)
		return 2
	}
	defer p.conn.Close()
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	return p.run(ctx)
}

func seconds(s string) (time.Duration, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f > 1e6 {
		return 0, fmt.Errorf("%q is not a number of seconds", s)
	}
	return time.Duration(f * float64(time.Second)), nil
}

// resolve takes a name or an address, with a zone where it has one.
func resolve(ctx context.Context, network, host string) (*net.IPAddr, error) {
	name, zone, _ := strings.Cut(host, "%")
	if ip := net.ParseIP(name); ip != nil {
		if network == "ip4" && ip.To4() == nil || network == "ip6" && ip.To4() != nil {
			return nil, fmt.Errorf("%s is not an %s address", host, strings.Replace(network, "ip", "IPv", 1))
		}
		return &net.IPAddr{IP: ip, Zone: zone}, nil
	}
	ips, err := net.DefaultResolver.LookupIP(ctx, network, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w (is there a name server in /etc/resolv.conf?)", host, err)
	}
	return &net.IPAddr{IP: ips[0]}, nil
}

type pinger struct {
	family         pingFamily
	dst            *net.IPAddr
	host           string
	conn           net.PacketConn
	datagram       bool // the kernel sets and filters the id
	id             int
	size, count    int
	wait, interval time.Duration
	quiet          bool
	call           *unit.Call
}

// open prefers a raw socket; without the right to it, the kernel's ping
// sockets, which net.ipv4.ping_group_range allows.
func (p *pinger) open(from string, ttl int) error {
	device, source := "", net.ParseIP(from)
	if from != "" && source == nil {
		if _, err := net.InterfaceByName(from); err != nil {
			return fmt.Errorf("-I %s is neither an address nor an interface here (see ip addr)", from)
		}
		device = from
	}
	p.id = os.Getpid() & 0xffff
	err := p.socket(unix.SOCK_RAW, device, source, ttl)
	if errors.Is(err, unix.EPERM) {
		p.datagram = true
		err = p.socket(unix.SOCK_DGRAM, device, source, ttl)
	}
	if err != nil {
		return fmt.Errorf("open an ICMP socket: %w", err)
	}
	return nil
}

func (p *pinger) socket(kind int, device string, source net.IP, ttl int) error {
	domain, proto, level, hops := unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_TTL
	if p.family.proto != 1 {
		domain, proto, level, hops = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close() // FilePacketConn makes a descriptor of its own
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return fmt.Errorf("bind to %s: %w", device, err)
		}
	}
	if ttl > 0 {
		if err := unix.SetsockoptInt(fd, level, hops, ttl); err != nil {
			return fmt.Errorf("set the TTL: %w", err)
		}
	}
	if source != nil {
		var sa unix.Sockaddr
		if v4 := source.To4(); v4 != nil && domain == unix.AF_INET {
			sa = &unix.SockaddrInet4{Addr: [4]byte(v4)}
		} else if v4 == nil && domain == unix.AF_INET6 {
			sa = &unix.SockaddrInet6{Addr: [16]byte(source.To16())}
		} else {
			return fmt.Errorf("source %s and destination %s are of different families", source, p.dst)
		}
		if err := unix.Bind(fd, sa); err != nil {
			return fmt.Errorf("bind to %s: %w", source, err)
		}
	}
	p.conn, err = net.FilePacketConn(f)
	return err
}

// answer is a reply that came in.
type answer struct {
	seq, bytes int
	from       net.Addr
	at         time.Time
	note       string // an ICMP error instead of a reply
}

// run sends until count, time or Ctrl-C and prints the summary.
func (p *pinger) run(ctx context.Context) int {
	out := p.call.Stdout
	fmt.Fprintf(out, "PING %s (%s): %d data bytes\n", p.host, p.dst, p.size)
	answers := make(chan answer)
	done := make(chan struct{})
	defer close(done)
	go p.receive(answers, done)
	sent := map[int]time.Time{}
	total, received, duplicates := 0, 0, 0
	var sum, square, low, high float64
	low = math.Inf(1)
	got := map[int]bool{}
	tick := time.NewTimer(0)
	defer tick.Stop()
	var last <-chan time.Time
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-last:
			running = false
		case <-tick.C:
			seq := total & 0xffff
			sent[seq] = time.Now()
			delete(got, seq)
			if err := p.send(seq); err != nil {
				fmt.Fprintf(p.call.Stderr, "ping: send to %s: %v\n", p.dst, err)
				delete(sent, seq)
			}
			total++
			if p.count > 0 && total == p.count {
				if running = len(sent) > received; running {
					last = time.After(p.wait)
				}
				continue
			}
			tick.Reset(p.interval)
		case a := <-answers:
			start, ok := sent[a.seq]
			if !ok {
				continue
			}
			if a.note != "" {
				fmt.Fprintf(out, "From %s: seq=%d %s\n", a.from, a.seq, a.note)
				continue
			}
			ms := float64(a.at.Sub(start).Microseconds()) / 1000
			dup := ""
			if got[a.seq] {
				duplicates++
				dup = " (DUP!)"
			} else {
				got[a.seq] = true
				received++
				sum, square, low, high = sum+ms, square+ms*ms, min(low, ms), max(high, ms)
			}
			if !p.quiet {
				fmt.Fprintf(out, "%d bytes from %s: seq=%d time=%.3f ms%s\n", a.bytes, a.from, a.seq, ms, dup)
			}
			if p.count > 0 && received == p.count {
				running = false
			}
		}
	}
	lost := 0
	if total > 0 {
		lost = 100 * (total - received) / total
	}
	dup := ""
	if duplicates > 0 {
		dup = fmt.Sprintf("%d duplicates, ", duplicates)
	}
	fmt.Fprintf(out, "\n--- %s ping statistics ---\n%d packets transmitted, %d packets received, %s%d%% packet loss\n", p.host, total, received, dup, lost)
	if received == 0 {
		return 1
	}
	avg := sum / float64(received)
	fmt.Fprintf(out, "round-trip min/avg/max/mdev = %.3f/%.3f/%.3f/%.3f ms\n", low, avg, high, math.Sqrt(max(square/float64(received)-avg*avg, 0)))
	return 0
}

func (p *pinger) send(seq int) error {
	data := make([]byte, p.size)
	if p.size >= 8 {
		binary.BigEndian.PutUint64(data, uint64(time.Now().UnixNano()))
	}
	m := icmp.Message{Type: p.family.echo, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: data}}
	b, err := m.Marshal(nil) // the kernel sums ICMPv6
	if err != nil {
		return err
	}
	var to net.Addr = p.dst
	if p.datagram {
		to = &net.UDPAddr{IP: p.dst.IP, Zone: p.dst.Zone}
	}
	_, err = p.conn.WriteTo(b, to)
	return err
}

// receive passes on what concerns this ping until the socket is closed.
func (p *pinger) receive(out chan<- answer, done <-chan struct{}) {
	buf := make([]byte, 65536)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		at := time.Now()
		m, err := icmp.ParseMessage(p.family.proto, buf[:n])
		if err != nil {
			continue
		}
		a := answer{bytes: n, from: plainAddr(from), at: at}
		switch body := m.Body.(type) {
		case *icmp.Echo:
			if m.Type != p.family.reply || !p.datagram && body.ID != p.id {
				continue
			}
			a.seq = body.Seq
		case *icmp.DstUnreach:
			a.note = "destination unreachable"
			if a.seq = p.quoted(body.Data); a.seq < 0 {
				continue
			}
		case *icmp.TimeExceeded:
			a.note = "time to live exceeded"
			if a.seq = p.quoted(body.Data); a.seq < 0 {
				continue
			}
		case *icmp.PacketTooBig:
			a.note = fmt.Sprintf("packet too big, mtu %d", body.MTU)
			if a.seq = p.quoted(body.Data); a.seq < 0 {
				continue
			}
		default:
			continue
		}
		select {
		case out <- a:
		case <-done:
			return
		}
	}
}

// quoted is the sequence number of our request inside an ICMP error, or -1.
func (p *pinger) quoted(b []byte) int {
	head := 40
	if p.family.proto == 1 {
		if len(b) < 20 {
			return -1
		}
		head = int(b[0]&0xf) * 4
	}
	if len(b) < head+8 || int(binary.BigEndian.Uint16(b[head+4:])) != p.id && !p.datagram {
		return -1
	}
	return int(binary.BigEndian.Uint16(b[head+6:]))
}

func plainAddr(a net.Addr) net.Addr {
	if u, ok := a.(*net.UDPAddr); ok {
		return &net.IPAddr{IP: u.IP, Zone: u.Zone}
	}
	return a
}
