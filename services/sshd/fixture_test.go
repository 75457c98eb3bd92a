package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"weft/init/bus"
	"weft/init/crypt"
	"weft/init/unit"
)

// patience is how long anything may take on a slow machine.
const patience = 90 * time.Second

// TestMain lets the test program be the other programs of the server.
func TestMain(m *testing.M) {
	var f unit.Func
	switch filepath.Base(os.Args[0]) {
	case connectionName:
		f = Connection
	case "sftp-server":
		f = SFTP
	case "scp":
		f = SCP
	default:
		// Whoever starts the tests may ignore SIGHUP (nohup), and what sessions run would inherit that; the service
		// catches it, as every one of unit.Main does.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		os.Exit(m.Run())
	}
	os.Exit(f(context.Background(), unit.OSCall()))
}

// output collects what is logged.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// fixture is a running service with an account "root" that has the user id of the
// test.
type fixture struct {
	*service
	t    *testing.T
	dir  string
	home string
	port int
	out  output
	key  ssh.Signer // authorized
}

const password = "correct horse"

func newFixture(t *testing.T, options ...string) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir()}
	f.home = filepath.Join(f.dir, "home")
	hash, err := crypt.Hash(password)
	if err != nil {
		t.Fatal(err)
	}
	// A shell that finds our scp and the system's other programs.
	f.write("bin/shell", "#!/bin/sh\nPATH="+filepath.Join(f.dir, "bin")+":$PATH\nexport PATH\nexec /bin/sh \"$@\"\n", 0o755)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(f.dir, "bin/scp")); err != nil {
		t.Fatal(err)
	}
	shell := filepath.Join(f.dir, "bin/shell")
	f.write("etc/passwd", fmt.Sprintf("root:x:%d:%d:root:%s:%s\nblank:x:%[1]d:%[2]d::%[3]s:%[4]s\nnologin:x:%[1]d:%[2]d::%[3]s:/bin/false\nsshd:x:65534:65534::/:/bin/false\n",
		os.Getuid(), os.Getgid(), f.home, shell), 0o644)
	f.write("etc/shadow", "root:"+hash+":0:0:99999:7:::\nblank::0:0:99999:7:::\nnologin:"+hash+":0::::::\n", 0o600)
	f.write("etc/group", "root:x:0:\n", 0o644)
	f.write("etc/shells", "/bin/sh\n"+shell+"\n", 0o644)
	f.write("home/.ssh/.keep", "", 0o600)
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	f.write("id", string(pem.EncodeToMemory(block)), 0o600)
	sshPub, _ := ssh.NewPublicKey(pub)
	f.key, _ = ssh.NewSignerFromKey(priv)
	f.write("keys/authorized_keys", string(ssh.MarshalAuthorizedKey(sshPub)), 0o600)
	f.configure(options...)
	f.start()
	return f
}

func (f *fixture) write(name, text string, mode os.FileMode) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		f.t.Fatal(err)
	}
}

// configure writes the package dropbear with one section.
func (f *fixture) configure(options ...string) {
	text := "config dropbear 'main'\n\toption enable '1'\n"
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		text += fmt.Sprintf("\toption %s '%s'\n", name, value)
	}
	f.write("config/dropbear", text, 0o600)
}

// start starts a service whose ports are any that are free on loopback.
func (f *fixture) start() {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	pr, pw, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	var copying sync.WaitGroup
	copying.Go(func() {
		defer pr.Close()
		buf := make([]byte, 4096)
		for {
			n, err := pr.Read(buf)
			f.out.Write(buf[:n])
			if err != nil {
				return
			}
		}
	})
	s := &service{
		log: unit.NewLog(&f.out, false, slog.LevelDebug), configDir: filepath.Join(f.dir, "config"), keyDir: filepath.Join(f.dir, "keys"),
		etc: filepath.Join(f.dir, "etc"), exe: "/proc/self/exe", stderr: pw, ctx: ctx, grace: loginGrace, delay: 20 * time.Millisecond,
		listen: func(ctx context.Context, sp spec) (net.Listener, error) {
			return net.Listen("tcp", "127.0.0.1:0")
		},
	}
	s.client = bus.Connect(ctx, filepath.Join(f.dir, "no-bus"), nil)
	s.init()
	f.service = s
	if err := s.ownKeys(); err != nil {
		f.t.Fatal(err)
	}
	s.reconcile()
	f.port = f.portOf()
	f.t.Cleanup(func() {
		cancel()
		s.stop()
		s.client.Close()
		pw.Close()
		copying.Wait()
		if f.t.Failed() {
			f.t.Logf("log:\n%s", f.out.String())
		}
	})
}

// portOf is the port of the one socket.
func (f *fixture) portOf() int {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.listening {
		return l.ln.Addr().(*net.TCPAddr).Port
	}
	f.t.Fatal("not listening")
	return 0
}

func (f *fixture) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(f.port)) }

// dial logs in with Go's client.
func (f *fixture) dial(user string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", f.addr(), &ssh.ClientConfig{
		User: user, Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: patience,
	})
}

func (f *fixture) mustDial(user string, auth ...ssh.AuthMethod) *ssh.Client {
	f.t.Helper()
	c, err := f.dial(user, auth...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// wait waits until cond holds.
func (f *fixture) wait(what string, cond func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: not within %v", what, patience)
		}
		<-tick.C
	}
}

func (f *fixture) waitLog(text string) {
	f.t.Helper()
	f.wait("log line "+text, func() bool { return strings.Contains(f.out.String(), text) })
}

// foreign finds a program of OpenSSH or Dropbear.
func foreign(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (make judges)", name)
	}
	return p
}

// client runs ssh, sftp or scp against the server.
func (f *fixture) client(name string, stdin string, args ...string) (stdout, stderr string, code int) {
	f.t.Helper()
	f.write("known_hosts", f.knownHosts(), 0o600)
	port := "-p"
	if name != "ssh" {
		port = "-P"
	}
	all := append([]string{
		"-F", "none", "-o", "UserKnownHostsFile=" + filepath.Join(f.dir, "known_hosts"), "-o", "StrictHostKeyChecking=yes",
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", filepath.Join(f.dir, "id"), port, strconv.Itoa(f.port),
	}, args...)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, foreign(f.t, name), all...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		f.t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func (f *fixture) knownHosts() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := ""
	for _, k := range f.keys {
		text += fmt.Sprintf("[127.0.0.1]:%d %s", f.port, ssh.MarshalAuthorizedKey(k.PublicKey()))
	}
	return text
}
