// Package cli is the command line of test-vm: boot, exec and bench for one image, run, list, graph and shell for networks.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weft/test-vm/bench"
	"weft/test-vm/lab"
)

// Main runs one command and returns the exit code: 0 done, 1 failed, 2 used wrongly; exec returns that of its command.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:   "test-vm",
		Short: "Boot Weft images in QEMU, alone and as networks",
		Long: `Boot the images that make image built in QEMU, unprivileged and without touching the images; and whole networks of
them, or of network namespaces, with faults on a timeline and checks.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(p.bootCommand(), p.execCommand(), p.benchCommand(),
		p.runCommand(), p.listCommand(), p.graphCommand(), p.shellCommand(), bench.Command(), bench.SoakCommand(),
		p.powerCommand(), p.benchUpgradeCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	err := root.ExecuteContext(ctx)
	var usage usageError
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(stderr, "test-vm: %v\ntest-vm: hint: see go run ./test-vm help\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "test-vm: %v\n", err)
	return 1
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// exitStatus is the exit code of a command in the guest.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// options are the flags that describe a machine.
type options struct {
	board, binDir, image string
	uefi                 bool
	memory, cpus         int
	diskSize             string
	keepDisk             string
	forwards             []string
	accel                string
	capture              bool
}

func (o *options) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.board, "board", "x86-64", "board whose image to boot")
	f.StringVar(&o.binDir, "bin-dir", "", "folder that the builder wrote to (default: bin in the checkout)")
	f.StringVar(&o.image, "image", "", "boot this .img or .img.gz instead")
	f.BoolVar(&o.uefi, "uefi", false, "boot the EFI image with UEFI firmware")
	f.IntVar(&o.memory, "memory", 256, "memory of the guest in MiB")
	f.IntVar(&o.cpus, "cpus", 2, "processors of the guest")
	f.StringVar(&o.diskSize, "disk-size", "1G", "size of the disk that the image is copied to")
	f.StringVar(&o.keepDisk, "keep-disk", "", "use this file as the disk, made from the image if it is missing, and keep it")
	f.StringArrayVar(&o.forwards, "forward", nil, "HOST:GUEST, lead TCP port HOST of 127.0.0.1 (0 = a free one) to port GUEST of 192.168.1.1; may be repeated")
	f.StringVar(&o.accel, "accel", "", "tcg, kvm or auto (default: WEFT_ACCEL, else tcg)")
	f.BoolVar(&o.capture, "capture", false, "record all frames of both network cards in test-vm/out/<name>")
	c.MarkFlagsMutuallyExclusive("image", "bin-dir")
}

// config turns the flags into a machine: eth0 (lan) in a network of its own with the guest as 192.168.1.1, eth1 (wan)
// behind QEMU's user network.
func (o *options) config(ctx context.Context, name string) (lab.Config, error) {
	c := lab.Config{Name: name, Memory: o.memory, CPUs: o.cpus, Accel: o.accel, Watchdog: true, Consoles: []string{"hvc0"}}
	if o.uefi {
		c.Firmware = lab.UEFI
	}
	size, err := parseSize(o.diskSize)
	if err != nil {
		return c, usageError{fmt.Errorf("--disk-size: %w", err)}
	}
	image := o.image
	if image == "" {
		images, err := lab.FindImages(o.binDir, o.board)
		if err != nil {
			return c, err
		}
		typ := "combined"
		if o.uefi {
			typ = "combined-efi"
		}
		if image, err = images.Path(typ); err != nil {
			return c, err
		}
	}
	disk := lab.Disk{Image: image, Size: size}
	if o.keepDisk != "" {
		path, err := filepath.Abs(o.keepDisk)
		if err != nil {
			return c, err
		}
		if err := lab.EnsureDisk(ctx, path, image, size); err != nil {
			return c, err
		}
		disk = lab.Disk{Image: path, InPlace: true}
	}
	c.Disks = []lab.Disk{disk}
	lan := lab.NIC{Net: "192.168.1.0/24", Isolated: true, Capture: o.capture}
	for _, s := range o.forwards {
		host, guest, ok := strings.Cut(s, ":")
		h, herr := strconv.ParseUint(host, 10, 16)
		g, gerr := strconv.ParseUint(guest, 10, 16)
		if !ok || herr != nil || gerr != nil || g == 0 {
			return c, usageError{fmt.Errorf("--forward %q: expected HOST:GUEST, two TCP ports", s)}
		}
		lan.Forwards = append(lan.Forwards, lab.Forward{Host: int(h), Guest: int(g), Address: "192.168.1.1"})
	}
	c.NICs = []lab.NIC{lan, {Capture: o.capture}}
	return c, nil
}

// parseSize reads a number of bytes with an optional K, M, G or T (powers of 1024); 0 means as large as the image.
func parseSize(s string) (int64, error) {
	digits, shift := s, 0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			digits, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)>>shift {
		return 0, fmt.Errorf("size %q is not a number with K, M, G or T behind it", s)
	}
	return n << shift, nil
}

// save keeps what is known of a failed machine and says where.
func (p *program) save(m *lab.Machine) {
	dir, err := lab.OutDir(m.Name())
	if err == nil {
		err = m.Save(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintf(p.stderr, "test-vm: %v\n", err)
	}
	if dir != "" {
		fmt.Fprintf(p.stderr, "test-vm: consoles and logs are in %s\n", dir)
	}
}
