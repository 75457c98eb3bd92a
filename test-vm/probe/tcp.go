package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// patience bounds every wait of a case.
const patience = 15 * time.Second

// Ports of a tcp check behind its first one. Nobody listens on portRefused; portAsk tells what the server of a case saw.
const (
	portEcho = iota
	portAddress
	portServerFirst
	portHalfClose
	portServerClose
	portReset
	portClientReset
	portAsk
	portRefused
)

const greeting = "the server speaks first\n"

// plainListen listens without MPTCP, as a host that does not know it.
func plainListen(addr string, port int) (*net.TCPListener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// tcpServer serves until it is killed.
func tcpServer(addr string, port int) error {
	seen := make(chan string, 16) // what the server of client-reset saw
	serve := map[int]func(*net.TCPConn){
		portEcho:    func(c *net.TCPConn) { io.Copy(c, c) },
		portAddress: func(c *net.TCPConn) { fmt.Fprintln(c, c.RemoteAddr()) },
		portServerFirst: func(c *net.TCPConn) {
			io.WriteString(c, greeting)
			io.Copy(io.Discard, c)
		},
		portHalfClose: func(c *net.TCPConn) { // answers only once the client's FIN is here
			data, err := io.ReadAll(c)
			if err == nil {
				sum := sha256.Sum256(data)
				io.WriteString(c, hex.EncodeToString(sum[:]))
			}
		},
		portServerClose: func(c *net.TCPConn) { // FIN first, then listens: the last word is the client's
			io.WriteString(c, greeting)
			c.CloseWrite()
			data, err := io.ReadAll(c)
			select {
			case seen <- fmt.Sprintf("%s %v", data, err):
			default:
			}
		},
		portReset: func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		},
		portClientReset: func(c *net.TCPConn) {
			io.WriteString(c, "x")
			_, err := io.ReadAll(c)
			what := "end of file"
			if errors.Is(err, syscall.ECONNRESET) {
				what = "reset"
			} else if err != nil {
				what = err.Error()
			}
			select {
			case seen <- what:
			default:
			}
		},
		portAsk: func(c *net.TCPConn) {
			select {
			case s := <-seen:
				io.WriteString(c, s)
			case <-time.After(patience):
				io.WriteString(c, "nothing")
			}
		},
	}
	failed := make(chan error, len(serve))
	for i, f := range serve {
		l, err := plainListen(addr, port+i)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					defer c.Close()
					c.SetDeadline(time.Now().Add(2 * patience))
					f(c)
				}()
			}
		}()
	}
	fmt.Println("ready")
	return <-failed
}

// outcome is the result of a case.
type outcome struct {
	Case string  `json:"case"`
	OK   bool    `json:"ok"`
	Got  string  `json:"got,omitempty"`
	MS   float64 `json:"ms"`
}

func tcpClient(addr string, port int, own string, cases []string) error {
	t := &tester{addr: addr, port: port, own: own}
	all := map[string]func() error{
		"echo": t.echo, "address": t.address, "port": t.samePort, "server-first": t.serverFirst, "half-close": t.halfClose, "server-close": t.serverClose,
		"reset": t.reset, "client-reset": t.clientReset, "refused": t.refused, "plain": t.plain,
	}
	var out []outcome
	for _, name := range cases {
		f := all[name]
		if f == nil {
			return fmt.Errorf("no case %q", name)
		}
		start := time.Now()
		err := f()
		o := outcome{Case: name, OK: err == nil, MS: float64(time.Since(start).Microseconds()) / 1e3}
		if err != nil {
			o.Got = err.Error()
		}
		out = append(out, o)
	}
	return print(out)
}

type tester struct {
	addr string
	port int
	own  string
}

func (t *tester) dial(offset int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", net.JoinHostPort(t.addr, strconv.Itoa(t.port+offset)))
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// with runs f on a new connection.
func (t *tester) with(offset int, f func(*net.TCPConn) error) error {
	c, err := t.dial(offset)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

func random(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	rand.NewChaCha8(seed).Read(b)
	return b
}

func (t *tester) echo() error {
	return t.with(portEcho, func(c *net.TCPConn) error {
		sent := random(200_000)
		go func() {
			c.Write(sent)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err == nil && !bytes.Equal(got, sent) {
			err = fmt.Errorf("%d of %d bytes came back, or not the same", len(got), len(sent))
		}
		return err
	})
}

// seenAs is the client's address as the server sees it, and as it is.
func (t *tester) seenAs() (seen, own netip.AddrPort, err error) {
	err = t.with(portAddress, func(c *net.TCPConn) error {
		text, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		own = c.LocalAddr().(*net.TCPAddr).AddrPort()
		seen, err = netip.ParseAddrPort(string(bytes.TrimSpace(text)))
		return err
	})
	return seen, own, err
}

func (t *tester) address() error {
	seen, own, err := t.seenAs()
	if err == nil && (seen.Addr().Unmap() != own.Addr().Unmap() || seen.Addr().Unmap().String() != t.own) {
		err = fmt.Errorf("the server saw %s, the client is %s", seen.Addr(), own.Addr())
	}
	return err
}

func (t *tester) samePort() error {
	seen, own, err := t.seenAs()
	if err == nil && seen.Port() != own.Port() {
		err = fmt.Errorf("the server saw port %d, the client has %d", seen.Port(), own.Port())
	}
	return err
}

func (t *tester) serverFirst() error {
	return t.with(portServerFirst, func(c *net.TCPConn) error {
		got := make([]byte, len(greeting))
		_, err := io.ReadFull(c, got)
		if err == nil && string(got) != greeting {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

func (t *tester) halfClose() error {
	return t.with(portHalfClose, func(c *net.TCPConn) error {
		sent := random(50_000)
		if _, err := c.Write(sent); err != nil {
			return err
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(c)
		want := sha256.Sum256(sent)
		if err == nil && string(got) != hex.EncodeToString(want[:]) {
			err = fmt.Errorf("answer %q after the half-close", got)
		}
		return err
	})
}

func (t *tester) serverClose() error {
	if err := t.with(portServerClose, func(c *net.TCPConn) error {
		got, err := io.ReadAll(c)
		if err == nil && string(got) != greeting {
			err = fmt.Errorf("got %q before the server's FIN", got)
		}
		if err == nil {
			_, err = io.WriteString(c, "last word")
		}
		return err
	}); err != nil {
		return err
	}
	return t.ask("last word <nil>")
}

// ask compares what the server saw.
func (t *tester) ask(want string) error {
	return t.with(portAsk, func(c *net.TCPConn) error {
		got, err := io.ReadAll(c)
		if err == nil && string(got) != want {
			err = fmt.Errorf("the server saw %q, want %q", got, want)
		}
		return err
	})
}

func (t *tester) reset() error {
	return t.with(portReset, func(c *net.TCPConn) error {
		if _, err := c.Write([]byte{1}); err != nil {
			return err
		}
		_, err := io.ReadAll(c)
		if !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("the server has reset the connection, the client got %v", orEOF(err))
		}
		return nil
	})
}

func orEOF(err error) any {
	if err == nil {
		return "end of file"
	}
	return err
}

func (t *tester) clientReset() error {
	if err := t.with(portClientReset, func(c *net.TCPConn) error {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return err
		}
		return c.SetLinger(0)
	}); err != nil {
		return err
	}
	return t.ask("reset")
}

func (t *tester) refused() error {
	start := time.Now()
	err := t.with(portRefused, func(*net.TCPConn) error { return nil })
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("connecting to a closed port gave %v", orConnected(err))
	}
	if d := time.Since(start); d > 5*time.Second { // the second SYN already
		return fmt.Errorf("refused only after %s", d)
	}
	return nil
}

func orConnected(err error) any {
	if err == nil {
		return "a connection"
	}
	return err
}

func (t *tester) plain() error {
	return t.with(portEcho, func(c *net.TCPConn) error {
		mptcp, err := c.MultipathTCP()
		if err == nil && mptcp {
			err = errors.New("the client's own socket speaks MPTCP")
		}
		return err
	})
}

// flowServer serves flows: a line "up" or "down" with a number of bytes, then the bytes one way and their checksum the other.
func flowServer(addr string, port int) error {
	l, err := plainListen(addr, port)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var way string
			var n int64
			if _, err := fmt.Fscanf(oneByte{c}, "%s %d\n", &way, &n); err != nil {
				return
			}
			if way == "down" {
				c.Write(random(int(n)))
				io.Copy(io.Discard, c)
				return
			}
			h := sha256.New()
			if _, err := io.CopyN(h, c, n); err == nil {
				c.Write(h.Sum(nil))
			}
		}()
	}
}

// oneByte reads byte by byte, so that Fscanf takes nothing of what follows the line.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

// flows is the result of a flows check.
type flows struct {
	OK      int      `json:"ok"`
	Failed  int      `json:"failed"`
	Seconds float64  `json:"seconds"`
	Bytes   int64    `json:"bytes"`
	Errors  []string `json:"errors,omitempty"` // the first few
}

// flowBound is how long all flows together may take.
const flowBound = 5 * time.Minute

func flowClient(addr string, port, count, size int, way string) error {
	data := random(size)
	want := sha256.Sum256(data)
	var mu sync.Mutex
	var res flows
	var wait sync.WaitGroup
	start := time.Now()
	for range count {
		wait.Go(func() {
			err := func() error {
				d := net.Dialer{Timeout: patience}
				d.SetMultipathTCP(false)
				conn, err := d.Dial("tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
				if err != nil {
					return err
				}
				defer conn.Close()
				conn.SetDeadline(start.Add(flowBound))
				if _, err := fmt.Fprintf(conn, "%s %d\n", way, size); err != nil {
					return err
				}
				var got []byte
				if way == "down" {
					h := sha256.New()
					if _, err := io.CopyN(h, conn, int64(size)); err != nil {
						return err
					}
					got = h.Sum(nil)
				} else {
					if _, err := conn.Write(data); err != nil {
						return err
					}
					got = make([]byte, len(want))
					if _, err := io.ReadFull(conn, got); err != nil {
						return err
					}
				}
				if !bytes.Equal(got, want[:]) {
					return errors.New("the checksum differs: bytes were lost or changed")
				}
				return nil
			}()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				res.OK++
				res.Bytes += int64(size)
				return
			}
			res.Failed++
			if len(res.Errors) < 3 {
				res.Errors = append(res.Errors, err.Error())
			}
		})
	}
	wait.Wait()
	res.Seconds = time.Since(start).Seconds()
	return print(res)
}
