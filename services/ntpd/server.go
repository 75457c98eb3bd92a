package ntpd

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// truth is what the server tells about this clock.
type truth struct {
	synced     bool
	leap       uint8
	stratum    uint8
	reference  uint32 // of the server that we follow
	rootDelay  time.Duration
	dispersion time.Duration
	at         time.Time // of the last correction
}

const (
	packetSize = 48
	epoch      = 2208988800 // seconds from 1900 to 1970
	// drift is how fast an undisciplined clock may go wrong (RFC 5905, PHI).
	drift = 15e-6
)

// short is RFC 5905's short format: seconds in 16.16 bits.
func short(d time.Duration) uint32 {
	return uint32(min(max(d.Seconds(), 0), 65535) * 65536)
}

// stamp is the 64-bit format: seconds since 1900 in 32.32 bits.
func stamp(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.Unix()+epoch)<<32 | uint64(t.Nanosecond())<<32/1e9
}

// respond makes the answer to a request, nil to what is none: only clients
// (mode 3) of versions 1 to 4 get one, of the size of a request at most, so that
// nobody gains by a forged address.
func respond(req []byte, t truth, received, now time.Time) []byte {
	if len(req) < packetSize || !t.synced {
		return nil
	}
	version, mode := req[0]>>3&7, req[0]&7
	if mode != 3 || version < 1 || version > 4 {
		return nil
	}
	b := make([]byte, packetSize)
	b[0] = t.leap<<6 | version<<3 | 4
	b[1] = t.stratum
	b[2] = req[2] // poll
	b[3] = 0xec   // precision: 2^-20 s, a microsecond
	age := received.Sub(t.at)
	binary.BigEndian.PutUint32(b[4:], short(t.rootDelay))
	binary.BigEndian.PutUint32(b[8:], short(t.dispersion+time.Duration(float64(max(age, 0))*drift)))
	binary.BigEndian.PutUint32(b[12:], t.reference)
	binary.BigEndian.PutUint64(b[16:], stamp(t.at))
	copy(b[24:32], req[40:48]) // the client's transmit time comes back as origin
	binary.BigEndian.PutUint64(b[32:], stamp(received))
	binary.BigEndian.PutUint64(b[40:], stamp(now))
	return b
}

// server answers on one socket.
type server struct {
	conn *net.UDPConn
	done sync.WaitGroup
}

// listen opens the socket, on one device if its name is given.
func listen(ctx context.Context, addr, device string, log *slog.Logger, now func() truth) (*server, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			// Several devices have a socket each, on the same port.
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if err == nil && device != "" {
				err = unix.BindToDevice(int(fd), device)
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for NTP clients on %s%%%s: %w", addr, device, err)
	}
	s := &server{conn: c.(*net.UDPConn)}
	s.done.Go(func() {
		buf := make([]byte, 512)
		for {
			n, from, err := s.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				if ctx.Err() == nil && !isClosed(err) {
					log.Warn("NTP server: read", "error", err)
				}
				return
			}
			received := time.Now()
			if b := respond(buf[:n], now(), received, time.Now()); b != nil {
				_, _ = s.conn.WriteToUDPAddrPort(b, from) // a client that is gone needs none
			}
		}
	})
	return s, nil
}

func (s *server) close() {
	s.conn.Close()
	s.done.Wait()
}
