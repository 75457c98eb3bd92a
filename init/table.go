package main

import (
	"path"
	"slices"

	"weft/init/applet/command"
	"weft/init/applet/files"
	"weft/init/applet/procps"
	"weft/init/applet/scriptcmd"
	"weft/init/applet/shell"
	"weft/init/applet/system"
	"weft/init/applet/text"
	"weft/init/applet/vi"
	"weft/init/unit"
)

// applet is one thing that the binary can be.
type applet struct {
	path string // where its link lies on the device; the last part is its name
	run  unit.Func
	kind kind
}

type kind int

const (
	plain  kind = iota // a process of its own
	inline             // the shell may run it in its own process
	device             // changes the machine: make host makes no link for it
)

// everyday are the applets that need neither network nor services: the program
// of the initramfs has them as well.
var everyday = []applet{
	// shell
	{"/bin/ash", shell.Sh, plain},
	{"/bin/sh", shell.Sh, plain},
	{"/bin/echo", scriptcmd.Echo, inline},
	{"/bin/false", scriptcmd.False, inline},
	{"/bin/kill", scriptcmd.Kill, inline},
	{"/bin/true", scriptcmd.True, inline},
	{"/usr/bin/[", scriptcmd.Test, inline},
	{"/usr/bin/printf", scriptcmd.Printf, inline},
	{"/usr/bin/test", scriptcmd.Test, inline},
	// files and folders
	{"/usr/bin/base64", files.Base64, inline},
	{"/usr/bin/basename", files.Basename, inline},
	{"/bin/cat", files.Cat, inline},
	{"/bin/chgrp", files.Chown, inline},
	{"/bin/chmod", files.Chmod, inline},
	{"/bin/chown", files.Chown, inline},
	{"/usr/bin/cmp", files.Cmp, inline},
	{"/bin/cp", files.Cp, inline},
	{"/bin/dd", files.Dd, inline},
	{"/bin/df", files.Df, inline},
	{"/usr/bin/dirname", files.Dirname, inline},
	{"/usr/bin/du", files.Du, inline},
	{"/usr/bin/find", files.Find, plain},
	{"/bin/gunzip", files.Gzip, inline},
	{"/bin/gzip", files.Gzip, inline},
	{"/bin/ln", files.Ln, inline},
	{"/bin/ls", files.Ls, inline},
	{"/usr/bin/md5sum", files.Sum, inline},
	{"/bin/mkdir", files.Mkdir, inline},
	{"/usr/bin/mkfifo", files.Mkfifo, inline},
	{"/bin/mknod", files.Mknod, inline},
	{"/bin/mktemp", files.Mktemp, inline},
	{"/bin/mv", files.Mv, inline},
	{"/usr/bin/readlink", files.Readlink, inline},
	{"/usr/bin/realpath", files.Realpath, inline},
	{"/bin/rm", files.Rm, inline},
	{"/bin/rmdir", files.Rmdir, inline},
	{"/usr/bin/sha1sum", files.Sum, inline},
	{"/usr/bin/sha256sum", files.Sum, inline},
	{"/usr/bin/sha512sum", files.Sum, inline},
	{"/usr/bin/stat", files.Stat, inline},
	{"/bin/sync", files.Sync, inline},
	{"/bin/tar", files.Tar, inline},
	{"/bin/touch", files.Touch, inline},
	{"/usr/bin/truncate", files.Truncate, inline},
	{"/bin/zcat", files.Gzip, inline},
	// text
	{"/usr/bin/cut", text.Cut, inline},
	{"/usr/bin/diff", text.Diff, inline},
	{"/bin/egrep", text.Grep, inline},
	{"/usr/bin/expr", text.Expr, inline},
	{"/bin/fgrep", text.Grep, inline},
	{"/usr/bin/fold", text.Fold, inline},
	{"/bin/grep", text.Grep, inline},
	{"/usr/bin/head", text.Head, inline},
	{"/usr/bin/hexdump", text.Hexdump, inline},
	{"/usr/bin/nl", text.Nl, inline},
	{"/usr/bin/paste", text.Paste, inline},
	{"/usr/bin/rev", text.Rev, inline},
	{"/bin/sed", text.Sed, inline},
	{"/usr/bin/seq", text.Seq, inline},
	{"/usr/bin/sort", text.Sort, inline},
	{"/usr/bin/strings", text.Strings, inline},
	{"/usr/bin/tac", text.Tac, inline},
	{"/usr/bin/tail", text.Tail, inline},
	{"/usr/bin/tee", text.Tee, inline},
	{"/usr/bin/tr", text.Tr, inline},
	{"/usr/bin/uniq", text.Uniq, inline},
	{"/usr/bin/wc", text.Wc, inline},
	{"/usr/bin/xxd", text.Xxd, inline},
	{"/usr/bin/yes", text.Yes, inline},
	// running commands, time
	{"/usr/sbin/chroot", command.Chroot, plain},
	{"/bin/date", command.Date, inline},
	{"/usr/bin/env", command.Env, plain},
	{"/usr/bin/flock", command.Flock, plain},
	{"/bin/nice", command.Nice, plain},
	{"/usr/bin/nohup", command.Nohup, plain},
	{"/usr/bin/nproc", command.Nproc, inline},
	{"/usr/bin/printenv", command.Printenv, inline},
	{"/bin/pwd", command.Pwd, plain},
	{"/usr/bin/setsid", command.Setsid, plain},
	{"/bin/sleep", command.Sleep, inline},
	{"/usr/bin/time", command.Time, plain},
	{"/usr/bin/timeout", command.Timeout, plain},
	{"/usr/bin/tty", command.Tty, inline},
	{"/bin/usleep", command.Usleep, inline},
	{"/usr/bin/which", command.Which, inline},
	{"/usr/bin/whoami", command.Whoami, inline},
	{"/usr/bin/xargs", command.Xargs, plain},
	// processes and memory
	{"/usr/bin/free", procps.Free, inline},
	{"/usr/bin/killall", procps.Killall, plain},
	{"/usr/bin/pgrep", procps.Pgrep, inline},
	{"/usr/bin/pidof", procps.Pidof, inline},
	{"/usr/bin/pkill", procps.Pgrep, plain},
	{"/bin/ps", procps.Ps, inline},
	{"/usr/bin/top", procps.Top, plain},
	{"/usr/bin/uptime", procps.Uptime, inline},
	// the machine
	{"/sbin/blkid", system.Blkid, plain},
	{"/sbin/block", system.Block, device},
	{"/bin/dmesg", system.Dmesg, plain},
	{"/bin/hostname", system.Hostname, inline},
	{"/sbin/insmod", system.Insmod, device},
	{"/sbin/lsmod", system.Lsmod, inline},
	{"/sbin/modprobe", system.Modprobe, device},
	{"/bin/mount", system.Mount, device},
	{"/sbin/rmmod", system.Rmmod, device},
	{"/sbin/sysctl", system.Sysctl, device},
	{"/bin/umount", system.Umount, device},
	{"/bin/uname", system.Uname, inline},
	{"/usr/bin/arch", system.Arch, inline},
	{"/bin/login", system.Login, plain},
	{"/bin/more", system.Less, plain},
	{"/bin/stty", system.Stty, plain},
	{"/sbin/swapoff", system.Swapoff, device},
	{"/sbin/swapon", system.Swapon, device},
	{"/usr/bin/clear", system.Clear, plain},
	{"/usr/bin/id", system.ID, inline},
	{"/usr/bin/less", system.Less, plain},
	{"/usr/bin/passwd", system.Passwd, device},
	{"/usr/bin/reset", system.Reset, plain},
	// editor
	{"/usr/bin/vi", vi.Vi, plain},
}

// lookup finds an applet by name.
func lookup(name string) (f unit.Func, inShell bool) {
	i := slices.IndexFunc(applets, func(a applet) bool { return path.Base(a.path) == name })
	if i < 0 {
		return nil, false
	}
	return applets[i].run, applets[i].kind == inline
}

// names lists the applets in order.
func names() []string {
	var out []string
	for _, a := range applets {
		out = append(out, path.Base(a.path))
	}
	slices.Sort(out)
	return out
}
