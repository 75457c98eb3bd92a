package sshd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
	"weft/services/internal/backoff"
)

const (
	// keyDir holds host keys and root's authorized keys, as on LEDE.
	keyDir = "/etc/dropbear"
	// user is whose rights the process of a connection has; fallback where a kept
	// passwd does not know it.
	user        = "sshd"
	fallbackUID = 65534
	// maxConns bounds all connections; maxUnknown those that nobody has logged in
	// on, of them maxUnknownPer from one address (Dropbear's MAX_UNAUTH_PER_IP is 5).
	maxConns, maxUnknown, maxUnknownPer = 32, 16, 5
	// failDelay is how long the answer to a wrong password takes at least.
	failDelay = time.Second
	// retryListen is the pause before a port that is taken is tried again.
	retryListen = 10 * time.Second
	// resolveTimeout bounds a question about an interface.
	resolveTimeout = 5 * time.Second
)

// The names of the host key files, as Dropbear has them.
const (
	ed25519File = "dropbear_ed25519_host_key"
	rsaFile     = "dropbear_rsa_host_key"
	ecdsaFile   = "dropbear_ecdsa_host_key"
)

// service is the state of Run.
type service struct {
	log       *slog.Logger
	configDir string
	keyDir    string
	etc       string
	exe       string // program of the processes of connections
	stderr    *os.File
	client    *bus.Client
	listen    func(context.Context, spec) (net.Listener, error)
	grace     time.Duration // to log in
	delay     time.Duration // of the answer to a wrong password
	failures  backoff.Table

	ctx  context.Context
	work sync.WaitGroup

	mu        sync.Mutex
	listening map[spec]*listening
	keys      []ssh.Signer // of keyDir
	conns     int
	unknown   map[netip.Addr]int // connections that nobody has logged in on
	unknowns  int
	refused   map[netip.Addr]time.Time // when it was last logged
	retry     *time.Timer
	again     chan struct{} // asks Run to reconcile
}

// spec is a socket that is listened on.
type spec struct {
	addr   string // with port
	device string
}

// listening is a socket and the instance it serves.
type listening struct {
	ln net.Listener
	i  *instance
}

// Run serves until ctx ends. SIGHUP, or a change of the package dropbear, opens
// and closes what differs; connections stay.
func Run(ctx context.Context, env *unit.Env) error {
	s := &service{
		log: env.Log, configDir: env.ConfigDir, keyDir: keyDir, etc: "/etc", exe: "/proc/self/exe", stderr: os.Stderr, ctx: ctx,
		listen: listenOn, grace: loginGrace, delay: failDelay,
	}
	switch len(env.Args) {
	case 0:
	case 1:
		s.keyDir = env.Call.Path(env.Args[0])
	default:
		return fmt.Errorf("unexpected argument %q: at most the folder of the host keys is taken", env.Args[1])
	}
	client := bus.Connect(ctx, env.BusPath, env.Log)
	defer client.Close()
	s.client = client
	s.init()
	if _, err := client.OnEvent("network.interface", func(string, bus.Table) { s.ask() }); err != nil {
		return err
	}
	defer s.stop()
	if err := s.ownKeys(); err != nil {
		return err
	}
	s.reconcile()
	env.Ready()
	s.work.Go(s.makeRSA)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-env.Reload():
			env.Reloading()
			s.reconcile()
			env.Ready()
		case <-s.again:
			s.reconcile()
		}
	}
}

func (s *service) init() {
	s.listening = map[spec]*listening{}
	s.unknown = map[netip.Addr]int{}
	s.refused = map[netip.Addr]time.Time{}
	s.again = make(chan struct{}, 1)
}

// ask asks Run to reconcile.
func (s *service) ask() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// stop closes the sockets and waits for what was started, except sessions: a
// user's shell outlives a restart of the service.
func (s *service) stop() {
	s.mu.Lock()
	for _, l := range s.listening {
		l.ln.Close()
	}
	if s.retry != nil {
		s.retry.Stop()
	}
	s.mu.Unlock()
	s.work.Wait()
}

// ownKeys reads the host keys of keyDir and makes the fast one if it is missing.
func (s *service) ownKeys() error {
	path := filepath.Join(s.keyDir, ed25519File)
	s.setAside(path)
	s.setAside(filepath.Join(s.keyDir, rsaFile))
	s.keys = LoadHostKeys(s.log, path, filepath.Join(s.keyDir, ecdsaFile), filepath.Join(s.keyDir, rsaFile))
	if !slices.ContainsFunc(s.keys, func(k ssh.Signer) bool { return k.PublicKey().Type() == algoEd25519 }) {
		k, err := NewHostKey(path, "ed25519")
		if err != nil {
			// Better a server with a key for this run than none.
			s.log.Error("host key will not outlive a restart", "error", err)
			if k, err = NewHostKey("", "ed25519"); err != nil {
				return err
			}
		}
		s.log.Info("host key made", "file", path, "fingerprint", ssh.FingerprintSHA256(k.PublicKey()))
		s.keys = append([]ssh.Signer{k}, s.keys...)
	}
	return nil
}

// setAside makes place for a new key where a file holds none: an empty one is
// what a power cut leaves on some file systems.
func (s *service) setAside(path string) {
	_, err := loadHostKey(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return
	}
	s.log.Error("host key not usable, a new one is made", "error", err, "kept", path+".bad")
	if err := os.Rename(path, path+".bad"); err != nil {
		s.log.Error("cannot set a host key aside", "error", err)
	}
}

// makeRSA makes the slow key, for clients that know no other, while the server
// is already up.
func (s *service) makeRSA() {
	path := filepath.Join(s.keyDir, rsaFile)
	s.mu.Lock()
	have := slices.ContainsFunc(s.keys, func(k ssh.Signer) bool { return k.PublicKey().Type() == algoRSA })
	s.mu.Unlock()
	if have || s.ctx.Err() != nil {
		return
	}
	k, err := NewHostKey(path, "rsa")
	if err != nil {
		s.log.Error("no RSA host key", "error", err)
		return
	}
	s.log.Info("host key made", "file", path, "fingerprint", ssh.FingerprintSHA256(k.PublicKey()))
	s.mu.Lock()
	s.keys = append(slices.Clone(s.keys), k)
	s.mu.Unlock()
}

// keysOf are the host keys of an instance: its own, or those of keyDir.
func (s *service) keysOf(i *instance) []ssh.Signer {
	if len(i.keyFiles) > 0 {
		if keys := LoadHostKeys(s.log, i.keyFiles...); len(keys) > 0 {
			return keys
		}
		s.log.Error("none of the key files of an instance can be used, those of "+s.keyDir+" are", "instance", i.name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

// reconcile makes the sockets what the configuration asks for. An unreadable
// configuration leaves everything as it is.
func (s *service) reconcile() {
	p, err := (&uci.Tree{ConfDir: s.configDir}).Load("dropbear")
	if errors.Is(err, uci.ErrNotFound) {
		p, err = &uci.Package{}, nil // no instance
	}
	if err != nil {
		s.log.Error("settings not taken", "error", err)
		return
	}
	instances, faults := settings(p)
	for _, f := range faults {
		s.log.Error(f.Error())
	}
	want := map[spec]*instance{}
	for _, i := range instances {
		for _, sp := range s.specs(i) {
			if other := want[sp]; other != nil {
				s.log.Error("two instances want the same socket", "socket", sp.addr, "instances", other.name+" "+i.name)
				continue
			}
			want[sp] = i
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for sp, l := range s.listening {
		if want[sp] == nil {
			l.ln.Close()
			delete(s.listening, sp)
			s.log.Info("no longer listening", "on", sp.addr)
		}
	}
	failed := false
	for _, sp := range slices.SortedFunc(maps.Keys(want), func(a, b spec) int { return compare(a, b) }) {
		if l := s.listening[sp]; l != nil {
			l.i = want[sp]
			continue
		}
		ln, err := s.listen(s.ctx, sp)
		if err != nil {
			failed = true
			s.log.Error("cannot listen, trying again", "instance", want[sp].name, "error", err)
			continue
		}
		l := &listening{ln: ln, i: want[sp]}
		s.listening[sp] = l
		s.log.Info("listening", "on", sp.addr, "instance", l.i.name)
		s.work.Go(func() { s.accept(l) })
	}
	if failed && s.ctx.Err() == nil {
		s.retry = time.AfterFunc(retryListen, s.ask)
	}
}

func compare(a, b spec) int {
	if a.addr != b.addr {
		if a.addr < b.addr {
			return -1
		}
		return 1
	}
	if a.device < b.device {
		return -1
	}
	return 1
}

// specs are the sockets of an instance.
func (s *service) specs(i *instance) []spec {
	port := strconv.Itoa(int(i.port))
	if i.network == "" {
		return []spec{{addr: ":" + port, device: i.device}}
	}
	ctx, cancel := context.WithTimeout(s.ctx, resolveTimeout)
	defer cancel()
	t, err := s.client.Call(ctx, "network.interface", "status", bus.Table{{Name: "interface", Value: i.network}})
	if err != nil {
		s.log.Warn("addresses of the interface not known, not listening there yet", "interface", i.network, "error", err)
		return nil
	}
	var list []spec
	for _, a := range addresses(t) {
		list = append(list, spec{addr: net.JoinHostPort(a, port)})
	}
	return list
}

// addresses are those in the status of an interface.
func addresses(t bus.Table) []string {
	var list []string
	add := func(v any) {
		entry, _ := v.(bus.Table)
		if a, err := netip.ParseAddr(entry.String("address")); err == nil && !slices.Contains(list, a.String()) {
			list = append(list, a.String())
		}
	}
	for _, name := range []string{"ipv4-address", "ipv6-address"} {
		entries, _ := t.Get(name).(bus.Array)
		for _, e := range entries {
			add(e)
		}
	}
	prefixes, _ := t.Get("ipv6-prefix-assignment").(bus.Array)
	for _, e := range prefixes {
		if entry, ok := e.(bus.Table); ok {
			add(entry.Get("local-address"))
		}
	}
	return list
}

// listenOn opens a socket. An address need not be there yet.
func listenOn(ctx context.Context, sp spec) (net.Listener, error) {
	lc := net.ListenConfig{
		KeepAlive: -1, // SSH has its own
		Control: func(network, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				if sp.device != "" {
					err = unix.BindToDevice(int(fd), sp.device)
				}
				if err == nil && network != "tcp6" {
					err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
				} else if err == nil {
					err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
				}
			})
			return errors.Join(cerr, err)
		},
	}
	ln, err := lc.Listen(ctx, "tcp", sp.addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln, nil
}

// accept starts a process for each connection until the socket is closed.
func (s *service) accept(l *listening) {
	for {
		nc, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Warn("cannot accept a connection", "error", err)
			select { // such as no descriptors left: others will end
			case <-s.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		from := addrPort(nc.RemoteAddr())
		leave, ok := s.admit(from.Addr())
		if !ok {
			nc.Close()
			continue
		}
		s.mu.Lock()
		i := l.i
		s.mu.Unlock()
		s.work.Go(func() {
			defer leave.all()
			if err := s.serve(nc.(*net.TCPConn), i, leave.known); err != nil {
				s.log.Error("connection not served", "from", from, "error", err)
			}
		})
	}
}

// leave gives back the places of a connection.
type leave struct {
	known func() // somebody has logged in
	all   func() // the connection has ended
}

// admit counts a connection, unless there are too many or its address waits.
func (s *service) admit(a netip.Addr) (leave, bool) {
	now := time.Now()
	wait := s.failures.Wait(a, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	why := ""
	switch {
	case wait > 0:
		why = "too many failed logins"
	case s.conns >= maxConns:
		why = "too many connections"
	case s.unknowns >= maxUnknown, s.unknown[a] >= maxUnknownPer:
		why = "too many connections without a login"
	}
	if why != "" {
		if now.Sub(s.refused[a]) > time.Minute {
			if len(s.refused) > 256 {
				clear(s.refused)
			}
			s.refused[a] = now
			s.log.Warn("connection refused: "+why, "from", a, "for", wait.Round(time.Second))
		}
		return leave{}, false
	}
	s.conns++
	s.unknowns++
	s.unknown[a]++
	known := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unknowns--
		if s.unknown[a]--; s.unknown[a] == 0 {
			delete(s.unknown, a)
		}
	})
	return leave{known, func() {
		known()
		s.mu.Lock()
		s.conns--
		s.mu.Unlock()
	}}, true
}

// serve serves one connection to its end.
func (s *service) serve(nc *net.TCPConn, i *instance, known func()) error {
	from, to := addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr())
	f, err := nc.File()
	nc.Close()
	if err != nil {
		return err
	}
	cmd, p, err := s.spawn(f)
	f.Close()
	if err != nil {
		return err
	}
	s.log.Info(fmt.Sprintf("Child connection from %v", from), "pid", cmd.Process.Pid)
	defer p.close()
	local := &Local{
		Etc: s.etc, Keys: []string{filepath.Join(s.keyDir, "authorized_keys")}, Passwords: i.passwords,
		RootPasswords: i.rootPasswords, RootLogin: i.rootLogin, Blank: true, Log: s.log,
	}
	keys := s.keysOf(i)
	h := &hello{
		Passwords: i.passwords, GatewayPorts: i.gatewayPorts, Banner: s.banner(i, local), MaxAuthTries: i.tries,
		IdleTimeout: int64(i.idle), KeepAlive: int64(i.keepAlive), Grace: int64(s.grace),
	}
	for _, k := range keys {
		h.HostKeys = append(h.HostKeys, k.PublicKey().Marshal())
	}
	// The process that does not get anybody in dies, whatever it does.
	grace := time.AfterFunc(s.grace+s.grace/8, func() { cmd.Process.Kill() })
	defer grace.Stop()
	m := &monitor{
		log: s.log, b: local.forPeer(from), keys: keys, p: p, from: from, to: to, force: i.force, max: i.tries,
		fail: func() time.Duration {
			if wait := s.failures.Fail(from.Addr(), time.Now()); wait > 0 {
				s.log.Warn("too many failed logins, connections are refused", "from", from.Addr(), "for", wait)
			}
			return s.delay
		},
		good: func() { s.failures.Good(from.Addr()) },
		login: func() {
			grace.Stop()
			known()
		},
	}
	if err := p.send(&message{Hello: h}); err == nil {
		m.serve(s.ctx)
	}
	p.close()
	if m.permit == nil || s.ctx.Err() == nil {
		cmd.Process.Kill() // it has ended, or has no business any more
	} else {
		return nil // a session of a user, which a restart leaves alone
	}
	_ = cmd.Wait() // killed, or told why itself
	return nil
}

// banner is what is shown before the login.
func (s *service) banner(i *instance, l *Local) string {
	text, err := readBanner(i.banner)
	if err != nil {
		s.log.Warn("banner not shown", "instance", i.name, "error", err)
	}
	if a, err := lookup(s.etc, "root"); err == nil && a.hash == "" && l.Passwords && l.RootPasswords && l.RootLogin {
		text += "No password is set for root: anybody in the local network can log in. Set one with passwd.\n"
	}
	return text
}

// spawn starts the process of a connection without rights.
func (s *service) spawn(client *os.File) (*exec.Cmd, *pipe, error) {
	uid, gid := uint32(fallbackUID), uint32(fallbackUID)
	if a, err := lookup(s.etc, user); err == nil && a.uid != 0 {
		uid, gid = a.uid, a.gid
	}
	return spawn(s.exe, client, uid, gid, s.stderr)
}
