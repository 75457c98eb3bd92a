package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	gptable "github.com/diskfs/go-diskfs/partition/gpt"
	mbrtable "github.com/diskfs/go-diskfs/partition/mbr"

	"weft/boards"
)

var stock = boards.Partitions{AlignKiB: 256, Boot: 16, Rootfs: 104, Data: 64}

// TestLayoutIsLEDEs compares the first two partitions with what LEDE's ptgen
// gives for its default sizes (lede-compat 1.1, observed).
func TestLayoutIsLEDEs(t *testing.T) {
	for _, tt := range []struct {
		table  boards.Table
		p1, p2 Partition
	}{
		{boards.MBR, Partition{1, 512, 32768}, Partition{2, 33792, 212992}},
		{boards.GPT, Partition{1, 512, 32768}, Partition{2, 33280, 212992}},
	} {
		l := NewLayout(tt.table, stock)
		if l.Partition(Boot) != tt.p1 || l.Partition(Rootfs) != tt.p2 {
			t.Errorf("%s: got %v", tt.table, l.Partitions)
		}
		if l.Partition(Rootfs2).Sectors != l.Partition(Rootfs).Sectors {
			t.Errorf("%s: the two root partitions differ in size", tt.table)
		}
	}
	l := NewLayout(boards.GPT, stock)
	if l.BIOSBoot != (Partition{128, 34, 478}) { // LBA 34..511
		t.Errorf("BIOS boot partition: %v", l.BIOSBoot)
	}
	if start, room := NewLayout(boards.MBR, stock).CoreStart(); start != 1 || room != 511 {
		t.Errorf("core in the MBR gap: sector %d, %d sectors; want 1, 511", start, room)
	}
}

// TestIDs recomputes LEDE's shell pipeline by its description: the signature
// is the first eight digits of the digest, the GUID the digest cut
// 8-4-4-4-10 followed by 00.
func TestIDs(t *testing.T) {
	id := DeriveIDs(1700000000, "abc")
	text := strings.ReplaceAll(id.GUID.String(), "-", "")
	const want = "8f691492a1f68744ebb92c4d473c71a2" // printf '1700000000abc\n' | md5sum
	if text != want[:30]+"00" {
		t.Errorf("GUID %s, want %s00", text, want[:30])
	}
	if got := id.PartUUID(boards.MBR, 2); got != want[:8]+"-02" {
		t.Errorf("MBR id %s, want %s-02", got, want[:8])
	}
	if got := id.PartUUID(boards.GPT, 2); !strings.HasSuffix(got, "02") || got[:34] != id.GUID.String()[:34] {
		t.Errorf("GPT id of partition 2: %s, disk %s", got, id.GUID)
	}
	s := bootSector(NewLayout(boards.MBR, stock), id, nil)
	if got := hex.EncodeToString([]byte{s[443], s[442], s[441], s[440]}); got != id.PartUUID(boards.MBR, 2)[:8] {
		t.Errorf("bytes 440.. read little-endian are %s, the id is %s", got, id.PartUUID(boards.MBR, 2))
	}
}

func TestCHS(t *testing.T) {
	for _, tt := range []struct {
		lba, heads int64
		want       string
	}{
		{1, 254, "000200"},          // UEFI's value for a protective entry
		{512, 16, "080900"},         // 512 = 0*16*63 + 8*63 + 8
		{1008 * 300, 16, "00412c"},  // cylinder 300 needs the two high bits
		{1008 * 5000, 16, "0fffff"}, // beyond the form
		{1 << 40, 254, "fdffff"},
	} {
		b := make([]byte, 3)
		putCHS(b, tt.lba, tt.heads)
		if got := hex.EncodeToString(b); got != tt.want {
			t.Errorf("CHS of %d by %d heads: %s, want %s", tt.lba, tt.heads, got, tt.want)
		}
	}
}

func testImage(t *testing.T, table boards.Table) (*Image, []byte) {
	t.Helper()
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.WriteFile(rootfs, bytes.Repeat([]byte("root"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	code := make([]byte, SectorSize)
	code[0], code[1] = 0xeb, 0x63
	im := &Image{
		Layout: NewLayout(table, boards.Partitions{AlignKiB: 256, Boot: 4, Rootfs: 2, Data: 1}),
		IDs:    DeriveIDs(1700000000, "abc"), BootCode: code, Core: bytes.Repeat([]byte{0xc0}, 3*SectorSize-7),
		Files: map[int]string{Rootfs: rootfs},
	}
	var out bytes.Buffer
	n, err := im.WriteTo(&out)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(out.Len()) || n != im.Layout.Sectors*SectorSize {
		t.Fatalf("wrote %d, said %d, layout has %d", out.Len(), n, im.Layout.Sectors*SectorSize)
	}
	return im, out.Bytes()
}

// TestStockAccepts restates what a stock system's platform_check_image and
// get_partitions read (lede-compat 1.4): the first two bytes, and the table as
// lines of number, start, length.
func TestStockAccepts(t *testing.T) {
	for _, table := range []boards.Table{boards.MBR, boards.GPT} {
		im, b := testImage(t, table)
		if b[0] != 0xeb || b[1] != 0x63 {
			t.Errorf("%s: starts %x, want eb63", table, b[:2])
		}
		var got []Partition
		switch table {
		case boards.MBR:
			for i := range 4 {
				e := b[446+16*i:]
				got = append(got, Partition{i + 1, int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))})
			}
			if b[446] != 0x80 || b[446+16] != 0 {
				t.Errorf("active flags %x %x, want 80 on the first alone", b[446], b[446+16])
			}
		case boards.GPT:
			for i := range 15 { // entries 1 to 15 at byte 0x400
				e := b[0x400+128*i:]
				first, last := int64(binary.LittleEndian.Uint64(e[32:])), int64(binary.LittleEndian.Uint64(e[40:]))
				if first != 0 {
					got = append(got, Partition{i + 1, first, last - first + 1})
				}
			}
			guid := im.IDs.GUID.disk()
			if !bytes.Equal(b[568:584], guid[:]) {
				t.Errorf("disk GUID at byte 568 is %x, want %x", b[568:584], guid)
			}
			if b[446+4] != 0xee {
				t.Errorf("protective entry has type %x", b[450])
			}
		}
		if len(got) != 4 {
			t.Fatalf("%s: read %v", table, got)
		}
		for i := range got {
			if got[i] != im.Layout.Partitions[i] {
				t.Errorf("%s: partition %d read as %v, laid out as %v", table, i+1, got[i], im.Layout.Partitions[i])
			}
		}
	}
}

// TestPlaces checks where the parts lie and that all else is zero.
func TestPlaces(t *testing.T) {
	im, b := testImage(t, boards.GPT)
	core := b[34*SectorSize:]
	if core[0] != 0xc0 || binary.LittleEndian.Uint64(b[bootKernelSector:]) != 34 {
		t.Error("the boot sector does not point at the core")
	}
	if binary.LittleEndian.Uint64(core[coreFirstBlock:]) != 35 || binary.LittleEndian.Uint16(core[coreFirstBlock+8:]) != 2 {
		t.Errorf("the core's first block does not describe the rest: % x", core[coreFirstBlock:][:12])
	}
	root := im.Layout.Partition(Rootfs)
	part := b[root.Start*SectorSize:][:root.Size()]
	if !bytes.HasPrefix(part, []byte("rootroot")) || bytes.Trim(part[4000:], "\x00") != nil {
		t.Error("the root partition is not its file followed by zeros")
	}
	for _, h := range [][]byte{b[SectorSize : 2*SectorSize], b[len(b)-SectorSize:]} {
		sum := bytes.Clone(h[:92])
		copy(sum[16:20], []byte{0, 0, 0, 0})
		if binary.LittleEndian.Uint32(h[16:]) != crc32.ChecksumIEEE(sum) {
			t.Error("a GPT header's CRC is wrong")
		}
	}
}

// TestForeignReaders lets go-diskfs, sfdisk and sgdisk read the tables.
func TestForeignReaders(t *testing.T) {
	for _, table := range []boards.Table{boards.MBR, boards.GPT} {
		im, b := testImage(t, table)
		file := filepath.Join(t.TempDir(), "disk.img")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := diskfs.Open(file, diskfs.WithOpenMode(diskfs.ReadOnly))
		if err != nil {
			t.Fatal(err)
		}
		pt, err := d.GetPartitionTable()
		if err != nil {
			t.Fatalf("%s: go-diskfs: %v", table, err)
		}
		switch pt := pt.(type) {
		case *mbrtable.Table:
			for i, p := range pt.Partitions {
				if int64(p.Start) != im.Layout.Partitions[i].Start || int64(p.Size) != im.Layout.Partitions[i].Sectors {
					t.Errorf("go-diskfs reads MBR partition %d as %d+%d", i+1, p.Start, p.Size)
				}
			}
		case *gptable.Table:
			if pt.RecoveredFromBackup || !strings.EqualFold(pt.GUID, im.IDs.GUID.String()) {
				t.Errorf("go-diskfs reads the GPT with GUID %s (from the backup: %t)", pt.GUID, pt.RecoveredFromBackup)
			}
		default:
			t.Errorf("%s: go-diskfs sees %T", table, pt)
		}
		if sgdisk, err := exec.LookPath("sgdisk"); err == nil && table == boards.GPT {
			out, err := exec.Command(sgdisk, "-v", file).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "No problems found") {
				t.Errorf("sgdisk -v: %v\n%s", err, out)
			}
		}
		if sfdisk, err := exec.LookPath("sfdisk"); err == nil {
			out, err := exec.Command(sfdisk, "-d", file).CombinedOutput()
			if err != nil {
				t.Errorf("sfdisk -d: %v\n%s", err, out)
			}
			if table == boards.MBR && !strings.Contains(string(out), "label-id: 0x"+im.IDs.PartUUID(table, 2)[:8]) {
				t.Errorf("sfdisk reads another disk id:\n%s", out)
			}
			if table == boards.GPT && !strings.Contains(strings.ToLower(string(out)), "uuid="+im.IDs.PartUUID(table, 2)) {
				t.Errorf("sfdisk reads another id of partition 2:\n%s", out)
			}
		}
	}
}

func TestTooLarge(t *testing.T) {
	im, _ := testImage(t, boards.MBR)
	im.Core = bytes.Repeat([]byte{1}, 512*SectorSize)
	if _, err := im.WriteTo(&bytes.Buffer{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a core of 512 sectors: %v", err)
	}
	im.Core = nil
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	im.Files[Rootfs] = big
	if _, err := im.WriteTo(&bytes.Buffer{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a root file system of 3 MiB in 2: %v", err)
	}
	im.BootCode, im.Core = []byte("xx"), make([]byte, 2*SectorSize)
	if _, err := im.WriteTo(&bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "eb 63") {
		t.Errorf("a boot.img of another kind: %v", err)
	}
}

// host runs a program of the machine; it stands in for the pinned one.
type host string

func (h host) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, string(h), args...)
}

func TestFAT(t *testing.T) {
	for _, p := range []string{"mformat", "mmd", "mcopy", "fsck.fat", "mtype"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed: the image test runs the pinned one", p)
		}
	}
	dir := t.TempDir()
	content := filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(content, bytes.Repeat([]byte("kernel"), 50000), 0o640); err != nil {
		t.Fatal(err)
	}
	var made [2][]byte
	for i := range made {
		fat := &FAT{Sectors: 131072, Label: "kernel", Serial: 0xdecafbad, Epoch: 1700000000,
			Files:   map[string]string{"boot/vmlinuz": content, "boot/grub/grub.cfg": content, "efi/boot/bootx64.efi": content},
			Mformat: host("mformat"), Mmd: host("mmd"), Mcopy: host("mcopy")}
		file := filepath.Join(dir, []string{"a", "b"}[i])
		if err := fat.Write(t.Context(), file); err != nil {
			t.Fatal(err)
		}
		var err error
		if made[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("fsck.fat", "-n", file).CombinedOutput(); err != nil {
			t.Errorf("fsck.fat -n: %v\n%s", err, out)
		}
		got, err := exec.Command("mtype", "-i", file, "::boot/vmlinuz").Output()
		if want, _ := os.ReadFile(content); err != nil || !bytes.Equal(got, want) {
			t.Errorf("mtype: %v, %d bytes", err, len(got))
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("two runs gave different bytes")
	}
	if !bytes.Equal(made[0][54:59], []byte("FAT16")) || !bytes.EqualFold(made[0][43:49], []byte("kernel")) {
		t.Errorf("type and label: %q %q", made[0][54:62], made[0][43:54])
	}
}

// TestRead reads back what was written.
func TestRead(t *testing.T) {
	for _, table := range []boards.Table{boards.MBR, boards.GPT} {
		im, b := testImage(t, table)
		got, err := Read(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*got, im.Layout) {
			t.Errorf("%s: read %+v, wrote %+v", table, *got, im.Layout)
		}
	}
	_, b := testImage(t, boards.GPT)
	b[2*SectorSize+40] ^= 1
	if _, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrNoTable) {
		t.Errorf("a damaged GPT: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	im := Image{Layout: NewLayout(boards.GPT, boards.Partitions{AlignKiB: 1, Boot: 1, Rootfs: 1, Data: 1}), IDs: DeriveIDs(1, "")}
	var b bytes.Buffer
	if _, err := im.WriteTo(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes()[:gptFirstUsable*SectorSize])
	f.Add(bootSector(NewLayout(boards.MBR, stock), IDs{}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Read(bytes.NewReader(data))
		if err != nil && !errors.Is(err, ErrNoTable) {
			t.Errorf("untyped error %v", err)
		}
		if err == nil {
			for _, p := range l.Partitions {
				if p.Sectors <= 0 || p.Start < 0 {
					t.Errorf("partition %+v", p)
				}
			}
		}
	})
}
