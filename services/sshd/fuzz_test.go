package sshd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func FuzzParseHostKey(f *testing.F) {
	for _, kind := range []string{"ed25519"} {
		path := filepath.Join(f.TempDir(), "key")
		if _, err := NewHostKey(path, kind); err != nil {
			f.Fatal(err)
		}
		b, _ := os.ReadFile(path)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte("\x00\x00\x00\x07ssh-rsa\x00\x00\x00\x03\x01\x00\x01\x00\x00\x00\x01\x05\x00\x00\x00\x01\x05"))
	f.Add([]byte("\x00\x00\x00\x13ecdsa-sha2-nistp256\x00\x00\x00\x08nistp256\x00\x00\x00\x01\x04\x00\x00\x00\x01\x05"))
	f.Add([]byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseHostKey(b)
		if err != nil {
			return
		}
		data := []byte("0123456789abcdef0123456789abcdef")
		sig, err := k.Sign(nil, data)
		if err == nil {
			err = k.PublicKey().Verify(data, sig)
		}
		if err != nil {
			t.Errorf("a key that was accepted does not work: %v", err)
		}
	})
}

func FuzzAuthorized(f *testing.F) {
	k, err := NewHostKey("", "ed25519")
	if err != nil {
		f.Fatal(err)
	}
	line := string(ssh.MarshalAuthorizedKey(k.PublicKey()))
	for _, o := range []string{"", "restrict,pty ", `command="a \"b\"",from="10.0.0.0/8,!10.0.0.1" `, `from="[`, `expiry-time="202001011200" `, "no-pty,,"} {
		f.Add([]byte(o + line))
	}
	from, now := netip.MustParseAddr("192.0.2.7"), time.Unix(1<<31, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := authorized(b, "root", k.PublicKey(), from, now)
		if (p == nil) == (err == nil) {
			t.Errorf("permit %v with error %v", p, err)
		}
		if p != nil && !bytes.Contains(b, []byte("AAAAC3NzaC1lZDI1NTE5")) {
			t.Error("allowed by a text without the key")
		}
	})
}

// FuzzSCP lets a hostile client write: whatever it sends, all stays in its folder.
func FuzzSCP(f *testing.F) {
	for _, s := range []string{
		"C0644 5 name\nhello\x00", "D0755 0 dir\nC0600 1 x\ny\x00E\n", "T1 0 2 0\nC0644 0 t\n\x00", "C0644 5 ../up\nhello\x00", "C0644 1 /etc/x\nh\x00",
		"D0755 0 ..\n", "\x01warning\n", "\x02fatal\n", "E\n", "C9999 1 x\n", "C0644 -1 x\n", "C0644 99999999999999999999 x\n", "Z\n", "C0644 1000000 big\nshort",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		dir := filepath.Join(root, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s := &scp{ctx: t.Context(), r: bufio.NewReader(bytes.NewReader(b)), w: io.Discard, recursive: true, preserve: true}
		_ = s.sink(dir) // most inputs are faulty
		entries, err := os.ReadDir(root)
		if err != nil || len(entries) != 1 {
			t.Errorf("outside of the folder: %v, %v", entries, err)
		}
	})
}

// FuzzMonitor lets a process that has been taken over ask for anything: without a
// login it starts nothing and gets nothing signed but hashes.
func FuzzMonitor(f *testing.F) {
	key, err := NewHostKey("", "ed25519")
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []message{
		{Op: "sign", Data: bytes.Repeat([]byte("x"), 32)}, {Op: "sign", Data: bytes.Repeat([]byte("x"), 65)}, {Op: "sign", Host: -1},
		{Op: "start", Request: &Request{Kind: "exec", Command: "true"}}, {Op: "listen", Name: "127.0.0.1:0"}, {Op: "signal", Session: 1, Name: "KILL"},
		{Op: "publickey", User: "root", Key: key.PublicKey().Marshal()}, {Op: "verified", User: "root", Key: key.PublicKey().Marshal()},
		{Op: "password", User: "root", Password: "x"}, {Op: "blank", User: "root"},
	} {
		b, _ := json.Marshal(m)
		f.Add(b)
	}
	etc := f.TempDir()
	for name, text := range map[string]string{"passwd": "root:x:0:0::/root:/bin/sh\n", "shadow": "root:*:0:::::\n", "shells": "/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r message
		if json.Unmarshal(b, &r) != nil {
			return
		}
		l := &Local{Etc: etc, Passwords: true, RootPasswords: true, RootLogin: true, Blank: true}
		from := netip.MustParseAddrPort("192.0.2.7:5")
		m := &monitor{
			b: l.forPeer(from), keys: []ssh.Signer{key}, from: from, max: 3, fail: func() time.Duration { return 0 }, good: func() {}, login: func() {},
			offered: map[string]*Permit{}, running: map[uint32]*started{},
		}
		for range 2 {
			a, _, err := m.answer(&r, nil)
			if err == nil && a.Blob == nil {
				t.Errorf("%s was granted without a login", b)
			}
			if err == nil && (len(r.Data) < minSigned || len(r.Data) > maxSigned) {
				t.Errorf("%d bytes were signed", len(r.Data))
			}
		}
		if m.permit != nil || len(m.running) > 0 {
			t.Errorf("%s: permit %v, %d running", b, m.permit, len(m.running))
		}
	})
}

func TestParseRecord(t *testing.T) {
	for l, ok := range map[string]bool{
		"C0644 12 name with space": true, "D0755 0 dir": true, "E": true, "T5 0 6 0": true,
		"": false, "C0644 12": false, "C644 1 x": false, "C0644 1 a/b": false, "C0644 1 ..": false, "Ex": false, "T1 2": false, "Q": false,
	} {
		if _, err := parseRecord(l); (err == nil) != ok {
			t.Errorf("%q: %v", l, err)
		}
	}
	s := &scp{r: bufio.NewReader(strings.NewReader(strings.Repeat("x", 2*maxRecord)))}
	if _, err := s.line(); err == nil {
		t.Error("a line without end was read")
	}
}
