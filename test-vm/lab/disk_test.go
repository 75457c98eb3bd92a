package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestCopyDisk(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 3<<20+100)
	copy(data[1<<20:], bytes.Repeat([]byte("data"), 1000))
	data[len(data)-1] = 1
	raw, packed := filepath.Join(dir, "a.img"), filepath.Join(dir, "a.img.gz")
	if err := os.WriteFile(raw, data, 0o644); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(data)
	w.Close()
	gz := append(z.Bytes(), `{"metadata":"trailer"}FWx0....`...)
	if err := os.WriteFile(packed, gz, 0o644); err != nil {
		t.Fatal(err)
	}
	sparse := filepath.Join(dir, "sparse.img")
	if err := CopyDisk(t.Context(), sparse, raw, 0); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{raw, packed, sparse} {
		for _, size := range []int64{0, 8 << 20} {
			dst := filepath.Join(dir, "b.img")
			if err := CopyDisk(t.Context(), dst, src, size); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dst)
			if err != nil {
				t.Fatal(err)
			}
			want := append(bytes.Clone(data), make([]byte, max(0, int(size)-len(data)))...)
			if !bytes.Equal(got, want) {
				t.Errorf("%s to %d bytes: other bytes", filepath.Base(src), size)
			}
			info, err := os.Stat(dst)
			if err != nil {
				t.Fatal(err)
			}
			if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
				t.Errorf("%s: %d bytes on disk: not sparse", filepath.Base(src), used)
			}
		}
	}
	if err := CopyDisk(t.Context(), filepath.Join(dir, "c.img"), raw, 1<<20); err == nil || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("disk smaller than its image: %v", err)
	}
	if err := os.WriteFile(packed, gz[:z.Len()/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := CopyDisk(t.Context(), filepath.Join(dir, "c.img"), packed, 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated image: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := CopyDisk(ctx, filepath.Join(dir, "c.img"), raw, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestEnsureDisk(t *testing.T) {
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "a.img"), filepath.Join(dir, "d.img")
	if err := os.WriteFile(image, []byte("image"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := EnsureDisk(t.Context(), disk, image, 100); err != nil {
		t.Fatal(err)
	}
	if err := WriteDisk(disk, 50, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := EnsureDisk(t.Context(), disk, image, 100); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(disk)
	if err != nil || len(got) != 100 || string(got[:5]) != "image" || string(got[50:54]) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
}

// mbr is a disk of size bytes with MBR entries of (start, length) in sectors.
func mbr(size int, entries ...[2]uint32) []byte {
	d := make([]byte, size)
	copy(d[440:], "\x78\x56\x34\x12")
	for i, e := range entries {
		p := d[446+16*i:]
		p[4] = 0x83
		binary.LittleEndian.PutUint32(p[8:], e[0])
		binary.LittleEndian.PutUint32(p[12:], e[1])
	}
	d[510], d[511] = 0x55, 0xaa
	return d
}

func gpt(size int) []byte {
	d := mbr(size)
	h := d[512:]
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], 128)
	binary.LittleEndian.PutUint32(h[84:], 128)
	e := d[1024+128:]
	for i := range 32 {
		e[i] = byte(i + 1)
	}
	binary.LittleEndian.PutUint64(e[32:], 64)
	binary.LittleEndian.PutUint64(e[40:], 71)
	for i, c := range "data" {
		e[56+2*i] = byte(c)
	}
	return d
}

func TestPartitions(t *testing.T) {
	const size = 64 << 10
	got, err := readPartitions(bytes.NewReader(mbr(size, [2]uint32{8, 16}, [2]uint32{32, 96})), size)
	want := []Partition{{1, 8 * 512, 16 * 512, "", "12345678-01"}, {2, 32 * 512, 96 * 512, "", "12345678-02"}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("MBR: %+v, %v, want %+v", got, err, want)
	}
	got, err = readPartitions(bytes.NewReader(gpt(size)), size)
	g := Partition{2, 64 * 512, 8 * 512, "data", "14131211-1615-1817-191a-1b1c1d1e1f20"}
	if err != nil || len(got) != 1 || got[0] != g {
		t.Errorf("GPT: %+v, %v, want %+v", got, err, g)
	}
	if _, err := readPartitions(bytes.NewReader(mbr(size, [2]uint32{100, 100})), size); err == nil {
		t.Error("a partition beyond the disk is taken")
	}
	if _, err := readPartitions(bytes.NewReader(make([]byte, size)), size); err == nil {
		t.Error("zeros are taken for a table")
	}
}

func FuzzPartitions(f *testing.F) {
	f.Add(mbr(8<<10, [2]uint32{1, 2}))
	f.Add(gpt(64 << 10))
	f.Fuzz(func(t *testing.T, data []byte) {
		size := int64(len(data))
		parts, err := readPartitions(bytes.NewReader(data), size)
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.Start < 0 || p.Length <= 0 || p.Start+p.Length > size {
				t.Errorf("partition %+v of a disk of %d bytes", p, size)
			}
		}
	})
}
