// Package system has the applets that look after the machine: mounts (mount,
// umount, blkid, block info, swapon, swapoff), kernel (dmesg, sysctl, lsmod,
// insmod, rmmod, modprobe, uname, arch, hostname), users (login, passwd, id) and
// terminals (stty, less, more, clear, reset). Options and output are busybox's as
// LEDE ships it, or LEDE's own where it has its own.
//
// Not there: mount helpers (mount.nfs), password ageing, /etc/securetty and
// /etc/issue.
package system

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"weft/init/unit"
)

// fail reports an error under the applet's name and returns exit code 1. Of a
// path error it leaves out the name of the system call.
func fail(c *unit.Call, err error) int {
	var pe *fs.PathError
	if errors.As(err, &pe) && err == error(pe) {
		err = fmt.Errorf("%s: %w", pe.Path, pe.Err)
	}
	fmt.Fprintf(c.Stderr, "%s: %v\n", filepath.Base(c.Args[0]), err)
	return 1
}

// file is a stream's file, nil where it is none.
func file(stream any) *os.File {
	f, _ := stream.(*os.File)
	return f
}
