package healthgate

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"time"
)

// Types of messages, RFC 792 and RFC 4443.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// reach asks one host for a sign of life, until ctx ends at the latest.
func reach(ctx context.Context, t target) error {
	if t.port != "" {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(t.host, t.port))
		if err != nil {
			return err
		}
		return c.Close()
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, t.host)
	if err != nil {
		return err
	}
	// One after the other, as it is done for TCP.
	for i, a := range addrs {
		step := ctx
		if left := len(addrs) - i; left > 1 {
			if end, ok := ctx.Deadline(); ok {
				var cancel context.CancelFunc
				step, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
				defer cancel()
			}
		}
		if err = echo(step, a); err == nil {
			return nil
		}
	}
	return err
}

// echo sends ICMP echo requests, one a second, until one is answered.
func echo(ctx context.Context, to net.IPAddr) error {
	network, local, request, reply := "ip4:icmp", "0.0.0.0", byte(echoRequest4), byte(echoReply4)
	if to.IP.To4() == nil {
		network, local, request, reply = "ip6:ipv6-icmp", "::", echoRequest6, echoReply6
	}
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, network, local)
	if err != nil {
		return fmt.Errorf("ask %s for an echo: %w", to.String(), err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var token [12]byte // what tells our answers from those to others
	rand.Read(token[:])
	out := echoMessage(request, token)
	buf := make([]byte, 1500)
	for {
		if _, err := c.WriteTo(out, &to); err != nil && ctx.Err() == nil {
			return fmt.Errorf("ask %s for an echo: %w", to.String(), err)
		}
		again := time.Now().Add(time.Second)
		for ctx.Err() == nil {
			c.SetReadDeadline(again)
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				break
			}
			if a, ok := from.(*net.IPAddr); ok && a.IP.Equal(to.IP) && isEcho(buf[:n], reply, token) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not answer", to.String())
		}
	}
}

// echoMessage is an echo request. The first bytes of the token are its identifier
// and number. For ICMPv6 the kernel fills in the checksum.
func echoMessage(kind byte, token [12]byte) []byte {
	b := append([]byte{kind, 0, 0, 0}, token[:]...)
	if kind == echoRequest4 {
		var sum uint32 // RFC 1071
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	}
	return b
}

// isEcho tells whether a message is the answer to ours.
func isEcho(b []byte, kind byte, token [12]byte) bool {
	return len(b) >= 4+len(token) && b[0] == kind && b[1] == 0 && string(b[4:4+len(token)]) == string(token[:])
}
