package carrier

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/convert"
	"weft/services/mptcpproxy/internal/transparent"
)

// A foreign converter: its answer is taken to the byte, its refusals become
// what the client shall see.
func TestForeignConverter(t *testing.T) {
	dst := netip.MustParseAddrPort("192.168.2.2:5201")
	for _, c := range []struct {
		name   string
		answer convert.Message
		errno  unix.Errno
		code   convert.Code
	}{
		{"connected", convert.Message{Has: convert.HasExtHeader, ExtHeader: []byte{2, 4, 5, 0xb4}}, 0, 0},
		{"connected, bare header", convert.Message{}, 0, 0},
		{"reset", convert.Message{Has: convert.HasError, Code: convert.CodeReset}, unix.ECONNREFUSED, 0},
		{"host unreachable", convert.Message{Has: convert.HasError, Code: convert.CodeUnreachable, Value: []byte{1}}, unix.EHOSTUNREACH, 0},
		{"net unreachable", convert.Message{Has: convert.HasError, Code: convert.CodeUnreachable, Value: []byte{0}}, unix.ENETUNREACH, 0},
		{"silence of the network", convert.Message{Has: convert.HasError, Code: convert.CodeNetwork}, unix.ETIMEDOUT, 0},
		{"not authorized", convert.Message{Has: convert.HasError, Code: convert.CodeNotAuthorized}, 0, convert.CodeNotAuthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			asked := make(chan convert.Message, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				buf := make([]byte, 24)
				var m convert.Message
				if _, err := io.ReadFull(conn, buf); err != nil {
					return
				}
				_, _ = convert.Parse(buf, &m)
				asked <- m
				b, _ := c.answer.Append(nil)
				_, _ = conn.Write(append(b, "banner"...))
				_, _ = io.Copy(io.Discard, conn)
			}()
			at := addrPortOf(l.Addr())
			d, _ := dialer(t, DialerOptions{Peers: []Peer{{Name: "far", Addrs: []netip.Addr{at.Addr()}, Port: at.Port()}}})
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			fd, early, err := d.DialRaw(ctx, "far", netip.MustParseAddrPort("192.168.1.2:1"), dst)
			if m := next(t, "question", asked); m.Has != convert.HasConnect || m.Connect != dst {
				t.Errorf("asked %+v", m)
			}
			if c.errno != 0 || c.code != 0 {
				var ce *transparent.ConnectError
				if c.errno != 0 && (!errors.As(err, &ce) || ce.Errno != c.errno) || c.code != 0 && !errors.Is(err, c.code) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || len(early) != 0 {
				t.Fatalf("%d bytes to send, %v", len(early), err)
			}
			d.CloseRaw(fd)
			buf := make([]byte, 6)
			if _, err := readFull(blocking(t, fd), buf); err != nil || string(buf) != "banner" {
				t.Errorf("got %q, %v", buf, err)
			}
		})
	}
}
