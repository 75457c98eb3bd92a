package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/transparent"
)

// faithful is what each of the two hosts must see, framed (plain and sealed).
var faithful = []struct {
	name   string
	sink   func(t *testing.T, c *net.TCPConn)
	client func(t *testing.T, c *net.TCPConn)
}{
	{
		"echo, client closes",
		func(t *testing.T, c *net.TCPConn) { io.Copy(c, c) },
		func(t *testing.T, c *net.TCPConn) {
			c.Write([]byte("hello"))
			p := make([]byte, 5)
			if _, err := io.ReadFull(c, p); err != nil || string(p) != "hello" {
				t.Errorf("echo %q, %v", p, err)
			}
		},
	},
	{
		"server speaks first and closes",
		func(t *testing.T, c *net.TCPConn) { c.Write([]byte("220 ready\r\n")) },
		func(t *testing.T, c *net.TCPConn) {
			if s, err := readAll(c); s != "220 ready\r\n" || err != nil {
				t.Errorf("banner %q, %v", s, err)
			}
		},
	},
	{
		"client half-closes, answer follows",
		func(t *testing.T, c *net.TCPConn) {
			s, err := readAll(c)
			if s != "question" || err != nil {
				t.Errorf("sink read %q, %v", s, err)
			}
			c.Write([]byte("answer to " + s))
		},
		func(t *testing.T, c *net.TCPConn) {
			c.Write([]byte("question"))
			c.CloseWrite()
			if s, err := readAll(c); s != "answer to question" || err != nil {
				t.Errorf("client read %q, %v", s, err)
			}
		},
	},
	{
		"sink half-closes, client goes on",
		func(t *testing.T, c *net.TCPConn) {
			c.CloseWrite()
			if s, err := readAll(c); s != "still here" || err != nil {
				t.Errorf("sink read %q, %v", s, err)
			}
		},
		func(t *testing.T, c *net.TCPConn) {
			if s, err := readAll(c); s != "" || err != nil {
				t.Errorf("client read %q, %v", s, err)
			}
			c.Write([]byte("still here"))
		},
	},
	{
		"client resets",
		func(t *testing.T, c *net.TCPConn) {
			p := make([]byte, 4)
			io.ReadFull(c, p)
			c.Write(p)
			if _, err := c.Read(p); !isReset(err) {
				t.Errorf("sink: %v, expected a reset", err)
			}
		},
		func(t *testing.T, c *net.TCPConn) {
			c.Write([]byte("ping"))
			io.ReadFull(c, make([]byte, 4))
			c.SetLinger(0)
		},
	},
	{
		"sink resets behind data",
		func(t *testing.T, c *net.TCPConn) {
			p := make([]byte, 4)
			io.ReadFull(c, p)
			c.Write(p)
			io.ReadFull(c, p) // the client has read the answer
			c.SetLinger(0)
		},
		func(t *testing.T, c *net.TCPConn) {
			c.Write([]byte("ping"))
			io.ReadFull(c, make([]byte, 4))
			c.Write([]byte("pong"))
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("client: %v, expected a reset", err)
			}
		},
	},
	{
		"both close at once",
		func(t *testing.T, c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) },
		func(t *testing.T, c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) },
	},
	{
		"8 MiB each way at once",
		func(t *testing.T, c *net.TCPConn) { transfer(t, c, 'a', 'b') },
		func(t *testing.T, c *net.TCPConn) { transfer(t, c, 'b', 'a') },
	},
	{
		"urgent data does no harm",
		func(t *testing.T, c *net.TCPConn) { io.Copy(c, c) },
		func(t *testing.T, c *net.TCPConn) {
			c.Write([]byte("ab"))
			rc, _ := c.SyscallConn()
			rc.Control(func(fd uintptr) { unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
			c.Write([]byte("cd"))
			c.CloseWrite()
			if s, err := readAll(c); s != "abcd" && s != "ab!cd" || err != nil {
				t.Errorf("echo %q, %v", s, err)
			}
		},
	},
}

func transfer(t *testing.T, c *net.TCPConn, mine, theirs byte) {
	const n = 8 << 20
	go func() {
		if _, err := c.Write(pattern(n, mine)); err != nil {
			t.Error(err)
		}
		c.CloseWrite()
	}()
	p, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(p, pattern(n, theirs)) {
		t.Errorf("%d bytes, %v: not what was sent", len(p), err)
	}
}

func TestFaithful(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, c := range faithful {
			t.Run(c.name+map[bool]string{true: ", sealed"}[sealed], func(t *testing.T) {
				b := newBed(t, bedOptions{sealed: sealed})
				done := make(chan struct{})
				b.serve(func(s *net.TCPConn) { defer close(done); c.sink(t, s) })
				cl := b.client()
				c.client(t, cl)
				cl.Close()
				<-done
				b.settled()
				if n := b.near.Stats(); n.Opened != 1 {
					t.Errorf("%+v", n)
				}
			})
		}
	}
}

func TestRawFaithful(t *testing.T) {
	for _, c := range faithful {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, bedOptions{})
			sink := make(chan net.Conn, 1)
			done := make(chan struct{})
			b.serve(func(s *net.TCPConn) { defer close(done); c.sink(t, s) })
			// client - near - carrier - far - sink
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			must(t, err)
			defer ln.Close()
			cl, err := net.Dial("tcp4", ln.Addr().String())
			must(t, err)
			acc, err := ln.Accept()
			must(t, err)
			n, f, err := tcpPair()
			must(t, err)
			out, err := net.Dial("tcp4", b.sink.Load().String())
			must(t, err)
			_ = sink
			b.near.Raw(takeFD(t, acc.(*net.TCPConn)), n, "far", []byte{})
			b.far.Raw(takeFD(t, out.(*net.TCPConn)), f, "near", nil)
			cl.SetDeadline(time.Now().Add(time.Minute))
			c.client(t, cl.(*net.TCPConn))
			cl.Close()
			<-done
			b.settled()
		})
	}
}

func TestRefused(t *testing.T) {
	offender := netip.MustParseAddr("192.0.2.1")
	cases := []struct {
		name    string
		connect func(_, dst netip.AddrPort, _ string) (int, error)
		allow   func(string, netip.AddrPort, netip.AddrPort) error
		want    error
	}{
		{"nobody listens", nil, nil, unix.ECONNREFUSED},
		{"not allowed", nil, func(string, netip.AddrPort, netip.AddrPort) error { return errors.New("no") }, unix.EACCES},
		{"network unreachable", func(netip.AddrPort, netip.AddrPort, string) (int, error) {
			return -1, &transparent.ConnectError{Errno: unix.ENETUNREACH, ICMP: true, ICMPType: 3, ICMPCode: 0, Offender: offender}
		}, nil, unix.ENETUNREACH},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, bedOptions{far: Options{Connect: c.connect, Allow: c.allow}})
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			must(t, err)
			a := ln.Addr().(*net.TCPAddr).AddrPort()
			ln.Close()
			b.sink.Store(&a)
			cl, err := net.Dial("tcp4", b.addr)
			if err == nil { // else the reset was faster than the client
				defer cl.Close()
				cl.Write([]byte("early"))
				_, err = cl.Read(make([]byte, 1))
			}
			if !isReset(err) {
				t.Errorf("client: %v, expected a reset", err)
			}
			err = <-b.results
			if !errors.Is(err, c.want) {
				t.Errorf("result %v, expected %v", err, c.want)
			}
			var ce *transparent.ConnectError
			if !errors.As(err, &ce) || ce.ICMP != (c.want == unix.ENETUNREACH) || ce.ICMP && ce.Offender != offender {
				t.Errorf("result %#v", ce)
			}
			b.settled()
			if n := b.near.Stats(); n.Failed != 1 || n.Trunks == 0 {
				t.Errorf("%+v", n)
			}
		})
	}
}

// parked starts an echo flow and waits until it sleeps on both sides.
func parked(t *testing.T, b *bed, n int) []*net.TCPConn {
	var all []*net.TCPConn
	for range n {
		c := b.client()
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	waitFor(t, "flows to park", func() bool { return b.near.Stats().Parked >= n && b.far.Stats().Parked >= n })
	return all
}

func TestPark(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, loops := range []int{1, 3} {
			b := newBed(t, bedOptions{near: Options{ParkIdle: time.Millisecond, Loops: loops}, far: Options{ParkIdle: time.Millisecond, Loops: loops}, tick: 5 * time.Millisecond, sealed: sealed})
			conns := make(chan *net.TCPConn, 100)
			ends := make(chan error, 100)
			b.serve(func(s *net.TCPConn) {
				conns <- s
				p := make([]byte, 100)
				for {
					n, err := s.Read(p)
					if err != nil {
						ends <- err
						return
					}
					if string(p[:n]) == "reset" {
						s.SetLinger(0)
						ends <- nil
						return
					}
					s.Write(p[:n])
				}
			})
			for _, c := range []struct {
				name string
				do   func(client, sink *net.TCPConn)
				sink func(error) bool
				more func(client *net.TCPConn)
			}{
				{"client speaks", func(c, s *net.TCPConn) { c.Write([]byte("again")) }, nil, func(c *net.TCPConn) {
					p := make([]byte, 5)
					if _, err := io.ReadFull(c, p); err != nil || string(p) != "again" {
						t.Errorf("%q %v", p, err)
					}
					c.Close()
				}},
				{"sink speaks", func(c, s *net.TCPConn) { s.Write([]byte("again")) }, nil, func(c *net.TCPConn) {
					p := make([]byte, 5)
					if _, err := io.ReadFull(c, p); err != nil || string(p) != "again" {
						t.Errorf("%q %v", p, err)
					}
					c.Close()
				}},
				{"client closes", func(c, s *net.TCPConn) { c.Close() }, func(err error) bool { return err == io.EOF }, nil},
				{"client resets", func(c, s *net.TCPConn) { c.SetLinger(0); c.Close() }, isReset, nil},
				{"sink resets", func(c, s *net.TCPConn) { s.SetLinger(0); s.Close() }, func(error) bool { return true }, func(c *net.TCPConn) {
					if _, err := c.Read(make([]byte, 1)); !isReset(err) {
						t.Errorf("client: %v, expected a reset", err)
					}
				}},
				{"sink half-closes", func(c, s *net.TCPConn) { s.CloseWrite() }, func(err error) bool { return err == io.EOF }, func(c *net.TCPConn) {
					if _, err := c.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("client: %v, expected the end", err)
					}
					waitFor(t, "half-closed flow to park", func() bool { return b.near.Stats().Parked == 1 && b.far.Stats().Parked == 1 })
					c.Close()
				}},
				{"both speak at once", func(c, s *net.TCPConn) { s.Write([]byte("aa")); c.Write([]byte("bb")) }, nil, func(c *net.TCPConn) {
					p := make([]byte, 4)
					if _, err := io.ReadFull(c, p); err != nil || string(p) != "aabb" && string(p) != "bbaa" {
						t.Errorf("%q %v", p, err)
					}
					c.Close()
				}},
			} {
				c1 := parked(t, b, 1)[0]
				s1 := <-conns
				c.do(c1, s1)
				if c.more != nil {
					c.more(c1)
				}
				if err := <-ends; c.sink != nil && !c.sink(err) {
					t.Errorf("%s: sink saw %v", c.name, err)
				}
				b.settled()
				if t.Failed() {
					t.Fatalf("%s, sealed %v, %d loops", c.name, sealed, loops)
				}
			}
			// Many at once from both sides over few trunks.
			all := parked(t, b, 40)
			for range 5 {
				for i, c := range all {
					s := <-conns
					conns <- s
					if i%2 == 0 {
						s.Write([]byte("s"))
					} else {
						s.Write([]byte("s"))
						c.Write([]byte("c"))
					}
				}
				n := 0
				for _, c := range all {
					c.SetReadDeadline(time.Now().Add(time.Minute))
				}
				for i, c := range all {
					k := 1
					if i%2 == 1 {
						k = 2
					}
					_ = k
					if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
						t.Errorf("flow %d: %v\nnear %+v\nfar %+v\n%+v\n%+v", i, err, b.near.Stats(), b.far.Stats(), b.near.Flows(), b.far.Flows())
						t.FailNow()
					}
					n++
				}
			}
			t0 := time.Now()
			for _, c := range all {
				c.SetLinger(0)
				c.Close()
			}
			waitFor(t, "sinks to see the resets", func() bool {
				if len(ends) < len(all) && time.Since(t0) > time.Minute {
					t.Fatalf("%d of %d\nnear %+v\nfar %+v\n%+v\n%+v", len(ends), len(all), b.near.Stats(), b.far.Stats(), b.near.Flows(), b.far.Flows())
				}
				return len(ends) == len(all)
			})
			for range all {
				<-ends
				<-conns
			}
			b.settled()
		}
	}
}
