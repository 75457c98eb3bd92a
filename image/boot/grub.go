// Package boot makes what starts a machine up to the device's own program: the
// GRUB images, GRUB's menu and environment, and the initramfs.
package boot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"weft/boards"
)

// Where things lie in the boot partition; the names under boot/ are LEDE's.
const (
	KernelFile    = "boot/vmlinuz"
	InitramfsFile = "boot/initramfs.cpio.zst"
	ConfigFile    = "boot/grub/grub.cfg"
	EnvFile       = "boot/grub/grubenv"
	BootImgFile   = "boot/grub/boot.img"
	CoreImgFile   = "boot/grub/core.img"
)

// Commander runs one program; *pins.Tool is one.
type Commander interface {
	Command(ctx context.Context, args ...string) *exec.Cmd
}

// MakeGRUB writes a GRUB image with the loader's modules built in. lib is the
// folder that holds GRUB's platforms (usr/lib/grub of the pinned package).
// The prefix names no disk, only the partition: GRUB takes the disk that the
// firmware booted, whatever its number.
func MakeGRUB(ctx context.Context, mkimage Commander, lib string, l boards.Loader, table boards.Table, out string) error {
	prefix := "/boot/grub"
	if l.Kind == boards.GRUBPC {
		prefix = "(,msdos1)/boot/grub"
		if table == boards.GPT {
			prefix = "(,gpt1)/boot/grub"
		}
	}
	args := []string{"-O", l.Platform, "-d", filepath.Join(lib, l.Platform), "-o", out, "-p", prefix}
	cmd := mkimage.Command(ctx, append(args, l.Modules...)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the GRUB image for %s: grub-mkimage: %w: %s", l.Platform, err, bytes.TrimSpace(text))
	}
	return nil
}

// BootImg returns the platform's boot.img, which goes to sector 0.
func BootImg(lib string, l boards.Loader) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(lib, l.Platform, "boot.img"))
	if err != nil {
		return nil, fmt.Errorf("read GRUB's boot sector: %w", err)
	}
	return b, nil
}

// Menu describes grub.cfg.
type Menu struct {
	Title    string // of the first entry; the second adds " (failsafe)"
	PartUUID string // of the root file system
	Cmdline  string // after root=… rootwait
	GRUB     boards.GRUB
}

// Config returns grub.cfg: LEDE's header, then the two entries, whose command
// lines begin as LEDE's do. Stock upgrades rewrite every PARTUUID= in it.
func (m Menu) Config() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "serial --unit=%d --speed=%d --word=8 --parity=no --stop=1 --rtscts=off\n", m.GRUB.SerialUnit, m.GRUB.SerialSpeed)
	fmt.Fprintf(&b, "terminal_input console serial; terminal_output console serial\n\n")
	fmt.Fprintf(&b, "set default=\"0\"\nset timeout=\"%d\"\n", m.GRUB.Timeout)
	root := "root=PARTUUID=" + m.PartUUID + " rootwait"
	for _, e := range []struct{ title, first string }{{m.Title, ""}, {m.Title + " (failsafe)", "failsafe=true "}} {
		fmt.Fprintf(&b, "\nmenuentry %q {\n\tlinux /%s %s%s %s\n\tinitrd /%s\n}\n", e.title, KernelFile, e.first, root, m.Cmdline, InitramfsFile)
	}
	return b.Bytes()
}

// envSize is the size of GRUB's environment block, which its save_env can
// change in place but not grow (grub include/grub/lib/envblk.h).
const envSize = 1024

// Env returns an environment block with the given assignments ("key=value"),
// of the full size.
func Env(vars ...string) ([]byte, error) {
	text := "# GRUB Environment Block\n"
	for _, v := range vars {
		text += strings.NewReplacer("\\", "\\\\", "\n", "\\\n").Replace(v) + "\n"
	}
	if len(text) > envSize {
		return nil, fmt.Errorf("GRUB environment of %d bytes: the block holds %d", len(text), envSize)
	}
	return []byte(text + strings.Repeat("#", envSize-len(text))), nil
}

// LoaderFile returns the path in the boot partition under which the loader's
// image is found by firmware, "" where it is started from fixed sectors.
func LoaderFile(l boards.Loader) string {
	if l.Kind == boards.GRUBEFI {
		return path.Clean(l.File)
	}
	return ""
}
