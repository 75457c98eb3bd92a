package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Commander runs one program; *pins.Tool is one.
type Commander interface {
	Command(ctx context.Context, args ...string) *exec.Cmd
}

// FAT describes a FAT file system to make.
type FAT struct {
	Sectors int64
	Label   string
	Serial  uint32
	// Files maps the path in the file system to the file that holds its
	// content. Folders are made as needed.
	Files map[string]string
	// Folders are made even if no file lies in them.
	Folders []string
	// Epoch is every file's time, in seconds since 1970.
	Epoch int64
	// Mformat, Mmd and Mcopy are mtools' programs.
	Mformat, Mmd, Mcopy Commander
}

// clusterSectors makes clusters of 8 KiB: 64 MiB of them are still FAT16,
// which every firmware reads, and GRUB follows few links for a kernel.
const clusterSectors = 16

// Write makes the file system in a new file. It needs no privileges, and the
// same input gives the same bytes: serial number, times and the order of files
// are all given.
func (f *FAT) Write(ctx context.Context, file string) error {
	img, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make the FAT file system: %w", err)
	}
	err = img.Truncate(f.Sectors * SectorSize)
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("make the FAT file system: %w", err)
	}
	cmd := f.Mformat.Command(ctx, "-i", file, "-T", strconv.FormatInt(f.Sectors, 10), "-h", "16", "-s", "63",
		"-c", strconv.Itoa(clusterSectors), "-N", fmt.Sprintf("%08x", f.Serial), "-v", f.Label, "::")
	if err := f.run(cmd); err != nil {
		return fmt.Errorf("make the FAT file system: %w", err)
	}
	if err := f.lowerLabel(file); err != nil {
		return fmt.Errorf("make the FAT file system: %w", err)
	}
	var dirs []string
	for p := range f.Files {
		for d := path.Dir(p); d != "." && d != "/"; d = path.Dir(d) {
			dirs = append(dirs, d)
		}
	}
	dirs = append(dirs, f.Folders...)
	slices.Sort(dirs)
	for _, d := range slices.Compact(dirs) { // parents sort before children
		if err := f.run(f.Mmd.Command(ctx, "-i", file, "::"+d)); err != nil {
			return fmt.Errorf("make folder %s in the FAT file system: %w", d, err)
		}
	}
	var names []string
	for p := range f.Files {
		names = append(names, p)
	}
	slices.Sort(names)
	for _, p := range names {
		if err := f.run(f.Mcopy.Command(ctx, "-i", file, f.Files[p], "::"+p)); err != nil {
			return fmt.Errorf("copy %s into the FAT file system: %w", p, err)
		}
	}
	return nil
}

// lowerLabel writes the label into the root directory as it was given: mformat
// turns it to upper case there and not in the boot sector, while LEDE's label
// is lower case in both.
func (f *FAT) lowerLabel(file string) (err error) {
	img, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := img.Close(); err == nil {
			err = cerr
		}
	}()
	var b [SectorSize]byte
	if _, err := img.ReadAt(b[:], 0); err != nil {
		return err
	}
	reserved, fats, fatSectors := int64(binary.LittleEndian.Uint16(b[14:])), int64(b[16]), int64(binary.LittleEndian.Uint16(b[22:]))
	root := (reserved + fats*fatSectors) * SectorSize
	var e [12]byte // name and attributes of the first entry
	if _, err := img.ReadAt(e[:], root); err != nil {
		return err
	}
	const volumeLabel = 0x08
	label := fmt.Appendf(nil, "%-11s", f.Label)
	if e[11] != volumeLabel || !bytes.EqualFold(e[:11], label) {
		return fmt.Errorf("the root directory starts with %q where the label %q is expected: not a FAT16 by mformat", e[:], f.Label)
	}
	_, err = img.WriteAt(label, root)
	return err
}

func (f *FAT) run(cmd *exec.Cmd) error {
	// mtools takes times from this, and reads the user's configuration unless
	// told where there is none.
	cmd.Env = append(cmd.Env, "SOURCE_DATE_EPOCH="+strconv.FormatInt(f.Epoch, 10), "TZ=UTC", "LC_ALL=C", "MTOOLSRC=/dev/null", "MTOOLS_SKIP_CHECK=1", "HOME=/nonexistent")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", path.Base(cmd.Path), err, strings.TrimSpace(out.String()))
	}
	return nil
}
