package sshd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"weft/init/bus"
	"weft/init/uci"
)

// TestLogin holds the ways to log in against the settings.
func TestLogin(t *testing.T) {
	f := newFixture(t, "MaxAuthTries=2")
	key, pass, wrong := ssh.PublicKeys(f.key), ssh.Password(password), ssh.Password("guess")
	root := os.Getuid() == 0
	for _, c := range []struct {
		name, options, user string
		auth                []ssh.AuthMethod
		ok                  bool
	}{
		{"key", "", "root", []ssh.AuthMethod{key}, true},
		{"password", "", "root", []ssh.AuthMethod{pass}, true},
		{"wrong password", "", "root", []ssh.AuthMethod{wrong}, false},
		{"no password for an account with one", "", "root", nil, false},
		{"no password for an account without one", "", "blank", nil, true},
		{"empty password for an account without one", "", "blank", []ssh.AuthMethod{ssh.Password("")}, true},
		{"no such user", "", "nobody-knows", []ssh.AuthMethod{pass}, false},
		{"no shell", "", "nologin", []ssh.AuthMethod{pass}, false},
		{"passwords off", "PasswordAuth=off", "root", []ssh.AuthMethod{pass}, false},
		{"passwords off, no password", "PasswordAuth=off", "blank", nil, false},
		{"passwords off, key", "PasswordAuth=off", "root", []ssh.AuthMethod{key}, true},
		{"root's passwords off", "RootPasswordAuth=0", "root", []ssh.AuthMethod{pass}, !root},
		{"root's passwords off, key", "RootPasswordAuth=0", "root", []ssh.AuthMethod{key}, true},
		{"root off", "RootLogin=0", "root", []ssh.AuthMethod{key}, !root},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !root && strings.Contains(c.name, "off, key") {
				t.Skip("root's keys are those of user id 0: needs root")
			}
			if !root && c.name == "key" || !root && c.name == "root off" {
				t.Skip("root's keys are those of user id 0: needs root")
			}
			f.configure("MaxAuthTries=2", c.options)
			f.reconcile()
			client, err := f.dial(c.user, c.auth...)
			if err == nil {
				client.Close()
			}
			if (err == nil) != c.ok {
				t.Errorf("error %v, want a login: %v", err, c.ok)
			}
			f.failures.Good(addrPort(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}).Addr())
		})
	}
}

// TestBruteForce: an address that guesses is made to wait, and only that one.
func TestBruteForce(t *testing.T) {
	f := newFixture(t, "MaxAuthTries=6")
	tries := 0
	f.wait("refusal", func() bool {
		_, err := f.dial("root", ssh.RetryableAuthMethod(ssh.PasswordCallback(func() (string, error) {
			tries++
			return "guess" + strconv.Itoa(tries), nil
		}), 6))
		if err == nil {
			t.Fatal("logged in with a guess")
		}
		return strings.Contains(f.out.String(), "connection refused: too many failed logins")
	})
	if tries > 12 {
		t.Errorf("%d guesses before the address was refused", tries)
	}
	if _, err := f.dial("root", ssh.Password(password)); err == nil {
		t.Error("the right password was taken from an address that is refused")
	}
	if w := f.failures.Wait(addrPort(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}).Addr(), time.Now()); w != 0 {
		t.Errorf("another address waits %v", w)
	}
	if !strings.Contains(f.out.String(), "Bad password attempt for 'root' from 127.0.0.1:") {
		t.Error("no line for tools that ban addresses")
	}
}

// TestFlood: connections without a login are few for one address, die in time and
// give their places back.
func TestFlood(t *testing.T) {
	f := newFixture(t)
	f.mu.Lock()
	f.grace = 2 * time.Second
	f.mu.Unlock()
	var open []net.Conn
	for range 3 * maxUnknownPer {
		c, err := net.Dial("tcp", f.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	greeted := make(chan bool, len(open))
	for _, c := range open {
		go func() {
			c.SetReadDeadline(time.Now().Add(patience))
			n, err := io.ReadFull(c, make([]byte, 4))
			greeted <- err == nil && n == 4
			io.Copy(io.Discard, c) // until it is closed by the server
		}()
	}
	n := 0
	for range open {
		if <-greeted {
			n++
		}
	}
	if n > maxUnknownPer {
		t.Errorf("%d connections without a login were served, at most %d", n, maxUnknownPer)
	}
	f.wait("places given back", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.conns == 0 && f.unknowns == 0 && len(f.unknown) == 0
	})
	f.mustDial("root", ssh.Password(password))
}

// TestGarbage: what is no SSH ends its own connection alone.
func TestGarbage(t *testing.T) {
	f := newFixture(t)
	client := f.mustDial("root", ssh.Password(password))
	for _, text := range []string{"GET / HTTP/1.0\r\n\r\n", "SSH-2.0-x\r\n" + strings.Repeat("\xff", 40000), "SSH-1.5-old\r\n", strings.Repeat("A", 100000)} {
		c, err := net.Dial("tcp", f.addr())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte(text))
		if tc, ok := c.(*net.TCPConn); ok {
			tc.CloseWrite()
		}
		io.Copy(io.Discard, c)
		c.Close()
	}
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Output("echo alive"); string(out) != "alive\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// TestSeparation looks at the process that speaks with the client.
func TestSeparation(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give a process another user")
	}
	f := newFixture(t)
	client := f.mustDial("root", ssh.Password(password))
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Output("id -u")
	if err != nil || string(out) != "0\n" {
		t.Fatalf("the session has user id %q, %v", out, err)
	}
	status := f.statusOf(connectionName)
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534", "Groups:\t \n", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(status, want) {
			t.Errorf("the process of the connection lacks %q:\n%s", want, status)
		}
	}
}

// statusOf is /proc/PID/status of our child called name.
func (f *fixture) statusOf(name string) string {
	f.t.Helper()
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", os.Getpid(), os.Getpid()))
	var pids []string
	if err == nil {
		pids = strings.Fields(string(out))
	}
	if all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid())); len(all) > 0 {
		for _, c := range all {
			b, _ := os.ReadFile(c)
			pids = append(pids, strings.Fields(string(b))...)
		}
	}
	for _, pid := range pids {
		if cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.HasPrefix(string(cmd), name) {
			b, _ := os.ReadFile("/proc/" + pid + "/status")
			return string(b)
		}
	}
	f.t.Fatalf("no child called %s", name)
	return ""
}

// TestSession holds what a session may ask for against a client of our own.
func TestSession(t *testing.T) {
	f := newFixture(t)
	client := f.mustDial("root", ssh.Password(password))
	newSession := func(t *testing.T) *ssh.Session {
		t.Helper()
		s, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	t.Run("window", func(t *testing.T) {
		s := newSession(t)
		if err := s.RequestPty("xterm", 33, 77, ssh.TerminalModes{ssh.ECHO: 0}); err != nil {
			t.Fatal(err)
		}
		in, _ := s.StdinPipe()
		out, _ := s.StdoutPipe()
		if err := s.Start(`echo "$TERM $(stty size)"; read x; stty size; trap 'echo interrupted; exit 9' INT; echo ready; while :; do read x; done`); err != nil {
			t.Fatal(err)
		}
		expect := func(text string) {
			t.Helper()
			var got []byte
			b := make([]byte, 1)
			for !bytes.HasSuffix(got, []byte(text)) {
				if _, err := io.ReadFull(out, b); err != nil {
					t.Fatalf("%v after %q, want %q", err, got, text)
				}
				got = append(got, b...)
			}
		}
		expect("xterm 33 77\r\n")
		if err := s.WindowChange(50, 120); err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, "\n")
		expect("50 120\r\n")
		expect("ready\r\n")
		io.WriteString(in, "\x03") // the terminal makes a signal of it
		expect("interrupted\r\n")
		var e *ssh.ExitError
		if err := s.Wait(); !errors.As(err, &e) || e.ExitStatus() != 9 {
			t.Errorf("ended with %v, want exit 9", err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		s := newSession(t)
		out, _ := s.StdoutPipe()
		if err := s.Start("echo up; exec sleep 1000"); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(out, make([]byte, 3))
		if err := s.Signal(ssh.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var e *ssh.ExitError
		if err := s.Wait(); !errors.As(err, &e) || e.Signal() != "KILL" {
			t.Errorf("ended with %v, want signal KILL", err)
		}
	})
	t.Run("environment", func(t *testing.T) {
		s := newSession(t)
		if err := s.Setenv("LC_PAPER", "A4"); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"LD_PRELOAD", "PATH", "ENV", "BASH_ENV", "LC_x;y"} {
			if s.Setenv(name, "/tmp/x") == nil {
				t.Errorf("the client may set %s", name)
			}
		}
		if out, err := s.Output("echo $LC_PAPER $HOME"); string(out) != "A4 "+f.home+"\n" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("client gone", func(t *testing.T) {
		other := f.mustDial("root", ssh.Password(password))
		s, err := other.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := s.StdoutPipe()
		if err := s.Start("echo $$; exec sleep 1000"); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(err)
		}
		other.Close()
		f.wait("end of what ran for a client that is gone", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(b), ") Z ")
		})
	})
	t.Run("too many", func(t *testing.T) {
		other := f.mustDial("root", ssh.Password(password))
		n := 0
		for range 2 * maxSessions {
			s, err := other.NewSession()
			if err != nil {
				break
			}
			defer s.Close()
			n++
		}
		if n != maxSessions {
			t.Errorf("%d sessions in one connection, want %d", n, maxSessions)
		}
	})
	t.Run("unknown subsystem", func(t *testing.T) {
		if err := newSession(t).RequestSubsystem("netconf"); err == nil {
			t.Error("was started")
		}
	})
}

// TestForwarding holds forwarding against the options of keys and the settings.
func TestForwarding(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root's keys are those of user id 0: needs root")
	}
	f := newFixture(t)
	echo := echoServer(t)
	line, _ := os.ReadFile(filepath.Join(f.dir, "keys/authorized_keys"))
	dial := func(options string) *ssh.Client {
		t.Helper()
		f.write("keys/authorized_keys", options+string(line), 0o600)
		return f.mustDial("root", ssh.PublicKeys(f.key))
	}
	c := dial("")
	ln, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := c.Dial("tcp", echo)
		if err != nil {
			return
		}
		defer out.Close()
		go io.Copy(out, in)
		io.Copy(in, out)
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	io.WriteString(nc, "round")
	b := make([]byte, 5)
	if _, err := io.ReadFull(nc, b); err != nil || string(b) != "round" {
		t.Errorf("%q, %v", b, err)
	}
	if l, err := c.Listen("tcp", "0.0.0.0:0"); err == nil {
		// Without GatewayPorts it is loopback that listens.
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if nc, err := net.Dial("tcp", "127.0.0.2:"+port); err == nil {
			nc.Close()
			t.Error("listens on more than 127.0.0.1 without GatewayPorts")
		}
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	f.wait("end of the forwarding", func() bool {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	for options, ok := range map[string]bool{
		"no-port-forwarding ": false, "restrict ": false, `restrict,port-forwarding `: true,
		`permitopen="127.0.0.1:1" `: false, `permitopen="` + echo + `" `: true, `permitopen="127.0.0.1:*" `: true,
	} {
		c := dial(options)
		nc, err := c.Dial("tcp", echo)
		if err == nil {
			nc.Close()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v, want it allowed: %v", options, err, ok)
		}
	}
	if l, err := dial("no-port-forwarding ").Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("no-port-forwarding: listens")
	}
}

// TestKeyOptions runs sessions with options of keys.
func TestKeyOptions(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root's keys are those of user id 0: needs root")
	}
	f := newFixture(t)
	line, _ := os.ReadFile(filepath.Join(f.dir, "keys/authorized_keys"))
	for _, c := range []struct{ options, out string }{
		{`command="echo only $SSH_ORIGINAL_COMMAND" `, "only echo asked\n"},
		{`from="127.0.0.0/8" `, "asked\n"},
		{`from="127.0.0.*,!127.0.0.1" `, "refused"},
		{`from="192.0.2.1" `, "refused"},
		{`tunnel="0" `, "refused"},
		{`expiry-time="20200101" `, "refused"},
		{`expiry-time="20991231Z" `, "asked\n"},
	} {
		f.write("keys/authorized_keys", "# comment\n"+c.options+string(line), 0o600)
		client, err := f.dial("root", ssh.PublicKeys(f.key))
		got := "refused"
		if err == nil {
			s, serr := client.NewSession()
			if serr != nil {
				t.Fatal(serr)
			}
			out, _ := s.Output("echo asked")
			got = string(out)
			client.Close()
		}
		if got != c.out {
			t.Errorf("%s: %q, want %q", c.options, got, c.out)
		}
	}
	f.write("keys/authorized_keys", "no-pty "+string(line), 0o600)
	s, err := f.mustDial("root", ssh.PublicKeys(f.key)).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if s.RequestPty("xterm", 1, 1, nil) == nil {
		t.Error("no-pty: got a terminal")
	}
	// A file that others can write holds no keys.
	if err := os.Chmod(filepath.Join(f.dir, "keys/authorized_keys"), 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := f.dial("root", ssh.PublicKeys(f.key)); err == nil {
		t.Error("a file of keys that everybody can write was used")
	}
}

// TestReload: what does not differ is left alone, a broken configuration changes
// nothing.
func TestReload(t *testing.T) {
	f := newFixture(t, "Port=22")
	client := f.mustDial("root", ssh.Password(password))
	before := f.port
	f.configure("Port=22", "PasswordAuth=off")
	f.reconcile()
	if f.portOf() != before {
		t.Error("another socket, though the port is the same")
	}
	if _, err := f.dial("root", ssh.Password(password)); err == nil {
		t.Error("PasswordAuth off was not taken")
	}
	f.write("config/dropbear", "config dropbear main\n\toption 'Port", 0o600)
	f.reconcile()
	if f.portOf() != before {
		t.Error("an unreadable configuration closed the socket")
	}
	f.configure("Port=2222")
	f.reconcile()
	if f.portOf() == before {
		t.Error("the port has not moved")
	}
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Output("echo still"); string(out) != "still\n" || err != nil {
		t.Errorf("a connection did not outlive the change: %q, %v", out, err)
	}
	f.configure("enable=0")
	f.reconcile()
	f.mu.Lock()
	n := len(f.listening)
	f.mu.Unlock()
	if n != 0 {
		t.Errorf("%d sockets though the only instance is disabled", n)
	}
}

// TestTimeouts: idle connections and dead clients are ended.
func TestTimeouts(t *testing.T) {
	f := newFixture(t, "IdleTimeout=1")
	idle := f.mustDial("root", ssh.Password(password))
	s, err := idle.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if err := idle.Wait(); err == nil {
		t.Error("ended without an error")
	}
	f.waitLog("idle timeout")
}

// TestSettings reads the options of the package dropbear.
func TestSettings(t *testing.T) {
	p, err := uci.Parse("dropbear", strings.NewReader(`
config dropbear
	option PasswordAuth 'off'
	option RootPasswordAuth 'yes'
	option Port '2222'
	option Interface 'lan'
	list keyfile '/etc/k1'
	option rsakeyfile '/etc/k2'
	option BannerFile '/etc/banner'
	option IdleTimeout '60'
	option SSHKeepAlive '0'
	option MaxAuthTries '9'
	option GatewayPorts 'on'

config dropbear 'bad'
	option Port '70000'
	option PasswordAuth 'perhaps'

config dropbear
	option enable '0'
`), true)
	if err != nil {
		t.Fatal(err)
	}
	list, faults := settings(p)
	if len(list) != 2 || len(faults) != 2 {
		t.Fatalf("%d instances, faults %v", len(list), faults)
	}
	i := list[0]
	if i.passwords || !i.rootPasswords || !i.rootLogin || i.port != 2222 || i.network != "lan" || len(i.keyFiles) != 2 ||
		i.banner != "/etc/banner" || i.idle != time.Minute || i.keepAlive != 0 || i.tries != 9 || !i.gatewayPorts {
		t.Errorf("%+v", i)
	}
	if j := list[1]; j.port != 22 || !j.passwords || j.keepAlive != 300*time.Second || j.tries != 3 {
		t.Errorf("defaults: %+v", j)
	}
}

func TestAddresses(t *testing.T) {
	t1, err := bus.ParseJSON(`{"ipv4-address":[{"address":"192.168.1.1","mask":24}],"ipv6-address":[],
		"ipv6-prefix-assignment":[{"address":"fd00::","local-address":{"address":"fd00::1","mask":60}},{"local-address":7}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(addresses(t1)); got != "[192.168.1.1 fd00::1]" {
		t.Error(got)
	}
	if got := addresses(nil); got != nil {
		t.Error(got)
	}
}

// TestKeysKept: keys are made once, a damaged one is set aside.
func TestKeysKept(t *testing.T) {
	f := newFixture(t)
	first := ssh.FingerprintSHA256(f.keys[0].PublicKey())
	f.keys = nil
	if err := f.ownKeys(); err != nil {
		t.Fatal(err)
	}
	if got := ssh.FingerprintSHA256(f.keys[0].PublicKey()); got != first {
		t.Errorf("another key after a restart: %s, was %s", got, first)
	}
	path := filepath.Join(f.keyDir, ed25519File)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.keys = nil
	if err := f.ownKeys(); err != nil || len(f.keys) != 1 {
		t.Fatalf("%v, %d keys", err, len(f.keys))
	}
	if _, err := os.Stat(path + ".bad"); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v, %v", fi.Mode(), err)
	}
}

// TestServe is the protocol alone, as the rescue system uses it.
func TestServe(t *testing.T) {
	f := newFixture(t)
	key, err := NewHostKey("", "ed25519")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	l := &Local{Etc: f.etc, Passwords: true, RootPasswords: true, RootLogin: true, Shell: "/bin/sh"}
	go func() {
		served <- Serve(ctx, ln, Config{HostKeys: []ssh.Signer{key}, Backend: l.For, Passwords: true, Banner: "rescue\n"})
	}()
	banner := ""
	c, err := ssh.Dial("tcp", ln.Addr().String(), &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.Password(password)}, HostKeyCallback: ssh.FixedHostKey(key.PublicKey()),
		BannerCallback: func(m string) error { banner = m; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Output("echo $0"); string(out) != "sh\n" || err != nil || banner != "rescue\n" {
		t.Errorf("%q, %v, banner %q", out, err, banner)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestSSHPass logs in by password with OpenSSH.
func TestSSHPass(t *testing.T) {
	pass := foreign(t, "sshpass")
	foreign(t, "ssh")
	f := newFixture(t)
	cmd := exec.Command(pass, "-p", password, "ssh", "-F", "none", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no",
		"-o", "PubkeyAuthentication=no", "-p", strconv.Itoa(f.port), "root@127.0.0.1", "echo in")
	if out, err := cmd.Output(); string(out) != "in\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}
