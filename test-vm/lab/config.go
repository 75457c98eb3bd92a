package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Firmware is what runs before the boot loader.
type Firmware int

// The firmwares a machine can start with. With a kernel given in the Config, BIOS means SeaBIOS handing over to that
// kernel at once.
const (
	BIOS Firmware = iota // SeaBIOS
	UEFI                 // OVMF, with a private copy of its variable store
)

func (f Firmware) String() string {
	switch f {
	case BIOS:
		return "bios"
	case UEFI:
		return "uefi"
	}
	return "firmware" + strconv.Itoa(int(f))
}

// Bus is how a disk is attached.
type Bus string

// The buses a disk can sit on; the empty value means Virtio.
const (
	Virtio Bus = "virtio" // virtio-blk-pci: /dev/vdX
	IDE    Bus = "ide"    // PIIX3 IDE of the pc machine: /dev/sdX by libata
	SATA   Bus = "sata"   // AHCI: /dev/sdX
	USB    Bus = "usb"    // xHCI mass storage: /dev/sdX
)

// Disk is one disk of the machine.
type Disk struct {
	Image    string // .img or .img.gz to copy, raw; empty = an empty disk of Size
	Size     int64  // bytes to grow the copy to; 0 = as the image; below the image's size is an error
	Bus      Bus    // empty = Virtio
	Serial   string // serial number shown to the guest; empty = the disk's name (disk0, disk1, ...)
	ReadOnly bool
	// InPlace uses Image itself, which must be raw, instead of a copy: what the guest writes stays.
	InPlace bool
	// NBD is the path of a unix socket whose server's unnamed export is the disk; it replaces Image and Size.
	NBD string
	// Snapshot makes QEMU keep the writes of a run in a temporary file that is gone when the run ends.
	Snapshot bool
}

// Forward leads a TCP port of the host's loopback to a port of the guest.
type Forward struct {
	Host    int    // port on 127.0.0.1; 0 = a free one, see [Machine.Forwarded]
	Guest   int    // port of the guest
	Address string // of the guest; empty = the first one that the user network's DHCP server gives out
}

// NIC is one network card. With Link nil it is in QEMU's user network (10.0.2.0/24, DHCP, gateway and DNS at 10.0.2.2
// and 10.0.2.3), else it is a port of that link.
type NIC struct {
	Link     *Link
	Model    string // QEMU device; empty = virtio-net-pci
	MAC      string // empty = 52:54:00:77:xx:yy from the machine's name and the card's number
	Forwards []Forward
	Isolated bool   // user network without a way to the outside
	Net      string // user network's prefix; empty = 10.0.2.0/24
	Capture  bool   // write every frame to <nic>.pcap in the machine's folder
}

// Config is what a machine shall be. The zero value of every field has a meaning; only a disk or a kernel must be given.
type Config struct {
	Name     string // for messages and MAC addresses; empty = "vm"
	Arch     string // GOARCH name; empty = amd64
	Firmware Firmware
	Kernel   string // boot this kernel directly
	Initrd   string
	Cmdline  string // kernel command line, with Kernel only
	Disks    []Disk
	NICs     []NIC
	Memory   int // MiB; 0 = 256
	CPUs     int // 0 = 2
	Watchdog bool
	// Consoles lists the consoles beside the first serial port: "hvc0" is a virtio console, "ttyS1" a second serial port.
	Consoles []string
	// GDB is the path of a unix socket on which QEMU's gdbstub listens; empty = none.
	GDB string
	// Args are appended to QEMU's command line as they are.
	Args []string
	// Accel is tcg, kvm or auto; empty = the value of WEFT_ACCEL, else tcg.
	Accel string
	// OneThread emulates all processors on one thread. It is a third slower where cores are idle, and free of the races
	// that make QEMU crash now and then when PCI devices are laid out ([Machine.StartTo]): right for tests that reboot.
	OneThread bool
	// Dir is the parent of the machine's folder; empty = the system's temporary folder.
	Dir string
}

// defaults returns c with the defaults filled in, or all that is wrong with it.
func (c Config) defaults() (Config, error) {
	if c.Name == "" {
		c.Name = "vm"
	}
	if c.Arch == "" {
		c.Arch = "amd64"
	}
	if c.Memory == 0 {
		c.Memory = 256
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Accel == "" {
		c.Accel = os.Getenv("WEFT_ACCEL")
	}
	if c.Accel == "" {
		c.Accel = "tcg"
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("machine %s: "+format, append([]any{c.Name}, args...)...))
	}
	if _, ok := arches[c.Arch]; !ok {
		bad("architecture %q is not known; known: amd64", c.Arch)
	}
	if c.Kernel == "" && len(c.Disks) == 0 {
		bad("neither a disk nor a kernel to boot from")
	}
	if c.Kernel == "" && (c.Initrd != "" || c.Cmdline != "") {
		bad("an initrd or a command line needs Kernel")
	}
	if c.Memory < 32 {
		bad("memory of %d MiB is too small (at least 32)", c.Memory)
	}
	switch c.Accel {
	case "tcg", "kvm", "auto":
	default:
		bad("accelerator %q is not known; use tcg, kvm or auto", c.Accel)
	}
	c.Disks = append([]Disk(nil), c.Disks...)
	for i := range c.Disks {
		d := &c.Disks[i]
		if d.Bus == "" {
			d.Bus = Virtio
		}
		switch d.Bus {
		case Virtio, IDE, SATA, USB:
		default:
			bad("disk %d: bus %q is not known; use virtio, ide, sata or usb", i, d.Bus)
		}
		switch {
		case d.NBD != "" && (d.Image != "" || d.Size != 0 || d.InPlace):
			bad("disk %d: a disk from an NBD server has no image and no size of its own", i)
		case d.NBD == "" && d.Image == "" && d.Size <= 0:
			bad("disk %d has neither an image nor a size", i)
		}
		if d.InPlace && (d.Image == "" || d.Size != 0 || strings.HasSuffix(d.Image, ".gz")) {
			bad("disk %d: a disk used in place is a raw image of its own size", i)
		}
		if d.Serial == "" {
			d.Serial = fmt.Sprintf("disk%d", i)
		}
	}
	c.NICs = append([]NIC(nil), c.NICs...)
	for i := range c.NICs {
		n := &c.NICs[i]
		if n.Model == "" {
			n.Model = "virtio-net-pci"
		}
		if n.MAC == "" {
			n.MAC = macFor(c.Name, i)
		}
		if n.Link != nil && (len(n.Forwards) > 0 || n.Isolated || n.Net != "") {
			bad("card %d: port forwards and prefixes belong to the user network, not to a link", i)
		}
		n.Forwards = append([]Forward(nil), n.Forwards...)
	}
	seen := map[string]bool{"ttyS0": true}
	for _, name := range c.Consoles {
		if name != "hvc0" && name != "ttyS1" {
			bad("console %q is not known; use hvc0 or ttyS1", name)
		}
		if seen[name] {
			bad("console %q is named twice", name)
		}
		seen[name] = true
	}
	return c, errors.Join(errs...)
}

// macFor derives a locally unique address from the machine's name, so that every run of a topology sees the same ones.
func macFor(name string, card int) string {
	h := uint32(2166136261) // FNV-1a
	for i := 0; i < len(name); i++ {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", byte(h>>8), byte(h), byte(card))
}

// Timeout is d times WEFT_TIMEOUT_FACTOR (default 1): the one place to be patient with a slow machine.
func Timeout(d time.Duration) time.Duration {
	f, err := strconv.ParseFloat(os.Getenv("WEFT_TIMEOUT_FACTOR"), 64)
	if err != nil || f <= 0 {
		return d
	}
	return time.Duration(float64(d) * f)
}
