package cli

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"

	"weft/boards"
	"weft/image/disk"
	"weft/image/firmware/sysuptar"
)

func words(c *content) string {
	var b strings.Builder
	c.write(func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%s: %s\n", name, fmt.Sprintf(format, args...))
	})
	return b.String()
}

// TestContent: what verify says of what an image holds.
func TestContent(t *testing.T) {
	boot := make([]byte, disk.SectorSize)
	boot[0], boot[1] = 0xeb, 0x63
	im := disk.Image{Layout: disk.NewLayout(boards.GPT, boards.Partitions{AlignKiB: 256, Boot: 1, Rootfs: 1, Data: 1}), IDs: disk.DeriveIDs(1, ""), BootCode: boot, Core: make([]byte, 2*disk.SectorSize)}
	var plain, packed, tarball bytes.Buffer
	if _, err := im.WriteTo(&plain); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	z.Write(plain.Bytes())
	z.Close()
	if err := sysuptar.Write(&tarball, "board", 0, sysuptar.Part{Name: "root", Size: 4, Data: strings.NewReader("hsqs")}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		data []byte
		want []string
	}{
		{"disk", packed.Bytes(), []string{"gzip; partition table GPT", "EB63: stock sysupgrade on x86 takes it", "partition 3: ", "root file system of slot b", "partition 4: ", "data: settings", "partition 128: "}},
		{"disk, not packed", plain.Bytes(), []string{"not compressed; partition table GPT"}},
		{"tar", tarball.Bytes(), []string{"sysupgrade tar (not compressed) for the board board", "member root: 1024 bytes", "member CONTROL: 12 bytes"}},
		{"squashfs", []byte("hsqs and more"), []string{"root file system alone"}},
	} {
		c, err := readContent(bytes.NewReader(tt.data))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for _, w := range tt.want {
			if got := words(c); !strings.Contains(got, w) {
				t.Errorf("%s: %q is missing in\n%s", tt.name, w, got)
			}
		}
	}
	damaged := bytes.Clone(packed.Bytes())
	damaged[len(damaged)-5] ^= 1 // gzip's checksum
	if _, err := readContent(bytes.NewReader(damaged)); err == nil {
		t.Error("damaged gzip was taken")
	}
}
