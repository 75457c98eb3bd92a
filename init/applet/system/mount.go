package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/applet/files"
	"weft/init/applet/options"
	"weft/init/unit"
)

const mountUsage = `[-t TYPE] [-o OPTION,...] [-rw] DEVICE FOLDER
       mount -o remount,OPTION,... FOLDER | mount FOLDER | mount -a | mount [-t TYPE]
Mount a file system, change a mount, or list the mounts. DEVICE may be LABEL=x or
UUID=x, or a file, for which a loop device is set up.
  -a  all of /etc/fstab     -r  read only     -w  writable (as without)
Options: ro rw nosuid nodev noexec sync noatime relatime bind rbind move remount
loop (r)private (r)shared (r)slave; what is not known goes to the file system.
Example: mount -o bind /tmp/hosts /etc/hosts`

// mounted is a line of /proc/self/mounts or of fstab(5).
type mounted struct{ device, dir, kind, options string }

func readTable(path string) ([]mounted, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseTable(b), nil
}

// parseTable reads fstab(5): blanks in names are octal escapes. Lines that are
// not complete are left out.
func parseTable(b []byte) []mounted {
	var list []mounted
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 4 || strings.HasPrefix(f[0], "#") {
			continue
		}
		list = append(list, mounted{files.UnescapeMount(f[0]), files.UnescapeMount(f[1]), f[2], f[3]})
	}
	return list
}

// mountOptions are -o taken apart.
type mountOptions struct {
	flags uintptr
	// propagation is set by a call of its own.
	propagation uintptr
	loop        bool
	data        []string // for the file system
}

func (o *mountOptions) add(list string) {
	clear := func(f uintptr) { o.flags &^= f }
	for s := range strings.SplitSeq(list, ",") {
		switch s {
		case "", "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser":
		case "ro":
			o.flags |= unix.MS_RDONLY
		case "rw":
			clear(unix.MS_RDONLY)
		case "nosuid":
			o.flags |= unix.MS_NOSUID
		case "suid":
			clear(unix.MS_NOSUID)
		case "nodev":
			o.flags |= unix.MS_NODEV
		case "dev":
			clear(unix.MS_NODEV)
		case "noexec":
			o.flags |= unix.MS_NOEXEC
		case "exec":
			clear(unix.MS_NOEXEC)
		case "sync":
			o.flags |= unix.MS_SYNCHRONOUS
		case "async":
			clear(unix.MS_SYNCHRONOUS)
		case "dirsync":
			o.flags |= unix.MS_DIRSYNC
		case "noatime":
			o.flags |= unix.MS_NOATIME
		case "atime":
			clear(unix.MS_NOATIME)
		case "nodiratime":
			o.flags |= unix.MS_NODIRATIME
		case "diratime":
			clear(unix.MS_NODIRATIME)
		case "relatime":
			o.flags |= unix.MS_RELATIME
		case "norelatime":
			clear(unix.MS_RELATIME)
		case "strictatime":
			o.flags |= unix.MS_STRICTATIME
		case "lazytime":
			o.flags |= unix.MS_LAZYTIME
		case "bind":
			o.flags |= unix.MS_BIND
		case "rbind":
			o.flags |= unix.MS_BIND | unix.MS_REC
		case "move":
			o.flags |= unix.MS_MOVE
		case "remount":
			o.flags |= unix.MS_REMOUNT
		case "private":
			o.propagation = unix.MS_PRIVATE
		case "rprivate":
			o.propagation = unix.MS_PRIVATE | unix.MS_REC
		case "shared":
			o.propagation = unix.MS_SHARED
		case "rshared":
			o.propagation = unix.MS_SHARED | unix.MS_REC
		case "slave":
			o.propagation = unix.MS_SLAVE
		case "rslave":
			o.propagation = unix.MS_SLAVE | unix.MS_REC
		case "unbindable":
			o.propagation = unix.MS_UNBINDABLE
		case "loop":
			o.loop = true
		default:
			o.data = append(o.data, s)
		}
	}
}

// kept are the flags of a mount that a remount leaves as they are unless it
// names the opposite.
const kept = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME | unix.MS_SYNCHRONOUS

// Mount mounts, changes and lists mounts.
func Mount(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "at:o:rwni types=t options=o", mountUsage)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 2); code >= 0 {
		return code
	}
	kind, given := o.Value('t', ""), strings.Join(o.Values('o'), ",")
	if o.Has('r') {
		given += ",ro"
	}
	if o.Has('a') {
		if len(o.Args) > 0 {
			return o.Fail("-a takes all of /etc/fstab, %q is too much", o.Args[0])
		}
		return mountAll(c, kind, given)
	}
	var m mounted
	switch len(o.Args) {
	case 0:
		if given != "" {
			return o.Fail("a folder is missing")
		}
		return listMounts(c, kind)
	case 1:
		opts := mountOptions{}
		opts.add(given)
		path := c.Path(o.Args[0])
		if opts.flags&unix.MS_REMOUNT == 0 && opts.propagation != 0 {
			m = mounted{"none", path, "", given}
			break
		}
		var err error
		if m, err = known(path, opts.flags&unix.MS_REMOUNT != 0); err != nil {
			return fail(c, err)
		}
		m.options += "," + given
	case 2:
		m = mounted{o.Args[0], c.Path(o.Args[1]), kind, given}
	}
	if err := mountOne(c, m); err != nil {
		return fail(c, err)
	}
	return 0
}

// known finds what is mounted at path, or what /etc/fstab says about it.
func known(path string, isMounted bool) (mounted, error) {
	table, where := "/etc/fstab", "/etc/fstab has no line for it: name a device and a folder"
	if isMounted {
		table, where = "/proc/self/mounts", "nothing is mounted there"
	}
	list, err := readTable(table)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return mounted{}, err
	}
	real := resolved(path)
	for _, m := range slices.Backward(list) {
		if m.dir == path || m.dir == real || !isMounted && m.device == path {
			if isMounted {
				// Of the options only the flags: the file system's own keep
				// their values, and some do not take them back.
				var keep []string
				for s := range strings.SplitSeq(m.options, ",") {
					probe := mountOptions{}
					probe.add(s)
					if probe.flags&kept != 0 {
						keep = append(keep, s)
					}
				}
				m.options = strings.Join(keep, ",")
			}
			return m, nil
		}
	}
	return mounted{}, fmt.Errorf("%s: %s", path, where)
}

// resolved is path without symbolic links, where it can be had.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

func listMounts(c *unit.Call, kinds string) int {
	list, err := readTable("/proc/self/mounts")
	if err != nil {
		return fail(c, err)
	}
	for _, m := range list {
		if ofKind(kinds, m.kind) {
			fmt.Fprintf(c.Stdout, "%s on %s type %s (%s)\n", m.device, m.dir, m.kind, m.options)
		}
	}
	return 0
}

// ofKind says whether a type is in a list for -t: "ext4,vfat", or "noproc,sysfs"
// for all others.
func ofKind(list, kind string) bool {
	if list == "" || list == "auto" {
		return true
	}
	rest, others := strings.CutPrefix(list, "no")
	return slices.Contains(strings.Split(rest, ","), kind) != others
}

func mountAll(c *unit.Call, kinds, given string) int {
	list, err := readTable("/etc/fstab")
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		return fail(c, err)
	}
	current, err := readTable("/proc/self/mounts")
	if err != nil {
		return fail(c, err)
	}
	code := 0
	for _, m := range list {
		opts := strings.Split(m.options, ",")
		if slices.Contains(opts, "noauto") || m.kind == "swap" || !ofKind(kinds, m.kind) ||
			slices.ContainsFunc(current, func(have mounted) bool { return have.dir == m.dir }) {
			continue
		}
		m.options += "," + given
		if err := mountOne(c, m); err != nil {
			if slices.Contains(opts, "nofail") && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			code = fail(c, err)
		}
	}
	return code
}

// mountOne does one mount. Of the call's streams only stderr is used, for notes.
func mountOne(c *unit.Call, m mounted) error {
	var o mountOptions
	o.add(m.options)
	wrap := func(err error) error {
		hint := ""
		switch {
		case errors.Is(err, unix.EPERM):
			hint = " (only root may)"
		case errors.Is(err, unix.EBUSY) && o.flags&unix.MS_REMOUNT != 0:
			hint = " (files are open for writing)"
		case errors.Is(err, unix.ENODEV):
			hint = fmt.Sprintf(" (this kernel has no file system %s; is its module installed?)", m.kind)
		case errors.Is(err, unix.EINVAL) && o.flags&(unix.MS_BIND|unix.MS_MOVE|unix.MS_REMOUNT) == 0:
			hint = " (not such a file system, or an option it does not know: see dmesg)"
		}
		return fmt.Errorf("mount %s on %s: %w%s", m.device, m.dir, err, hint)
	}
	if st, err := os.Stat(m.dir); err != nil {
		return wrap(err)
	} else if !st.IsDir() && o.flags&(unix.MS_BIND|unix.MS_REMOUNT|unix.MS_MOVE) == 0 && o.propagation == 0 {
		return wrap(unix.ENOTDIR)
	}
	data := strings.Join(o.data, ",")
	switch {
	case o.flags&(unix.MS_REMOUNT|unix.MS_MOVE) != 0:
		if o.flags&unix.MS_MOVE != 0 {
			m.device = c.Path(m.device)
		}
		if err := unix.Mount(m.device, m.dir, m.kind, o.flags, data); err != nil {
			return wrap(err)
		}
	case o.flags&unix.MS_BIND != 0:
		m.device = c.Path(m.device)
		if err := unix.Mount(m.device, m.dir, "", o.flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
			return wrap(err)
		}
		// A bind mount takes its flags only by a second call (mount(2)).
		if other := o.flags &^ (unix.MS_BIND | unix.MS_REC); other != 0 {
			if err := unix.Mount("", m.dir, "", other|unix.MS_BIND|unix.MS_REMOUNT, ""); err != nil {
				return wrap(errors.Join(err, unix.Unmount(m.dir, unix.MNT_DETACH)))
			}
		}
	case o.propagation != 0 && m.kind == "":
	default:
		source, release, err := source(c, m, &o)
		if err != nil {
			return wrap(err)
		}
		err = mountDevice(c, source, m, o.flags, data)
		release()
		if err != nil {
			return wrap(err)
		}
	}
	if o.propagation != 0 {
		if err := unix.Mount("", m.dir, "", o.propagation, ""); err != nil {
			return wrap(err)
		}
	}
	return nil
}

// source finds the device to mount: by label or UUID, or a loop device for a
// file. release is to be called after the mount.
func source(c *unit.Call, m mounted, o *mountOptions) (device string, release func(), err error) {
	nothing := func() {}
	if strings.HasPrefix(m.device, "LABEL=") || strings.HasPrefix(m.device, "UUID=") {
		device, err := deviceOf(m.device)
		return device, nothing, err
	}
	path := c.Path(m.device)
	st, err := os.Stat(path)
	if err == nil && st.Mode()&fs.ModeDevice != 0 {
		return path, nothing, nil
	}
	if err == nil && st.Mode().IsRegular() && (o.loop || m.kind == "" || needsDevice(m.kind)) {
		loop, err := attach(path, o.flags&unix.MS_RDONLY != 0)
		if err != nil {
			return "", nil, err
		}
		return loop.Name(), func() { loop.Close() }, nil
	}
	if o.loop {
		return "", nil, fmt.Errorf("a loop device needs a file: %w", errors.Join(err, unix.ENOENT))
	}
	if err != nil && (m.kind == "" || m.kind == "auto" || needsDevice(m.kind)) {
		return "", nil, err
	}
	return m.device, nothing, nil // "none", "tmpfs", "host:/dir"
}

// kernelFilesystems lists /proc/filesystems: those with and those without a device.
func kernelFilesystems() (with, without []string) {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return nil, nil
	}
	for line := range strings.Lines(string(b)) {
		kind, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if kind == "nodev" {
			without = append(without, name)
		} else {
			with = append(with, kind)
		}
	}
	return with, without
}

func needsDevice(kind string) bool {
	with, _ := kernelFilesystems()
	return slices.Contains(with, kind)
}

// mountDevice mounts with the type given, or that of what the device holds, or
// each that the kernel knows. A device that can only be read is mounted so.
func mountDevice(c *unit.Call, device string, m mounted, flags uintptr, data string) error {
	kinds := []string{m.kind}
	if m.kind == "" || m.kind == "auto" {
		if f, err := os.Open(device); err == nil {
			id := identify(f)
			f.Close()
			kinds[0] = id.kind
		}
		if kinds[0] == "" {
			kinds, _ = kernelFilesystems()
		}
	}
	var last error = unix.EINVAL
	for _, kind := range kinds {
		err := unix.Mount(device, m.dir, kind, flags, data)
		if (err == unix.EACCES || err == unix.EROFS) && flags&unix.MS_RDONLY == 0 {
			if err = unix.Mount(device, m.dir, kind, flags|unix.MS_RDONLY, data); err == nil {
				fmt.Fprintf(c.Stderr, "mount: %s can only be read: mounted read-only\n", device)
			}
		}
		if err == nil {
			return nil
		}
		last = err
		if err != unix.EINVAL && err != unix.ENODEV {
			break
		}
	}
	return last
}

// attach binds a file to a free loop device, which the kernel frees when the last
// user is gone: close the file after the mount.
func attach(path string, readOnly bool) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("set up a loop device (modprobe loop first?): %w", err)
	}
	defer ctl.Close()
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	back, err := os.OpenFile(path, mode, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ETXTBSY) || errors.Is(err, unix.EACCES) {
		readOnly = true
		back, err = os.Open(path)
	}
	if err != nil {
		return nil, err
	}
	defer back.Close()
	cfg := unix.LoopConfig{Fd: uint32(back.Fd())}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if readOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)
	for range 16 { // another process may take the free one first
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("ask for a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &cfg); err == nil {
			return loop, nil
		}
		loop.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("bind %s to /dev/loop%d: %w", path, n, err)
		}
	}
	return nil, fmt.Errorf("bind %s to a loop device: %w", path, unix.EBUSY)
}

// Umount takes mounts away.
func Umount(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "lfradnt: lazy=l force=f all=a", `[-lfr] FOLDER|DEVICE...
       umount -a [-r] [-t TYPE]
Take a mount away.
  -l  out of sight at once, in truth when it is free     -f  although the server is silent
  -r  make it read only if it is in use                  -a  all that hold files of a device
Example: umount /mnt`)
	if code >= 0 {
		return code
	}
	if o.Has('a') {
		if len(o.Args) > 0 {
			return o.Fail("-a takes all, %q is too much", o.Args[0])
		}
	} else if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	list, err := readTable("/proc/self/mounts")
	if err != nil {
		return fail(c, err)
	}
	flags := 0
	if o.Has('l') {
		flags |= unix.MNT_DETACH
	}
	if o.Has('f') {
		flags |= unix.MNT_FORCE
	}
	var dirs []string
	if o.Has('a') {
		_, without := kernelFilesystems()
		for _, m := range slices.Backward(list) {
			// What has no device needs no unmount, and the system lives on it.
			if m.dir != "/" && ofKind(o.Value('t', ""), m.kind) && (o.Has('t') || !slices.Contains(without, m.kind)) {
				dirs = append(dirs, m.dir)
			}
		}
	}
	for _, name := range o.Args {
		path := c.Path(name)
		if st, err := os.Stat(path); err == nil && st.Mode()&fs.ModeDevice != 0 {
			i := slices.IndexFunc(list, func(m mounted) bool { return m.device == path || m.device == resolved(path) })
			if i < 0 {
				code = fail(c, fmt.Errorf("%s: not mounted", name))
				continue
			}
			path = list[i].dir
		} else if err == nil {
			path = resolved(path)
		}
		dirs = append(dirs, path)
	}
	code = max(code, 0)
	for _, dir := range dirs {
		err := unix.Unmount(dir, flags)
		if err == unix.EBUSY && o.Has('r') {
			if m, kerr := known(dir, true); kerr == nil {
				m.options += ",remount,ro"
				if err = mountOne(c, m); err == nil {
					fmt.Fprintf(c.Stderr, "umount: %s is in use: now read-only\n", dir)
				}
			}
		}
		hint := ""
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL):
			hint = " (not a mount)"
		case errors.Is(err, unix.EBUSY):
			hint = " (a process has a file or its folder there; -l takes it out of sight)"
		case errors.Is(err, unix.EPERM):
			hint = " (only root may)"
		}
		code = fail(c, fmt.Errorf("%s: %w%s", dir, err, hint))
	}
	return code
}
