package rootdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// part is an entry of a test table, in sectors of 512 bytes.
type part struct {
	number        int
	start, length uint64
	typ           GUID
	name          string
}

const (
	signature = 0x1a2b3c4d
	diskGUID  = "1a2b3c4d-5e6f-7081-92a3-b4c5d6e7f800"
)

// ledeGPT is the layout of LEDE's combined-efi image: partition GUIDs derived
// from the disk's, entry 128 for GRUB, no copy of the table at the end.
func ledeGPT(t testing.TB, sectors uint64, parts []part) []byte {
	t.Helper()
	img := make([]byte, sectors*512)
	binary.LittleEndian.PutUint32(img[440:], signature)
	copy(img[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	binary.LittleEndian.PutUint32(img[458:], uint32(sectors-1))
	img[510], img[511] = 0x55, 0xaa
	guid := mustGUID(diskGUID)
	var last uint64
	for _, p := range parts {
		e := img[1024+128*(p.number-1):]
		copy(e, p.typ[:])
		unique := guid
		unique[15] = byte(p.number)
		copy(e[16:], unique[:])
		binary.LittleEndian.PutUint64(e[32:], p.start)
		binary.LittleEndian.PutUint64(e[40:], p.start+p.length-1)
		for i, c := range p.name {
			e[56+2*i] = byte(c)
		}
		last = max(last, p.start+p.length-1)
	}
	h := img[512:1024]
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	binary.LittleEndian.PutUint64(h[24:], 1)
	binary.LittleEndian.PutUint64(h[32:], last+33)
	binary.LittleEndian.PutUint64(h[40:], 34)
	binary.LittleEndian.PutUint64(h[48:], last)
	copy(h[56:], guid[:])
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], 128)
	binary.LittleEndian.PutUint32(h[84:], 128)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(img[1024:1024+128*128]))
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return img
}

func mbr(t testing.TB, sectors uint64, parts []part) []byte {
	t.Helper()
	img := make([]byte, sectors*512)
	copy(img, []byte{0xeb, 0x63, 0x90})
	binary.LittleEndian.PutUint32(img[440:], signature)
	for _, p := range parts {
		e := img[446+16*(p.number-1):]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(p.start))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.length))
	}
	img[446] = 0x80
	img[510], img[511] = 0x55, 0xaa
	return img
}

// The layouts, scaled down; the proportions of the contract and of LEDE.
var (
	stockParts = []part{{1, 512, 4096, TypeLinux, ""}, {2, 5120, 8192, TypeLinux, ""}}
	weftParts  = append(stockParts[:2:2], part{3, 13824, 8192, TypeLinux, ""}, part{4, 22528, 4096, TypeLinux, ""})
	biosBoot   = part{128, 34, 478, TypeBIOSBoot, ""}
)

const (
	imageSectors = 22528 + 4096
	diskSectors  = 65536 // 32 MiB
)

// onDisk is an image written to a larger disk.
func onDisk(img []byte, sectors int) []byte {
	disk := make([]byte, sectors*512)
	copy(disk, img)
	return disk
}

// memDisk is a Writer over bytes that can fail after n writes.
type memDisk struct {
	data   []byte
	left   int // writes until the power goes; negative: never
	torn   bool
	synced int
}

var errPower = errors.New("power cut")

func (m *memDisk) WriteAt(b []byte, off int64) (int, error) {
	if m.left == 0 {
		if m.torn {
			copy(m.data[off:], b[:min(len(b), 1024)])
		}
		return 0, errPower
	}
	m.left--
	return copy(m.data[off:], b), nil
}

func (m *memDisk) Sync() error { m.synced++; return nil }

func read(t testing.TB, disk []byte) *Table {
	t.Helper()
	tab, err := ReadTable(bytes.NewReader(disk), uint64(len(disk)/512), 512)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestReadLEDELayouts(t *testing.T) {
	for _, tc := range []struct {
		name   string
		disk   []byte
		scheme Scheme
		count  int
		data   int
	}{
		{"stock MBR", mbr(t, 16384, stockParts), MBR, 2, 0},
		{"stock GPT without a copy at the end", ledeGPT(t, 16384, append(stockParts, biosBoot)), GPT, 3, 0},
		{"weft MBR", mbr(t, imageSectors, weftParts), MBR, 4, 4},
		{"weft GPT", ledeGPT(t, imageSectors+34, append(weftParts, biosBoot)), GPT, 5, 4},
		{"weft GPT on a larger disk", onDisk(ledeGPT(t, imageSectors, append(weftParts, biosBoot)), diskSectors), GPT, 5, 4},
		{"stock with two partitions of the user's", mbr(t, 65536, append(stockParts, part{3, 16384, 4096, TypeLinux, ""}, part{4, 20480, 40960, TypeLinux, ""})), MBR, 4, 0},
		{"named data partition", ledeGPT(t, 65536, append(stockParts, part{3, 16384, 4096, TypeLinux, "rootfs_data"})), GPT, 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tab := read(t, tc.disk)
			if tab.Scheme != tc.scheme || len(tab.Partitions) != tc.count || tab.Signature != signature || tab.FromBackup {
				t.Errorf("got %+v", tab)
			}
			p, ok := tab.Data()
			if ok != (tc.data != 0) || p.Number != tc.data {
				t.Errorf("data partition: got %d, want %d", p.Number, tc.data)
			}
			if tab.Scheme == GPT && tab.DiskGUID.String() != diskGUID {
				t.Errorf("disk GUID %s, want %s", tab.DiskGUID, diskGUID)
			}
			p2, _ := tab.Partition(2)
			if p2.Start != 5120 || p2.Sectors != 8192 {
				t.Errorf("partition 2: %+v", p2)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	good := ledeGPT(t, imageSectors, weftParts)
	damage := func(off int) []byte {
		d := bytes.Clone(good)
		d[off] ^= 1
		return d
	}
	bootFlag := mbr(t, 16384, stockParts)
	bootFlag[446] = 0x41
	for name, disk := range map[string][]byte{
		"empty":           make([]byte, 4096),
		"one sector":      make([]byte, 512),
		"boot sector":     append(append(make([]byte, 510), 0x55, 0xaa), make([]byte, 4096)...),
		"text in entries": bootFlag,
		"header damaged":  damage(512 + 40),
		"entry damaged":   damage(1024 + 33),
		"moved header":    damage(512 + 24),
	} {
		_, err := ReadTable(bytes.NewReader(disk), uint64(len(disk)/512), 512)
		if !errors.Is(err, ErrNoTable) {
			t.Errorf("%s: got %v, want ErrNoTable", name, err)
		}
	}
	if _, err := ReadTable(bytes.NewReader(good), 64, 2048); err == nil {
		t.Error("sectors of 2048 bytes were accepted")
	}
}

func TestGrow(t *testing.T) {
	for _, tc := range []struct {
		name string
		disk []byte
		want uint64 // sectors of partition 4
	}{
		{"MBR", onDisk(mbr(t, imageSectors, weftParts), diskSectors), diskSectors - 22528},
		{"GPT", onDisk(ledeGPT(t, imageSectors, append(weftParts, biosBoot)), diskSectors), diskSectors - 2048 - 22528},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := read(t, tc.disk)
			g, err := before.Grow(4)
			if err != nil {
				t.Fatal(err)
			}
			disk := &memDisk{data: bytes.Clone(tc.disk), left: -1}
			if err := g.Apply(disk); err != nil {
				t.Fatal(err)
			}
			after := read(t, disk.data)
			p4, _ := after.Partition(4)
			if p4.Sectors != tc.want || p4.Start != 22528 {
				t.Errorf("partition 4 is %+v, want %d sectors", p4, tc.want)
			}
			for _, p := range before.Partitions {
				if q, _ := after.Partition(p.Number); p.Number != 4 && p != q {
					t.Errorf("partition %d changed from %+v to %+v", p.Number, p, q)
				}
			}
			if after.Signature != signature || after.DiskGUID != before.DiskGUID {
				t.Errorf("ids changed: %x %s", after.Signature, after.DiskGUID)
			}
			if !bytes.Equal(disk.data[34*512:(diskSectors-33)*512], tc.disk[34*512:(diskSectors-33)*512]) {
				t.Error("bytes outside the tables changed")
			}
			if _, err := after.Grow(4); !errors.Is(err, ErrNoGrowth) {
				t.Errorf("second growth: got %v, want ErrNoGrowth", err)
			}
			oracle(t, disk.data)
		})
	}
}

// oracle asks sfdisk and sgdisk whether they accept the disk.
func oracle(t *testing.T, disk []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if tool, err := exec.LookPath("sfdisk"); err != nil {
		t.Log("sfdisk is not installed: not asked")
	} else {
		out, err := exec.Command(tool, "--verify", path).CombinedOutput()
		if err != nil || strings.Contains(string(out), "corrupt") {
			t.Errorf("sfdisk --verify: %v\n%s", err, out)
		}
	}
	if tool, err := exec.LookPath("sgdisk"); err != nil {
		t.Log("sgdisk is not installed: not asked")
	} else if read(t, disk).Scheme == GPT {
		out, err := exec.Command(tool, "-v", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "No problems found") {
			t.Errorf("sgdisk -v: %v\n%s", err, out)
		}
	}
}

func TestGrowRefuses(t *testing.T) {
	behind := append(weftParts[:4:4], part{5, 40960, 2048, TypeLinux, ""})
	inTable := append(weftParts[:4:4], part{5, 20, 4, TypeLinux, ""})
	elsewhere := ledeGPT(t, imageSectors, weftParts)
	copy(elsewhere[100*512:], elsewhere[1024:1024+128*128])
	h := elsewhere[512:1024]
	binary.LittleEndian.PutUint64(h[72:], 100)
	clear(h[16:20])
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	for _, tc := range []struct {
		name   string
		disk   []byte
		number int
		want   string
	}{
		{"a partition behind", onDisk(ledeGPT(t, 49152, behind), diskSectors), 4, "partition 5 lies behind"},
		{"no such partition", mbr(t, 16384, stockParts), 4, "no partition 4"},
		{"no room", mbr(t, imageSectors, weftParts), 4, "ends at sector"},
		{"never smaller", mbr(t, imageSectors+1, append(weftParts[:3:3], part{4, 22528, 4097, TypeLinux, ""})), 4, "ends at sector"},
		{"entries elsewhere", onDisk(elsewhere, diskSectors), 4, "instead of 2"},
		{"partition in the table", onDisk(ledeGPT(t, 49152, inTable), diskSectors), 4, "inside the table"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := read(t, tc.disk).Grow(tc.number)
			if !errors.Is(err, ErrNoGrowth) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrNoGrowth with %q", err, tc.want)
			}
		})
	}
}

// TestPowerCut cuts the power before and in the middle of every write: one
// valid table must be left each time, with every partition, and growing again
// must end in the same bytes as without the cut.
func TestPowerCut(t *testing.T) {
	start := onDisk(ledeGPT(t, imageSectors, append(weftParts, biosBoot)), diskSectors)
	g, err := read(t, start).Grow(4)
	if err != nil {
		t.Fatal(err)
	}
	whole := &memDisk{data: bytes.Clone(start), left: -1}
	if err := g.Apply(whole); err != nil {
		t.Fatal(err)
	}
	if whole.synced != 2 {
		t.Errorf("synced %d times, want once per copy", whole.synced)
	}
	for cut := range 3 {
		for _, torn := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d torn=%v", cut+1, torn), func(t *testing.T) {
				disk := &memDisk{data: bytes.Clone(start), left: cut, torn: torn}
				if err := g.Apply(disk); !errors.Is(err, errPower) {
					t.Fatalf("got %v", err)
				}
				tab := read(t, disk.data)
				if len(tab.Partitions) != 5 {
					t.Fatalf("%d partitions are left", len(tab.Partitions))
				}
				if want := cut == 2 && torn; tab.FromBackup != want {
					t.Errorf("FromBackup is %v, want %v", tab.FromBackup, want)
				}
				again := &memDisk{data: disk.data, left: -1}
				fix, err := tab.RestorePrimary()
				if err != nil {
					t.Fatal(err)
				}
				if err := fix.Apply(again); err != nil {
					t.Fatal(err)
				}
				if tab = read(t, disk.data); tab.FromBackup {
					t.Fatal("the table at the start is still damaged")
				}
				if g, err := tab.Grow(4); err == nil {
					err = g.Apply(again)
					if err != nil {
						t.Fatal(err)
					}
				} else if !errors.Is(err, ErrNoGrowth) {
					t.Fatal(err)
				}
				if !bytes.Equal(disk.data, whole.data) {
					t.Error("the disk differs from one grown without a cut")
				}
			})
		}
	}
}

func TestGUIDText(t *testing.T) {
	const text = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	g, err := ParseGUID(strings.ToUpper(text))
	if err != nil || g.String() != text {
		t.Errorf("got %s, %v", g, err)
	}
	// The first bytes on disk, UEFI specification appendix A.
	if want := []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79}; !bytes.Equal(g[:10], want) {
		t.Errorf("bytes % x, want % x", g[:10], want)
	}
	for _, bad := range []string{"", "0fc63daf", text + "0", strings.Replace(text, "f", "g", 1), strings.ReplaceAll(text, "-", "")} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("ParseGUID(%q) succeeded", bad)
		}
	}
}

func TestCHS(t *testing.T) {
	for lba, want := range map[uint64][3]byte{
		0: {0, 1, 0}, 62: {0, 63, 0}, 63: {1, 1, 0}, 1008: {0, 1, 1}, 1008*1023 + 1007: {15, 0xff, 0xff}, 1008 * 1024: {254, 0xff, 0xff},
	} {
		var got [3]byte
		putCHS(got[:], lba)
		if got != want {
			t.Errorf("sector %d: got %v, want %v", lba, got, want)
		}
	}
}

func FuzzReadTable(f *testing.F) {
	// Four entries instead of 128: the fuzzer wastes its time on large inputs.
	small := ledeGPT(f, 40, []part{{1, 6, 2, TypeLinux, "a"}, {2, 8, 3, TypeLinux, ""}})[:12*512]
	h := small[512:1024]
	binary.LittleEndian.PutUint32(h[80:], 4)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(small[1024:1536]))
	clear(h[16:20])
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	if _, err := ReadTable(bytes.NewReader(small), 12, 512); err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Add(mbr(f, 16384, stockParts)[:1024])
	f.Fuzz(func(t *testing.T, disk []byte) {
		for _, ss := range []int{512, 4096} {
			sectors := uint64(len(disk) / ss)
			tab, err := ReadTable(bytes.NewReader(disk), sectors, ss)
			if err != nil {
				continue
			}
			tab.Data()
			for _, p := range tab.Partitions {
				if tab.Scheme == GPT && p.End() > sectors {
					t.Fatalf("partition %+v ends behind the disk of %d sectors", p, sectors)
				}
				g, err := tab.Grow(p.Number)
				if err != nil {
					continue
				}
				out := &memDisk{data: bytes.Clone(disk), left: -1}
				if err := g.Apply(out); err != nil {
					t.Fatal(err)
				}
				after, err := ReadTable(bytes.NewReader(out.data), sectors, ss)
				if err != nil {
					t.Fatalf("the grown table cannot be read: %v", err)
				}
				q, _ := after.Partition(p.Number)
				if q.Start != p.Start || q.Sectors <= p.Sectors {
					t.Fatalf("grew %+v to %+v", p, q)
				}
			}
		}
	})
}
