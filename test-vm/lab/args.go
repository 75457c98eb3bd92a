package lab

import (
	"fmt"
	"path/filepath"
	"strings"
)

// arch is what the lab must know of an architecture.
type arch struct {
	program string // of QEMU
	machine string
	serial  string // the kernel's name of the first serial port
}

var arches = map[string]arch{
	"amd64": {program: "qemu-system-x86_64", machine: "pc", serial: "ttyS0"},
}

// launch is one start of a machine: the resources that its command line names.
type launch struct {
	accel   []string // arguments that choose accelerator and processor
	dataDir []string // where QEMU finds its firmware
	code    string   // OVMF code, for UEFI
	vars    string   // private copy of OVMF's variables
	disks   []string // raw files
	fds     map[string]int
	ports   [][]Forward // per NIC, with the host's ports chosen
	pcaps   []string    // per NIC, empty = none
}

// args is the command line of a machine without the program's name. It depends on its arguments alone.
func (c Config) args(l launch) []string {
	a := arches[c.Arch]
	out := []string{
		"-name", c.Name,
		"-nodefaults", "-no-user-config",
		"-machine", a.machine,
		"-display", "none",
		"-m", fmt.Sprint(c.Memory),
		"-smp", fmt.Sprint(c.CPUs),
		"-device", "VGA,romfile=vgabios-stdvga.bin",
		"-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0",
		// Start paused: the lab connects all consoles first, so that power-on is a moment it knows.
		"-S",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", l.fds["qmp"]), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=ttyS0,fd=%d", l.fds["ttyS0"]), "-serial", "chardev:ttyS0",
	}
	out = append(out, l.accel...)
	for _, dir := range l.dataDir {
		out = append(out, "-L", dir)
	}
	for _, name := range c.Consoles {
		out = append(out, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, l.fds[name]))
		if name == "hvc0" {
			out = append(out, "-device", "virtio-serial-pci,id=vser0", "-device", "virtconsole,chardev=hvc0,bus=vser0.0")
		} else {
			out = append(out, "-serial", "chardev:"+name)
		}
	}
	if c.Firmware == UEFI {
		out = append(out,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(l.code),
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(l.vars))
	}
	if c.Kernel != "" {
		out = append(out, "-kernel", c.Kernel)
		if c.Initrd != "" {
			out = append(out, "-initrd", c.Initrd)
		}
		out = append(out, "-append", c.Cmdline)
	}
	sata, usb := false, false
	for i, d := range c.Disks {
		id := fmt.Sprintf("disk%d", i)
		file := "file=" + escape(l.disks[i])
		if d.NBD != "" {
			file = "file.driver=nbd,file.server.type=unix,file.server.path=" + escape(l.disks[i])
		}
		drive := fmt.Sprintf("if=none,id=%s-file,format=raw,discard=unmap,%s", id, file)
		if d.ReadOnly {
			drive += ",readonly=on"
		}
		if d.Snapshot {
			drive += ",snapshot=on"
		}
		dev := fmt.Sprintf(",drive=%s-file,id=%s,serial=%s,bootindex=%d", id, id, escape(d.Serial), i+1) // 0 is that of -kernel
		switch d.Bus {
		case Virtio:
			dev = "virtio-blk-pci" + dev
		case IDE:
			dev = "ide-hd" + dev
		case SATA:
			if !sata {
				sata = true
				out = append(out, "-device", "ich9-ahci,id=ahci0")
			}
			dev = fmt.Sprintf("ide-hd,bus=ahci0.%d", i) + dev
		case USB:
			if !usb {
				usb = true
				out = append(out, "-device", "qemu-xhci,id=xhci0")
			}
			dev = "usb-storage,bus=xhci0.0" + dev
		}
		out = append(out, "-drive", drive, "-device", dev)
	}
	for i, n := range c.NICs {
		id := fmt.Sprintf("nic%d", i)
		if n.Link != nil {
			out = append(out, "-netdev", fmt.Sprintf("stream,id=%s,addr.type=fd,addr.str=%d", id, l.fds[id]))
		} else {
			user := "user,id=" + id
			if n.Isolated {
				user += ",restrict=on"
			}
			if n.Net != "" {
				user += ",net=" + n.Net
			}
			for _, f := range l.ports[i] {
				user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s:%d", f.Host, f.Address, f.Guest)
			}
			out = append(out, "-netdev", user)
		}
		// No option ROM: nothing here boots from the network, and the ROMs cost time at every start.
		out = append(out, "-device", fmt.Sprintf("%s,netdev=%s,id=%s-dev,mac=%s,romfile=", n.Model, id, id, n.MAC))
		if l.pcaps[i] != "" {
			out = append(out, "-object", fmt.Sprintf("filter-dump,id=%s-dump,netdev=%s,file=%s", id, id, escape(l.pcaps[i])))
		}
	}
	if c.Watchdog {
		out = append(out, "-device", "i6300esb,id=watchdog0", "-action", "watchdog=reset")
	}
	if c.GDB != "" {
		out = append(out, "-chardev", "socket,id=gdb,server=on,wait=off,path="+escape(c.GDB), "-gdb", "chardev:gdb")
	}
	return append(out, c.Args...)
}

// escape doubles commas, which separate options on QEMU's command line.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// pcapName is the file of a card's capture below dir.
func pcapName(dir string, card int) string {
	return filepath.Join(dir, fmt.Sprintf("nic%d.pcap", card))
}
