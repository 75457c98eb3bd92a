package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"weft/test-vm/bench/bed"
	"weft/test-vm/bench/load"
)

// probe is one thing that a host may notice of the gateways. It returns what it saw that plain routing would not show,
// nil if nothing.
type probe struct {
	name string
	run  func(p *prober) error
}

// prober opens connections from client to sink of a trial.
type prober struct {
	ctx  context.Context
	t    *trial
	v6   bool
	port uint16 // of this probe alone
}

func (p *prober) addr() netip.AddrPort {
	if p.v6 {
		return netip.AddrPortFrom(bed.Sink6, p.port)
	}
	return netip.AddrPortFrom(bed.Sink4, p.port)
}

// dial connects from the client by plain TCP. One call of f belongs to one connection, in the client's namespace.
func (p *prober) dial(timeout time.Duration) (*net.TCPConn, error) {
	var c net.Conn
	err := p.t.Client.Call(func() (err error) {
		d := net.Dialer{Timeout: timeout}
		d.SetMultipathTCP(false)
		c, err = d.DialContext(p.ctx, "tcp", p.addr().String())
		return err
	})
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(load.Patience))
	return c.(*net.TCPConn), nil
}

// pair opens a connection and returns both ends.
func (p *prober) pair() (client, sink *net.TCPConn, err error) {
	var l net.Listener
	err = p.t.Sink.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(p.ctx, "tcp", p.addr().String())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := l.Accept()
		got <- accepted{c, err}
	}()
	if client, err = p.dial(load.Patience); err != nil {
		return nil, nil, err
	}
	select {
	case a := <-got:
		if a.err != nil {
			client.Close()
			return nil, nil, a.err
		}
		a.c.SetDeadline(time.Now().Add(load.Patience))
		return client, a.c.(*net.TCPConn), nil
	case <-time.After(load.Patience):
		client.Close()
		return nil, nil, errors.New("the client has connected, the sink has no connection")
	}
}

// with runs f on both ends of a fresh connection.
func (p *prober) with(f func(client, sink *net.TCPConn) error) error {
	client, sink, err := p.pair()
	if err != nil {
		return err
	}
	defer client.Close()
	defer sink.Close()
	return f(client, sink)
}

// ping sends a byte each way, so that the connection is there from end to end.
func ping(a, b net.Conn) error {
	one := []byte{1}
	for _, s := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := s[0].Write(one); err != nil {
			return fmt.Errorf("send a byte: %w", err)
		}
		if _, err := io.ReadFull(s[1], one); err != nil {
			return fmt.Errorf("receive a byte: %w", err)
		}
	}
	return nil
}

// resets checks that the end b sees a reset when a resets.
func resets(a, b *net.TCPConn) error {
	if err := ping(a, b); err != nil {
		return err
	}
	if err := a.SetLinger(0); err != nil {
		return err
	}
	a.Close()
	_, err := b.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the other end saw %w instead of a reset", err)
	}
	return nil
}

// halfClose checks that b sees the end of a's data, and can then still send a lot to a.
func halfClose(a, b *net.TCPConn) error {
	if _, err := a.Write([]byte("question")); err != nil {
		return err
	}
	if err := a.CloseWrite(); err != nil {
		return err
	}
	q, err := io.ReadAll(b)
	if err != nil || string(q) != "question" {
		return fmt.Errorf("before the half-close came %q, %w", q, err)
	}
	answer := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var sendErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, sendErr = b.Write(answer)
		sendErr = errors.Join(sendErr, b.CloseWrite())
	})
	got, err := io.ReadAll(a)
	wg.Wait()
	if err = errors.Join(err, sendErr); err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(answer) {
		return fmt.Errorf("after the half-close came %d of %d bytes, or others", len(got), len(answer))
	}
	return nil
}

// sees checks what error a client gets that connects.
func (p *prober) sees(want error) error {
	c, err := p.dial(load.Patience)
	if err == nil {
		c.Close()
		return errors.New("connected")
	}
	if !errors.Is(err, want) {
		return err
	}
	return nil
}

// filter makes the sink answer SYNs to the probe's port in this way; an nft statement.
func (p *prober) filter(statement string) error {
	return p.t.Sink.Input(p.ctx, fmt.Sprintf("table inet probe { chain input { type filter hook input priority 0; tcp dport %d %s; }; }\n", p.port, statement), "nft", "-f", "-")
}

func probes() []probe {
	address := func(p *prober) error {
		return p.with(func(client, sink *net.TCPConn) error {
			if err := ping(client, sink); err != nil {
				return err
			}
			if l, r := client.LocalAddr().String(), sink.RemoteAddr().String(); l != r {
				return fmt.Errorf("the client is %s, the sink sees %s", l, r)
			}
			return nil
		})
	}
	v6 := func(f func(*prober) error) func(*prober) error {
		return func(p *prober) error { p.v6 = true; return f(p) }
	}
	refused := func(p *prober) error { return p.sees(syscall.ECONNREFUSED) }
	byClient := func(p *prober) error {
		return p.with(func(client, sink *net.TCPConn) error { return resets(client, sink) })
	}
	bySink := func(p *prober) error {
		return p.with(func(client, sink *net.TCPConn) error { return resets(sink, client) })
	}
	return []probe{
		{"refused", refused},
		{"refused v6", v6(refused)},
		{"reset by client", byClient},
		{"reset by sink", bySink},
		{"reset by sink v6", v6(bySink)},
		{"half-close by client", func(p *prober) error {
			return p.with(func(client, sink *net.TCPConn) error { return halfClose(client, sink) })
		}},
		{"half-close by sink", func(p *prober) error {
			return p.with(func(client, sink *net.TCPConn) error { return halfClose(sink, client) })
		}},
		{"address and port", address},
		{"address and port v6", v6(address)},
		{"server speaks first", func(p *prober) error {
			return p.with(func(client, sink *net.TCPConn) error {
				if _, err := sink.Write([]byte("220")); err != nil {
					return err
				}
				_, err := io.ReadFull(client, make([]byte, 3))
				return err
			})
		}},
		{"silence", func(p *prober) error {
			if err := p.filter("drop"); err != nil {
				return err
			}
			c, err := p.dial(2500 * time.Millisecond)
			if err == nil {
				c.Close()
				return errors.New("connected")
			}
			if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
				return err
			}
			return nil
		}},
		{"host unreachable", func(p *prober) error {
			if err := p.filter("meta nfproto ipv4 reject with icmp type host-unreachable"); err != nil {
				return err
			}
			return p.sees(syscall.EHOSTUNREACH)
		}},
		{"prohibited", func(p *prober) error {
			if err := p.filter("meta nfproto ipv4 reject with icmp type admin-prohibited"); err != nil {
				return err
			}
			return p.sees(syscall.EHOSTUNREACH)
		}},
		{"port unreachable", func(p *prober) error {
			if err := p.filter("meta nfproto ipv4 reject with icmp type port-unreachable"); err != nil {
				return err
			}
			return p.sees(syscall.ECONNREFUSED)
		}},
		{"long idle", func(p *prober) error {
			idle := p.t.long(15*time.Second, 12*time.Second) // longer than park_idle
			return p.with(func(client, sink *net.TCPConn) error {
				for _, s := range [][2]net.Conn{{client, sink}, {sink, client}} {
					if err := ping(s[0], s[1]); err != nil {
						return err
					}
					select {
					case <-time.After(idle / 2):
					case <-p.ctx.Done():
						return p.ctx.Err()
					}
				}
				select {
				case <-time.After(idle / 2):
				case <-p.ctx.Done():
					return p.ctx.Err()
				}
				for _, c := range []net.Conn{client, sink} {
					c.SetDeadline(time.Now().Add(load.Patience))
				}
				return ping(sink, client)
			})
		}},
	}
}

// runProbes runs all probes at once and watches both hosts for MPTCP options meanwhile.
func runProbes(ctx context.Context, t *trial) error {
	var sniffers []*load.Sniffer
	for _, n := range []*bed.Node{t.Client, t.Sink} {
		s, err := load.Sniff(n, "eth0")
		if err != nil {
			return err
		}
		sniffers = append(sniffers, s)
	}
	all := probes()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() { errs[i] = p.run(&prober{ctx: ctx, t: t, port: uint16(4100 + 100*t.rep + i)}) })
	}
	wg.Wait()
	for i, p := range all {
		v := 1.0
		if errs[i] != nil {
			v = 0
			t.note("%s: %s", p.name, strings.ReplaceAll(errs[i].Error(), "\n", "; "))
		}
		t.add("all", p.name, v)
	}
	for i, name := range []string{"no MPTCP at client", "no MPTCP at sink"} {
		seen, segments := sniffers[i].Close()
		v := 1.0
		if segments == 0 {
			return fmt.Errorf("%s: no TCP segment was captured", name)
		}
		if seen > 0 {
			v = 0
			t.note("%s: %d of %d segments carry option 30", name, seen, segments)
		}
		t.add("all", name, v)
	}
	return ctx.Err()
}
