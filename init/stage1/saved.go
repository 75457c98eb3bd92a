package stage1

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/slot"
)

// bootPart is partition 1 of the boot disk, where sysupgrade leaves the config
// (compatibility facts, section 1.4). It is mounted read-only for a look and
// writable only to change something: a FAT that is writable at a power cut is
// marked as dirty.
type bootPart struct {
	b      *boot
	device string // "" if there is none
	fstype string
}

func (b *boot) bootPartition() *bootPart {
	p := &bootPart{b: b}
	if b.disk.Table == nil {
		return p
	}
	n, err := b.sys.Node(b.disk.Disk, 1)
	if err != nil || n.Path == b.disk.Root.Path {
		return p
	}
	f, err := os.Open(n.Path)
	if err != nil {
		return p
	}
	defer f.Close()
	p.device, p.fstype = n.Path, "ext4"
	if overlay.IsFAT(f) {
		p.fstype = "vfat"
	}
	return p
}

func (p *bootPart) mount(flags uintptr) error {
	if p.device == "" {
		return fmt.Errorf("the boot disk has no boot partition: %w", fs.ErrNotExist)
	}
	if p.fstype == "vfat" {
		p.b.need("nls_cp437", "nls_ascii", "nls_utf8", "vfat")
	} else {
		p.b.need("ext4")
	}
	if err := os.MkdirAll(bootDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(p.device, bootDir, p.fstype, flags|unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount the boot partition %s as %s: %w", p.device, p.fstype, err)
	}
	return nil
}

func (p *bootPart) unmount() error {
	if err := unix.Unmount(bootDir, 0); err != nil {
		return fmt.Errorf("unmount the boot partition %s: %w", p.device, err)
	}
	return nil
}

// change mounts the boot partition writable for f and brings what it did to
// the medium.
func (p *bootPart) change(f func(dir string) error) error {
	if err := p.mount(0); err != nil {
		return err
	}
	return errors.Join(f(bootDir), p.unmount()) // unmounting writes everything
}

// keep puts a config archive there before formatting destroys where it lay, so
// that a power cut in between does not lose it.
func (p *bootPart) keep(archive string) error {
	return p.change(func(dir string) error { return copyFile(filepath.Join(dir, overlay.Saved), archive) })
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// restore unpacks the saved configs: from the data file system, then from the
// boot partition, which has the last word.
func (b *boot) restore(part *bootPart, onDisk bool) {
	if onDisk {
		from := filepath.Join(overlayDir, overlay.Saved)
		b.restoreFrom(from, onDisk, func(f func(dir string) error) error { return f(overlayDir) })
	}
	if err := part.mount(unix.MS_RDONLY); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			b.say(slog.LevelWarn, "a config saved on the boot partition would not be found: %v", err)
		}
		return
	}
	state, notes := slot.Read(bootDir)
	archive := filepath.Join(bootDir, overlay.Saved)
	_, err := os.Stat(archive)
	if err == nil {
		// Unpacked from a copy in memory: the partition must be free to be
		// mounted for writing.
		err = copyFile("/tmp/"+overlay.Saved, archive)
	}
	if err := part.unmount(); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	switch {
	case err == nil:
		b.restoreFrom("/tmp/"+overlay.Saved, onDisk, part.change)
		os.Remove("/tmp/" + overlay.Saved)
	case !errors.Is(err, fs.ErrNotExist):
		b.say(slog.LevelWarn, "the config saved on the boot partition cannot be read: %v", err)
	}
	b.judgeSlots(part, state, notes)
	b.mark("config restored")
}

// restoreFrom unpacks one archive. Where it lay, it is removed once everything
// is on the medium, or renamed if it is no good: change gives access to that
// folder.
func (b *boot) restoreFrom(archive string, onDisk bool, change func(func(dir string) error) error) {
	f, err := os.Open(archive)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var n int
	if err == nil {
		n, err = overlay.Restore(f, newRoot, romDir)
		f.Close()
	}
	where := "the data file system"
	if filepath.Dir(archive) != overlayDir {
		where = "the boot partition"
	}
	if err != nil {
		b.say(slog.LevelError, "the saved config on %s is damaged and kept as %s.bad: %v", where, overlay.Saved, err)
		err := change(func(dir string) error {
			return os.Rename(filepath.Join(dir, overlay.Saved), filepath.Join(dir, overlay.Saved+".bad"))
		})
		if err != nil {
			b.say(slog.LevelWarn, "%v", err)
		}
		return
	}
	b.say(slog.LevelInfo, "restored the saved config (%d files) from %s", n, where)
	if !onDisk {
		return // in memory: it is needed again at the next boot
	}
	// The overlay is worth keeping from here on: without this, a power cut
	// during the first boot would erase what was just restored.
	err = overlay.SetState(overlayDir, overlay.Ready)
	if err == nil {
		err = change(func(dir string) error { return os.Remove(filepath.Join(dir, overlay.Saved)) })
	}
	if err != nil {
		b.say(slog.LevelWarn, "the saved config is restored again at the next boot: %v", err)
	}
}
