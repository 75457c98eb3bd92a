package rootdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fake is a System over folders that look like sysfs and /dev.
func fake(t *testing.T) (System, func(name, model string, disk []byte)) {
	t.Helper()
	dir := t.TempDir()
	s := System{Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev")}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	return s, func(name, model string, disk []byte) {
		t.Helper()
		write(s.dev(name), string(disk))
		at := s.sys("block", name)
		write(filepath.Join(at, "size"), fmt.Sprintln(len(disk)/512))
		write(filepath.Join(at, "dev"), fmt.Sprintf("254:%d\n", 16*n))
		write(filepath.Join(at, "queue/logical_block_size"), "512\n")
		if model != "" {
			write(filepath.Join(at, "device/model"), model+"   \n")
		}
		if tab, err := s.ReadTable(Disk{Path: s.dev(name), Bytes: uint64(len(disk)), SectorSize: 512}); err == nil {
			for _, p := range tab.Partitions {
				pn := name + fmt.Sprint(p.Number)
				write(filepath.Join(at, pn, "partition"), fmt.Sprintln(p.Number))
				write(filepath.Join(at, pn, "size"), fmt.Sprintln(p.Sectors))
				write(filepath.Join(at, pn, "dev"), fmt.Sprintf("254:%d\n", 16*n+p.Number))
			}
		}
		n++
	}
}

func find(t *testing.T, s System, root string) (*Boot, error) {
	t.Helper()
	spec, err := ParseRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	return s.Find(spec)
}

func TestFind(t *testing.T) {
	s, add := fake(t)
	add("vda", "", mbr(t, imageSectors, weftParts))
	// The EFI product of the same build: same four bytes at 440.
	add("vdb", "", ledeGPT(t, diskSectors, append(weftParts, biosBoot, part{5, 30000, 100, TypeLinux, "named"})))
	add("vdc", "", make([]byte, 8192))
	add("loop0", "", mbr(t, imageSectors, weftParts))
	guid := func(last string) string { return diskGUID[:len(diskGUID)-2] + last }
	for _, tc := range []struct{ root, want string }{
		{"PARTUUID=1a2b3c4d-02", "vda2"},
		{"PARTUUID=1A2B3C4D-02", "vda2"},
		{"PARTUUID=1a2b3c4d-01/PARTNROFF=1", "vda2"},
		{"PARTUUID=" + guid("02"), "vdb2"},
		{"PARTUUID=" + strings.ToUpper(guid("03")), "vdb3"},
		{"PARTUUID=" + guid("01") + "/PARTNROFF=1", "vdb2"},
		{"PARTLABEL=named", "vdb5"},
		{"/dev/vda3", "vda3"},
		{"/dev/vdc", "vdc"},
		{"254:2", "vda2"},
		{"254:18", "vdb2"},
		{"0xfe12", "vdb2"},
		{"fe02", "vda2"},
	} {
		b, err := find(t, s, tc.root)
		if err != nil {
			t.Errorf("%s: %v", tc.root, err)
			continue
		}
		if b.Root.Name != tc.want {
			t.Errorf("%s: got %s, want %s", tc.root, b.Root.Name, tc.want)
		}
	}
	for _, root := range []string{"PARTUUID=1a2b3c4e-02", "PARTUUID=1a2b3c4d-07", "PARTUUID=" + guid("77"), "PARTLABEL=other", "/dev/sda2", "8:1"} {
		_, err := find(t, s, root)
		var nf *NotFoundError
		if !errors.As(err, &nf) || !strings.Contains(err.Error(), "root="+root) {
			t.Errorf("%s: got %v, want NotFoundError naming it", root, err)
		}
	}
}

// TestFindForeignPartitionGUID: tools other than LEDE's give partitions GUIDs
// of their own; the entry counts, not the scheme of the last byte.
func TestFindForeignPartitionGUID(t *testing.T) {
	s, add := fake(t)
	img := ledeGPT(t, imageSectors, weftParts)
	copy(img[1024+128+16:], "sixteen-bytes-id")
	copy(img[512:], reheader(img))
	add("nvme0n1p", "", img)
	b, err := find(t, s, "PARTUUID="+GUID([]byte("sixteen-bytes-id")).String())
	if err != nil || b.Root.Number != 2 {
		t.Errorf("got %+v, %v", b, err)
	}
}

// reheader returns the header sector with checksums that fit the entries.
func reheader(img []byte) []byte {
	h := append([]byte(nil), img[512:1024]...)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(img[1024:1024+128*128]))
	clear(h[16:20])
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return h
}

func TestFindDuplicate(t *testing.T) {
	for name, tc := range map[string]struct {
		img  []byte
		root string
	}{
		"MBR": {mbr(t, imageSectors, weftParts), "PARTUUID=1a2b3c4d-02"},
		"GPT": {ledeGPT(t, imageSectors, weftParts), "PARTUUID=" + diskGUID[:len(diskGUID)-2] + "02"},
	} {
		t.Run(name, func(t *testing.T) {
			s, add := fake(t)
			add("sda", "SSD 850", tc.img)
			add("sdb", "Stick", onDisk(tc.img, diskSectors))
			_, err := find(t, s, tc.root)
			var dup *DuplicateError
			if !errors.As(err, &dup) || len(dup.Disks) != 2 {
				t.Fatalf("got %v, want DuplicateError", err)
			}
			for _, want := range []string{"sda, 13.0 MiB, model SSD 850", "sdb, 32.0 MiB, model Stick", "root=" + tc.root} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not contain %q", err, want)
				}
			}
		})
	}
}

func TestFindNothing(t *testing.T) {
	s, _ := fake(t)
	if _, err := find(t, s, "PARTUUID=1a2b3c4d-02"); err == nil || !strings.Contains(err.Error(), "no disk at all") {
		t.Errorf("got %v", err)
	}
}

func TestParseRootRefuses(t *testing.T) {
	for _, root := range []string{"", "PARTUUID=", "PARTUUID=xyz-02", "PARTUUID=1a2b3c4d-zz", "PARTUUID=1a2b3c4d-02/PARTNROFF=x", "PARTLABEL=", "/dev/", "/dev/../x", "a:b", "LABEL=x", "UUID=1234"} {
		if s, err := ParseRoot(root); err == nil {
			t.Errorf("ParseRoot(%q) = %+v, want an error", root, s)
		}
	}
}

func FuzzParseRoot(f *testing.F) {
	for _, s := range []string{"PARTUUID=1a2b3c4d-02", "PARTUUID=" + diskGUID + "/PARTNROFF=1", "254:2", "fe02", "/dev/vda2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := ParseRoot(s)
		if err == nil && spec.String() != s {
			t.Errorf("String() = %q, want %q", spec, s)
		}
	})
}

func TestJudgeEvent(t *testing.T) {
	for _, tc := range []struct {
		msg           string
		block, driver bool
	}{
		{"add@/devices/x\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=sdb\x00", true, false},
		{"remove@/devices/x\x00ACTION=remove\x00SUBSYSTEM=block\x00DEVNAME=sdb\x00", true, false},
		{"add@/devices/x\x00ACTION=add\x00SUBSYSTEM=scsi\x00MODALIAS=scsi:t-0x00\x00", false, true},
		{"bind@/devices/x\x00ACTION=bind\x00SUBSYSTEM=scsi\x00MODALIAS=scsi:t-0x00\x00", false, false},
		{"add@/devices/x\x00ACTION=add\x00SUBSYSTEM=net\x00INTERFACE=block\x00", false, false},
		{"", false, false},
	} {
		if block, driver := judgeEvent([]byte(tc.msg)); block != tc.block || driver != tc.driver {
			t.Errorf("%q: block %v, driver %v", tc.msg, block, driver)
		}
	}
}
