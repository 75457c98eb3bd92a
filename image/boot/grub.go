// Package boot makes what starts a machine up to the device's own program: the
// GRUB images, GRUB's menu and environment, and the initramfs.
package boot

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"weft/boards"
)

// Where things lie in the boot partition; the names under boot/ are LEDE's, but
// for the second copy of the environment, the rescue system and the folder of slot
// b, which holds the same three files as boot/ has for slot a.
const (
	KernelFile    = "boot/vmlinuz"
	InitramfsFile = "boot/initramfs.cpio.zst"
	RescueFile    = "boot/rescue.cpio"
	SlotBFolder   = "boot/b"
	ConfigFile    = "boot/grub/grub.cfg"
	EnvFile       = "boot/grub/grubenv"
	EnvCopyFile   = "boot/grub/grubenv2"
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
	Title    string // of the first entry; the others add to it
	PartUUID string // of the root file system of slot a
	Cmdline  string // after root=… rootwait
	GRUB     boards.GRUB
}

// Config returns grub.cfg: LEDE's header and first two entries, one for the other
// slot and one for the rescue system, and before them the functions that choose
// a slot. Stock upgrades rewrite every PARTUUID= in it to that of partition 2, so
// slot b is named from there (PARTNROFF=1).
func (m Menu) Config() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "serial --unit=%d --speed=%d --word=8 --parity=no --stop=1 --rtscts=off\n", m.GRUB.SerialUnit, m.GRUB.SerialSpeed)
	fmt.Fprintf(&b, "terminal_input console serial; terminal_output console serial\n\n")
	fmt.Fprintf(&b, "set default=\"0\"\nset timeout=\"%d\"\n", m.GRUB.Timeout)
	b.WriteString(strings.NewReplacer("@UUID@", m.PartUUID, "@CMDLINE@", m.Cmdline, "@ENV1@", "/"+EnvFile, "@ENV2@", "/"+EnvCopyFile,
		"@COUNT@", countDown()).Replace(functions))
	for _, e := range []struct{ title, body string }{
		{m.Title, "weft_boot"},
		{m.Title + " (failsafe)", "set weft_first=failsafe=true\n\tweft_boot"},
		{m.Title + " (other slot)", "if [ \"$weft_slot\" = \"a\" ]; then weft_load b; else weft_load a; fi"},
		{m.Title + " (rescue system)", "weft_rescue"},
	} {
		fmt.Fprintf(&b, "\nmenuentry %q {\n\t%s\n}\n", e.title, e.body)
	}
	return b.Bytes()
}

// maxTries is what GRUB can count down from in one digit (init/slot's MaxTries).
const maxTries = 9

// countDown is the body of weft_count's decision: GRUB has no arithmetic.
func countDown() string {
	var b strings.Builder
	for n := maxTries; n > 0; n-- {
		word := "elif"
		if n == maxTries {
			word = "if"
		}
		fmt.Fprintf(&b, "\t%s [ \"$weft_tries\" = \"$weft_seq.%d.$weft_seq\" ]; then set weft_next=%d\n", word, n, n-1)
	}
	return b.String() + "\tfi"
}

// functions choose and load a slot. The environment is written by init/slot, which
// explains its variables; weft_tries is the only one that GRUB writes.
const functions = `
# Reads one copy of the slot state. True if it is plausible: the variables are
# repeated in weft_check, and weft_tries holds the sequence number twice.
function weft_read {
	set weft_seq=; set weft_slot=; set weft_trial=; set weft_given=; set weft_boot=; set weft_check=; set weft_tries=
	if [ -s "$1" ]; then
		load_env --file "$1" weft_seq weft_slot weft_trial weft_given weft_boot weft_check weft_tries
	fi
	[ -n "$weft_seq" -a "$weft_check" = "$weft_seq/$weft_slot/$weft_trial/$weft_given/$weft_boot" ]
}

# Takes one try and makes sure that it is on the disk. False if none is left or
# if it cannot be written: then the slot on trial is not started.
function weft_count {
	set weft_next=
@COUNT@
	if [ -n "$weft_next" ]; then
		set weft_tries="$weft_seq.$weft_next.$weft_seq"
		save_env --file "$weft_env" weft_tries
		weft_read "$weft_env"
	fi
	[ -n "$weft_next" -a "$weft_tries" = "$weft_seq.$weft_next.$weft_seq" ]
}

# Loads kernel and initramfs of slot $1. True if both are there. (A false if
# without else is true for GRUB, and it has no command false.)
function weft_load {
	if [ "$1" = "b" ]; then
		if linux /boot/b/vmlinuz $weft_first root=PARTUUID=@UUID@/PARTNROFF=1 rootwait @CMDLINE@ weft.slot=b $weft_last; then
			initrd /boot/b/initramfs.cpio.zst $weft_more
		else [ "$1" = "" ]; fi
	else
		if linux /boot/vmlinuz $weft_first root=PARTUUID=@UUID@ rootwait @CMDLINE@ weft.slot=a $weft_last; then
			initrd /boot/initramfs.cpio.zst $weft_more
		else [ "$1" = "" ]; fi
	fi
}

# Loads slot $1 if it may be started: not while it is being written, not after it
# failed.
function weft_try {
	if [ "$weft_boot" = "ab" -o "$weft_boot" = "$1" ]; then
		weft_load "$1"
	else
		[ "$1" = "" ]
	fi
}

# The slot on trial, else the preferred one, else the other one, else the rescue
# system.
function weft_boot {
	set weft_done=
	if [ "$weft_trial" = "a" -o "$weft_trial" = "b" ]; then
		if weft_count; then
			set weft_last="weft.trial=$weft_next panic=10 rootwait=30"
			if weft_load "$weft_trial"; then set weft_done=1; fi
			set weft_last=
		fi
	fi
	if [ -z "$weft_done" ]; then
		if weft_try "$weft_slot"; then set weft_done=1; fi
	fi
	if [ -z "$weft_done" ]; then
		if weft_try "$weft_other"; then set weft_done=1; fi
	fi
	if [ -z "$weft_done" ]; then weft_rescue; fi
}

# The rescue system with the kernel of the preferred slot, else of the other one;
# without its file the kernel and initramfs alone, which look for it themselves.
function weft_rescue {
	set weft_last="weft.rescue=boot"
	if weft_rescue_of "$weft_slot"; then set weft_done=1
	elif weft_rescue_of "$weft_other"; then set weft_done=1
	elif weft_load "$weft_slot"; then set weft_done=1
	else weft_load "$weft_other"; fi
}

function weft_rescue_of {
	set weft_more=/boot/rescue.cpio
	if [ "$1" = "b" ]; then set weft_more=/boot/b/rescue.cpio; fi
	set weft_found=
	if [ -s "$weft_more" ]; then
		if weft_load "$1"; then set weft_found=1; fi
	fi
	set weft_more=
	[ -n "$weft_found" ]
}

# The newer plausible copy counts, of two equal ones the first.
set weft_env=
if weft_read @ENV1@; then set weft_env=@ENV1@; set weft_one="$weft_seq"; fi
if weft_read @ENV2@; then
	if [ -z "$weft_env" ]; then set weft_env=@ENV2@
	elif [ "$weft_seq" -gt "$weft_one" ]; then set weft_env=@ENV2@; fi
fi
if [ -n "$weft_env" ]; then
	weft_read "$weft_env"
else
	set weft_slot=a; set weft_trial=-; set weft_boot=ab
fi
if [ "$weft_slot" = "b" ]; then set weft_other=a; else set weft_slot=a; set weft_other=b; fi
`

// envSize is the size of GRUB's environment block, which its save_env can
// change in place but not grow (grub include/grub/lib/envblk.h).
const envSize = 1024

// FreshEnv returns what both copies of the environment hold in an image: slot a
// has a system, slot b none, nothing is on trial. The form is that of init/slot; the
// tests of both packages fix the same bytes.
func FreshEnv() []byte {
	text := "# GRUB Environment Block\nweft_seq=1\nweft_slot=a\nweft_trial=-\nweft_given=0\nweft_boot=a\nweft_bad=b\nweft_check=1/a/-/0/a\nweft_last=-\n"
	text += fmt.Sprintf("weft_crc=%08x\nweft_tries=1.0.1\n", crc32.ChecksumIEEE([]byte(text)))
	return []byte(text + strings.Repeat("#", envSize-len(text)))
}

// LoaderFile returns the path in the boot partition under which the loader's
// image is found by firmware, "" where it is started from fixed sectors.
func LoaderFile(l boards.Loader) string {
	if l.Kind == boards.GRUBEFI {
		return path.Clean(l.File)
	}
	return ""
}
