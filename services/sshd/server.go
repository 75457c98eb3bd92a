package sshd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Version is what the server calls itself (RFC 4253, section 4.2).
const Version = "SSH-2.0-Weft"

const (
	// loginGrace is how long a client may take to log in (OpenSSH's default).
	loginGrace = 120 * time.Second
	// maxSessions and maxForwards bound the channels of one connection.
	maxSessions, maxForwards = 16, 64
	// maxUnanswered keep-alive messages end a connection (Dropbear's
	// DEFAULT_KEEPALIVE_LIMIT).
	maxUnanswered = 3
)

// Backend decides who may log in, and does what needs more rights than the
// protocol. Its methods may be called from several goroutines.
type Backend interface {
	// Blank answers a login without a password (method none).
	Blank(user string) (*Permit, error)
	Password(user, password string) (*Permit, error)
	// PublicKey says what a key is good for. The client has not yet shown that
	// it has the private half: Verified follows when it has.
	PublicKey(user string, key ssh.PublicKey) (*Permit, error)
	Verified(user string, key ssh.PublicKey) error
	// Start starts what a session asks for.
	Start(p *Permit, r *Request) (*Process, error)
	// Listen listens for a forwarding from this side.
	Listen(p *Permit, addr string) (net.Listener, error)
}

// Permit is what a login allows: the options of the key (sshd(8), AUTHORIZED_KEYS
// FILE FORMAT), none for a password.
type Permit struct {
	User       string
	Command    string   `json:",omitempty"` // runs instead of whatever is asked for
	NoPTY      bool     `json:",omitempty"`
	NoForward  bool     `json:",omitempty"`
	PermitOpen []string `json:",omitempty"` // host:port of direct forwardings; empty: all
	Permit     []string `json:",omitempty"` // [host:]port of forwardings from this side; empty: all
}

// Request is what a session is to run.
type Request struct {
	// Kind is "shell", "exec" or "subsystem".
	Kind    string
	Command string `json:",omitempty"` // of exec; the name of a subsystem
	PTY     *PTY   `json:",omitempty"` // nil: pipes
	Env     []string
	Remote  netip.AddrPort
	Local   netip.AddrPort
}

// PTY is a terminal as a client describes it (RFC 4254, section 6.2).
type PTY struct {
	Term          string
	Columns, Rows uint32
	Width, Height uint32
	Modes         []byte
}

// Config is what Serve serves.
type Config struct {
	HostKeys []ssh.Signer
	// Backend is asked once for each connection.
	Backend func(conn net.Conn) Backend
	// Passwords offers logins by password.
	Passwords bool
	// GatewayPorts lets forwardings from this side listen on more than loopback.
	GatewayPorts bool
	Banner       string        // shown before the login
	MaxAuthTries int           // 0: 3, Dropbear's default on LEDE
	IdleTimeout  time.Duration // without data in a channel; 0: none
	KeepAlive    time.Duration // between messages that the client has to answer; 0: none
	LoginGrace   time.Duration // until somebody has logged in; 0: 120 s
	MaxConns     int           // connections at the same time; 0: 16
	Log          *slog.Logger
}

// Serve answers connections to ln until ctx ends or ln fails, and returns when
// all of them have ended. It closes ln.
func Serve(ctx context.Context, ln net.Listener, c Config) error {
	if len(c.HostKeys) == 0 || c.Backend == nil {
		return errors.New("serve SSH: a host key and a backend are needed")
	}
	if c.MaxConns == 0 {
		c.MaxConns = 16
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	places := make(chan struct{}, c.MaxConns)
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				select { // out of descriptors: others will end
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("accept SSH connections: %w", err)
		}
		select {
		case places <- struct{}{}:
		default:
			nc.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-places }()
			if err := ServeConn(ctx, nc, &c); err != nil {
				c.log().Info(err.Error())
			}
		})
	}
}

func (c *Config) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

// permitKey is where a Permit rides in ssh.Permissions.
type permitKey struct{}

// server config of one connection.
func (c *Config) serverConfig(b Backend) *ssh.ServerConfig {
	grant := func(p *Permit, err error) (*ssh.Permissions, error) {
		if err != nil {
			return nil, err
		}
		return &ssh.Permissions{ExtraData: map[any]any{permitKey{}: p}}, nil
	}
	sc := &ssh.ServerConfig{
		ServerVersion: Version,
		MaxAuthTries:  c.MaxAuthTries,
		NoClientAuth:  true,
		NoClientAuthCallback: func(m ssh.ConnMetadata) (*ssh.Permissions, error) {
			return grant(b.Blank(m.User()))
		},
		PublicKeyCallback: func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return grant(b.PublicKey(m.User(), key))
		},
		VerifiedPublicKeyCallback: func(m ssh.ConnMetadata, key ssh.PublicKey, p *ssh.Permissions, _ string) (*ssh.Permissions, error) {
			return p, b.Verified(m.User(), key)
		},
	}
	if sc.MaxAuthTries == 0 {
		sc.MaxAuthTries = 3
	}
	if c.Passwords {
		sc.PasswordCallback = func(m ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return grant(b.Password(m.User(), string(password)))
		}
	}
	if c.Banner != "" {
		sc.BannerCallback = func(ssh.ConnMetadata) string { return c.Banner }
	}
	for _, k := range c.HostKeys {
		sc.AddHostKey(k)
	}
	return sc
}

// conn is one connection whose user has logged in.
type conn struct {
	*ssh.ServerConn
	c       *Config
	b       Backend
	permit  *Permit
	remote  netip.AddrPort
	local   netip.AddrPort
	ctx     context.Context
	work    sync.WaitGroup
	used    atomic.Int64 // when data last passed, in nanoseconds since start
	start   time.Time
	session atomic.Int32
	forward atomic.Int32

	mu        sync.Mutex
	listeners map[string]net.Listener
}

// touch notes that data passes.
func (s *conn) touch() { s.used.Store(int64(time.Since(s.start))) }

// ServeConn serves one connection to its end and closes it. The error says why
// there was no login; a connection that ends after that is no error.
func ServeConn(ctx context.Context, nc net.Conn, c *Config) error {
	defer nc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	b := c.Backend(nc)
	grace := c.LoginGrace
	if grace == 0 {
		grace = loginGrace
	}
	nc.SetDeadline(time.Now().Add(grace))
	sconn, channels, requests, err := ssh.NewServerConn(nc, c.serverConfig(b))
	if err != nil {
		return fmt.Errorf("Exit before auth from <%v>: %w", nc.RemoteAddr(), err)
	}
	defer sconn.Close()
	nc.SetDeadline(time.Time{})
	permit, _ := sconn.Permissions.ExtraData[permitKey{}].(*Permit)
	if permit == nil {
		return fmt.Errorf("Exit before auth from <%v>: no permit", nc.RemoteAddr())
	}
	s := &conn{
		ServerConn: sconn, c: c, b: b, permit: permit, ctx: ctx, start: time.Now(),
		remote: addrPort(nc.RemoteAddr()), local: addrPort(nc.LocalAddr()), listeners: map[string]net.Listener{},
	}
	s.work.Go(func() { s.global(requests) })
	s.work.Go(s.watch)
	for ch := range channels {
		switch ch.ChannelType() {
		case "session":
			if s.session.Add(1) > maxSessions {
				s.session.Add(-1)
				ch.Reject(ssh.ResourceShortage, "too many sessions in this connection")
				continue
			}
			s.work.Go(func() {
				defer s.session.Add(-1)
				s.serveSession(ch)
			})
		case "direct-tcpip":
			if s.forward.Add(1) > maxForwards {
				s.forward.Add(-1)
				ch.Reject(ssh.ResourceShortage, "too many forwardings in this connection")
				continue
			}
			s.work.Go(func() {
				defer s.forward.Add(-1)
				s.serveDirect(ch)
			})
		default:
			ch.Reject(ssh.UnknownChannelType, "not offered by this server")
		}
	}
	cancel()
	s.closeListeners()
	s.work.Wait()
	return nil
}

// watch ends the connection if it is idle or the client is gone.
func (s *conn) watch() {
	tick := s.c.KeepAlive
	if idle := s.c.IdleTimeout / 4; idle > 0 && (tick == 0 || idle < tick) {
		tick = idle
	}
	if tick <= 0 {
		return
	}
	tick = max(tick, 50*time.Millisecond)
	t := time.NewTicker(tick)
	defer t.Stop()
	answered := make(chan struct{}, maxUnanswered+1)
	asked, last := 0, time.Now()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-answered:
			asked = 0
		case now := <-t.C:
			if idle := s.c.IdleTimeout; idle > 0 && time.Since(s.start)-time.Duration(s.used.Load()) >= idle {
				s.c.log().Info("Exit: idle timeout", "user", s.permit.User, "from", s.remote)
				s.Close()
				return
			}
			if s.c.KeepAlive <= 0 || now.Sub(last) < s.c.KeepAlive {
				continue
			}
			if asked >= maxUnanswered {
				s.c.log().Info("Exit: keepalive timeout", "user", s.permit.User, "from", s.remote)
				s.Close()
				return
			}
			asked, last = asked+1, now
			s.work.Go(func() {
				if _, _, err := s.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					select {
					case answered <- struct{}{}:
					default:
					}
				}
			})
		}
	}
}

// addrPort is the address of a peer, the zero value for what has none.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
