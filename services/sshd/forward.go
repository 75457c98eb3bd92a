package sshd

import (
	"context"
	"errors"
	"net"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// dialTimeout bounds the connecting of a forwarding.
const dialTimeout = 30 * time.Second

// serveDirect carries a connection that the client asks for (RFC 4254, section
// 7.2), ssh's options -L, -D and -W.
func (s *conn) serveDirect(nc ssh.NewChannel) {
	var m struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &m); err != nil || m.Port > 65535 {
		nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	port := strconv.Itoa(int(m.Port))
	if s.permit.NoForward || !permitted(s.permit.PermitOpen, m.Host, port) {
		nc.Reject(ssh.Prohibited, "forwarding is not allowed with this key")
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	to, err := d.DialContext(s.ctx, "tcp", net.JoinHostPort(m.Host, port))
	if err != nil {
		nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer to.Close()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer context.AfterFunc(s.ctx, func() { to.Close() })()
	s.work.Go(func() { ssh.DiscardRequests(requests) })
	s.join(ch, to.(*net.TCPConn))
}

// permitted holds a host and a port against options permitopen or permitlisten.
func permitted(patterns []string, host, port string) bool {
	if len(patterns) == 0 {
		return true
	}
	for _, p := range patterns {
		ph, pp, err := net.SplitHostPort(p)
		if err != nil {
			ph, pp = "*", p // permitlisten may name a port alone
		}
		if ok, err := path.Match(strings.ToLower(ph), strings.ToLower(host)); (err == nil && ok || strings.EqualFold(ph, host)) && (pp == "*" || pp == port) {
			return true
		}
	}
	return false
}

// join carries data both ways and closes each half when it ends.
func (s *conn) join(ch ssh.Channel, to *net.TCPConn) {
	done := make(chan struct{})
	s.work.Go(func() {
		defer close(done)
		s.copy(to, ch)
		to.CloseWrite()
	})
	s.copy(ch, to)
	ch.CloseWrite()
	<-done
	ch.Close()
}

// global answers the requests that are about the connection.
func (s *conn) global(requests <-chan *ssh.Request) {
	for r := range requests {
		var ok bool
		var answer []byte
		switch r.Type {
		case "tcpip-forward":
			answer, ok = s.listen(r.Payload)
		case "cancel-tcpip-forward":
			ok = s.unlisten(r.Payload)
		}
		if r.WantReply {
			r.Reply(ok, answer)
		}
	}
}

type forwardRequest struct {
	Host string
	Port uint32
}

func (m forwardRequest) key() string { return net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port))) }

// bindHost is where a forwarding from this side listens: only with GatewayPorts
// on more than loopback.
func (s *conn) bindHost(host string) (string, error) {
	switch {
	case host == "localhost", host == "" && !s.c.GatewayPorts, host == "*" && !s.c.GatewayPorts:
		return "127.0.0.1", nil
	case host == "" || host == "*":
		return "", nil
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return "", errors.New("not an address of this device")
	}
	if !s.c.GatewayPorts && !ip.IsLoopback() {
		if ip.To4() == nil {
			return "::1", nil
		}
		return "127.0.0.1", nil
	}
	return host, nil
}

// listen begins a forwarding from this side (RFC 4254, section 7.1), ssh's -R.
func (s *conn) listen(payload []byte) (answer []byte, ok bool) {
	var m forwardRequest
	if ssh.Unmarshal(payload, &m) != nil || m.Port > 65535 || s.permit.NoForward || !permitted(s.permit.Permit, m.Host, strconv.Itoa(int(m.Port))) {
		return nil, false
	}
	host, err := s.bindHost(m.Host)
	if err != nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.listeners) >= maxSessions || s.listeners == nil {
		return nil, false
	}
	ln, err := s.b.Listen(s.permit, net.JoinHostPort(host, strconv.Itoa(int(m.Port))))
	if err != nil {
		s.c.log().Info("forwarding not started", "user", s.permit.User, "from", s.remote, "error", err)
		return nil, false
	}
	if m.Port == 0 {
		m.Port = uint32(addrPort(ln.Addr()).Port())
		answer = ssh.Marshal(struct{ Port uint32 }{m.Port})
	}
	if s.listeners[m.key()] != nil {
		ln.Close()
		return nil, false
	}
	s.listeners[m.key()] = ln
	s.work.Go(func() { s.accept(ln, m) })
	return answer, true
}

func (s *conn) unlisten(payload []byte) bool {
	var m forwardRequest
	if ssh.Unmarshal(payload, &m) != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ln := s.listeners[m.key()]
	if ln == nil {
		return false
	}
	delete(s.listeners, m.key())
	ln.Close()
	return true
}

func (s *conn) closeListeners() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range s.listeners {
		ln.Close()
	}
	s.listeners = nil
}

// accept hands each connection to ln to the client.
func (s *conn) accept(ln net.Listener, m forwardRequest) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		to, ok := nc.(*net.TCPConn)
		if !ok || s.forward.Add(1) > maxForwards {
			if ok {
				s.forward.Add(-1)
			}
			nc.Close()
			continue
		}
		s.work.Go(func() {
			defer s.forward.Add(-1)
			defer to.Close()
			defer context.AfterFunc(s.ctx, func() { to.Close() })()
			from := addrPort(to.RemoteAddr())
			ch, requests, err := s.OpenChannel("forwarded-tcpip", ssh.Marshal(struct {
				Host       string
				Port       uint32
				OriginHost string
				OriginPort uint32
			}{m.Host, m.Port, from.Addr().String(), uint32(from.Port())}))
			if err != nil {
				return
			}
			s.work.Go(func() { ssh.DiscardRequests(requests) })
			s.join(ch, to)
		})
	}
}
