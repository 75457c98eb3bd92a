package mptcpproxy

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const nearConfig = `
config mptcpproxy 'main'
	option enabled '1'
	option park_idle '1'
	list lan 'lan'
	list protocol '253'
config peer 'exit'
	list address '10.1.0.2'
	list address '10.2.0.2'
	option key '` + testKey + `'
config path 'p1'
	option device 'p1'
config path 'p2'
	option device 'p2'
`

const farConfig = `
config mptcpproxy 'main'
	option enabled '1'
	option park_idle '1'
	list protocol '253'
config accept 'home'
	option key '` + testKey + `'
	list allow_client '192.168.1.0/24'
	list allow_client 'fd01::/64'
config path 'p1'
	option device 'p1'
config path 'p2'
	option device 'p2'
`

// TestPair runs the service at both ends, as processes of their own, and looks
// at what hosts see. The parts depend on one another in their order.
func TestPair(t *testing.T) {
	b := newBed(t)
	nearBefore, farBefore := b.snapshot(b.near), b.snapshot(b.far)
	far := b.gateway(b.far, farConfig)
	near := b.gateway(b.near, nearConfig)
	far.start()
	near.start()
	near.peerUp(true)
	atClient, atSink := b.watch(b.client), b.watch(b.sink)

	part := func(name string, f func(b *bed)) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			sub := *b
			sub.T = t
			f(&sub)
		})
		if t.Failed() {
			t.Fatalf("the rest depends on %q", name)
		}
	}
	part("client address and port", func(b *bed) {
		for i := range sinkAddr {
			l := b.listen(b.sink, net.JoinHostPort(sinkAddr[i], "0"))
			before := near.report().Flows.Opened
			client, sink := b.pair(l)
			if got, want := addrPort(sink.RemoteAddr()), addrPort(client.LocalAddr()); got != want {
				b.Errorf("the sink sees %s, the client is %s", got, want)
			}
			b.exchange(client, sink)
			if after := near.report().Flows.Opened; after != before+1 {
				b.Errorf("%d flows went through the proxy, want 1", after-before)
			}
			// Again, now that the destination is known: the SYN is accepted
			// at once. A server that speaks first, too.
			client, sink = b.pair(l)
			if got, want := addrPort(sink.RemoteAddr()), addrPort(client.LocalAddr()); got != want {
				b.Errorf("the sink sees %s, the client is %s", got, want)
			}
			b.exchange(sink, client)
		}
	})
	part("refusal", func(b *bed) {
		for _, a := range sinkAddr {
			l := b.listen(b.sink, net.JoinHostPort(a, "0"))
			addr := l.Addr().String()
			b.exchange(b.pair(l))
			l.Close() // it is known now, and refuses
			for range 2 {
				c, err := b.dial(addr, patience)
				if err == nil { // accepted because it was known: then a reset comes at once
					_, err = c.Read(make([]byte, 1))
					c.Close()
				}
				if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
					b.Errorf("known destination that refuses: %v", err)
				}
			}
			if _, err := b.dial(net.JoinHostPort(a, "9"), patience); !errors.Is(err, syscall.ECONNREFUSED) {
				b.Errorf("unknown destination that refuses: %v", err)
			}
		}
	})
	part("unreachable", func(b *bed) {
		// The far gateway has no neighbour of that address.
		if _, err := b.dial("192.168.2.77:80", patience); !errors.Is(err, syscall.EHOSTUNREACH) {
			b.Errorf("host that is not there: %v", err)
		}
	})
	part("silence", func(b *bed) {
		drop(b, 99)
		_, err := b.dial(net.JoinHostPort(sinkAddr[0], "99"), 1500*time.Millisecond)
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			b.Errorf("sink that is silent: %v", err)
		}
	})
	part("reset", func(b *bed) {
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		for _, byClient := range []bool{true, false} {
			client, sink := b.pair(l)
			b.exchange(client, sink)
			x, y := sink, client
			if byClient {
				x, y = client, sink
			}
			x.SetLinger(0)
			x.Close()
			if _, err := y.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				b.Errorf("reset by client %t: the other end sees %v", byClient, err)
			}
		}
	})
	part("half-close", func(b *bed) {
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[1], "0"))
		for _, clientFirst := range []bool{true, false} {
			x, y := b.pair(l)
			if !clientFirst {
				x, y = y, x
			}
			io.WriteString(x, "question")
			x.CloseWrite()
			got, err := io.ReadAll(y)
			if err != nil || string(got) != "question" {
				b.Errorf("got %q, %v", got, err)
			}
			io.WriteString(y, "answer")
			y.Close()
			if got, err := io.ReadAll(x); err != nil || string(got) != "answer" {
				b.Errorf("after the half-close: %q, %v", got, err)
			}
		}
	})
	part("UDP", func(b *bed) {
		for i := range sinkAddr {
			var sink, client net.PacketConn
			b.must("sink", b.in(b.sink, func() (err error) { sink, err = net.ListenPacket("udp", net.JoinHostPort(sinkAddr[i], "0")); return }))
			b.must("client", b.in(b.client, func() (err error) {
				client, err = net.ListenPacket("udp", net.JoinHostPort(clientAddr[i], "0"))
				return
			}))
			defer sink.Close()
			defer client.Close()
			buf := make([]byte, 10000)
			answer := bytes.Repeat([]byte("pong"), 2000) // in fragments, which far must put together
			before := near.report().UDP.Up
			go echo(b, sink, addrPort(client.LocalAddr()), answer)
			b.until("an answer comes", func() bool { // a datagram may be lost
				_, err := client.WriteTo([]byte("ping"), sink.LocalAddr())
				b.must("send", err)
				client.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
				n, from, err := client.ReadFrom(buf)
				if err != nil {
					return false
				}
				if !bytes.Equal(buf[:n], answer) || addrPort(from) != addrPort(sink.LocalAddr()) {
					b.Errorf("the client got %d bytes from %s", n, from)
				}
				return true
			})
			if after := near.report().UDP.Up; after == before {
				b.Error("the datagram did not go through the proxy")
			}
		}
	})
	part("other protocols", func(b *bed) {
		at := rawSocket(b, b.sink)
		from := rawSocket(b, b.client)
		b.until("a packet of protocol 253 arrives", func() bool {
			if err := unix.Sendto(from, []byte("packet"), 0, &unix.SockaddrInet4{Addr: [4]byte{192, 168, 2, 2}}); err != nil {
				b.Fatalf("send: %v", err)
			}
			buf := make([]byte, 100)
			n, who, err := unix.Recvfrom(at, buf, 0)
			if err != nil {
				return false
			}
			a, ok := who.(*unix.SockaddrInet4)
			return ok && a.Addr == [4]byte{192, 168, 1, 2} && bytes.HasSuffix(buf[:n], []byte("packet"))
		})
		if near.report().Tunnel.Sent == 0 {
			b.Error("the packet did not go through the tunnel")
		}
	})
	part("parking", func(b *bed) {
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		client, sink := b.pair(l)
		for range 2 {
			b.exchange(client, sink)
			b.until("the idle flow is parked", func() bool { return near.report().Flows.Parked > 0 && far.report().Flows.Parked > 0 })
			b.exchange(sink, client)
			b.until("the idle flow is parked again", func() bool { return near.report().Flows.Parked > 0 && far.report().Flows.Parked > 0 })
		}
		client.CloseWrite()
		if got, err := io.ReadAll(sink); err != nil || len(got) > 0 {
			b.Errorf("end of a parked flow: %q, %v", got, err)
		}
	})
	part("500 flows", func(b *bed) { manyFlows(b, 500) })
	part("reload", func(b *bed) {
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		client, sink := b.pair(l)
		b.exchange(client, sink)
		near.config(nearConfig + "config exclude\n\tlist dest_port '7777'\nconfig peer 'second'\n\tlist address '10.1.0.9'\n\toption key '" + testKey + "'\n\tlist destination '203.0.113.0/24'\n")
		b.must("reload", near.ask("reload", &struct{}{}))
		b.until("the second peer is known", func() bool { return len(near.report().Peers) == 2 })
		b.exchange(client, sink)
		excluded := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "7777"))
		before := near.report().Flows
		b.exchange(b.pair(excluded))
		if after := near.report().Flows; after.Opened != before.Opened {
			b.Error("the excluded port went through the proxy")
		}
		near.config("config mptcpproxy 'main'\n\toption enabled 'maybe'\n")
		var r struct{ Error string }
		b.must("reload", near.ask("reload", &r))
		if r.Error == "" {
			b.Error("a broken configuration was taken")
		}
		if got := near.report(); len(got.Faults) != 1 || got.State != "running" {
			b.Errorf("state %s, faults %q; want the last good configuration in force", got.State, got.Faults)
		}
		b.exchange(client, sink)
		near.config(nearConfig)
		b.must("reload", near.ask("reload", &struct{}{}))
		b.exchange(client, sink)
		near.peerUp(true)
	})
	part("a path goes and comes back", func(b *bed) {
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		client, sink := b.pair(l)
		b.exchange(client, sink)
		subflows := func(path string) int {
			for _, p := range near.report().Paths {
				if p.Name == path {
					return p.Subflows
				}
			}
			return -1
		}
		b.until("both paths have subflows", func() bool { return subflows("p1") > 0 && subflows("p2") > 0 })
		for _, dev := range []string{"p1", "p2"} {
			b.set(b.near, dev, false)
			b.exchange(client, sink)
			b.until("its subflows are gone", func() bool { return subflows(dev) == 0 })
			b.exchange(client, sink)
			b.set(b.near, dev, true)
			if dev == "p1" { // the kernel has dropped them
				b.route(b.near, "p1", "192.168.2.0/24", "10.1.0.2")
				b.in6(b.near, "p1", "fd11::1/64")
				b.route(b.near, "p1", "fd02::/64", "fd11::2")
			}
			b.until("its subflows are back", func() bool { return subflows(dev) > 0 })
			b.exchange(client, sink)
		}
	})
	part("no MPTCP towards hosts", func(b *bed) {
		for name, stop := range map[string]func() (int, int){"client": atClient, "sink": atSink} {
			packets, mptcp := stop()
			if packets == 0 || mptcp > 0 {
				b.Errorf("%s: %d of %d segments carry an MPTCP option", name, mptcp, packets)
			}
		}
	})
	part("fail-open", func(b *bed) {
		far.signal(syscall.SIGKILL)
		near.peerUp(false)
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		before := near.report().Flows
		b.exchange(b.pair(l))
		if after := near.report().Flows; after.Opened != before.Opened {
			b.Error("the flow went through the proxy")
		}
	})
	part("fail-closed", func(b *bed) {
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		near.config(nearConfig + "config mptcpproxy 'main'\n\toption fail 'closed'\n")
		b.must("reload", near.ask("reload", &struct{}{}))
		if r := near.report(); r.Fail != "closed" {
			b.Fatalf("fail is %s", r.Fail)
		}
		if c, err := b.dial(l.Addr().String(), 2*time.Second); err == nil {
			c.Close()
			b.Error("the sink was reached although the far gateway is away")
		}
	})
	part("start after a kill", func(b *bed) {
		far.start()
		near.peerUp(true)
		l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
		b.exchange(b.pair(l))
		near.signal(syscall.SIGKILL)
		near.config(nearConfig)
		near.start()
		near.peerUp(true)
		b.exchange(b.pair(l))
	})
	part("nothing is left", func(b *bed) {
		near.signal(syscall.SIGTERM)
		far.signal(syscall.SIGTERM)
		b.sameSnapshot("near", nearBefore, b.snapshot(b.near))
		b.sameSnapshot("far", farBefore, b.snapshot(b.far))
	})
}

// TestCarriers runs the pair with other keys and other carriers.
func TestCarriers(t *testing.T) {
	const paths = "config path 'p1'\n\toption device 'p1'\nconfig path 'p2'\n\toption device 'p2'\n"
	const near = "config mptcpproxy 'main'\n\toption enabled '1'\n\tlist lan 'lan'\n" + paths + "config peer 'exit'\n\tlist address '10.1.0.2'\n\tlist address '10.2.0.2'\n\tlist destination '192.168.2.0/24'\n"
	const far = "config mptcpproxy 'main'\n\toption enabled '1'\n" + paths + "config accept 'home'\n\tlist allow_client '192.168.1.0/24'\n"
	nearKey, nearPublic := keyPair(1)
	farKey, farPublic := keyPair(2)
	for _, tc := range []struct {
		name, near, far string
		holds           bool // a refusal reaches the client as such
	}{
		{"own keys, encrypted",
			"\toption encrypt '1'\n\toption private_key '" + nearKey + "'\n\toption peer_key '" + farPublic + "'\n",
			"\toption private_key '" + farKey + "'\n\toption peer_key '" + nearPublic + "'\n", true},
		{"proxy2", "\toption carrier 'proxy2'\n", "\toption carrier 'proxy2'\n\tlist from '10.0.0.0/8'\n", false},
		{"none", "\toption carrier 'none'\n", "\toption carrier 'none'\n\tlist from '192.168.1.0/24'\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			nearBefore, farBefore := b.snapshot(b.near), b.snapshot(b.far)
			fg, ng := b.gateway(b.far, far+tc.far), b.gateway(b.near, near+tc.near)
			fg.start()
			ng.start()
			b.until("near takes traffic", func() bool { r := ng.report(); return r.State == "running" && !r.Bypass })
			l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
			for range 3 {
				before := ng.report().Flows.Opened
				client, sink := b.pair(l)
				if got, want := addrPort(sink.RemoteAddr()), addrPort(client.LocalAddr()); got != want {
					b.Errorf("the sink sees %s, the client is %s", got, want)
				}
				b.exchange(client, sink)
				if after := ng.report().Flows.Opened; after == before {
					b.Error("the flow did not go through the proxy")
				}
				client.CloseWrite()
				if got, err := io.ReadAll(sink); err != nil || len(got) > 0 {
					b.Errorf("half-close: %q, %v", got, err)
				}
				io.WriteString(sink, "answer")
				sink.Close()
				if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
					b.Errorf("after the half-close: %q, %v", got, err)
				}
				client, sink = b.pair(l)
				b.exchange(client, sink)
				sink.SetLinger(0)
				sink.Close()
				if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					b.Errorf("reset by the sink: the client sees %v", err)
				}
			}
			if tc.holds {
				if _, err := b.dial(net.JoinHostPort(sinkAddr[0], "9"), patience); !errors.Is(err, syscall.ECONNREFUSED) {
					b.Errorf("refusal: %v", err)
				}
			}
			manyFlows(b, 50)
			ng.signal(syscall.SIGTERM)
			fg.signal(syscall.SIGTERM)
			b.sameSnapshot("near", nearBefore, b.snapshot(b.near))
			b.sameSnapshot("far", farBefore, b.snapshot(b.far))
		})
	}
}

// TestRetry starts the far side while its port is taken, and frees it.
func TestRetry(t *testing.T) {
	b := newBed(t)
	before := b.snapshot(b.far)
	taken := b.listen(b.far, ":6240")
	g := b.gateway(b.far, farConfig)
	g.start()
	if r := g.report(); r.State != "failed" || r.Reason == "" {
		b.Errorf("with its port taken: %s, %s", r.State, r.Reason)
	}
	b.sameSnapshot("after a start that failed", before, b.snapshot(b.far))
	taken.Close()
	b.until("it runs", func() bool { return g.report().State == "running" })
	g.signal(syscall.SIGTERM)
	b.sameSnapshot("at the end", before, b.snapshot(b.far))
}

// TestStrangers checks that who does not hold the key gets nothing.
func TestStrangers(t *testing.T) {
	b := newBed(t)
	fg, ng := b.gateway(b.far, farConfig), b.gateway(b.near, strings.ReplaceAll(nearConfig, testKey, "another key of the same length !"))
	fg.start()
	ng.start()
	b.until("the far gateway has refused", func() bool { return fg.report().Accept.Refused > 0 })
	if r := ng.report(); !r.Bypass || len(r.Peers) != 1 || r.Peers[0].Up || r.Peers[0].LastError == "" {
		b.Errorf("near says bypass %t, peers %+v", r.Bypass, r.Peers)
	}
	if r := fg.report(); r.Accept.Authenticated > 0 || r.Flows.Opened > 0 {
		b.Errorf("far let somebody in: %+v", r.Accept)
	}
	ng.signal(syscall.SIGTERM)
	fg.signal(syscall.SIGTERM)
}

// keyPair is a key pair made from a number.
func keyPair(n byte) (private, public string) {
	seed := bytes.Repeat([]byte{n}, ed25519.SeedSize)
	key := ed25519.NewKeyFromSeed(seed)
	return base64.StdEncoding.EncodeToString(seed), base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
}

// echo answers each ping of the client until the socket is closed.
func echo(b *bed, sink net.PacketConn, client netip.AddrPort, answer []byte) {
	buf := make([]byte, 100)
	for {
		n, from, err := sink.ReadFrom(buf)
		if err != nil {
			return
		}
		if string(buf[:n]) != "ping" || addrPort(from) != client {
			b.Errorf("the sink got %q from %s, the client is %s", buf[:n], from, client)
		}
		sink.WriteTo(answer, from)
	}
}

// manyFlows sends random bytes both ways over many connections at once and
// compares their sums.
func manyFlows(b *bed, n int) {
	b.Helper()
	l := b.listen(b.sink, net.JoinHostPort(sinkAddr[0], "0"))
	go func() { // answers each connection with the sum of what it said
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * patience))
				h := sha256.New()
				if _, err := io.Copy(h, c); err == nil {
					c.Write(h.Sum(nil))
				}
			}()
		}
	}()
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		wg.Go(func() {
			errs <- func() error {
				c, err := b.dial(l.Addr().String(), 2*patience)
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * patience))
				r := rand.New(rand.NewPCG(uint64(i), 1))
				h := sha256.New()
				buf := make([]byte, 8192)
				for range 1 + r.IntN(16) {
					for j := range buf {
						buf[j] = byte(r.Uint32())
					}
					part := buf[:r.IntN(len(buf))]
					h.Write(part)
					if _, err := c.Write(part); err != nil {
						return err
					}
				}
				if err := c.CloseWrite(); err != nil {
					return err
				}
				got, err := io.ReadAll(c)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, h.Sum(nil)) {
					return fmt.Errorf("flow %d: bytes were lost or changed (%d bytes of answer)", i, len(got))
				}
				return nil
			}()
		})
	}
	wg.Wait()
	close(errs)
	failed := 0
	for err := range errs {
		if err != nil {
			if failed++; failed <= 3 {
				b.Error(err)
			}
		}
	}
	if failed > 0 {
		b.Errorf("%d of %d flows failed", failed, n)
	}
}

// drop makes the sink drop what comes to a TCP port, silently.
func drop(b *bed, port uint16) {
	b.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(b.sink.ns)))
	b.must("nftables", err)
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "silence"})
	ch := c.AddChain(&nftables.Chain{Name: "in", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	b.must("drop rule", c.Flush())
}

// rawSocket opens a socket of protocol 253 (RFC 3692: for experiments).
func rawSocket(b *bed, s *space) int {
	b.Helper()
	var fd int
	b.must("raw socket", b.in(s, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 253)
		return err
	}))
	b.must("timeout", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000}))
	b.Cleanup(func() { unix.Close(fd) })
	return fd
}
