package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"weft/boards"
)

// Image is a disk image about to be written.
type Image struct {
	Layout Layout
	IDs    IDs
	// BootCode (GRUB's boot.img) and Core (core.img) start the machine by
	// BIOS; both empty on machines that know no BIOS.
	BootCode, Core []byte
	// Files hold the partitions' contents by number: a file no larger than the
	// partition. The rest of a partition, and partitions without a file, are
	// zeros, which is what tells the device that an overlay is not yet made.
	Files map[int]string
}

// ErrTooLarge is wrapped when something does not fit its place on the disk.
var ErrTooLarge = errors.New("does not fit")

// WriteTo writes the whole image, in order and without seeking, so that it can
// be compressed on the way.
func (im *Image) WriteTo(w io.Writer) (int64, error) {
	c := &counter{w: w}
	if err := im.write(c); err != nil {
		return c.n, fmt.Errorf("write the disk image at byte %d: %w", c.n, err)
	}
	return c.n, nil
}

func (im *Image) write(c *counter) error {
	l := im.Layout
	coreStart, room := l.CoreStart()
	code, core := im.BootCode, im.Core
	if len(core) > 0 {
		var err error
		if code, core, err = placeCore(code, core, coreStart); err != nil {
			return err
		}
		if int64(len(core)) > room*SectorSize {
			return fmt.Errorf("GRUB core image of %d bytes %w into %d: leave out some of the loader's modules", len(core), ErrTooLarge, room*SectorSize)
		}
	}
	if _, err := c.Write(bootSector(l, im.IDs, code)); err != nil {
		return err
	}
	var backup []byte
	if l.Table == boards.GPT {
		var primary []byte
		primary, backup = gpt(l, im.IDs)
		if _, err := c.Write(primary); err != nil {
			return err
		}
	}
	if len(core) > 0 {
		if err := c.seek(coreStart * SectorSize); err != nil {
			return err
		}
		if _, err := c.Write(core); err != nil {
			return err
		}
	}
	for _, p := range l.Partitions {
		if err := c.seek(p.Start * SectorSize); err != nil {
			return err
		}
		if file := im.Files[p.Number]; file != "" {
			if err := c.copyFile(file, p); err != nil {
				return err
			}
		}
	}
	if err := c.seek(l.Sectors*SectorSize - int64(len(backup))); err != nil {
		return err
	}
	_, err := c.Write(backup)
	return err
}

// Where GRUB keeps what its installer sets (grub-core/boot/i386/pc/boot.S and
// diskboot.S, include/grub/i386/pc/boot.h).
const (
	bootKernelSector = 0x5c       // u64: sector of the core's first
	bootDriveCheck   = 0x66       // u16: two NOPs switch on the work-around for BIOSes that pass a wrong drive
	coreFirstBlock   = 0x200 - 12 // u64 sector, u16 sectors, u16 segment: where the core's rest lies
	bootMagic        = 0x63eb     // jmp +0x63, as bytes EB 63: what LEDE's upgrade looks for
	nopNop           = 0x9090
)

// placeCore returns copies of boot.img and core.img set up for a core that lies in
// one piece at the given sector, as grub-bios-setup does it.
func placeCore(code, core []byte, start int64) (newCode, newCore []byte, err error) {
	if len(code) != SectorSize || binary.LittleEndian.Uint16(code) != bootMagic {
		return nil, nil, fmt.Errorf("GRUB boot.img has %d bytes and starts % x: want one sector that starts eb 63", len(code), code[:min(2, len(code))])
	}
	if len(core) < 2*SectorSize {
		return nil, nil, fmt.Errorf("GRUB core.img has %d bytes: want at least two sectors", len(core))
	}
	code, core = slices.Clone(code), slices.Clone(core)
	binary.LittleEndian.PutUint64(code[bootKernelSector:], uint64(start))
	binary.LittleEndian.PutUint16(code[bootDriveCheck:], nopNop)
	sectors := (len(core) + SectorSize - 1) / SectorSize
	core = append(core, make([]byte, sectors*SectorSize-len(core))...)
	binary.LittleEndian.PutUint64(core[coreFirstBlock:], uint64(start+1))
	binary.LittleEndian.PutUint16(core[coreFirstBlock+8:], uint16(sectors-1))
	return code, core, nil
}

// counter counts what goes through and fills gaps with zeros.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

var zeros [64 << 10]byte

// seek writes zeros up to the offset.
func (c *counter) seek(offset int64) error {
	if offset < c.n {
		return fmt.Errorf("BUG: layout goes back from byte %d to %d", c.n, offset)
	}
	for c.n < offset {
		if _, err := c.Write(zeros[:min(int64(len(zeros)), offset-c.n)]); err != nil {
			return err
		}
	}
	return nil
}

func (c *counter) copyFile(path string, p Partition) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("partition %d: %w", p.Number, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("partition %d: %w", p.Number, err)
	}
	if st.Size() > p.Size() {
		return fmt.Errorf("partition %d: %s of %d bytes %w into %d", p.Number, path, st.Size(), ErrTooLarge, p.Size())
	}
	if _, err := io.Copy(c, f); err != nil {
		return fmt.Errorf("partition %d: copy %s: %w", p.Number, path, err)
	}
	return nil
}
