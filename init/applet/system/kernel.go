package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/stage1/kmod"
	"weft/init/unit"
)

// Dmesg shows the messages of the kernel.
func Dmesg(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "cCrwn:s: clear=C read-clear=c follow=w raw=r console-level=n", `[-cr] [-n LEVEL] | -C | -w
Show the messages of the kernel.
  -r  with their levels     -w  go on with what comes     -n LEVEL  what goes to the console (1 to 8)
  -c  clear them afterwards     -C  only clear them
Example: dmesg | grep -i error`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	level, code := o.Int('n', 0)
	if code >= 0 {
		return code
	}
	if _, code := o.Int('s', 0); code >= 0 { // the buffer is as large as it is
		return code
	}
	// Numbers of syslog(2), include/linux/syslog.h.
	const readAll, readClear, clear, consoleLevel, size = 3, 4, 5, 8, 10
	wrap := func(err error) error {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("the kernel's log: %w (only root may)", err)
		}
		return fmt.Errorf("the kernel's log: %w", err)
	}
	switch {
	case o.Has('n'):
		if level < 1 || level > 8 {
			return o.Fail("-n: a level from 1 to 8")
		}
		// Klogctl takes the level as the length of its buffer.
		if _, err := unix.Klogctl(consoleLevel, make([]byte, level)); err != nil {
			return fail(c, wrap(err))
		}
		return 0
	case o.Has('C'):
		if _, err := unix.Klogctl(clear, nil); err != nil {
			return fail(c, wrap(err))
		}
		return 0
	case o.Has('w'):
		if err := follow(ctx, c.Stdout, o.Has('r')); err != nil {
			return fail(c, wrap(err))
		}
		return 0
	}
	n, err := unix.Klogctl(size, nil)
	if err != nil {
		return fail(c, wrap(err))
	}
	action := readAll
	if o.Has('c') {
		action = readClear
	}
	b := make([]byte, n)
	if n, err = unix.Klogctl(action, b); err != nil {
		return fail(c, wrap(err))
	}
	b = b[:n]
	if !o.Has('r') {
		b = withoutLevels(b)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	if _, err := c.Stdout.Write(b); err != nil {
		return fail(c, err)
	}
	return 0
}

// withoutLevels takes the "<6>" off the lines.
func withoutLevels(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for line := range bytes.Lines(b) {
		if len(line) > 0 && line[0] == '<' {
			if i := bytes.IndexByte(line, '>'); i > 0 && i < 5 {
				line = line[i+1:]
			}
		}
		out = append(out, line...)
	}
	return out
}

// follow copies the records of /dev/kmsg as they come.
func follow(ctx context.Context, w io.Writer, raw bool) error {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/dev/kmsg", Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192) // the kernel's longest record (CONSOLE_EXT_LOG_MAX)
	for ctx.Err() == nil {
		n, err := unix.Read(fd, buf)
		switch err {
		case nil:
			if line, ok := record(buf[:n], raw); ok {
				if _, err := io.WriteString(w, line); err != nil {
					return err
				}
			}
		case unix.EAGAIN:
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, 500); err != nil && err != unix.EINTR {
				return err
			}
		case unix.EPIPE, unix.EINTR: // EPIPE: records were overwritten before we came
		default:
			return err
		}
	}
	return nil
}

// record turns one of /dev/kmsg (Documentation/ABI/testing/dev-kmsg) into lines
// as dmesg shows them: "6,339,5140900,-;text\n KEY=value\n".
func record(b []byte, raw bool) (string, bool) {
	head, text, ok := strings.Cut(string(b), ";")
	f := strings.Split(head, ",")
	if !ok || len(f) < 3 {
		return "", false
	}
	priority, err1 := strconv.ParseUint(f[0], 10, 32)
	usec, err2 := strconv.ParseUint(f[2], 10, 64)
	if err1 != nil || err2 != nil {
		return "", false
	}
	text, _, _ = strings.Cut(text, "\n")
	prefix := fmt.Sprintf("[%5d.%06d] ", usec/1e6, usec%1e6)
	if raw {
		prefix = fmt.Sprintf("<%d>", priority) + prefix
	}
	var out strings.Builder
	for line := range strings.SplitSeq(unescapeRecord(text), "\n") {
		out.WriteString(prefix + line + "\n")
	}
	return out.String(), true
}

// unescapeRecord turns \x0a and the like back into bytes.
func unescapeRecord(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// loadedModule is a line of /proc/modules.
type loadedModule struct {
	name, size, count string
	users             []string // modules that need it
}

// loadedModules is empty where the kernel has no modules.
func loadedModules() ([]loadedModule, error) {
	b, err := os.ReadFile("/proc/modules")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseModules(string(b)), nil
}

// parseModules reads "veth 36864 0 - Live 0x0", users as "a,b,".
func parseModules(text string) []loadedModule {
	var list []loadedModule
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		m := loadedModule{name: f[0], size: f[1], count: f[2]}
		for u := range strings.SplitSeq(f[3], ",") {
			if u != "" && u != "-" {
				m.users = append(m.users, u)
			}
		}
		list = append(list, m)
	}
	return list
}

// Lsmod lists the modules of the kernel.
func Lsmod(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "\nList the modules that are loaded.")
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	list, err := loadedModules()
	if err != nil {
		return fail(c, err)
	}
	fmt.Fprintln(c.Stdout, "Module                  Size  Used by")
	for _, m := range list {
		fmt.Fprintln(c.Stdout, strings.TrimRight(fmt.Sprintf("%-19s %8s  %s %s", m.name, m.size, m.count, strings.Join(m.users, ",")), " "))
	}
	return 0
}

// release is the kernel's.
func release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// Insmod loads one module, from a file or by name, without what it needs.
func Insmod(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+", `FILE|MODULE [PARAMETER=VALUE]...
Load one module; what it needs must be there (modprobe loads that too).
Example: insmod nbd nbds_max=4`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	name := o.Args[0]
	path := c.Path(name)
	if _, err := os.Stat(path); err != nil && !strings.Contains(name, "/") {
		r, err := release()
		if err != nil {
			return fail(c, err)
		}
		if path, err = moduleFile("/lib/modules/"+r, strings.TrimSuffix(name, ".ko")); err != nil {
			return fail(c, err)
		}
	}
	if err := kmod.Insert(path, strings.Join(o.Args[1:], " ")); err != nil {
		hint := ""
		switch {
		case errors.Is(err, unix.EEXIST):
			hint = " (it is loaded already)"
		case errors.Is(err, unix.ENOENT):
			hint = " (it needs another module: use modprobe, or see dmesg)"
		}
		return fail(c, fmt.Errorf("load %w%s", err, hint))
	}
	return 0
}

// moduleFile finds the file of a module by what depmod wrote.
func moduleFile(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return "", fmt.Errorf("look for module %s: %w", name, err)
	}
	want := strings.ReplaceAll(name, "-", "_")
	for line := range strings.Lines(string(b)) {
		file, _, ok := strings.Cut(line, ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if ok && strings.ReplaceAll(base, "-", "_") == want {
			if !filepath.IsAbs(file) {
				file = filepath.Join(dir, file)
			}
			return file, nil
		}
	}
	return "", fmt.Errorf("module %s: %w in %s", name, fs.ErrNotExist, dir)
}

// Rmmod unloads modules.
func Rmmod(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "f", "[-f] MODULE...\nUnload modules.\n  -f  even if it is in use, where the kernel allows that")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	code = 0
	for _, name := range o.Args {
		if err := unload(name, o.Has('f')); err != nil {
			code = fail(c, err)
		}
	}
	return code
}

func unload(name string, force bool) error {
	base, _, _ := strings.Cut(filepath.Base(name), ".ko")
	flags := unix.O_NONBLOCK
	if force {
		flags |= unix.O_TRUNC
	}
	err := unix.DeleteModule(strings.ReplaceAll(base, "-", "_"), flags)
	hint := ""
	switch err {
	case nil:
		return nil
	case unix.ENOENT:
		hint = " (it is not loaded)"
	case unix.EWOULDBLOCK, unix.EBUSY:
		hint = " (it is in use: lsmod says by whom)"
	case unix.EPERM:
		hint = " (only root may)"
	}
	return fmt.Errorf("unload %s: %w%s", base, err, hint)
}

// Modprobe loads a module and what it needs, or with -r unloads both.
func Modprobe(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+aqrv all=a quiet=q remove=r verbose=v", `[-q] MODULE [PARAMETER=VALUE]...
       modprobe -a|-r [-q] MODULE...
Load a module, by its name or one that it stands for, and what it needs.
  -a  several     -r  unload it and what nothing needs any more     -q  say nothing where there is none
Example: modprobe wireguard`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	if o.Has('r') {
		code = 0
		for _, name := range o.Args {
			if err := unloadAll(name); err != nil && !(o.Has('q') && errors.Is(err, unix.ENOENT)) {
				code = fail(c, err)
			}
		}
		return code
	}
	set, err := kmod.Open("/")
	if err != nil {
		return fail(c, err)
	}
	names, params := o.Args, ""
	if !o.Has('a') {
		names, params = names[:1], strings.Join(names[1:], " ")
	}
	code = 0
	for _, name := range names {
		err := set.Load(name, params)
		switch {
		case err == nil:
			if o.Has('v') {
				fmt.Fprintf(c.Stdout, "%s is loaded\n", name)
			}
		case o.Has('q') && errors.Is(err, fs.ErrNotExist):
			code = 1
		default:
			code = fail(c, err)
		}
	}
	return code
}

// unloadAll unloads a module and then those that it alone needed.
func unloadAll(name string) error {
	base := strings.ReplaceAll(name, "-", "_")
	list, err := loadedModules()
	if err != nil {
		return err
	}
	if err := unload(name, false); err != nil {
		return err
	}
	for _, m := range list {
		if !slices.Equal(m.users, []string{base}) || m.count != "1" {
			continue
		}
		// In use by somebody else after all: then it stays.
		if err := unloadAll(m.name); err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// Uname tells about kernel and machine.
func Uname(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "asnrvmpio all=a kernel-name=s nodename=n kernel-release=r kernel-version=v machine=m operating-system=o", `[-asnrvmpio]
Show the kernel's name.
  -s kernel's name   -n hostname   -r release   -v version   -m machine   -o system   -a all
Example: uname -r`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail(c, fmt.Errorf("ask the kernel for its name: %w", err))
	}
	var out []string
	for _, f := range []struct {
		letter byte
		text   string
	}{{'s', str(u.Sysname[:])}, {'n', str(u.Nodename[:])}, {'r', str(u.Release[:])}, {'v', str(u.Version[:])}, {'m', str(u.Machine[:])},
		{'p', "unknown"}, {'i', "unknown"}, {'o', "GNU/Linux"}} {
		if o.Has(f.letter) || o.Has('a') && f.text != "unknown" || len(o.Order) == 0 && f.letter == 's' {
			out = append(out, f.text)
		}
	}
	fmt.Fprintln(c.Stdout, strings.Join(out, " "))
	return 0
}

func str(b []byte) string { return unix.ByteSliceToString(b) }

// Arch is uname -m.
func Arch(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "\nShow the machine's architecture.")
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	call := *c
	call.Args = []string{c.Args[0], "-m"}
	return Uname(ctx, &call)
}

// Hostname shows or sets the name of the device.
func Hostname(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "sfdF:", `[-sfd] | NAME | -F FILE
Show the name of the device, or set it until the next boot (for good: uci set
system.@system[0].hostname=NAME).
  -s  up to the first dot     -d  after it     -f  all of it     -F FILE  set what FILE says`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 1); code >= 0 {
		return code
	}
	name := ""
	if path := o.Value('F', ""); path != "" {
		b, err := os.ReadFile(c.Path(path))
		if err != nil {
			return fail(c, err)
		}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				name = line
				break
			}
		}
		if name == "" {
			return fail(c, fmt.Errorf("%s: there is no name in it", path))
		}
	} else if len(o.Args) == 1 {
		if name = o.Args[0]; name == "" {
			return o.Fail("the name is empty")
		}
	}
	if name != "" {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fail(c, fmt.Errorf("set the hostname to %q: %w", name, err))
		}
		return 0
	}
	name, err := os.Hostname()
	if err != nil {
		return fail(c, err)
	}
	short, domain, _ := strings.Cut(name, ".")
	switch {
	case o.Has('s'):
		name = short
	case o.Has('d'):
		name = domain
	}
	fmt.Fprintln(c.Stdout, name)
	return 0
}
