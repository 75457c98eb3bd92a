package rescue

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/init/crypt"
	"weft/init/rootdisk"
	"weft/init/slot"
)

// testPage is a page of a device with a fault, whose image goes to a function.
func testPage(t *testing.T, hash string, write func(image string, o options) error) (*page, *bool) {
	t.Helper()
	dev := &device{state: slot.Fresh()}
	dev.note("slot a: <b>broken</b> & gone")
	p := newPage(dev, hash, t.Logf)
	p.spool, p.busy = t.TempDir(), filepath.Join(t.TempDir(), "busy")
	rebooted := new(bool)
	p.reboot = func() error { *rebooted = true; return nil }
	p.later = func(f func()) { f() }
	p.write = func(_ context.Context, image string, o options) (slot.ID, []string, error) {
		if _, err := os.Stat(p.busy); err != nil {
			t.Error("nothing tells stage 1 to wait while an image is written")
		}
		return slot.B, []string{"the image is not signed"}, write(image, o)
	}
	return p, rebooted
}

// form is an upload.
func form(t *testing.T, fields map[string]string, image []byte) (body *bytes.Buffer, contentType string) {
	t.Helper()
	body = &bytes.Buffer{}
	m := multipart.NewWriter(body)
	for k, v := range fields {
		if err := m.WriteField(k, v); err != nil {
			t.Fatal(err)
		}
	}
	if image != nil {
		f, err := m.CreateFormFile("image", "x.img.gz")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(image); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	return body, m.FormDataContentType()
}

func ask(p *page, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w
}

func TestPage(t *testing.T) {
	p, _ := testPage(t, "", nil)
	r := httptest.NewRequest("GET", "http://192.168.1.1/", nil)
	r.RemoteAddr = "192.168.1.7:1024"
	w := ask(p, r)
	if w.Code != 200 || !strings.Contains(w.Body.String(), "slot a: &lt;b&gt;broken&lt;/b&gt; &amp; gone") || !strings.Contains(w.Body.String(), "goes to slot b") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	for _, c := range []struct {
		method, path, from string
		code               int
	}{
		{"GET", "/etc/shadow", "192.168.1.7:1", 404}, {"PUT", "/", "192.168.1.7:1", 405}, {"HEAD", "/", "[fe80::1%eth0]:1", 200},
		{"GET", "/", "203.0.113.5:1", 403}, {"GET", "/", "[2001:db8::1]:1", 403}, {"GET", "/", "[::ffff:10.1.1.1]:1", 200},
	} {
		r := httptest.NewRequest(c.method, "http://x"+c.path, nil)
		r.RemoteAddr = c.from
		if w := ask(p, r); w.Code != c.code {
			t.Errorf("%s %s from %s: %d, want %d", c.method, c.path, c.from, w.Code, c.code)
		}
	}
}

func TestPassword(t *testing.T) {
	hash, err := crypt.Hash("secret")
	if err != nil {
		t.Fatal(err)
	}
	p, _ := testPage(t, hash, nil)
	for _, c := range []struct {
		user, password string
		code           int
	}{{"root", "secret", 200}, {"root", "wrong", 401}, {"root", "", 401}, {"admin", "secret", 401}, {"", "", 401}} {
		r := httptest.NewRequest("GET", "http://x/", nil)
		r.RemoteAddr = "192.168.1.7:1"
		if c.user != "" {
			r.SetBasicAuth(c.user, c.password)
		}
		w := ask(p, r)
		if w.Code != c.code {
			t.Errorf("%s/%s: %d, want %d", c.user, c.password, w.Code, c.code)
		}
		if (w.Header().Get("WWW-Authenticate") != "") != (c.code == 401) {
			t.Errorf("%s: asked for a password: %v", c.user, w.Header())
		}
	}
}

func TestUpload(t *testing.T) {
	image := bytes.Repeat([]byte("image"), 100_000)
	for _, c := range []struct {
		name   string
		fields map[string]string
		image  []byte
		fail   error
		origin string
		want   options
		code   int
		says   string
	}{
		{"kept", map[string]string{"keep": "1"}, image, nil, "http://192.168.1.1", options{Keep: true}, 200, "Slot b is written"},
		{"plain", nil, image, nil, "", options{}, 200, "not signed"},
		{"forced", map[string]string{"force": "on", "keep": "no"}, image, nil, "", options{Force: true}, 200, "Slot b"},
		{"refused", nil, image, errors.New("the image is refused: not for <this> board"), "", options{}, 422, "not for &lt;this&gt; board"},
		{"no image", map[string]string{"keep": "1"}, nil, nil, "", options{}, 400, "no image came"},
		{"empty image", nil, []byte{}, nil, "", options{}, 400, "empty"},
		{"another page", nil, image, nil, "http://evil.example", options{}, 403, "another page"},
	} {
		t.Run(c.name, func(t *testing.T) {
			written := false
			p, rebooted := testPage(t, "", func(file string, o options) error {
				b, err := os.ReadFile(file)
				if err != nil || !bytes.Equal(b, c.image) || o != c.want {
					t.Errorf("%d bytes, %v, options %+v", len(b), err, o)
				}
				written = true
				return c.fail
			})
			body, kind := form(t, c.fields, c.image)
			r := httptest.NewRequest("POST", "http://192.168.1.1/", body)
			r.Header.Set("Content-Type", kind)
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			r.RemoteAddr = "192.168.1.7:1"
			w := ask(p, r)
			if w.Code != c.code || !strings.Contains(w.Body.String(), c.says) {
				t.Errorf("%d: %s", w.Code, w.Body)
			}
			if written != (c.code == 200 || c.code == 422) {
				t.Errorf("written: %v", written)
			}
			if *rebooted != (c.code == 200) {
				t.Errorf("restarted: %v", *rebooted)
			}
			left, err := os.ReadDir(p.spool)
			if err != nil || len(left) != 0 {
				t.Errorf("left in memory: %v, %v", left, err)
			}
			if _, err := os.Stat(p.busy); err == nil {
				t.Error("stage 1 is told to wait for ever")
			}
		})
	}
}

// TestTornUpload: a connection that ends in the middle writes nothing.
func TestTornUpload(t *testing.T) {
	p, _ := testPage(t, "", func(string, options) error { t.Error("half an image was written"); return nil })
	body, kind := form(t, nil, bytes.Repeat([]byte("x"), 50_000))
	r := httptest.NewRequest("POST", "http://x/", io.LimitReader(body, 20_000))
	r.Header.Set("Content-Type", kind)
	r.RemoteAddr = "10.0.0.1:1"
	if w := ask(p, r); w.Code != 400 {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if left, err := os.ReadDir(p.spool); err != nil || len(left) != 0 {
		t.Errorf("left in memory: %v, %v", left, err)
	}
}

// TestTarget: an image goes where no system is lost that still starts.
func TestTarget(t *testing.T) {
	disk := &slot.Disk{RootA: rootdisk.Node{Path: "/dev/x2"}, RootB: rootdisk.Node{Path: "/dev/x3"}}
	for _, c := range []struct {
		preferred slot.ID
		confirmed string
		oneSlot   bool
		want      slot.ID
	}{{"a", "a", false, "b"}, {"b", "b", false, "a"}, {"a", "", false, "b"}, {"b", "", false, "a"}, {"a", "ab", false, "b"}, {"a", "b", false, "a"}, {"a", "", true, "a"}} {
		st := slot.State{Preferred: c.preferred, Confirmed: map[slot.ID]bool{"a": strings.Contains(c.confirmed, "a"), "b": strings.Contains(c.confirmed, "b")}, Bad: map[slot.ID]bool{}}
		d := &device{state: st, disk: disk}
		if c.oneSlot {
			d.disk = &slot.Disk{RootA: disk.RootA}
		}
		if got := d.target(); got != c.want {
			t.Errorf("%+v: slot %s", c, got)
		}
	}
}

func TestAccounts(t *testing.T) {
	own, etc := filepath.Join(t.TempDir(), "etc"), t.TempDir()
	if hash, err := accounts(own, ""); hash != "" || err != nil {
		t.Errorf("no settings: %q, %v", hash, err)
	}
	if hash, err := accounts(own, etc); hash != "" || err != nil {
		t.Errorf("settings without a password: %q, %v", hash, err)
	}
	if err := os.WriteFile(filepath.Join(etc, "shadow"), []byte("daemon:*:0:0:99999:7:::\nroot:$5$x$y:0:0:99999:7:::\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hash, err := accounts(own, etc)
	if err != nil || hash != "$5$x$y" {
		t.Errorf("%q, %v", hash, err)
	}
	if b, err := os.ReadFile(filepath.Join(own, "shadow")); err != nil || string(b) != "root:$5$x$y:0:0:99999:7:::\n" {
		t.Errorf("shadow: %q, %v", b, err)
	}
}

func TestCommandNames(t *testing.T) {
	got := commandNames("usage: weft APPLET [ARGUMENT ...]\napplets: ash cat ls\n")
	if !slices.Equal(got, []string{"ash", "cat", "ls"}) {
		t.Errorf("%v", got)
	}
	if got := commandNames("exec format error"); got != nil {
		t.Errorf("%v", got)
	}
}

func TestSaveSettings(t *testing.T) {
	etc := filepath.Join(t.TempDir(), "etc")
	for name, text := range map[string]string{"config/network": "config interface 'lan'\n", "dropbear/authorized_keys": "ssh-ed25519 A\n"} {
		if err := os.MkdirAll(filepath.Join(etc, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/tmp/resolv.conf", filepath.Join(etc, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	files, lost, err := saveSettings(&b, etc)
	if files != 3 || lost != 0 || err != nil {
		t.Fatalf("%d files, %d lost, %v", files, lost, err)
	}
	z, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(text) + h.Linkname
	}
	if len(got) != 3 || got["etc/config/network"] != "config interface 'lan'\n" || got["etc/resolv.conf"] != "/tmp/resolv.conf" {
		t.Errorf("%q", got)
	}
}

func TestPorts(t *testing.T) {
	sys := t.TempDir()
	for name, kind := range map[string]string{"eth10": "1", "eth2": "1", "lo": "772", "wwan0": "65534"} {
		dir := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Join(dir, "device"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "type"), []byte(kind+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(sys, "br-lan"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := ports(sys); err != nil || !slices.Equal(got, []string{"eth2", "eth10"}) {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzUpload: whatever is posted, nothing is left in memory and nothing panics.
func FuzzUpload(f *testing.F) {
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"f\"\r\n\r\nabc\r\n--x--\r\n"))
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=\"keep\"\r\n\r\n1\r\n--x"))
	f.Add("text/plain", []byte("image"))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		dir := t.TempDir()
		p := &page{dev: &device{state: slot.Fresh()}, spool: dir, say: func(string, ...any) {}}
		r := &http.Request{Method: "POST", Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
		file, _, err := p.receive(r)
		if err == nil && file == "" {
			t.Fatal("neither an image nor an error")
		}
	})
}
