package rescue

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"mime/multipart"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/image/firmware/trust"
	"weft/init/crypt"
	"weft/init/slot"
	"weft/init/sysupgrade"
	"weft/init/uci"
)

// page is the upload page.
type page struct {
	dev    *device
	hash   string // of root's password, "" for none
	say    func(format string, a ...any)
	spool  string // folder for the image
	busy   string // is there while an image is written: stage 1 does not start again then
	write  func(ctx context.Context, image string, o options) (slot.ID, []string, error)
	reboot func() error
	later  func(func()) // runs what is to happen when the answer has arrived

	mu   sync.Mutex // held while an image is written
	slow sync.Mutex // one password at a time: checking one is meant to be slow
}

// options are the choices on the page.
type options struct {
	Keep  bool // the settings of the device
	Force bool // past what can be forced
}

func newPage(d *device, hash string, say func(string, ...any)) *page {
	p := &page{dev: d, hash: hash, say: say, spool: "/tmp", busy: Busy, reboot: reboot, later: func(f func()) { time.AfterFunc(time.Second, f) }}
	p.write = p.install
	return p
}

// The page works in any browser and with curl: no script, nothing from elsewhere.
const (
	pageHead = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Weft rescue system</title>
<meta name="viewport" content="width=device-width">
<style>body{font:1em/1.5 sans-serif;max-width:45em;margin:2em auto;padding:0 1em}li{margin:.3em 0}.bad{color:#a00}</style></head><body>
<h1>Weft rescue system</h1>
`
	pageForm = `<h2>Write an image</h2>
<form method="post" action="/" enctype="multipart/form-data">
<p><label><input type="checkbox" name="keep" value="1" checked> keep the settings</label><br>
<label><input type="checkbox" name="force" value="1"> even if it is not for this board or not signed by a known key</label></p>
<p><input type="file" name="image" required> <button>Verify, write and restart</button></p></form>
<p>The image goes to slot %s. From a shell: <code>curl -u root -F keep=1 -F image=@FILE http://ADDRESS/</code></p>
`
)

// html is the page.
func (v view) html() string {
	var b strings.Builder
	b.WriteString(pageHead)
	if v.Error != "" {
		fmt.Fprintf(&b, "<p class=\"bad\"><b>%s</b></p>\n", html.EscapeString(v.Error))
	}
	if v.Done != "" {
		fmt.Fprintf(&b, "<p><b>%s</b></p>\n", html.EscapeString(v.Done))
	}
	if len(v.Notes) > 0 {
		b.WriteString("<h2>What is wrong</h2><ul>\n")
		for _, n := range v.Notes {
			fmt.Fprintf(&b, "<li>%s</li>\n", html.EscapeString(n))
		}
		b.WriteString("</ul>\n")
	}
	if v.Done == "" {
		fmt.Fprintf(&b, pageForm, html.EscapeString(string(v.Slot)))
	}
	b.WriteString("</body></html>\n")
	return b.String()
}

type view struct {
	Error, Done string
	Notes       []string
	Slot        slot.ID
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'")
	if ok, status, why := p.allowed(r); !ok {
		if status == http.StatusUnauthorized {
			h.Set("WWW-Authenticate", `Basic realm="Weft rescue system"`)
		}
		http.Error(w, why, status)
		return
	}
	switch {
	case r.URL.Path != "/":
		http.NotFound(w, r)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		p.show(w, http.StatusOK, view{})
	case r.Method == http.MethodPost:
		p.upload(w, r)
	default:
		h.Set("Allow", "GET, HEAD, POST")
		http.Error(w, "this page is read and posted to", http.StatusMethodNotAllowed)
	}
}

func (p *page) show(w http.ResponseWriter, status int, v view) {
	v.Notes, v.Slot = p.dev.notes, p.dev.target()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, v.html())
}

// allowed asks for root's password; without one it is open to the neighbourhood.
// A page elsewhere must not post through a browser that knows the password.
func (p *page) allowed(r *http.Request) (ok bool, status int, why string) {
	if r.Method == http.MethodPost {
		if o := r.Header.Get("Origin"); o != "" {
			if u, err := url.Parse(o); err != nil || u.Host != r.Host {
				return false, http.StatusForbidden, "the request comes from another page"
			}
		}
	}
	if p.hash == "" {
		a, err := netip.ParseAddrPort(r.RemoteAddr)
		if ip := a.Addr().Unmap(); err == nil && (ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsLoopback()) {
			return true, 0, ""
		}
		return false, http.StatusForbidden, "the device has no password: only private addresses get in"
	}
	user, password, given := r.BasicAuth()
	if !given {
		return false, http.StatusUnauthorized, "root's password is wanted"
	}
	p.slow.Lock()
	good := crypt.Verify(p.hash, password)
	p.slow.Unlock()
	if user != "root" || !good {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		p.say("page: wrong password from %s", host)
		return false, http.StatusUnauthorized, "this is not root's password"
	}
	return true, 0, ""
}

// Bounds of an upload: what stays free of memory while the image lies in it, and
// how long a field may be.
const (
	memoryReserve = 24 << 20
	maxField      = 64
	maxUpload     = 1 << 30
)

func (p *page) upload(w http.ResponseWriter, r *http.Request) {
	if !p.mu.TryLock() {
		p.show(w, http.StatusConflict, view{Error: "Another image is being written."})
		return
	}
	defer p.mu.Unlock()
	file, o, err := p.receive(r)
	if file != "" {
		defer os.Remove(file)
	}
	if err != nil {
		p.show(w, http.StatusBadRequest, view{Error: err.Error()})
		return
	}
	if err := os.WriteFile(p.busy, nil, 0o600); err == nil {
		defer os.Remove(p.busy)
	}
	p.say("page: verifying and writing an image to slot %s", p.dev.target())
	id, notes, err := p.write(context.WithoutCancel(r.Context()), file, o)
	if err != nil {
		p.say("page: %v", err)
		p.show(w, http.StatusUnprocessableEntity, view{Error: err.Error()})
		return
	}
	p.say("page: slot %s is written: restarting", id)
	p.show(w, http.StatusOK, view{Done: fmt.Sprintf("Slot %s is written and verified. The device restarts now and tries it. %s", id, strings.Join(notes, ". "))})
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	p.later(func() {
		if err := p.reboot(); err != nil {
			p.say("page: restart: %v", err)
		}
	})
}

// receive puts the image into memory.
func (p *page) receive(r *http.Request) (file string, o options, err error) {
	if r.ContentLength > maxUpload {
		return "", o, fmt.Errorf("an upload of %d MiB: no image is that large", r.ContentLength>>20)
	}
	parts, err := r.MultipartReader()
	if err != nil {
		return "", o, fmt.Errorf("read the upload: %w", err)
	}
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return file, o, fmt.Errorf("read the upload: %w", err)
		}
		switch part.FormName() {
		case "keep", "force":
			text, err := io.ReadAll(io.LimitReader(part, maxField))
			if err != nil {
				return file, o, fmt.Errorf("read the upload: %w", err)
			}
			on := string(text) == "1" || string(text) == "on"
			if part.FormName() == "keep" {
				o.Keep = on
			} else {
				o.Force = on
			}
		case "image":
			if file != "" {
				return file, o, errors.New("read the upload: two images")
			}
			if file, err = p.store(part); err != nil {
				return file, o, err
			}
		}
	}
	if file == "" {
		return "", o, errors.New("no image came with the form")
	}
	return file, o, nil
}

func (p *page) store(part *multipart.Part) (string, error) {
	f, err := os.CreateTemp(p.spool, "image-")
	if err != nil {
		return "", fmt.Errorf("keep the image: %w", err)
	}
	n := int64(0)
	buf := make([]byte, 256<<10)
	for err == nil {
		var got int
		got, err = part.Read(buf)
		if got == 0 {
			continue
		}
		var s unix.Statfs_t
		if serr := unix.Statfs(p.spool, &s); serr == nil && int64(s.Bavail)*s.Bsize < memoryReserve {
			err = fmt.Errorf("the memory is full after %d MiB: take a smaller image, or write it over SSH", n>>20)
			break
		}
		if n += int64(got); n > maxUpload {
			err = fmt.Errorf("the image has more than %d MiB", maxUpload>>20)
			break
		}
		_, werr := f.Write(buf[:got])
		if werr != nil {
			err = werr
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return f.Name(), fmt.Errorf("keep the image: %w", err)
	}
	if n == 0 {
		return f.Name(), errors.New("the image is empty")
	}
	return f.Name(), nil
}

// install verifies and writes an image as sysupgrade does.
func (p *page) install(ctx context.Context, image string, o options) (slot.ID, []string, error) {
	d := p.dev
	// Look again: a disk may have come since.
	disk, err := slot.BootDevice()
	if duplicate(err) {
		return "", nil, fmt.Errorf("nothing was written: %w: unplug all but one", err)
	}
	if disk == nil {
		return "", nil, fmt.Errorf("nothing was written: %w", err)
	}
	id := d.target()
	node := disk.Root(id)
	if node.Path == "" {
		return "", nil, fmt.Errorf("nothing was written: the disk has no partition for slot %s", id)
	}
	root, err := sysupgrade.OpenNode(node.Path)
	if err != nil {
		return "", nil, fmt.Errorf("nothing was written: %w", err)
	}
	defer root.Close()
	judge := &sysupgrade.Device{Table: disk.Boot.Table, RootSize: int64(node.Bytes), Now: time.Now()}
	if name, err := os.ReadFile("/tmp/sysinfo/board_name"); err == nil {
		judge.Boards = append(judge.Boards, strings.TrimSpace(string(name)))
	}
	d.trust(judge)
	target := &sysupgrade.Target{Slot: id, Root: root, RootSize: int64(node.Bytes), Data: dataDir, Boot: mountBootRW(disk)}
	opts := sysupgrade.Options{Force: o.Force, Keep: sysupgrade.Keep{Config: o.Keep}}
	if o.Keep && d.etc != "" {
		f, err := os.CreateTemp("/tmp", "settings-")
		if err != nil {
			return "", nil, err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		files, lost, err := saveSettings(f, d.etc)
		if err != nil {
			return "", nil, fmt.Errorf("nothing was written: %w", err)
		}
		p.say("page: %d files of settings are carried over, %d cannot be read", files, lost)
		opts.Config = f
	}
	if !d.durable {
		// A folder in memory takes its place: the slot starts with its defaults.
		target.Data = "/tmp/data"
		if err := os.MkdirAll(target.Data, 0o700); err != nil {
			return "", nil, err
		}
	}
	src, err := sysupgrade.OpenFile(image)
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	report, err := sysupgrade.Upgrade(ctx, src, judge, target, opts, nil)
	if err != nil {
		return "", nil, err
	}
	return id, report.Notes, nil
}

// mountBootRW is what an upgrade mounts the boot partition with.
func mountBootRW(disk *slot.Disk) func(context.Context) (string, func() error, error) {
	return func(ctx context.Context) (string, func() error, error) { return slot.MountBootOf(ctx, disk) }
}

// trust adds what the device demands of an image: the keys and the number of
// signers of its settings, else the keys of the root file system that is readable.
func (d *device) trust(j *sysupgrade.Device) {
	required := 1
	if d.etc != "" {
		tree := uci.Tree{ConfDir: filepath.Join(d.etc, "config"), OverrideDir: filepath.Join(d.etc, "config")}
		if pkg, err := tree.LoadCommitted("system"); err == nil {
			if s := pkg.SectionsOfType("system"); len(s) > 0 {
				j.Compat = s[0].String("compat_version", "1.0")
				j.Signers = max(s[0].Int("image_signers", 0), 0)
				required = max(j.Signers, 1)
			}
		}
	}
	keys := func(dir string) bool {
		if _, err := os.Stat(dir); err != nil {
			return false
		}
		j.Keys, _ = trust.ReadKeyring(dir, required)
		return j.Keys != nil && len(j.Keys.Keys) > 0
	}
	if d.etc != "" && keys(filepath.Join(d.etc, "opkg/keys")) {
		return
	}
	for _, id := range []slot.ID{d.state.Preferred, d.state.Preferred.Other()} {
		dir, done, err := mountRead(d.disk.Root(id).Path, romDir, "squashfs")
		if err != nil {
			continue
		}
		found := keys(filepath.Join(dir, "etc/opkg/keys"))
		if err := done(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.note("%v", err)
		}
		if found {
			return
		}
	}
}
