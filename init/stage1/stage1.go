package stage1

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/rootdisk"
	"weft/init/slot"
	"weft/init/stage1/handover"
	"weft/init/stage1/kmod"
)

// Places in the initramfs and, for /rom and /overlay, in the root file system.
const (
	romDir     = "/rom"
	overlayDir = "/overlay"
	dataDir    = "/data"
	newRoot    = "/new"
	bootDir    = "/boot"
	memoryDir  = "/tmp/root" // LEDE's place for an overlay in memory
	modulesOf  = "/etc/weft/modules"
)

// Times. A root disk that has not come after rootWait is not worth waiting for
// in silence; a USB disk takes some seconds.
const (
	rootWait     = 30 * time.Second
	rootNotice   = 3 * time.Second
	failsafeWait = 500 * time.Millisecond
	settleQuiet  = 200 * time.Millisecond
	settleMax    = 2 * time.Second
)

// boot is the state of stage 1.
type boot struct {
	args     args
	con      *consoles
	sys      rootdisk.System
	mods     *kmod.Set     // of the initramfs; nil if it has none
	loading  bool          // somebody will close loaded
	loaded   chan struct{} // closed when the modules of the initramfs are loaded
	slot     slot.ID       // that this boot is of
	disk     *rootdisk.Boot
	watchdog *os.File // armed; nil without
	listen   *failsafeListener
	reason   string // for failsafe mode, once decided
	decided  bool

	mu   sync.Mutex
	hand handover.Handover
}

// Run is stage 1. It does not return when it succeeds: the process becomes
// /sbin/init of the root file system. What stands in the way is shown on the
// consoles, with a shell for the asking, and tried again when something
// changed. An error comes back only when ctx ends or when this is not PID 1 of
// an initramfs.
func Run(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("stage 1: this is /init of the initramfs, which the kernel starts as process 1")
	}
	// Signals must not end process 1; ignoring them would be inherited.
	signal.Notify(make(chan os.Signal, 1))

	b := &boot{con: &consoles{}, loaded: make(chan struct{})}
	b.hand.Overlay = handover.None
	if err := b.guard("the start", func() error { return b.start(ctx) }); err != nil {
		b.say(slog.LevelError, "%v", err)
	}
	if !b.loading {
		close(b.loaded)
	}
	for {
		err := b.guard("stage 1", func() error { return b.reach(ctx) })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.undo()
		if err := b.guard("giving the slot up", func() error { return b.giveUp(err) }); err != nil {
			b.say(slog.LevelWarn, "%v", err)
		}
		b.rescue(ctx, err)
	}
}

// guard turns a crash into an error: process 1 must not end.
func (b *boot) guard(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s crashed, which is a fault of this program: %v\n%s", what, p, debug.Stack())
		}
	}()
	return f()
}

// sinceStart is the time since the kernel started.
func sinceStart() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (b *boot) mark(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hand.Marks = append(b.hand.Marks, handover.Mark{Name: name, MS: sinceStart().Milliseconds()})
}

// say puts a line on every console and into the handover.
func (b *boot) say(level slog.Level, format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	m := handover.Message{Level: handover.Info, Text: text, MS: sinceStart().Milliseconds()}
	prefix := "weft: "
	switch {
	case level >= slog.LevelError:
		m.Level, prefix = handover.Error, "weft: error: "
	case level >= slog.LevelWarn:
		m.Level, prefix = handover.Warn, "weft: warning: "
	}
	b.mu.Lock()
	b.hand.Messages = append(b.hand.Messages, m)
	b.mu.Unlock()
	b.con.print(prefix + text)
}

// start does what never has to be done again: mounts, arguments, consoles,
// modules.
func (b *boot) start(ctx context.Context) error {
	entered := sinceStart()
	err := mountAll(early)
	err = errors.Join(err, makeTmp())
	text, readErr := os.ReadFile("/proc/cmdline")
	err = errors.Join(err, readErr)
	b.args = parseCmdline(string(text))
	var slotErr error
	if b.slot, slotErr = slot.FromCmdline(string(text)); slotErr != nil {
		b.slot = slot.A
		err = errors.Join(err, slotErr)
	}
	b.hand.Slot, b.hand.Trial = string(b.slot), b.onTrial()
	b.con = openConsoles("/sys/class/tty/console/active", "/dev")
	b.hand.Marks = append(b.hand.Marks, handover.Mark{Name: "stage 1", MS: entered.Milliseconds()})

	var u unix.Utsname
	if unix.Uname(&u) == nil {
		b.say(slog.LevelInfo, "starting on Linux %s", unix.ByteSliceToString(u.Release[:]))
	}
	if b.args.failsafe() {
		b.decided, b.reason = true, "kernel argument"
	} else {
		b.listen = b.con.listenForFailsafe(ctx)
		b.con.print("weft: " + failsafePrompt)
	}
	b.mark("consoles")
	lines, openErr := b.openModules()
	b.loading = true
	go func() {
		defer close(b.loaded)
		if err := b.guard("loading modules", func() error { return b.loadModules(lines) }); err != nil {
			b.say(slog.LevelWarn, "%v", err)
		}
		b.mark("modules")
	}()
	return errors.Join(err, openErr, mountAll(late))
}

// openModules reads the initramfs's list and its folder of modules.
func (b *boot) openModules() ([]string, error) {
	lines, err := kmod.List(modulesOf)
	if err != nil {
		return nil, err
	}
	b.mods, err = kmod.Open("/")
	if errors.Is(err, os.ErrNotExist) && len(lines) == 0 {
		err = nil // a kernel with everything built in
	}
	return lines, err
}

// loadModules loads the initramfs's list without the drivers of devices that
// are not there: the drivers first, so that the disk is found while the file
// systems are loading.
func (b *boot) loadModules(lines []string) error {
	if b.mods == nil {
		return nil
	}
	devices, err := kmod.Devices("/sys")
	if err != nil {
		return err
	}
	wanted := b.mods.Drivers(devices)
	needed := b.mods.Needed(lines, devices)
	slices.SortStableFunc(needed, func(x, y string) int {
		return cmp.Compare(rank(wanted, x), rank(wanted, y))
	})
	err = b.mods.LoadAll(needed)
	// Buses bring devices of their own.
	return errors.Join(err, b.loadDrivers())
}

// rank is 0 for a line of a list that names one of the drivers, else 1.
func rank(drivers []string, line string) int {
	name, _, _ := strings.Cut(line, " ")
	if slices.Contains(drivers, strings.ReplaceAll(name, "-", "_")) {
		return 0
	}
	return 1
}

// loadDrivers loads what devices want that came since, until no new ones come.
func (b *boot) loadDrivers() error {
	if b.mods == nil {
		return nil
	}
	lines, err := kmod.List(modulesOf)
	if err != nil {
		return err
	}
	for before := -1; ; {
		devices, err := kmod.Devices("/sys")
		if err != nil {
			return err
		}
		if len(devices) == before {
			return nil
		}
		before = len(devices)
		// What failed was said the first time.
		b.mods.LoadAll(b.mods.Needed(lines, devices))
	}
}

// need loads a module of a file system that is about to be used; built-in ones
// and those of an incomplete initramfs are left to the mount to judge.
func (b *boot) need(names ...string) {
	if b.mods == nil {
		return
	}
	for _, n := range names {
		if b.mods.Has(n) {
			if err := b.mods.Load(n, ""); err != nil {
				b.say(slog.LevelWarn, "%v", err)
			}
		}
	}
}

// onTrial says whether this boot is a try of a slot that is not confirmed.
func (b *boot) onTrial() bool { return b.args["weft.trial"] != "" }

// reach goes from a kernel to the root file system and into it.
func (b *boot) reach(ctx context.Context) error {
	root, ok := b.args["root"]
	if !ok {
		return errNoRoot
	}
	spec, err := rootdisk.ParseRoot(root)
	if err != nil {
		return err
	}
	events, err := watchBlock(ctx)
	if err != nil {
		return err
	}
	defer events.close()
	if b.disk, err = b.waitRoot(ctx, spec, events); err != nil {
		return err
	}
	b.hand.Root = b.disk.Root.Path
	b.mark("root disk")
	if _, ok := b.args["weft.rescue"]; ok {
		return &rescueError{}
	}

	b.need("squashfs")
	if err := mountRom(b.disk.Root.Path); err != nil {
		return err
	}
	b.mark("rom")
	go warm(romDir + "/sbin/init")

	if b.failsafe() {
		<-b.loaded
		return b.enterFailsafe()
	}
	// Package hotplug does this again, completely, once PID 1 runs; what is loaded
	// by then it need not wait for. What fails here is said there.
	if b.onTrial() {
		b.say(slog.LevelInfo, "slot %s is on trial", b.slot)
		b.armWatchdog()
	} else {
		go b.guard("loading drivers early", func() error { return loadNetworkDrivers(romDir) })
	}
	if err := b.checkAgain(ctx, spec, events); err != nil {
		return err
	}
	if err := b.makeRoot(ctx); err != nil {
		return err
	}
	return b.enter(newRoot)
}

// checkAgain looks a second time before anything is written to the disk: with
// all drivers loaded, and after disks that come one after the other (SCSI, USB)
// had time to show that the id is not unique.
func (b *boot) checkAgain(ctx context.Context, spec rootdisk.Spec, events *blockEvents) error {
	<-b.loaded
	if _, err := os.Stat("/sys/class/scsi_host/host0"); err == nil {
		events.settle(ctx, settleQuiet, settleMax)
	}
	disk, err := b.sys.Find(spec)
	if err != nil {
		return err
	}
	b.disk = disk
	b.mark("root disk checked")
	return nil
}

// failsafe decides, once, whether to enter failsafe mode.
func (b *boot) failsafe() bool {
	if !b.decided {
		b.decided = true
		b.reason = b.listen.decide(b.args.seconds("weft.failsafe_wait", failsafeWait))
		if _, err := os.Stat("/tmp/failsafe_button"); err == nil && b.reason == "" {
			b.reason = "a button"
		}
		b.mark("failsafe decision")
	}
	return b.reason != ""
}

// waitRoot waits for the disk in root=.
func (b *boot) waitRoot(ctx context.Context, spec rootdisk.Spec, events *blockEvents) (*rootdisk.Boot, error) {
	limit := b.args.seconds("rootwait", rootWait)
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	notice := time.NewTimer(rootNotice)
	defer notice.Stop()
	loaded := b.loaded
	for {
		disk, err := b.find(spec)
		var missing *rootdisk.NotFoundError
		if err == nil || !errors.As(err, &missing) {
			return disk, err
		}
		select {
		case <-events.changed:
			if loaded == nil {
				// A bus that came late may have brought devices of its own.
				if err := b.loadDrivers(); err != nil {
					return nil, err
				}
			}
		case <-loaded:
			loaded = nil
		case <-notice.C:
			b.say(slog.LevelInfo, "waiting for the root disk root=%s", spec)
		case <-timeout.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// find looks once and repairs a damaged table.
func (b *boot) find(spec rootdisk.Spec) (*rootdisk.Boot, error) {
	disk, err := b.sys.Find(spec)
	if err != nil || disk.Table == nil || !disk.Table.FromBackup {
		return disk, err
	}
	if err := restoreTable(disk); err != nil {
		return nil, err
	}
	b.say(slog.LevelWarn, "the partition table at the start of %s was damaged: restored from the copy at its end", disk.Disk.Path)
	return b.sys.Find(spec)
}

func restoreTable(disk *rootdisk.Boot) error {
	fix, err := disk.Table.RestorePrimary()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(disk.Disk.Path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("restore the partition table: %w", err)
	}
	defer f.Close()
	if err := fix.Apply(f); err != nil {
		return fmt.Errorf("restore the partition table of %s: %w", disk.Disk.Path, err)
	}
	return rootdisk.ReadAnew(f)
}

func mountRom(device string) error {
	if err := os.MkdirAll(romDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, romDir, "squashfs", unix.MS_RDONLY|unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount the root file system on %s: %w", device, err)
	}
	return nil
}

// warm reads the program that PID 1 and every service will be into the page
// cache, so that unpacking it from the squashfs runs beside the work on disks and
// file systems: worth 0.5 s under emulation. Nothing is lost where it fails; the
// kernel reads the pages when they are needed.
func warm(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = io.Copy(io.Discard, struct{ io.Reader }{f})
}

// makeRoot puts squashfs and overlay together at newRoot and restores a saved
// config into it.
func (b *boot) makeRoot(ctx context.Context) error {
	b.need("overlay")
	part := b.bootPartition()
	onDisk := true
	root := overlayDir
	if err := b.openData(ctx, part); err != nil {
		b.say(slog.LevelWarn, "the overlay is in memory, changes are lost at the next reboot: %v", err)
		if err := overlay.MountMemory(overlay.System{}, memoryDir); err != nil {
			return err
		}
		root, onDisk = memoryDir, false
	}
	b.mark("data")
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if err := overlay.MountRoot(overlay.System{}, romDir, root, newRoot); err != nil {
		return err
	}
	b.hand.Overlay = handover.Tmpfs
	if onDisk {
		b.hand.Overlay = handover.Disk
	}
	b.mark("overlay")
	b.restore(part, onDisk)
	return nil
}

// openData grows, makes, repairs and mounts the data file system.
func (b *boot) openData(ctx context.Context, part *bootPart) error {
	b.grow()
	vol, err := overlay.Locate(b.sys, b.disk)
	if err != nil {
		return err
	}
	if vol.Offset != 0 {
		b.need("loop")
	}
	device, detach, err := vol.Attach()
	if err != nil {
		return err
	}
	b.need("ext4")
	d := &overlay.Data{
		Device:       device,
		Name:         vol.String(),
		Size:         vol.Size,
		Dir:          dataDir,
		Slot:         string(b.slot),
		Kernel:       overlay.System{Rom: romDir},
		Say:          func(level slog.Level, text string) { b.say(level, "%s", text) },
		Scratch:      "/tmp",
		BeforeFormat: part.keep,
	}
	if err := d.Open(ctx); err != nil {
		return errors.Join(err, detach())
	}
	// LEDE's place and layout are those of the running slot.
	err = os.MkdirAll(overlayDir, 0o755)
	if err == nil {
		err = unix.Mount(d.Root(), overlayDir, "", unix.MS_BIND, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("show the overlay of slot %s at %s: %w", b.slot, overlayDir, err), d.Kernel.Unmount(dataDir), detach())
	}
	b.hand.Data = device
	return nil
}

// grow lets the data partition reach the end of the disk. Failure leaves a
// smaller partition.
func (b *boot) grow() {
	t := b.disk.Table
	if t == nil {
		return
	}
	p, ok := t.Data()
	if !ok {
		return
	}
	g, err := t.Grow(p.Number)
	if errors.Is(err, rootdisk.ErrNoGrowth) {
		return
	}
	if err == nil {
		err = applyGrowth(g, b.disk.Disk)
	}
	if err != nil {
		b.say(slog.LevelWarn, "partition %d of %s is not grown: %v", p.Number, b.disk.Disk.Path, err)
		return
	}
	ss := uint64(t.SectorSize)
	b.say(slog.LevelInfo, "partition %d of %s grew from %s to %s", p.Number, b.disk.Disk.Path, rootdisk.Size(g.From*ss), rootdisk.Size(g.Partition.Sectors*ss))
	b.mark("partition grown")
}

func applyGrowth(g *rootdisk.Growth, d rootdisk.Disk) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := g.Apply(f); err != nil {
		return err
	}
	return g.TellKernel(f, d.SectorSize)
}

// undo unmounts what a failed attempt left, so that the next one starts clean.
func (b *boot) undo() {
	for _, dir := range []string{newRoot, bootDir, overlayDir, dataDir, memoryDir, romDir} {
		unix.Unmount(dir, unix.MNT_DETACH)
	}
	b.hand.Overlay, b.hand.Data = handover.None, ""
}
