package proof

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"weft/test-vm/lab"
	"weft/test-vm/power"
)

// diskSize is that of the guest's disk: more than the image, so that its data partition grows.
const diskSize = 640 << 20

// Recording is what a guest wrote, and the disk it began with.
type Recording struct {
	Dir  string
	base *os.File
	log  *power.Log
}

// paths within the folder of a recording.
func basePath(dir string) string { return filepath.Join(dir, "base.img") }
func logPath(dir string) string  { return filepath.Join(dir, "log") }
func donePath(dir string) string { return filepath.Join(dir, "complete") } // there once all has been recorded

// Open opens a recording that Record has made. The error wraps fs.ErrNotExist if there is none, or one that was broken off.
func Open(dir string) (*Recording, error) {
	if _, err := os.Stat(donePath(dir)); err != nil {
		return nil, fmt.Errorf("open a recording: %w", err)
	}
	base, err := os.Open(basePath(dir))
	if err != nil {
		return nil, fmt.Errorf("open a recording: %w", err)
	}
	l, err := power.OpenLog(logPath(dir))
	if err != nil {
		base.Close()
		return nil, err
	}
	return &Recording{Dir: dir, base: base, log: l}, nil
}

// Close closes the recording's files; they stay.
func (r *Recording) Close() error { return errors.Join(r.log.Close(), r.base.Close()) }

// Bounds of waits: many times what emulation takes on a machine with nothing else to do.
const (
	bootBound    = 6 * time.Minute
	commandBound = 3 * time.Minute
	upgradeBound = 12 * time.Minute
)

// guest is a machine whose failures name what was being done.
type guest struct {
	*lab.Machine
	ctx context.Context
}

func (g *guest) bound(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(g.ctx, lab.Timeout(d))
}

func (g *guest) boot() error {
	ctx, cancel := g.bound(bootBound)
	defer cancel()
	if _, err := g.StartTo(ctx, lab.StartLine); err != nil {
		return err
	}
	_, err := g.WaitReady(ctx)
	return err
}

// sh runs a command that must succeed.
func (g *guest) sh(cmd string) (string, error) {
	ctx, cancel := g.bound(commandBound)
	defer cancel()
	r, err := g.Run(ctx, cmd)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", cmd, r.Code, r.Output)
	}
	return r.Output, err
}

// restart types a command that reboots, and waits until the system is ready again.
func (g *guest) restart(cmd string, within time.Duration) error {
	ctx, cancel := g.bound(within)
	defer cancel()
	if err := g.Reboot(ctx, cmd); err != nil {
		return err
	}
	ctx, cancel = g.bound(bootBound)
	defer cancel()
	_, err := g.WaitReady(ctx)
	return err
}

func (g *guest) powerOff() error {
	ctx, cancel := g.bound(commandBound)
	defer cancel()
	return g.PowerOff(ctx)
}

// expect asks the guest and compares slot and settings.
func (g *guest) expect(slot, settings string) error {
	text, err := g.sh(question)
	if err != nil {
		return err
	}
	a := understand(text)
	if len(a.faults) > 0 || a.slot != slot || a.settings != settings {
		return fmt.Errorf("slot %s with the settings %s is expected; it is slot %s with %s; %s", slot, settings, a.slot, a.settings, strings.Join(a.faults, "; "))
	}
	return nil
}

// machine is the guest of recordings and of cuts: eth0 is lan, eth1 wan with DHCP and a way to this program.
func machine(name, dir string, disk lab.Disk) lab.Config {
	return lab.Config{
		Name: name, Dir: dir, Disks: []lab.Disk{disk}, Consoles: []string{"hvc0"}, Watchdog: true, OneThread: true,
		NICs: []lab.NIC{{Net: "192.168.1.0/24", Isolated: true}, {}},
	}
}

// Options are what Record needs.
type Options struct {
	Image    string                           // the combined image, .img.gz; the upgrade is to the same one
	Dir      string                           // where the recording goes: an empty folder
	Progress func(format string, args ...any) // may be nil
}

func (o *Options) say(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(format, args...)
	}
}

var confirmedLine = regexp.MustCompile(`weft: health gate: slot b is confirmed`)

// Record makes a recording. What the guest does must also come out right without any cut, or Record fails. The caller
// closes the recording; on failure what the guest said is kept in test-vm/out/record.
func Record(ctx context.Context, o Options) (_ *Recording, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(what string, err error) (*Recording, error) { return nil, fmt.Errorf("record: %s: %w", what, err) }
	url, stop, err := offer(o.Image)
	if err != nil {
		return fail("offer the image", err)
	}
	defer stop()

	o.say("the disk that the recording begins with")
	if err := lab.CopyDisk(ctx, basePath(o.Dir), o.Image, diskSize); err != nil {
		return fail("make the disk", err)
	}
	if err := prepare(ctx, o.Dir); err != nil {
		return fail("prepare the disk", err)
	}

	base, err := os.Open(basePath(o.Dir))
	if err != nil {
		return fail("open the disk", err)
	}
	defer func() {
		if err != nil {
			base.Close()
		}
	}()
	log, err := power.CreateLog(logPath(o.Dir))
	if err != nil {
		return fail("make the log", err)
	}
	defer func() {
		if err != nil {
			log.Close()
		}
	}()
	disk, err := power.NewDisk(base, diskSize, log)
	if err != nil {
		return fail("make the disk", err)
	}
	sockets, err := os.MkdirTemp("", "weft-nbd-") // a short path: a socket's has 108 bytes
	if err != nil {
		return fail("make a folder", err)
	}
	defer os.RemoveAll(sockets)
	socket := filepath.Join(sockets, "disk.sock")
	wait, err := power.Serve(ctx, socket, disk)
	if err != nil {
		return fail("serve the disk", err)
	}
	defer func() {
		cancel()
		if werr := wait(); werr != nil && err == nil {
			err = werr
		}
	}()
	m, err := lab.New(ctx, machine("record", o.Dir, lab.Disk{NBD: socket}))
	if err != nil {
		return fail("make the machine", err)
	}
	defer m.Close()
	defer func() {
		if err != nil {
			if dir, derr := lab.OutDir("record"); derr == nil {
				err = errors.Join(err, m.Save(context.WithoutCancel(ctx), dir))
			}
		}
	}()
	if what, err := script(&guest{m, ctx}, log, url, o.say); err != nil {
		return fail(what, err)
	}
	if err := os.WriteFile(donePath(o.Dir), nil, 0o644); err != nil {
		return fail("note that it is complete", err)
	}
	return &Recording{Dir: o.Dir, base: base, log: log}, nil
}

// script is what the guest is made to do; what names the step that failed.
func script(g *guest, log *power.Log, url string, say func(string, ...any)) (what string, err error) {
	steps := []struct {
		what string
		do   func() error
	}{
		{"boot", g.boot},
		{"commit", func() error { return errors.Join(log.Mark(commitBegins), do(g.sh(apply("s1")))) }},
		{"settings after the commit", func() error { return errors.Join(log.Mark(commitDone), g.expect("a", "s1")) }},
		{"upgrade", func() error {
			return errors.Join(log.Mark(upgradeBegins), g.restart("sysupgrade "+url, upgradeBound))
		}},
		{"settings on trial", func() error { return g.expect("b", "s1") }},
		{"confirmation", func() error {
			ctx, cancel := g.bound(bootBound)
			defer cancel()
			_, err := g.Serial().WaitLine(ctx, confirmedLine)
			return errors.Join(err, log.Mark(confirmed))
		}},
		{"second commit", func() error { return errors.Join(log.Mark(secondCommitBegins), do(g.sh(apply("s2")))) }},
		{"settings after the second commit", func() error { return errors.Join(log.Mark(secondCommitDone), g.expect("b", "s2")) }},
		{"rollback", func() error {
			return errors.Join(log.Mark(rollbackBegins), g.restart("sysupgrade --rollback", bootBound))
		}},
		{"settings after the rollback", func() error { return errors.Join(log.Mark(rolledBack), g.expect("a", "s1")) }},
		{"factory reset", func() error { return errors.Join(log.Mark(resetBegins), g.restart("firstboot -y -r", bootBound)) }},
		{"settings after the reset", func() error { return errors.Join(log.Mark(resetDone), g.expect("a", factory)) }},
		{"power-off", g.powerOff},
	}
	for _, s := range steps {
		say("%s", s.what)
		if err := s.do(); err != nil {
			return s.what, err
		}
	}
	return "", nil
}

// do drops the output of a command.
func do(_ string, err error) error { return err }

// prepare boots the disk once, without a recording, and gives the system settings of its own.
func prepare(ctx context.Context, dir string) (err error) {
	m, err := lab.New(ctx, machine("prepare", dir, lab.Disk{Image: basePath(dir), InPlace: true}))
	if err != nil {
		return err
	}
	defer m.Close()
	g := &guest{m, ctx}
	if err := g.boot(); err != nil {
		return err
	}
	// The gate has little to wait for here, and much time.
	const gate = `uci set system.healthgate=healthgate; uci set system.healthgate.hold=2; uci set system.healthgate.deadline=900`
	for _, cmd := range []string{
		gate, apply("s0"), "uci set network.lan.note=kept && uci commit network",
		"echo kept >/etc/kept && echo /etc/kept >>/etc/sysupgrade.conf && sync",
	} {
		if _, err := g.sh(cmd); err != nil {
			return err
		}
	}
	if err := g.expect("a", "s0"); err != nil {
		return err
	}
	return g.powerOff()
}

// offer serves a file to guests; url is what they see it as, through QEMU's user network.
func offer(file string) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(filepath.Dir(file)))}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l) // ends with Close
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "", nil, err
	}
	return "http://" + net.JoinHostPort("10.0.2.2", port) + "/" + filepath.Base(file), func() {
		server.Close()
		<-done
	}, nil
}

// MarshalJSON says where the recording is and what is in it.
func (r *Recording) MarshalJSON() ([]byte, error) {
	n := map[string]int{}
	for _, o := range r.log.Ops() {
		n[o.Kind.String()]++
	}
	return json.Marshal(map[string]any{"dir": r.Dir, "entries": n})
}
