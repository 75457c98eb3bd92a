// Command bench measures answers from the DNS cache beside dnsmasq: answers a
// second and the 99th percentile of the time to an answer, both on this machine,
// in turns, with the same client, and prints the ratios.
//
//	go run ./services/dhcp/internal/bench [--rounds 5] [--round 1s] [--window 32] [--min 1.0]
//
// A ratio of 1 or more means: at least as many answers, or at most as long, as
// dnsmasq. It exits with 1 if one is below --min, and with 0 and a word about it
// where dnsmasq is not installed.
package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/dnsd"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 5, "`number` of turns; the median counts")
	length := flag.Duration("round", time.Second, "length of a turn")
	window := flag.Int("window", 32, "questions under way at a time")
	least := flag.Float64("min", 0, "the ratios that are enough")
	flag.Parse()
	ok, err := run(*rounds, *length, *window, *least)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// serve is our side, in a process of its own as dnsmasq is.
func serve(port, upstream string) error {
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	up, err := netip.ParseAddrPort(upstream)
	if err != nil {
		return err
	}
	r := dnsd.New(slog.New(slog.DiscardHandler))
	defer r.Close()
	d := config.DNS{Port: n, CacheSize: 1000, EDNSMax: 1232, ForwardMax: 150, NoResolv: true, NoHosts: true, Servers: []config.Server{{Addr: up}}}
	if err := r.Apply(d, config.Records{}, dnsd.Sources{}); err != nil {
		return err
	}
	l, err := r.Listen("lo", n, dnsd.Access{Any: true})
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent goes
	return nil
}

const names = 200

func name(i int) string { return fmt.Sprintf("host-%d.example.net.", i) }

// startUpstream answers everything with one address for an hour.
func startUpstream() (*dns.Server, string, error) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.IPv4(198, 51, 100, 7)}}
		_ = w.WriteMsg(m) // a lost answer is asked for again
	})
	s := &dns.Server{PacketConn: pc, Handler: h}
	go s.ActivateAndServe()
	return s, pc.LocalAddr().String(), nil
}

func freePort() (int, error) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port, nil
}

// side is one of the two servers.
type side struct {
	name string
	addr *net.UDPAddr
	rate []float64
	p99  []time.Duration
}

func run(rounds int, length time.Duration, window int, least float64) (bool, error) {
	dnsmasq, err := exec.LookPath("dnsmasq")
	if err != nil {
		if _, serr := os.Stat("/usr/sbin/dnsmasq"); serr != nil {
			fmt.Println("DNS: not measured, dnsmasq is not installed (apt-get install dnsmasq-base)")
			return true, nil
		}
		dnsmasq = "/usr/sbin/dnsmasq"
	}
	up, upAddr, err := startUpstream()
	if err != nil {
		return false, err
	}
	defer up.Shutdown()
	dir, err := os.MkdirTemp("", "weft-bench")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	host, upPort, err := net.SplitHostPort(upAddr)
	if err != nil {
		return false, err
	}
	var sides []*side
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	start := func(name string, port int, cmd *exec.Cmd) error {
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if cmd.Stdin == nil {
			in, err := cmd.StdinPipe()
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { in.Close() })
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		sides = append(sides, &side{name: name, addr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}})
		return nil
	}
	p1, err := freePort()
	if err != nil {
		return false, err
	}
	theirs := exec.CommandContext(ctx, dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--cache-size=1000",
		"--port="+strconv.Itoa(p1), "--listen-address=127.0.0.1", "--bind-interfaces", "--server="+host+"#"+upPort, "--pid-file="+filepath.Join(dir, "pid"), "--user=")
	p2, err := freePort()
	if err != nil {
		return false, err
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	ours := exec.CommandContext(ctx, self, "serve", strconv.Itoa(p2), upAddr)
	if err := errors.Join(start("dnsmasq", p1, theirs), start("weft", p2, ours)); err != nil {
		return false, err
	}
	defer func() { cancel(); _ = theirs.Wait(); _ = ours.Wait() }()
	for _, s := range sides {
		if err := warm(s.addr); err != nil {
			return false, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for range rounds {
		for _, s := range sides {
			rate, p99, err := measure(s.addr, length, window)
			if err != nil {
				return false, fmt.Errorf("%s: %w", s.name, err)
			}
			s.rate, s.p99 = append(s.rate, rate), append(s.p99, p99)
		}
	}
	t, o := sides[0], sides[1]
	rate := median(o.rate) / median(t.rate)
	p99 := float64(median(t.p99)) / float64(median(o.p99))
	fmt.Printf("DNS cache answers/s: weft %.0f, dnsmasq %.0f, ratio %.2f (at least 1)\n", median(o.rate), median(t.rate), rate)
	fmt.Printf("DNS cache p99 with %d questions under way: weft %v, dnsmasq %v, ratio %.2f (at least 1)\n", window, median(o.p99), median(t.p99), p99)
	return rate >= least && p99 >= least, nil
}

func median[T cmp.Ordered](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

func question(i int, id uint16) []byte {
	m := new(dns.Msg)
	m.SetQuestion(name(i), dns.TypeA)
	m.Id = id
	b, err := m.Pack()
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return b
}

// warm asks for each name until it is answered, so that it is in the cache.
func warm(addr *net.UDPAddr) error {
	c, err := net.DialUDP("udp4", nil, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 2048)
	for i := range names {
		ok := false
		for try := 0; try < 100 && !ok; try++ {
			_, _ = c.Write(question(i, uint16(i))) // refused until the server is up
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := c.Read(buf)
			if err != nil {
				time.Sleep(20 * time.Millisecond)
				continue
			}
			ok = n > 12 && binary.BigEndian.Uint16(buf) == uint16(i) && buf[3]&15 == 0 && buf[7] == 1
		}
		if !ok {
			return fmt.Errorf("no answer for %s", name(i))
		}
	}
	return nil
}

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// measure keeps window questions under way for the time d. The client sends and
// receives in batches, so that it costs little beside the server.
func measure(addr *net.UDPAddr, d time.Duration, window int) (rate float64, p99 time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}); err != nil {
		return 0, 0, err
	}
	tv := unix.NsecToTimeval(int64(200 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return 0, 0, err
	}
	out, in := make([]mmsghdr, window), make([]mmsghdr, window)
	outVec, inVec := make([]unix.Iovec, window), make([]unix.Iovec, window)
	bufs := make([][512]byte, window)
	msgs := make([][]byte, window) // by id
	sent := make([]time.Time, window)
	for i := range window {
		inVec[i].Base = &bufs[i][0]
		inVec[i].SetLen(512)
		in[i].hdr.Iov = &inVec[i]
		in[i].hdr.SetIovlen(1)
		out[i].hdr.Iov = &outVec[i]
		out[i].hdr.SetIovlen(1)
	}
	questions := make([][]byte, names)
	for i := range questions {
		questions[i] = question(i, 0)
	}
	for i := range msgs {
		msgs[i] = make([]byte, 0, 128)
	}
	free := make([]int, window)
	for i := range free {
		free[i] = i
	}
	var times []time.Duration
	next := 0
	start := time.Now()
	for time.Since(start) < d {
		now := time.Now()
		n := len(free)
		for k, id := range free {
			q := questions[next%names]
			next++
			msgs[id] = append(msgs[id][:0], q...)
			binary.BigEndian.PutUint16(msgs[id], uint16(id))
			outVec[k].Base = &msgs[id][0]
			outVec[k].SetLen(len(q))
			sent[id] = now
		}
		free = free[:0]
		for at := 0; at < n; {
			m, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&out[at])), uintptr(n-at), 0, 0, 0)
			if errno != 0 {
				return 0, 0, fmt.Errorf("send: %w", errno)
			}
			at += int(m)
		}
		m, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in[0])), uintptr(window), unix.MSG_WAITFORONE, 0, 0)
		if errno == unix.EAGAIN { // lost: ask anew
			for i := range window {
				free = append(free, i)
			}
			continue
		}
		if errno != 0 {
			return 0, 0, fmt.Errorf("receive: %w", errno)
		}
		now = time.Now()
		for i := range int(m) {
			id := int(binary.BigEndian.Uint16(bufs[i][:]))
			if id >= window || bufs[i][3]&15 != 0 || bufs[i][7] == 0 {
				return 0, 0, fmt.Errorf("a wrong answer: % x", bufs[i][:in[i].len])
			}
			times = append(times, now.Sub(sent[id]))
			free = append(free, id)
		}
	}
	took := time.Since(start)
	if len(times) == 0 {
		return 0, 0, errors.New("nothing was answered")
	}
	slices.Sort(times)
	return float64(len(times)) / took.Seconds(), times[len(times)*99/100], nil
}
