package uhttpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
	"weft/services/internal/backoff"
)

const (
	// runAs is the user that serves; fallbackID where a kept passwd does not know it.
	runAs      = "uhttpd"
	fallbackID = 65534
	// maxHeader bounds the header of a request, in bytes.
	maxHeader = 12 << 10
	// stopTime is how long requests may take to end when the server stops.
	stopTime = 3 * time.Second
)

// server is what the instances share.
type server struct {
	log      *slog.Logger
	ctx      context.Context
	bus      *bus.Client
	failures backoff.Table
	streams  chan struct{}
}

// Run serves until ctx ends. The settings are read once: a change of the package
// uhttpd restarts the service.
func Run(ctx context.Context, env *unit.Env) error {
	if len(env.Args) > 0 {
		return fmt.Errorf("unexpected argument %q: there are none", env.Args[0])
	}
	p, err := (&uci.Tree{ConfDir: env.ConfigDir}).Load("uhttpd")
	if err != nil && !errors.Is(err, uci.ErrNotFound) {
		return fmt.Errorf("read the settings: %w", err)
	}
	if p == nil {
		p = &uci.Package{}
	}
	instances, cert, faults := settings(p)
	for _, f := range faults {
		env.Log.Error(f.Error())
	}
	s := &server{log: env.Log, ctx: ctx, streams: make(chan struct{}, maxStreams)}
	var all []*serving
	for _, i := range instances {
		v := s.open(i, cert)
		all = append(all, v)
		defer v.close()
	}
	if err := drop(); err != nil {
		return fmt.Errorf("become the user %s: %w", runAs, err)
	}
	s.bus = bus.Connect(ctx, env.BusPath, env.Log)
	defer s.bus.Close()
	env.Health(func(context.Context) error { return nil })
	return s.serve(ctx, all, env.Ready)
}

// serve serves all instances until ctx ends.
func (s *server) serve(ctx context.Context, all []*serving, ready func()) error {
	var work sync.WaitGroup
	failed := make(chan error, 1)
	sockets := 0
	for _, v := range all {
		for _, ln := range v.listeners {
			sockets++
			work.Go(func() {
				if err := v.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
					select {
					case failed <- fmt.Errorf("serve %v: %w", ln.Addr(), err):
					default:
					}
				}
			})
		}
	}
	ready()
	var err error
	if sockets == 0 && len(all) > 0 {
		err = errors.New("none of the addresses in listen_http and listen_https can be listened on")
	} else {
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	for _, v := range all {
		sctx, cancel := context.WithTimeout(context.Background(), stopTime)
		if v.http.Shutdown(sctx) != nil {
			v.http.Close()
		}
		cancel()
	}
	work.Wait()
	return err
}

// serving is an instance with its sockets.
type serving struct {
	i         *instance
	http      *http.Server
	listeners []net.Listener
}

func (v *serving) close() {
	for _, ln := range v.listeners {
		ln.Close()
	}
}

// open opens the sockets of an instance and reads, or makes, its certificate.
// What fails is logged; the rest serves.
func (s *server) open(i *instance, c certificate) *serving {
	v := &serving{i: i}
	g := newGate(i)
	listen := func(list []string, wrap func(net.Listener) net.Listener) (ports []uint16) {
		for _, text := range list {
			addrs, err := addresses(text)
			if err != nil {
				s.log.Error("address left out", "instance", i.name, "error", err)
				continue
			}
			for _, a := range addrs {
				ln, err := listenOn(s.ctx, a, i.tcpKeep)
				if err != nil {
					s.log.Error("cannot listen", "instance", i.name, "error", err)
					continue
				}
				s.log.Info("listening", "on", ln.Addr(), "instance", i.name)
				ports = append(ports, ln.Addr().(*net.TCPAddr).AddrPort().Port())
				v.listeners = append(v.listeners, wrap(&gated{ln, g}))
			}
		}
		return ports
	}
	listen(i.http, func(ln net.Listener) net.Listener { return ln })
	var https []uint16
	if len(i.https) > 0 {
		pair, made, err := keyPair(i.certFile, i.keyFile, c, time.Now())
		if made {
			s.log.Info("certificate made", "file", i.certFile)
		}
		if err != nil {
			s.log.Error("no HTTPS", "instance", i.name, "error", err)
		} else {
			config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
			https = listen(i.https, func(ln net.Listener) net.Listener { return tls.NewListener(ln, config) })
		}
	}
	v.http = s.httpServer(i, https)
	return v
}

// httpServer is an instance without its sockets; https are the ports of the
// safe ones.
func (s *server) httpServer(i *instance, https []uint16) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	h := &http.Server{
		Handler: s.handler(i, https), Protocols: protocols,
		// From the first byte of a request to the last of its body.
		ReadHeaderTimeout: i.network, ReadTimeout: i.network,
		IdleTimeout: i.keepAlive, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // what clients do wrong fills no log
	}
	if i.keepAlive == 0 {
		h.SetKeepAlivesEnabled(false)
	}
	return h
}

// handler answers the requests of an instance.
func (s *server) handler(i *instance, https []uint16) http.Handler {
	places := make(chan struct{}, i.maxRequests)
	bus, static := &rpc{s, i}, &files{i}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.filter && rebound(r) {
			http.Error(w, "Rejected request from RFC1918 IP to public server address", http.StatusForbidden)
			return
		}
		if i.redirect && r.TLS == nil && len(https) > 0 {
			redirect(w, r, https[0])
			return
		}
		onBus := i.prefix != "" && (r.URL.Path == i.prefix || strings.HasPrefix(r.URL.Path, i.prefix+"/"))
		if !onBus {
			static.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, i.prefix+"/subscribe/") {
			bus.ServeHTTP(w, r) // lasts, and has a limit of its own
			return
		}
		wait := time.NewTimer(i.script)
		defer wait.Stop()
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-r.Context().Done():
			return
		case <-wait.C:
			http.Error(w, "Too Many Requests", http.StatusServiceUnavailable)
			return
		}
		bus.ServeHTTP(w, r)
	})
}

// rebound says whether a client in a private network (RFC 1918) asks for a public
// address of ours: a name that leads here by a trick (DNS rebinding).
func rebound(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	from, to := peer.Addr().Unmap(), clientOf(local)
	return from.Is4() && to.Is4() && from.IsPrivate() && !to.IsPrivate() && !to.IsLoopback()
}

// redirect sends a client to the safe port.
func redirect(w http.ResponseWriter, r *http.Request, port uint16) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "" || strings.ContainsAny(host, "/\\@?#% \t") {
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	}
	switch {
	case port != 443:
		host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	case strings.Contains(host, ":"):
		host = "[" + host + "]"
	}
	to := url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", to.String())
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// client is the address that a request comes from.
func (s *server) client(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// listenOn opens a socket. An address need not be there yet.
func listenOn(ctx context.Context, a address, keep time.Duration) (net.Listener, error) {
	if keep == 0 {
		keep = -1
	} else {
		keep = max(keep, 15*time.Second) // LEDE's option is a switch, 1 s would be a flood
	}
	lc := net.ListenConfig{KeepAlive: keep, Control: func(network, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) {
			if network == "tcp4" {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
			}
		})
		return errors.Join(cerr, err)
	}}
	ln, err := lc.Listen(ctx, a.network, a.addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln, nil
}

// drop gives up root for good: all threads get the user's ids, and the kernel
// takes the capabilities away with user id 0 (capabilities(7)).
func drop() error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := fallbackID, fallbackID
	if u, err := user.Lookup(runAs); err == nil {
		n, err1 := strconv.Atoi(u.Uid)
		m, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && n > 0 {
			uid, gid = n, m
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return err
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return err
	}
	if syscall.Setresuid(0, 0, 0) == nil {
		return errors.New("root could be taken back")
	}
	return nil
}
