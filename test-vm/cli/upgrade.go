package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"weft/test-vm/lab"
	"weft/test-vm/power"
)

// indexSuffix is what an image's block index has behind the image's name.
const indexSuffix = ".blocks"

func (p *program) benchUpgradeCommand() *cobra.Command {
	var board, binDir, to string
	var asJSON bool
	c := &cobra.Command{
		Use:   "bench-upgrade",
		Short: "Measure an upgrade: bytes fetched, bytes written, seconds; whole and by delta",
		Long: `Upgrade a guest over HTTP, once without and once with the block index beside the image, to the version that it has (or
to --to), and print what was fetched from the server, what the guest wrote to its disk until it restarted, and how long
that took. Ratios say more than seconds, which are those of an emulated processor.`,
		Example: `  go run ./test-vm bench-upgrade
  go run ./test-vm bench-upgrade --to bin/changed/targets/x86/64/weft-0.2.0-x86-64-generic-squashfs-combined.img.gz`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.benchUpgrade(c.Context(), board, binDir, to, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&board, "board", "x86-64", "board whose image the guest runs")
	f.StringVar(&binDir, "bin-dir", "", "folder that the builder wrote to (default: bin in the checkout)")
	f.StringVar(&to, "to", "", "upgrade to this image (default: the same)")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}

// upgradeFigures are those of one upgrade.
type upgradeFigures struct {
	Fetched  int64   `json:"fetched"` // bytes that the server sent as bodies
	Written  int64   `json:"written"` // bytes that the guest wrote to its disk
	Requests int64   `json:"requests"`
	Seconds  float64 `json:"seconds"` // from the command to the reset
}

// upgradeReport is what bench-upgrade found.
type upgradeReport struct {
	Image string          `json:"image"`
	Size  int64           `json:"size"`
	Whole upgradeFigures  `json:"whole"`
	Delta *upgradeFigures `json:"delta,omitempty"` // nil: there is no block index
}

// countingServer serves one image and, if told to, its block index.
type countingServer struct {
	image    string
	index    atomic.Bool
	sent     atomic.Int64
	requests atomic.Int64
}

func (s *countingServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file := s.image
	switch name := strings.TrimPrefix(r.URL.Path, "/"); {
	case name == filepath.Base(s.image):
	case name == filepath.Base(s.image)+indexSuffix && s.index.Load():
		file += indexSuffix
	default:
		http.NotFound(w, r)
		return
	}
	s.requests.Add(1)
	http.ServeFile(countingWriter{w, s}, r, file)
}

type countingWriter struct {
	http.ResponseWriter
	s *countingServer
}

func (c countingWriter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.s.sent.Add(int64(n))
	return n, err
}

func (p *program) benchUpgrade(ctx context.Context, board, binDir, to string, asJSON bool) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	images, err := lab.FindImages(binDir, board)
	if err != nil {
		return err
	}
	image, err := images.Path("combined")
	if err != nil {
		return err
	}
	if to == "" {
		to = image
	}
	if to, err = filepath.Abs(to); err != nil {
		return err
	}
	info, err := os.Stat(to)
	if err != nil {
		return fmt.Errorf("bench-upgrade: %w", err)
	}
	r := upgradeReport{Image: filepath.Base(to), Size: info.Size()}
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return fmt.Errorf("bench-upgrade: %w", err)
	}
	defer os.RemoveAll(dir)
	b, err := newUpgradeBench(ctx, dir, image, to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(cancel)) }()
	if err := b.boot(ctx); err != nil {
		p.save(b.m)
		return err
	}
	whole, err := b.upgrade(ctx, false)
	if err != nil {
		p.save(b.m)
		return fmt.Errorf("upgrade without a block index: %w", err)
	}
	r.Whole = whole
	if _, err := os.Stat(to + indexSuffix); err == nil {
		delta, err := b.upgrade(ctx, true)
		if err != nil {
			p.save(b.m)
			return fmt.Errorf("upgrade with a block index: %w", err)
		}
		r.Delta = &delta
	}
	if asJSON {
		e := json.NewEncoder(p.stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(p.stdout, "%s, %.1f MiB\n\n%-26s %12s %12s %10s %10s\n", r.Image, mib(r.Size), "", "fetched MiB", "written MiB", "requests", "seconds")
	row := func(name string, u upgradeFigures) {
		fmt.Fprintf(p.stdout, "%-26s %12.2f %12.2f %10d %10.1f\n", name, mib(u.Fetched), mib(u.Written), u.Requests, u.Seconds)
	}
	row("whole image", r.Whole)
	if r.Delta == nil {
		fmt.Fprintf(p.stdout, "no %s beside the image: nothing to compare with\n", indexSuffix)
		return nil
	}
	row("by block index (delta)", *r.Delta)
	ratio := func(a, b float64) float64 { return a / max(b, 1e-9) }
	fmt.Fprintf(p.stdout, "%-26s %12.3f %12.3f %10s %10.2f\n", "delta / whole", ratio(float64(r.Delta.Fetched), float64(r.Whole.Fetched)),
		ratio(float64(r.Delta.Written), float64(r.Whole.Written)), "", ratio(r.Delta.Seconds, r.Whole.Seconds))
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// upgradeBench is a guest whose disk and whose server count bytes.
type upgradeBench struct {
	m      *lab.Machine
	log    *power.Log
	base   *os.File
	wait   func() error
	server *countingServer
	http   *http.Server
	url    string
}

// benchDisk is the size of the guest's disk.
const benchDisk = 768 << 20

func newUpgradeBench(ctx context.Context, dir, image, to string) (_ *upgradeBench, err error) {
	b := &upgradeBench{server: &countingServer{image: to}}
	base := filepath.Join(dir, "base.img")
	if err := lab.CopyDisk(ctx, base, image, benchDisk); err != nil {
		return nil, err
	}
	if b.base, err = os.Open(base); err != nil {
		return nil, err
	}
	if b.log, err = power.CreateLog(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	disk, err := power.NewDisk(b.base, benchDisk, b.log)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "disk.sock")
	if b.wait, err = power.Serve(ctx, socket, disk); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.http = &http.Server{Handler: b.server}
	go b.http.Serve(l) // ends with Close
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	b.url = "http://" + net.JoinHostPort("10.0.2.2", port) + "/" + filepath.Base(to) // QEMU's way to this machine
	b.m, err = lab.New(ctx, lab.Config{
		Name: "upgrade", Dir: dir, Disks: []lab.Disk{{NBD: socket}}, Consoles: []string{"hvc0"}, OneThread: true,
		NICs: []lab.NIC{{Net: "192.168.1.0/24", Isolated: true}, {}},
	})
	return b, err
}

func (b *upgradeBench) close(cancel context.CancelFunc) error {
	err := errors.Join(b.m.Close(), b.http.Close())
	cancel()
	return errors.Join(err, b.wait(), b.log.Close(), b.base.Close())
}

func (b *upgradeBench) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lab.Timeout(6*time.Minute))
	defer cancel()
	if _, err := b.m.StartTo(ctx, lab.StartLine); err != nil {
		return err
	}
	_, err := b.m.WaitReady(ctx)
	return err
}

// upgrade upgrades, waits for the new system and confirms it.
func (b *upgradeBench) upgrade(ctx context.Context, index bool) (f upgradeFigures, err error) {
	ctx, cancel := context.WithTimeout(ctx, lab.Timeout(20*time.Minute))
	defer cancel()
	b.server.index.Store(index)
	b.server.sent.Store(0)
	b.server.requests.Store(0)
	from := len(b.log.Ops())
	began := time.Now()
	if err := b.m.Reboot(ctx, "sysupgrade "+b.url); err != nil {
		return f, err
	}
	f = upgradeFigures{Fetched: b.server.sent.Load(), Requests: b.server.requests.Load(), Seconds: time.Since(began).Seconds()}
	for _, o := range b.log.Ops()[from:] {
		if o.Kind == power.Write {
			f.Written += o.Len
		}
	}
	if _, err := b.m.WaitReady(ctx); err != nil {
		return f, err
	}
	r, err := b.m.Run(ctx, "sysupgrade --confirm")
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("sysupgrade --confirm: exit code %d: %s", r.Code, r.Output)
	}
	return f, err
}
