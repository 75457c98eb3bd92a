package sysupgrade

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
	"golang.org/x/sys/unix"

	"weft/image/firmware/trust"
	"weft/init/bus"
	"weft/init/rootdisk"
	"weft/init/slot"
	"weft/init/uci"
)

// Paths of the running system.
const (
	KeyDir  = "/etc/opkg/keys"
	DataDir = "/data"
	RunDir  = "/tmp/run/sysupgrade" // requests, status, the lock; root only

	statusFile  = "status.json"
	requestFile = "request.json"
	lockFile    = "lock"
)

// ThisDevice says what the running system is. A disk that cannot be found is no
// error here: an image can be judged without.
func ThisDevice() (*Device, *slot.Disk, error) {
	d := &Device{Now: time.Now()}
	for _, name := range []string{"board_name", "oem_name"} {
		if text, err := os.ReadFile(filepath.Join("/tmp/sysinfo", name)); err == nil {
			d.Boards = append(d.Boards, strings.TrimSpace(string(text)))
		}
	}
	tree := uci.Tree{}
	required := 1
	if pkg, err := tree.LoadCommitted("system"); err == nil {
		if s := pkg.SectionsOfType("system"); len(s) > 0 {
			d.Compat = s[0].String("compat_version", "1.0")
			d.Signers = max(s[0].Int("image_signers", 0), 0)
			required = max(d.Signers, 1)
		}
	}
	if _, err := os.Stat(KeyDir); err == nil {
		// Files that are no keys do not lock out the good ones.
		d.Keys, _ = trust.ReadKeyring(KeyDir, required)
	}
	disk, err := slot.BootDevice()
	if err != nil && !errors.Is(err, slot.ErrOneSlot) {
		return d, nil, err
	}
	d.Table = disk.Boot.Table
	if running, rerr := slot.Running(); rerr == nil && err == nil {
		d.RootSize = int64(disk.Root(running.Other()).Bytes)
	}
	return d, disk, err
}

// Client fetches images: it trusts the system's roots or, where there are none,
// those that Mozilla trusts.
func Client() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	pool, err := x509.SystemCertPool()
	if err != nil || pool.Equal(x509.NewCertPool()) {
		pool = x509.NewCertPool()
		for root := range bundle.Roots() {
			if cert, err := x509.ParseCertificate(root.Certificate); err == nil {
				pool.AddCertWithConstraint(cert, root.Constraint)
			}
		}
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool}
	t.DisableCompression = true // sizes and ranges are those of the file
	t.ForceAttemptHTTP2 = false
	return &http.Client{Transport: t}
}

// Open opens an image by path or URL. What a server gives only as a whole is kept
// on the data partition.
func Open(ctx context.Context, name string, p *Progress) (Source, error) {
	if !IsURL(name) {
		return OpenFile(name)
	}
	client := Client()
	src, err := OpenURL(ctx, client, name, Retry{}, p)
	if !errors.Is(err, ErrNoRanges) {
		if err != nil {
			return nil, err
		}
		return src, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, name, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch %s: the server answers %s", name, resp.Status)
	}
	return Spool(ctx, resp.Body, filepath.Join(DataDir, StageDir), p)
}

// ErrBusy says that an upgrade runs already.
var ErrBusy = errors.New("an upgrade runs already")

// Lock keeps a second upgrade out until unlock is called. The error wraps ErrBusy.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: `sysupgrade --status` shows how far it is", ErrBusy)
		}
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Snapshot asks the network service what uplinks there are now.
func Snapshot(ctx context.Context, c *bus.Client) (*slot.Before, error) {
	reply, err := c.Call(ctx, "network.interface", "dump", nil)
	if err != nil {
		return nil, fmt.Errorf("ask what the network is like: %w", err)
	}
	var dump struct {
		Interface []struct {
			Interface string `json:"interface"`
			Up        bool   `json:"up"`
			Route     []struct {
				Target string `json:"target"`
				Mask   int    `json:"mask"`
			} `json:"route"`
		} `json:"interface"`
	}
	if err := reply.Decode(&dump); err != nil {
		return nil, fmt.Errorf("ask what the network is like: %w", err)
	}
	b := &slot.Before{}
	for _, i := range dump.Interface {
		if !i.Up {
			continue
		}
		uplink := false
		for _, r := range i.Route {
			if r.Mask != 0 {
				continue
			}
			uplink = true
			if strings.Contains(r.Target, ":") {
				b.DefaultRoute6 = true
			} else {
				b.DefaultRoute4 = true
			}
		}
		if uplink {
			b.Interfaces = append(b.Interfaces, i.Interface)
		}
	}
	return b, nil
}

// unique makes sure that no second disk carries the ids of the boot disk: with
// two, kernel and boot loader may take the other one.
func unique() (*slot.Disk, error) {
	disk, err := slot.BootDevice()
	var dup *rootdisk.DuplicateError
	if errors.As(err, &dup) {
		return nil, fmt.Errorf("nothing was written: %w: unplug all but one, or give the other a new id", err)
	}
	return disk, err
}

// device is the number of the device that a file lies on.
func device(st os.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Dev)
	}
	return 0
}
