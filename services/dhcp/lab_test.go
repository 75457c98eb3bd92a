package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/unit"
	"weft/services/internal/nstest"
)

// Tests of the service run in a network namespace of their own: this binary
// again, as a child that is started there. The clients are behind a virtual
// cable, in a further namespace that is held by one more child.
const (
	envHelper = "WEFT_TEST_HELPER"
)

// helpers are what this binary can be instead of a test: programs that run in
// the clients' namespace.
var helpers = map[string]func(args []string) error{
	"hold":  func([]string) error { _, err := io.Copy(io.Discard, os.Stdin); return err },
	"crowd": crowd, "flood": flood, "dns-flood": dnsFlood, "router": solicit, "resolve": resolve, "squat": squat,
}

func TestMain(m *testing.M) {
	if h := os.Getenv(envHelper); h != "" {
		if err := helpers[h](os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", h, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience bounds every wait for an event; it is no measurement.
const patience = 90 * time.Second

// inNamespace runs the test that calls it in a new network namespace and
// reports whether this is the run inside.
func inNamespace(t *testing.T) bool {
	t.Helper()
	return nstest.Inside(t, 400*time.Second, unix.CLONE_NEWUTS)
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// lab is a router with the service, and a namespace with clients behind br-lan.
type lab struct {
	*testing.T
	dir    string
	log    *safeBuffer
	stop   context.CancelFunc
	exit   chan int
	ready  chan struct{}
	client int // the process that holds the clients' namespace
	bus    *bus.Client
}

// newLab makes the namespaces: br-lan here with 192.168.1.1/24 and
// fd00:1::1/60, cli0 in the clients' one, both up.
func newLab(t *testing.T) *lab {
	l := &lab{T: t, dir: t.TempDir(), log: &safeBuffer{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the service:\n%s", l.log)
		}
	})
	for _, d := range []string{"config", "state"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Sethostname([]byte("router")); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"all", "default"} {
		// No waiting for duplicate addresses that cannot be.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+k+"/accept_dad", []byte("0"), 0o644)
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644)
	hold, in := l.helper("hold")
	hold.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = hold.Wait() })
	l.client = hold.Process.Pid
	l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "br-lan"}, PeerName: "cli0"}))
	cli, err := netlink.LinkByName("cli0")
	l.must(err)
	l.must(netlink.LinkSetNsPid(cli, l.client))
	l.up("lo")
	l.up("br-lan")
	l.addr("br-lan", "192.168.1.1/24")
	l.addr("br-lan", "fd00:1::1/60")
	l.inClient("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/cli0/accept_dad; ip link set lo up; ip link set cli0 up")
	return l
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) up(name string) {
	l.Helper()
	link, err := netlink.LinkByName(name)
	l.must(err)
	l.must(netlink.LinkSetUp(link))
}

func (l *lab) addr(name, prefix string) {
	l.Helper()
	link, err := netlink.LinkByName(name)
	l.must(err)
	a, err := netlink.ParseAddr(prefix)
	l.must(err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	l.must(netlink.AddrAdd(link, a))
}

// helper is this binary as one of the helpers, not yet started.
func (l *lab) helper(name string, args ...string) (*exec.Cmd, io.Closer) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), envHelper+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = l.log
	in, err := cmd.StdinPipe()
	l.must(err)
	return cmd, in
}

// clientCmd is a program in the clients' namespace, not yet started.
func (l *lab) clientCmd(name string, args ...string) *exec.Cmd {
	l.Helper()
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		l.Skip("nsenter (util-linux) is not installed")
	}
	cmd := exec.Command(nsenter, append([]string{"-t", strconv.Itoa(l.client), "-n", name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// inClient runs a program in the clients' namespace and returns what it says.
func (l *lab) inClient(name string, args ...string) string {
	l.Helper()
	out, err := l.clientCmd(name, args...).CombinedOutput()
	if err != nil {
		l.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// clientSelf is one of the helpers in the clients' namespace, not yet started.
func (l *lab) clientSelf(name string, args ...string) *exec.Cmd {
	l.Helper()
	cmd := l.clientCmd("/proc/"+strconv.Itoa(os.Getpid())+"/exe", args...)
	cmd.Env = append(os.Environ(), envHelper+"="+name)
	return cmd
}

// clientHelper runs one of the helpers in the clients' namespace.
func (l *lab) clientHelper(name string, args ...string) string {
	l.Helper()
	cmd := l.clientSelf(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// judge finds a foreign program or skips.
func (l *lab) judge(name, pkg string) string {
	l.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	l.Skipf("%s is not installed (apt-get install %s)", name, pkg)
	return ""
}

// config writes a UCI file.
func (l *lab) config(name, text string) {
	l.Helper()
	l.must(os.WriteFile(filepath.Join(l.dir, "config", name), []byte(text), 0o644))
}

func (l *lab) file(name, text string) string {
	l.Helper()
	p := filepath.Join(l.dir, name)
	l.must(os.MkdirAll(filepath.Dir(p), 0o755))
	l.must(os.WriteFile(p, []byte(text), 0o644))
	return p
}

// start runs the service and waits until it is ready.
func (l *lab) start() {
	l.Helper()
	sock := filepath.Join(l.dir, "notify")
	os.Remove(sock)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	l.must(err)
	ready := make(chan struct{}, 100)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "READY=1") {
				ready <- struct{}{}
			}
		}
	}()
	ctx, stop := context.WithCancel(context.Background())
	l.stop, l.exit, l.ready = stop, make(chan int, 1), ready
	call := &unit.Call{
		Args:   []string{"dhcp", "--debug", "--config-dir", filepath.Join(l.dir, "config"), "--bus", filepath.Join(l.dir, "bus"), "--state-dir", filepath.Join(l.dir, "state")},
		Stdout: l.log, Stderr: l.log, Dir: "/",
		Getenv: func(k string) string {
			if k == "NOTIFY_SOCKET" {
				return sock
			}
			return ""
		},
	}
	exit := l.exit
	go func() { exit <- unit.Main(Run)(ctx, call) }()
	l.Cleanup(func() { l.shutdown(); conn.Close() })
	l.await("the service to be ready", ready)
}

func (l *lab) await(what string, c <-chan struct{}) {
	l.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		l.Fatalf("waited in vain for %s", what)
	}
}

// shutdown stops the service, if it runs.
func (l *lab) shutdown() {
	l.Helper()
	if l.stop == nil {
		return
	}
	l.stop()
	l.stop = nil
	select {
	case code := <-l.exit:
		if code != 0 {
			l.Errorf("the service ended with %d", code)
		}
	case <-time.After(patience):
		l.Error("the service does not end")
	}
}

// reload has the service read its configuration anew, as the supervisor does.
func (l *lab) reload() {
	l.Helper()
	for len(l.ready) > 0 {
		<-l.ready
	}
	l.must(syscall.Kill(os.Getpid(), syscall.SIGHUP))
	l.await("the reload", l.ready)
}

// broker starts a bus, with a network service that answers dump with what the
// function says.
func (l *lab) broker(dump func() bus.Table) (changed func()) {
	l.Helper()
	sock := filepath.Join(l.dir, "bus")
	b, err := bus.Listen(sock, bus.BrokerOptions{ACLDir: l.dir})
	l.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Serve(ctx); err != nil {
			l.Errorf("broker: %v", err)
		}
	}()
	l.Cleanup(func() { stop(); <-done })
	l.bus, err = bus.Dial(context.Background(), sock)
	l.must(err)
	l.Cleanup(func() { l.bus.Close() })
	if dump == nil {
		return nil
	}
	p, err := l.bus.Publish(&bus.Object{Name: "network.interface", Methods: []bus.Method{
		{Name: "dump", Handle: func(_ context.Context, r *bus.Request) error { return r.Reply(dump()) }},
	}})
	l.must(err)
	return func() { l.must(p.Notify(context.Background(), "interface.update", bus.Table{})) }
}

// eventually repeats f until it says true.
func (l *lab) eventually(what string, f func() bool) {
	l.Helper()
	end := time.Now().Add(patience)
	for !f() {
		if time.Now().After(end) {
			l.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// dig asks from the clients' namespace and returns what follows +short.
func (l *lab) dig(args ...string) string {
	l.Helper()
	dig := l.judge("dig", "bind9-dnsutils")
	return strings.TrimSpace(l.inClient(dig, append([]string{"+tries=5", "+time=10", "+short"}, args...)...))
}

// lanConfig is LEDE's default with one section more.
const lanConfig = `
config dnsmasq
	option domainneeded '1'
	option boguspriv '1'
	option localise_queries '1'
	option rebind_protection '1'
	option rebind_localhost '1'
	option local '/lan/'
	option domain 'lan'
	option expandhosts '1'
	option cachesize '1000'
	option authoritative '1'
	option readethers '1'
	option localservice '1'
	option ednspacket_max '1232'
	%s

config dhcp 'lan'
	option interface 'lan'
	option start '100'
	option limit '150'
	option leasetime '12h'
	option dhcpv4 'server'
	option dhcpv6 'server'
	option ra 'server'
	list ra_flags 'managed-config'
	list ra_flags 'other-config'
	%s

config dhcp 'wan'
	option interface 'wan'
	option ignore '1'
`

const networkConfig = `
config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	list ipaddr '192.168.1.1/24'

config interface 'wan'
	option device 'wan0'
	option proto 'dhcp'
`
