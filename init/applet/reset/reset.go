// Package reset is the applets that erase or mount the overlay by hand:
// factoryreset with its older names firstboot and jffs2reset, and mount_root.
//
// Options, prompt and effect are LEDE's (compatibility facts, section 6). A
// reset says first on the medium that it has begun: a power cut in its middle
// is completed by stage 1 of the next boot.
package reset

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/rootdisk"
	"weft/init/slot"
	"weft/init/unit"
)

const (
	overlayDir = "/overlay"
	dataDir    = "/data"
)

// device is what the applets need of the machine; tests put another in place.
type device struct {
	mounts string // /proc/self/mounts
	dir    string // /overlay

	reset  func(dir string, keepSaved bool) error
	volume func() (overlay.Volume, error) // of the boot disk
	slot   func() (slot.ID, error)
	later  func(v overlay.Volume, id slot.ID, keepSaved bool) error // for one that is not mounted
	mark   func(overlay.Volume) error
	reboot func() error
}

func thisDevice() device {
	return device{
		mounts: "/proc/self/mounts",
		dir:    overlayDir,
		reset:  overlay.Reset,
		volume: locate,
		slot:   slot.Running,
		later:  resetLater,
		mark:   overlay.WriteMark,
		reboot: func() error { return syscall.Kill(1, syscall.SIGTERM) }, // process 1 shuts down in order
	}
}

const usage = `Usage: %s [-y] [-r] [-k]

Erases all settings and everything that was added to this system (that of the
running slot; the other one keeps its own).

  -y  do not ask
  -r  reboot afterwards
  -k  keep a saved configuration (/overlay/sysupgrade.tgz) to be restored
`

// FactoryReset is factoryreset, firstboot and jffs2reset.
func FactoryReset(_ context.Context, c *unit.Call) int { return thisDevice().factoryReset(c) }

func (d device) factoryReset(c *unit.Call) int {
	name := filepath.Base(c.Args[0])
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	yes, reboot, keep := f.Bool("y", false, ""), f.Bool("r", false, ""), f.Bool("k", false, "")
	if err := f.Parse(spread(c.Args[1:])); err != nil || f.NArg() > 0 {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(c.Stdout, usage, name)
			return 0
		}
		fmt.Fprintf(c.Stderr, usage, name)
		return 2
	}
	if !*yes {
		fmt.Fprint(c.Stdout, "This will erase all settings and everything that was added to this system. Are you sure? [N/y] ")
		answer, err := bufio.NewReader(c.Stdin).ReadString('\n')
		if err != nil && answer == "" {
			fmt.Fprintln(c.Stdout)
		}
		if a := strings.TrimSpace(answer); a != "y" && a != "Y" {
			fmt.Fprintln(c.Stderr, name+": nothing was erased")
			return 1
		}
	}
	if err := d.erase(c, name, *keep); err != nil {
		fmt.Fprintf(c.Stderr, "%s: %v\n", name, err)
		return 1
	}
	if !*reboot {
		return 0
	}
	if err := d.reboot(); err != nil {
		fmt.Fprintf(c.Stderr, "%s: reboot: %v\n", name, err)
		return 1
	}
	return 0
}

// spread turns -yr into -y -r, which package flag does not know.
func spread(args []string) []string {
	var out []string
	for _, a := range args {
		if len(a) > 2 && a[0] == '-' && strings.Trim(a[1:], "yrk") == "" {
			for _, c := range a[1:] {
				out = append(out, "-"+string(c))
			}
			continue
		}
		out = append(out, a)
	}
	return out
}

func (d device) erase(c *unit.Call, name string, keep bool) error {
	if m, ok := mountAt(d.mounts, d.dir); ok && m.device != "tmpfs" {
		fmt.Fprintf(c.Stdout, "%s: %s is mounted at %s: erasing all files\n", name, m.device, d.dir)
		return d.reset(d.dir, keep)
	}
	v, err := d.volume()
	if err != nil {
		return err
	}
	id, err := d.slot()
	if err != nil {
		return err
	}
	err = d.later(v, id, keep)
	if err == nil {
		fmt.Fprintf(c.Stdout, "%s: %s is not mounted: the overlay of slot %s is erased at the next boot\n", name, v, id)
		return nil
	}
	fmt.Fprintf(c.Stdout, "%s: %s is not mounted (%v): it is formatted at the next boot\n", name, v, err)
	return d.mark(v)
}

// aside is where a data file system is mounted that is not that of the running
// root.
const aside = "/tmp/run/weft/data"

// resetLater marks the overlay of a slot to be erased at the next boot; the other
// slot keeps its own. The error says why the data file system cannot be used.
func resetLater(v overlay.Volume, id slot.ID, keep bool) error {
	dev, detach, err := v.Attach()
	if err != nil {
		return err
	}
	err = os.MkdirAll(aside, 0o700)
	if err == nil {
		err = overlay.System{}.Mount(dev, aside, "ext4", unix.MS_NOATIME, "")
	}
	if err != nil {
		return errors.Join(err, detach())
	}
	err = resetSlot(aside, id, keep)
	return errors.Join(err, overlay.System{}.Unmount(aside), detach())
}

// resetSlot is the middle of resetLater: data is the mounted file system.
func resetSlot(data string, id slot.ID, keep bool) error {
	dir := overlay.SlotDir(data, string(id))
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) && id == slot.A {
		dir = data // the layout before there were slots
	}
	if !keep {
		if err := os.Remove(filepath.Join(dir, overlay.Saved)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return overlay.SetState(dir, overlay.Pending)
}

// mount is one line of /proc/self/mounts.
type mount struct{ device, fstype string }

// mountAt returns what is mounted at a path, the last mount if there are
// several.
func mountAt(mounts, path string) (mount, bool) {
	text, err := os.ReadFile(mounts)
	if err != nil {
		return mount{}, false
	}
	var found mount
	ok := false
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == path {
			found, ok = mount{f[0], f[2]}, true
		}
	}
	return found, ok
}

// bootDisk finds the boot disk of the running system from the kernel's root=.
func bootDisk() (*rootdisk.Boot, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("find the boot disk: %w", err)
	}
	for _, word := range strings.Fields(string(text)) {
		if root, ok := strings.CutPrefix(word, "root="); ok {
			spec, err := rootdisk.ParseRoot(root)
			if err != nil {
				return nil, err
			}
			return rootdisk.System{}.Find(spec)
		}
	}
	return nil, errors.New("find the boot disk: the kernel's arguments have no root=")
}

func locate() (overlay.Volume, error) {
	b, err := bootDisk()
	if err != nil {
		return overlay.Volume{}, err
	}
	return overlay.Locate(rootdisk.System{}, b)
}

const mountUsage = `Usage: %s [done | ram]

Without an argument, for failsafe mode: mounts the data file system at /overlay
and lays it over the root.
  done  marks the overlay as good: it is kept at the next boot
  ram   lays an overlay in memory over the root
`

// MountRoot is mount_root.
func MountRoot(ctx context.Context, c *unit.Call) int {
	name := filepath.Base(c.Args[0])
	var err error
	switch {
	case len(c.Args) == 1:
		err = mountRoot(ctx, c, name)
	case len(c.Args) == 2 && c.Args[1] == "done":
		err = thisDevice().done()
	case len(c.Args) == 2 && c.Args[1] == "ram":
		err = mountMemory()
	case len(c.Args) == 2 && (c.Args[1] == "-h" || c.Args[1] == "--help"):
		fmt.Fprintf(c.Stdout, mountUsage, name)
	default:
		fmt.Fprintf(c.Stderr, mountUsage, name)
		return 2
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// done marks a mounted data file system as good.
func (d device) done() error {
	if _, ok := mountAt(d.mounts, d.dir); !ok {
		return nil // in memory: nothing to mark, as on LEDE
	}
	if overlay.GetState(d.dir) == overlay.Ready {
		return nil
	}
	return overlay.SetState(d.dir, overlay.Ready)
}

func mountRoot(ctx context.Context, c *unit.Call, name string) error {
	if err := readOnlyRoot(); err != nil {
		return err
	}
	b, err := bootDisk()
	if err != nil {
		return err
	}
	v, err := overlay.Locate(rootdisk.System{}, b)
	if err != nil {
		return err
	}
	dev, detach, err := v.Attach()
	if err != nil {
		return err
	}
	id, err := slot.Running()
	if err != nil {
		return errors.Join(err, detach())
	}
	data := &overlay.Data{
		Device: dev, Name: v.String(), Size: v.Size, Dir: aside, Slot: string(id), Kernel: overlay.System{}, Scratch: "/tmp",
		Say: func(_ slog.Level, text string) { fmt.Fprintf(c.Stdout, "%s: %s\n", name, text) },
	}
	if err := data.Open(ctx); err != nil {
		return errors.Join(err, detach())
	}
	if err := (overlay.System{}).Mount(data.Root(), overlayDir, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(err, overlay.System{}.Unmount(aside), detach())
	}
	if err := pivot(overlayDir, overlayDir); err != nil {
		return errors.Join(err, overlay.System{}.Unmount(overlayDir), overlay.System{}.Unmount(aside), detach())
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(aside, dataDir, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to %s: %w", aside, dataDir, err)
	}
	fmt.Fprintf(c.Stdout, "%s: %s is mounted at /overlay, the root is writable\n", name, v)
	return nil
}

func mountMemory() error {
	if err := readOnlyRoot(); err != nil {
		return err
	}
	const dir = "/tmp/root"
	if err := overlay.MountMemory(overlay.System{}, dir); err != nil {
		return err
	}
	return pivot(dir, "")
}

// readOnlyRoot refuses when the root is an overlay already.
func readOnlyRoot() error {
	if m, ok := mountAt("/proc/self/mounts", "/"); ok && m.fstype == "overlay" {
		return fmt.Errorf("the root is %s already", m.device)
	}
	return nil
}

// pivot lays upper/ and work/ below root over / and makes the result the root of
// every process, with the old one at /rom. data is a mount to take along.
func pivot(root, data string) error {
	const stage = "/mnt"
	if err := overlay.MountRoot(overlay.System{}, "/", root, stage); err != nil {
		return err
	}
	if err := unix.PivotRoot(stage, filepath.Join(stage, "rom")); err != nil {
		return errors.Join(fmt.Errorf("make the overlay the root: %w", err), overlay.System{}.Unmount(stage))
	}
	for _, dir := range []string{"/proc", "/dev", "/sys", "/tmp", data} {
		if dir == "" {
			continue
		}
		from := filepath.Join("/rom", dir)
		if err := unix.Mount(from, dir, "", unix.MS_MOVE, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("move %s to %s: %w", from, dir, err)
		}
	}
	return os.Chdir("/")
}
