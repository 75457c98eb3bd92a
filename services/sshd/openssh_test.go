package sshd

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// TestOpenSSH lets OpenSSH's programs judge.
func TestOpenSSH(t *testing.T) {
	foreign(t, "ssh")
	f := newFixture(t)
	const at = "root@127.0.0.1"

	t.Run("exec", func(t *testing.T) {
		for _, c := range []struct {
			command, stdin, stdout, stderr string
			code                           int
		}{
			{command: "echo out; echo err >&2; exit 7", stdout: "out\n", stderr: "err\n", code: 7},
			{command: "cat", stdin: strings.Repeat("line\n", 100_000), stdout: strings.Repeat("line\n", 100_000)},
			{command: "echo $USER $LOGNAME ${SSH_CONNECTION%% *} $LC_ALL", stdout: "root root 127.0.0.1 C\n"},
			{command: "pwd", stdout: f.home + "\n"},
			{command: "kill -TERM $$", code: 255},
		} {
			t.Setenv("LC_ALL", "C")
			o, e, code := f.client("ssh", c.stdin, "-o", "SendEnv=LC_ALL", at, c.command)
			if o != c.stdout || !strings.Contains(e, c.stderr) || code != c.code {
				t.Errorf("%s: %d bytes out %.60q, err %q, exit %d; want %d bytes, %q, %d", c.command, len(o), o, e, code, len(c.stdout), c.stderr, c.code)
			}
		}
	})
	t.Run("shell", func(t *testing.T) {
		if o, e, code := f.client("ssh", "echo $((6*7)); exit 3\n", at); o != "42\n" || code != 3 {
			t.Errorf("out %q, err %q, exit %d", o, e, code)
		}
	})
	t.Run("pty", func(t *testing.T) {
		o, e, code := f.client("ssh", "", "-tt", at, `test -t 0 && test "$SSH_TTY" = "$(tty)" && echo terminal; exit 4`)
		if !strings.Contains(o, "terminal\r\n") || code != 4 {
			t.Errorf("out %q, err %q, exit %d", o, e, code)
		}
	})
	data := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	f.write("tree/big", string(data), 0o640)
	f.write("tree/sub/with space", "x", 0o755)
	f.write("tree/sub/empty", "", 0o600)
	check := func(t *testing.T, dir string) {
		t.Helper()
		for _, name := range []string{"big", "sub/with space", "sub/empty"} {
			want, _ := os.ReadFile(filepath.Join(f.dir, "tree", name))
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
			}
		}
	}
	for _, c := range []struct{ name, option string }{{"scp over sftp", "-s"}, {"scp of old", "-O"}} {
		t.Run(c.name, func(t *testing.T) {
			up, down := filepath.Join(t.TempDir(), "up"), filepath.Join(t.TempDir(), "down")
			if o, e, code := f.client("scp", "", c.option, "-rp", filepath.Join(f.dir, "tree"), at+":"+up); code != 0 {
				t.Fatalf("up: exit %d: %s%s", code, o, e)
			}
			check(t, up)
			if o, e, code := f.client("scp", "", c.option, "-rp", at+":"+up, down); code != 0 {
				t.Fatalf("down: exit %d: %s%s", code, o, e)
			}
			check(t, down)
			want, _ := os.Stat(filepath.Join(f.dir, "tree/big"))
			got, err := os.Stat(filepath.Join(down, "big"))
			if err != nil || got.Mode() != want.Mode() || got.ModTime().Unix() != want.ModTime().Unix() {
				t.Errorf("attributes not preserved: %v %v, want %v %v", got.Mode(), got.ModTime(), want.Mode(), want.ModTime())
			}
			if _, e, code := f.client("scp", "", c.option, at+":"+up, t.TempDir()); code == 0 {
				t.Errorf("a folder without -r: exit 0, %s", e)
			}
			if _, e, code := f.client("scp", "", c.option, at+":/none/such", t.TempDir()); code == 0 || !strings.Contains(e, "such") {
				t.Errorf("no such file: exit %d, %s", code, e)
			}
		})
	}
	t.Run("sftp", func(t *testing.T) {
		dir := t.TempDir()
		batch := fmt.Sprintf("put %s/tree/big %s/remote\nchmod 600 %[2]s/remote\nrename %[2]s/remote %[2]s/renamed\nget %[2]s/renamed %[2]s/back\nls -l %[2]s\npwd\n", f.dir, dir)
		o, e, code := f.client("sftp", batch, "-b", "-", at)
		got, err := os.ReadFile(filepath.Join(dir, "back"))
		if code != 0 || err != nil || !bytes.Equal(got, data) || !strings.Contains(o, f.home) {
			t.Errorf("exit %d, %d bytes back, %v\n%s%s", code, len(got), err, o, e)
		}
	})
	echo := echoServer(t)
	t.Run("forward", func(t *testing.T) {
		if o, e, code := f.client("ssh", "there and back", "-W", echo, at); o != "there and back" || code != 0 {
			t.Errorf("out %q, err %q, exit %d", o, e, code)
		}
		if _, e, code := f.client("ssh", "", "-o", "ExitOnForwardFailure=yes", "-W", "127.0.0.1:1", at); code == 0 {
			t.Errorf("to a closed port: exit 0, %s", e)
		}
	})
	t.Run("forward from here", func(t *testing.T) {
		// The port is chosen by the server and printed by the client.
		o, e, code := f.client("ssh", "", "-R", "0:"+echo, "-o", "ExitOnForwardFailure=yes", at, "echo ok")
		if o != "ok\n" || code != 0 || !strings.Contains(e, "Allocated port") {
			t.Errorf("out %q, err %q, exit %d", o, e, code)
		}
	})
	t.Run("keyscan", func(t *testing.T) {
		f.makeRSA()
		out, err := exec.Command(foreign(t, "ssh-keyscan"), "-T", "60", "-t", "rsa,ed25519", "-p", strconv.Itoa(f.port), "127.0.0.1").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(f.knownHosts()) {
			if !strings.Contains(string(out), strings.TrimSpace(line)) {
				t.Errorf("not seen: %s\ngot: %s", line, out)
			}
		}
		if o, e, code := f.client("ssh", "", "-o", "HostKeyAlgorithms=rsa-sha2-256", at, "echo rsa"); o != "rsa\n" || code != 0 {
			t.Errorf("with the RSA key: %q %q %d", o, e, code)
		}
	})
}

// echoServer answers what it is sent.
func echoServer(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

// TestDropbearKeys lets Dropbear's program judge the key files, both ways.
func TestDropbearKeys(t *testing.T) {
	tool := foreign(t, "dropbearkey")
	fingerprint := func(path string) string {
		t.Helper()
		out, err := exec.Command(tool, "-y", "-f", path).CombinedOutput()
		if err != nil {
			t.Fatalf("dropbearkey -y: %v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil {
				return ssh.FingerprintSHA256(k)
			}
		}
		t.Fatalf("no public key in %q", out)
		return ""
	}
	dir := t.TempDir()
	for _, kind := range []string{"rsa", "ed25519", "ecdsa"} {
		path := filepath.Join(dir, "theirs-"+kind)
		if out, err := exec.Command(tool, "-t", kind, "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		k, err := loadHostKey(path)
		if err != nil {
			t.Errorf("key made by Dropbear: %v", err)
			continue
		}
		if got, want := ssh.FingerprintSHA256(k.PublicKey()), fingerprint(path); got != want {
			t.Errorf("%s: fingerprint %s, Dropbear says %s", kind, got, want)
		}
	}
	for _, kind := range []string{"rsa", "ed25519"} {
		path := filepath.Join(dir, "ours-"+kind)
		k, err := NewHostKey(path, kind)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fingerprint(path), ssh.FingerprintSHA256(k.PublicKey()); got != want {
			t.Errorf("%s: Dropbear says %s, want %s", kind, got, want)
		}
	}
}
