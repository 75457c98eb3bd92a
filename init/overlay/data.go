package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/init/rootdisk"
)

// Label of the data file system.
const Label = "rootfs_data"

// Data is a data file system to be opened.
type Data struct {
	Device string // block device that begins with the volume
	Name   string // of the volume in messages; default Device
	Size   int64  // bytes
	Dir    string // where to mount it
	Slot   string // "a" or "b": the overlay lies in a folder of its own, SlotDir; "" for the root of the file system
	Kernel Kernel

	// Say tells the person at the console; the text has no prefix and no
	// newline.
	Say func(level slog.Level, text string)

	// Scratch is a folder in memory where what is saved from a broken file
	// system waits for the new one.
	Scratch string

	// BeforeFormat is called with a config archive found on the volume, before
	// formatting destroys it, to keep it where it is restored from. Nil, or after
	// an error: it waits in Scratch and is put into the new file system.
	BeforeFormat func(archive string) error
}

// Errors of Open that leave the volume as it was.
var (
	ErrForeign    = errors.New("the data volume holds a foreign format")
	ErrUnreadable = errors.New("the data volume cannot be read")
)

func (d *Data) name() string {
	if d.Name != "" {
		return d.Name
	}
	return d.Device
}

// Root is the folder of the mounted file system that holds upper/ and work/.
func (d *Data) Root() string {
	if d.Slot == "" {
		return d.Dir
	}
	return SlotDir(d.Dir, d.Slot)
}

func (d *Data) say(level slog.Level, format string, args ...any) {
	if d.Say != nil {
		d.Say(level, fmt.Sprintf(format, args...))
	}
}

// Open mounts the data file system at Dir, making or repairing it first if it
// must, and brings it into a usable state: upper/ and work/ exist, and an
// overlay that was being erased is empty. After an error nothing is mounted.
func (d *Data) Open(ctx context.Context) error {
	f, err := os.Open(d.Device)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	c, err := Probe(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("%w: %s: %w", ErrUnreadable, d.name(), err)
	}
	archive := d.extractArchive(f, c)
	backup := c.Kind == Unknown && backupSuperblock(f)
	f.Close()

	switch c.Kind {
	case Foreign:
		return fmt.Errorf("%w: %s on %s; \"factoryreset\" makes it Weft's and destroys what is there", ErrForeign, c.Name, d.name())
	case Ext4:
		err = d.openExt4(ctx, c)
	case F2FS:
		err = d.mount("f2fs", 0)
	case Unknown:
		if backup {
			d.say(slog.LevelWarn, "the start of %s is damaged: repairing from the copy of its superblock", d.name())
			err = d.repair(ctx, errors.New("no superblock at the start"))
			break
		}
		d.say(slog.LevelWarn, "%s holds no known file system: formatting it", d.name())
		err = d.formatAndMount(ctx)
	default:
		err = d.formatAndMount(ctx)
	}
	if err != nil {
		return err
	}
	if err := d.settle(archive); err != nil {
		return errors.Join(err, d.Kernel.Unmount(d.Dir))
	}
	return nil
}

// extractArchive copies a config archive that lies where the file system
// should be to Scratch, and hands it to BeforeFormat. It returns the path of the
// copy if that is the only one, else "".
func (d *Data) extractArchive(f *os.File, c Content) string {
	if c.TarballAt < 0 {
		return ""
	}
	n, err := archiveLength(io.NewSectionReader(f, c.TarballAt, maxArchive))
	if err != nil {
		if c.Kind == Tarball {
			d.say(slog.LevelWarn, "the config archive at the start of %s is damaged and cannot be restored: %v", d.name(), err)
		}
		return ""
	}
	path := filepath.Join(d.Scratch, Saved)
	if err := copyDurably(path, io.NewSectionReader(f, c.TarballAt, n)); err != nil {
		d.say(slog.LevelWarn, "the config archive at the start of %s cannot be kept: %v", d.name(), err)
		return ""
	}
	d.say(slog.LevelInfo, "found a saved config at the start of %s (%d bytes)", d.name(), n)
	if d.BeforeFormat != nil {
		err := d.BeforeFormat(path)
		if err == nil {
			return "" // it is safe elsewhere
		}
		d.say(slog.LevelWarn, "the saved config is in memory alone while %s is formatted: %v", d.name(), err)
	}
	return path
}

// openExt4 mounts, after a check if the kernel noted errors the last time.
func (d *Data) openExt4(ctx context.Context, c Content) error {
	if c.Errors {
		d.say(slog.LevelWarn, "the kernel noted errors on %s: checking it", d.name())
		if code, _, err := d.fsck(ctx, "-p"); err != nil || code > 2 {
			return d.repair(ctx, fmt.Errorf("e2fsck -p: %s", outcome(code, err)))
		}
	}
	err := d.mount("ext4", 0)
	if err == nil {
		d.growFS(c)
		return nil
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w (is the ext4 module loaded?)", err)
	}
	return d.repair(ctx, err)
}

func (d *Data) mount(fstype string, flags uintptr) error {
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", d.Device, err)
	}
	return d.Kernel.Mount(d.Device, d.Dir, fstype, unix.MS_NOATIME|flags, "")
}

// repair is for a file system that did not mount, because of why.
func (d *Data) repair(ctx context.Context, why error) error {
	d.say(slog.LevelWarn, "%s does not mount (%v): repairing it, this can take minutes on a large disk", d.name(), why)
	for _, mode := range []string{"-p", "-y"} {
		code, out, err := d.fsck(ctx, mode)
		if err != nil {
			return fmt.Errorf("%w: %s does not mount (%w), and it cannot be checked: %w", ErrUnreadable, d.name(), why, err)
		}
		d.say(slog.LevelInfo, "e2fsck %s %s: %s", mode, d.name(), describe(code, out))
		if code > 2 {
			continue
		}
		if why = d.mount("ext4", 0); why == nil {
			d.say(slog.LevelWarn, "%s is repaired: files may be missing, see lost+found in /overlay", d.name())
			return nil
		}
	}
	if err := readAll(d.Device, d.Size); err != nil {
		return fmt.Errorf("%w: %w; it is not formatted, because the disk itself may be failing", ErrUnreadable, err)
	}
	saved := d.salvage()
	d.say(slog.LevelError, "%s cannot be repaired: formatting it, what was in the overlay is lost%s", d.name(), saved.text())
	if err := d.formatAndMount(ctx); err != nil {
		return err
	}
	return d.putBack(saved)
}

// readAll reads the first MiB and the last 64 KiB: a disk that fails there is
// broken hardware, not a broken file system.
func readAll(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, s := range []struct{ off, n int64 }{{0, 1 << 20}, {max(size-64<<10, 0), 64 << 10}} {
		if _, err := io.Copy(io.Discard, io.NewSectionReader(f, s.off, s.n)); err != nil {
			return fmt.Errorf("read %s at byte %d: %w", path, s.off, err)
		}
	}
	return nil
}

func (d *Data) fsck(ctx context.Context, mode string) (int, string, error) {
	return d.Kernel.Run(ctx, "/sbin/e2fsck", mode, d.Device)
}

func outcome(code int, err error) string {
	if err != nil {
		return err.Error()
	}
	return "exit code " + strconv.Itoa(code)
}

// describe says what an exit code of e2fsck(8) means, with its last line.
func describe(code int, out string) string {
	text := "exit code " + strconv.Itoa(code)
	switch {
	case code == 0:
		text = "clean"
	case code <= 2:
		text = "repaired"
	case code&4 != 0:
		text = "errors are left"
	}
	last := ""
	for line := range strings.Lines(out) {
		// Indented lines explain the one before.
		if line = strings.TrimRight(line, "\r\n"); line != "" && line[0] != ' ' && line[0] != '\t' {
			last = line
		}
	}
	if last != "" {
		text += " (" + last + ")"
	}
	return text
}

// formatAndMount makes the file system. The mark and a blank superblock go
// first: whatever is interrupted is started again at the next boot, and an old
// file system cannot come back half overwritten.
func (d *Data) formatAndMount(ctx context.Context) error {
	d.say(slog.LevelInfo, "making the data file system on %s (%s)", d.name(), rootdisk.Size(uint64(d.Size)))
	if err := writeStart(d.Device, Mark); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	args := append(mke2fsArgs(d.Size, randomUUID(), randomUUID()), d.Device)
	code, out, err := d.Kernel.Run(ctx, "/sbin/mke2fs", args...)
	if err != nil {
		return fmt.Errorf("format %s: %w", d.name(), err)
	}
	if code != 0 {
		return fmt.Errorf("format %s: mke2fs ended with exit code %d: %s", d.name(), code, strings.TrimSpace(out))
	}
	// mke2fs clears the start of the device itself; make sure of it, and of
	// its writes having arrived, before the state says anything.
	if err := clearMark(d.Device); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if err := d.mount("ext4", 0); err != nil {
		return fmt.Errorf("mount the new data file system: %w", err)
	}
	if d.Slot != "" {
		return nil // a slot without a folder has an empty overlay
	}
	return SetState(d.Dir, Pending)
}

// mke2fsArgs are the options for a volume of the size: fixed block and inode
// sizes whatever mke2fs.conf says. Tables are written in full where that costs
// little; on larger disks the kernel does it later, in the background. The ids
// are given, because mke2fs waits up to a second for each of them while the
// kernel's random generator is not ready, as it is early in a first boot.
func mke2fsArgs(size int64, uuid, hashSeed string) []string {
	lazy, ratio := "0", "8192"
	if size > 1<<30 {
		lazy, ratio = "1", "16384"
	}
	return []string{
		"-q", "-F", "-t", "ext4", "-L", Label, "-b", "4096", "-I", "256", "-i", ratio, "-m", "1",
		"-e", "remount-ro", "-j", "-U", uuid,
		"-E", "nodiscard,hash_seed=" + hashSeed + ",root_owner=0:0,lazy_itable_init=" + lazy + ",lazy_journal_init=" + lazy,
	}
}

// randomUUID never waits: two devices must not share an id, but nobody must be
// kept from guessing it (RFC 9562, version 4).
func randomUUID() string {
	var b [16]byte
	if _, err := unix.Getrandom(b[:], unix.GRND_INSECURE); err != nil {
		unix.Getrandom(b[:], 0) // before Linux 5.6
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// writeStart puts the mark in front of 64 KiB of zeros.
func writeStart(path string, mark []byte) error {
	buf := make([]byte, 64<<10)
	copy(buf, mark)
	return rewrite(path, buf)
}

func clearMark(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, len(Mark))
	if _, err := f.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return rewrite(path, make([]byte, len(head)))
}

func rewrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the start of %s: %w", path, err)
	}
	return nil
}

// settle is the last step of Open: state, upper/ and work/, space.
func (d *Data) settle(archive string) error {
	if d.Slot != "" {
		if err := d.slots(); err != nil {
			return err
		}
	}
	root := d.Root()
	upper, work := filepath.Join(root, "upper"), filepath.Join(root, "work")
	switch state := GetState(root); {
	case state == Ready:
	case state == None && hasEntries(upper):
		d.say(slog.LevelWarn, "the state of the overlay is lost: keeping its content")
		if err := SetState(root, Ready); err != nil {
			d.say(slog.LevelWarn, "%v", err)
		}
	default:
		if hasEntries(upper) {
			d.say(slog.LevelWarn, "the last first boot or reset was not finished: starting again from an empty overlay")
		}
		if err := wipe(root, true); err != nil {
			return err
		}
		if err := SetState(root, Pending); err != nil {
			return err
		}
	}
	if archive != "" {
		src, err := os.Open(archive)
		if err == nil {
			err = errors.Join(copyDurably(filepath.Join(root, Saved), src), src.Close())
		}
		if err != nil {
			d.say(slog.LevelWarn, "the saved config found on %s cannot be kept: %v", d.name(), err)
		}
	}
	for _, dir := range []string{upper, work} {
		if err := d.makeFolder(dir); err != nil {
			return err
		}
	}
	d.checkSpace()
	return nil
}

func hasEntries(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0
}

// makeFolder makes sure that the path is a folder; something else in its place
// is moved aside.
func (d *Data) makeFolder(path string) error {
	fi, err := os.Lstat(path)
	if err == nil && fi.IsDir() {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("prepare the overlay: %w", err)
	}
	if err == nil {
		aside := path + ".bad"
		d.say(slog.LevelWarn, "%s is no folder: moved to %s", path, aside)
		if err := os.RemoveAll(aside); err != nil {
			return fmt.Errorf("prepare the overlay: %w", err)
		}
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("prepare the overlay: %w", err)
		}
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("prepare the overlay: %w", err)
	}
	return nil
}

// minFree is what a commit of a config file and a few logs need.
const minFree = 512 << 10

// checkSpace says so when the data file system is full.
func (d *Data) checkSpace() {
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		return
	}
	// What is reserved for root counts as used: part of it is the file system's
	// own and nobody can have it.
	if free := int64(s.Bavail) * s.Bsize; free < minFree || s.Files > 0 && s.Ffree < 16 {
		d.say(slog.LevelWarn, "the data partition is full (%s and %d files left): changes to the configuration may be lost; remove files below /overlay/upper or run firstboot", rootdisk.Size(uint64(free)), s.Ffree)
	}
}

// growFS lets ext4 fill a volume that has grown, while mounted
// (EXT4_IOC_RESIZE_FS, Linux 3.3). Failure leaves a smaller file system.
func (d *Data) growFS(c Content) {
	const step = 32 << 20 // a quarter of a block group: less is not worth a resize
	if c.Bytes == 0 || d.Size-c.Bytes < step {
		return
	}
	dir, err := os.Open(d.Dir)
	if err != nil {
		return
	}
	defer dir.Close()
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil || s.Bsize <= 0 {
		return
	}
	blocks := uint64(d.Size / s.Bsize)
	const resizeFS = 0x40086610 // _IOW('f', 16, __u64)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		d.say(slog.LevelWarn, "the data file system on %s cannot grow to %s: %v", d.name(), rootdisk.Size(uint64(d.Size)), errno)
		return
	}
	d.say(slog.LevelInfo, "the data file system on %s grew from %s to %s", d.name(), rootdisk.Size(uint64(c.Bytes)), rootdisk.Size(uint64(d.Size)))
}

// MountRoot lays the overlay over lower at target: root says where upper/ and
// work/ lie, and the mount is named after it, as on LEDE.
func MountRoot(k Kernel, lower, root, target string) error {
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, root, root)
	name := "overlayfs:" + root
	err := k.Mount(name, target, "overlay", unix.MS_NOATIME, opts)
	if err == nil {
		return nil
	}
	// Half-removed entries in work/ stop overlayfs; nothing there is worth
	// keeping.
	work := filepath.Join(root, "work")
	if again := errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o755)); again != nil {
		return errors.Join(err, again)
	}
	return k.Mount(name, target, "overlay", unix.MS_NOATIME, opts)
}

// MountMemory makes an overlay that lives in memory at dir.
func MountMemory(k Kernel, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make an overlay in memory: %w", err)
	}
	if err := k.Mount("tmpfs", dir, "tmpfs", unix.MS_NOATIME, "mode=0755"); err != nil {
		return err
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("make an overlay in memory: %w", err)
		}
	}
	return nil
}
