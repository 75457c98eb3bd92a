package system

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/init/applet/files"
	"weft/init/applet/options"
	"weft/init/unit"
)

// Swapon gives the kernel a device or file to swap to.
func Swapon(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "p:s", `[-p PRIORITY] DEVICE... | -s
Swap to a device or a file.
  -p  0 to 32767, the highest is used first     -s  show what is in use`)
	if code >= 0 {
		return code
	}
	priority, code := o.Int('p', -1)
	if code >= 0 {
		return code
	}
	if o.Has('p') && (priority < 0 || priority > 0x7fff) {
		return o.Fail("-p: a number from 0 to 32767")
	}
	if o.Has('s') {
		b, err := os.ReadFile("/proc/swaps")
		if err != nil {
			return fail(c, err)
		}
		c.Stdout.Write(b)
		return 0
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	flags := uintptr(0)
	if o.Has('p') {
		flags = 0x8000 | uintptr(priority) // SWAP_FLAG_PREFER, include/linux/swap.h
	}
	code = 0
	for _, name := range o.Args {
		if err := swap(unix.SYS_SWAPON, c.Path(name), flags); err != nil {
			code = fail(c, err)
		}
	}
	return code
}

// Swapoff takes a device or file from the kernel again.
func Swapoff(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "a", "DEVICE... | -a\nDo not swap to a device or a file any more.\n  -a  to any")
	if code >= 0 {
		return code
	}
	if o.Has('a') {
		b, err := os.ReadFile("/proc/swaps")
		if err != nil {
			return fail(c, err)
		}
		for line := range bytes.Lines(b) {
			if f := strings.Fields(string(line)); len(f) > 1 && strings.HasPrefix(f[0], "/") {
				o.Args = append(o.Args, files.UnescapeMount(f[0]))
			}
		}
	} else if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	code = 0
	for _, name := range o.Args {
		if err := swap(unix.SYS_SWAPOFF, c.Path(name), 0); err != nil {
			code = fail(c, err)
		}
	}
	return code
}

func swap(call uintptr, path string, flags uintptr) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	_, _, errno := unix.Syscall(call, uintptr(unsafe.Pointer(p)), flags, 0)
	switch errno {
	case 0:
		return nil
	case unix.EINVAL:
		return fmt.Errorf("%s: %w (not prepared by mkswap, or not in use)", path, errno)
	case unix.EPERM:
		return fmt.Errorf("%s: %w (only root may)", path, errno)
	}
	return fmt.Errorf("%s: %w", path, errno)
}
