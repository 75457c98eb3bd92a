package rescue

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/rootdisk"
	"weft/init/slot"
)

// Folders of the rescue system.
const (
	dataDir = "/data"
	romDir  = "/rom"
	bootDir = "/boot"
)

// device is what could be found out about the device.
type device struct {
	disk    *slot.Disk // nil: the boot disk is not known
	state   slot.State
	notes   []string // what is wrong, for people
	data    bool     // the data file system is at dataDir
	durable bool     // and can be written
	etc     string   // folder of the settings of the device, "" if there are none
}

// look finds the disk and mounts what can be mounted. It fails in no case: what
// is missing is said in notes.
func look(why string) *device {
	d := &device{state: slot.Fresh()}
	d.note("%s", why)
	disk, err := slot.BootDevice()
	if disk == nil {
		d.note("%v", err)
		return d
	}
	if err != nil {
		d.note("%v", err)
	}
	d.disk = disk
	if dir, done, err := mountRead(disk.P1.Path, bootDir, fstype(disk.P1.Path)); err != nil {
		d.note("%v", err)
	} else {
		var notes []string
		d.state, notes = slot.Read(dir)
		for _, n := range notes {
			d.note("slot state: %s", n)
		}
		for _, id := range []slot.ID{slot.A, slot.B} {
			for _, f := range slot.Files(id)[:2] {
				if _, err := os.Stat(filepath.Join(dir, f.Path)); err != nil && !d.state.Bad[id] {
					d.note("slot %s: %s is missing", id, f.Path)
				}
			}
		}
		if err := done(); err != nil {
			d.note("%v", err)
		}
	}
	if l := d.state.Last; l.Slot != "" {
		d.note("slot %s was given up: %s: %s", l.Slot, l.Check, l.Detail)
	}
	d.mountData()
	for _, id := range []slot.ID{d.state.Preferred, d.state.Preferred.Other()} {
		etc := filepath.Join(overlay.SlotDir(dataDir, string(id)), "upper/etc")
		if _, err := os.Stat(etc); err == nil && d.etc == "" {
			d.etc = etc
		}
		if _, done, err := mountRead(disk.Root(id).Path, romDir, "squashfs"); err != nil {
			d.note("the root file system of slot %s: %v", id, err)
		} else if err := done(); err != nil {
			d.note("%v", err)
		}
	}
	return d
}

func (d *device) note(format string, a ...any) { d.notes = append(d.notes, fmt.Sprintf(format, a...)) }

// mountData mounts the data file system, read-only where it cannot be written.
func (d *device) mountData() {
	vol := d.disk.Data
	if vol.Device == "" || vol.Offset != 0 {
		d.note("the disk has no data partition")
		return
	}
	err := os.MkdirAll(dataDir, 0o700)
	if err == nil {
		err = unix.Mount(vol.Device, dataDir, "ext4", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, "")
		d.durable = err == nil
	}
	if err != nil {
		d.note("the data partition %s: %v: what can be read of it is used", vol.Device, err)
		err = unix.Mount(vol.Device, dataDir, "ext4", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, "noload")
	}
	if err != nil {
		d.note("the data partition %s cannot be read: %v", vol.Device, err)
		return
	}
	d.data = true
}

// target is the slot that an image goes to: the one that is not preferred, unless
// that is the only one that can be started.
func (d *device) target() slot.ID {
	other := d.state.Preferred.Other()
	if d.state.Bootable(other) && !d.state.Bootable(d.state.Preferred) || d.disk != nil && d.disk.Root(other).Path == "" {
		return d.state.Preferred
	}
	return other
}

func fstype(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return "vfat"
	}
	defer f.Close()
	if overlay.IsFAT(f) {
		return "vfat"
	}
	return "ext4"
}

func mountRead(device, dir, fstype string) (string, func() error, error) {
	if device == "" {
		return "", nil, errors.New("the disk has no partition for it")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	if err := unix.Mount(device, dir, fstype, unix.MS_RDONLY|unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return "", nil, fmt.Errorf("mount %s as %s: %w", device, fstype, err)
	}
	return dir, func() error { return unix.Unmount(dir, 0) }, nil
}

// duplicate says whether several disks carry the id of the boot disk: then nothing
// may be written.
func duplicate(err error) bool {
	var dup *rootdisk.DuplicateError
	return errors.As(err, &dup)
}

// rootHash is root's password in a shadow file, "" for none. known is false if it
// cannot be told: no file, or no line for root.
func rootHash(shadow io.Reader) (hash string, known bool) {
	lines := bufio.NewScanner(shadow)
	for lines.Scan() {
		if f := strings.Split(lines.Text(), ":"); len(f) > 1 && f[0] == "root" {
			return f[1], true
		}
	}
	return "", false
}

// maxSettings bounds what is carried over, in bytes.
const maxSettings = 32 << 20

// saveSettings writes the plain files and links below etc, the changed settings of
// a device, as a config archive. What cannot be read is left out and counted.
func saveSettings(w io.Writer, etc string) (files, lost int, err error) {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	left := int64(maxSettings)
	err = filepath.WalkDir(etc, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			lost++
			if e != nil && e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			lost++
			return nil
		}
		rel, err := filepath.Rel(etc, path)
		if err != nil {
			return err
		}
		link := ""
		var data []byte
		switch {
		case fi.Mode().IsRegular():
			if fi.Size() > left {
				lost++
				return nil
			}
			if data, err = os.ReadFile(path); err != nil {
				lost++
				return nil
			}
			left -= int64(len(data))
		case e.Type() == fs.ModeSymlink:
			if link, err = os.Readlink(path); err != nil {
				lost++
				return nil
			}
		default:
			return nil // folders come with their files; a device is the mark of a deletion
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			lost++
			return nil
		}
		h.Name, h.Size = filepath.Join("etc", rel), int64(len(data))
		h.Uname, h.Gname = "", ""
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(data); err != nil {
			return err
		}
		files++
		return nil
	})
	if err := errors.Join(err, t.Close(), z.Close()); err != nil {
		return files, lost, fmt.Errorf("save the settings: %w", err)
	}
	return files, lost, nil
}
