package sysupgrade

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"weft/init/rootdisk"
)

// stockDisk is a disk with stock's two partitions and one that its owner added.
func stockDisk(t *testing.T, gpt bool, sig uint32, extra bool) (*memVolume, *rootdisk.Table) {
	t.Helper()
	v := newVolume(16 << 20)
	d := made{stock: true, gpt: gpt, sig: sig, root: squash(77, 100000), boot: bootFiles(70)}.disk(t)
	copy(v.data, d)
	if extra {
		if gpt {
			writeGPT(v.data[:16<<20], [][2]uint64{{p1Start, p1Sectors}, {rootStart, rootSectors}, {16384, 8192}}, sig)
		} else {
			e := v.data[446+32:]
			e[4] = 0x83
			binary.LittleEndian.PutUint32(e[8:], 16384)
			binary.LittleEndian.PutUint32(e[12:], 8192)
		}
		copy(v.data[16384*512:], noise(5, 8192*512))
	}
	table, err := rootdisk.ReadTable(v, uint64(len(v.data)/512), 512)
	if err != nil {
		t.Fatal(err)
	}
	return v, table
}

// TestWriteStock restates what a stock system does with a stock image
// (compatibility facts, section 1.4).
func TestWriteStock(t *testing.T) {
	const mine = 0x0badcafe
	guid := func(sig uint32, n byte) string { return rootdisk.GUID(diskGUID(sig, n)).String() }
	for _, tt := range []struct {
		name  string
		gpt   bool
		extra bool
		whole bool
		save  bool
	}{
		{name: "MBR, tables match", extra: true, save: true},
		{name: "GPT, tables match", gpt: true, extra: true, save: true},
		{name: "MBR, -p", extra: true, whole: true},
		{name: "GPT, -p", gpt: true, whole: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, table := stockDisk(t, tt.gpt, mine, tt.extra)
			old := bytes.Clone(v.data)
			m := made{stock: true, gpt: tt.gpt}
			m.boot = bootFiles(1)
			m.boot["boot/grub/grub.cfg"] = []byte("linux /boot/vmlinuz root=PARTUUID=" + guid(0x1a2b3c4d, 2) + " rootwait\n")
			disk := m.disk(t)
			for i := range 400 {
				disk[512*40+i] = 0x5a // GRUB in the gap
			}
			src := source(wrap(t, m, disk))
			h, err := ReadHead(t.Context(), src)
			if err != nil || h.Kind != KindStock {
				t.Fatalf("%+v, %v", h, err)
			}
			to := &StockTarget{Disk: v, Table: table, SavePartitions: tt.save}
			if to.Whole(h) != tt.whole {
				t.Fatalf("whole disk: %v", !tt.whole)
			}
			if err := WriteStock(t.Context(), src, h, to, nil); err != nil {
				t.Fatal(err)
			}
			if tt.whole {
				if !bytes.Equal(v.data[:len(disk)], disk) {
					t.Error("the disk is not the image")
				}
				return
			}
			if !bytes.Equal(v.data[:444], disk[:444]) {
				t.Error("boot code and disk id are not the image's")
			}
			if !bytes.Equal(v.data[446:512], old[446:512]) {
				t.Error("the partition table changed")
			}
			p2 := v.data[rootStart*512 : (rootStart+rootSectors)*512]
			if !bytes.Equal(p2, disk[rootStart*512:(rootStart+rootSectors)*512]) {
				t.Error("partition 2 is not the image's")
			}
			if !bytes.Equal(v.data[16384*512:], old[16384*512:]) {
				t.Error("the added partition was touched")
			}
			p1 := v.data[p1Start*512 : (p1Start+p1Sectors)*512]
			if tt.gpt {
				if !bytes.Equal(v.data[512:34*512], old[512:34*512]) {
					t.Error("the GPT was touched")
				}
				if bytes.Contains(p1, []byte(guid(0x1a2b3c4d, 2))) || bytes.Count(p1, []byte(guid(mine, 2))) != 1 {
					t.Error("grub.cfg does not name the disk's partition 2")
				}
			} else {
				if !bytes.Equal(p1, disk[p1Start*512:(p1Start+p1Sectors)*512]) {
					t.Error("partition 1 is not the image's")
				}
				if !bytes.Equal(v.data[512:p1Start*512], disk[512:p1Start*512]) {
					t.Error("the boot loader in the gap is not the image's")
				}
			}
		})
	}
}

// TestStockOverWeft: settings need a place, and a person is told what ends.
func TestStockOverWeft(t *testing.T) {
	weft := made{}.disk(t)
	table, err := rootdisk.ReadTable(bytes.NewReader(weft), 1<<20, 512)
	if err != nil {
		t.Fatal(err)
	}
	src := source(made{stock: true, gpt: true}.file(t))
	h, err := ReadHead(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	to := &StockTarget{Table: table, SavePartitions: true}
	if !to.Whole(h) || !strings.Contains(EndOfSlots(h, to), "partition table is replaced") {
		t.Errorf("%q", EndOfSlots(h, to))
	}
	if err := roomForSettings(h, table); err != nil {
		t.Error(err)
	}
	small := *table
	small.Partitions = []rootdisk.Partition{{Number: 1, Start: 512, Sectors: 100}, {Number: 2, Start: 700, Sectors: 100}}
	if err := roomForSettings(h, &small); err == nil || !strings.Contains(err.Error(), "partition 2") {
		t.Errorf("%v", err)
	}
	// Judged as stock does: another table is a note, not a refusal.
	b := newBed(t)
	r, err := Validate(t.Context(), src, b.dev, Keep{Config: true})
	if err != nil || !r.Valid || !strings.Contains(strings.Join(r.Notes, "\n"), "partition table differs") || !strings.Contains(strings.Join(r.Notes, "\n"), "takes the place of both systems") {
		t.Errorf("%v, %+v", err, r)
	}
	v, table := stockDisk(t, false, 1, false)
	v.flip = 3 << 20
	same := source(made{stock: true}.file(t))
	if h, err = ReadHead(t.Context(), same); err != nil {
		t.Fatal(err)
	}
	if err := WriteStock(t.Context(), same, h, &StockTarget{Disk: v, Table: table, SavePartitions: true}, nil); !errors.Is(err, ErrReadBack) {
		t.Errorf("a failing disk: %v", err)
	}
}

func TestReplacer(t *testing.T) {
	var out bytes.Buffer
	r := &replacer{w: &out, from: []byte("aab"), to: []byte("xyz")}
	for _, c := range []byte("aaab-aab-aa") { // byte by byte: matches span writes
		r.Write([]byte{c})
	}
	if err := r.flush(); err != nil || out.String() != "axyz-xyz-aa" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestWritable(t *testing.T) {
	got := writable("/dev/vda4 /data ext4 rw,noatime 0 0\n/dev/vda4 /overlay ext4 ro 0 0\n/dev/vda2 /rom squashfs ro,noatime 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vda1 /boot vfat rw 0 0\n")
	if strings.Join(got, " ") != "/data /boot" {
		t.Errorf("%v", got)
	}
}
