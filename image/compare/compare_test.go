package compare

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReaderDifference(t *testing.T) {
	long := strings.Repeat("x", 300<<10)
	for _, tt := range []struct {
		a, b string
		want int64
	}{{"", "", -1}, {"abc", "abc", -1}, {"abc", "abd", 2}, {"abc", "ab", 2}, {"", "a", 0}, {long + "a", long + "b", 300 << 10}, {long, long + "b", 300 << 10}, {long, long, -1}} {
		got, err := readerDifference(strings.NewReader(tt.a), iotest.HalfReader(strings.NewReader(tt.b)))
		if err != nil || got != tt.want {
			t.Errorf("%.5q and %.5q (%d, %d bytes): %d, %v; want %d", tt.a, tt.b, len(tt.a), len(tt.b), got, err, tt.want)
		}
	}
	broken := errors.New("broken")
	if _, err := readerDifference(strings.NewReader("a"), iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a failing reader: %v", err)
	}
}

func pair(items ...item) *image {
	im := &image{items: map[string]item{}}
	for _, i := range items {
		i.size = int64(len(i.data))
		im.add(i)
	}
	return im
}

func TestChanges(t *testing.T) {
	whole := func(part, path, text string) item {
		return item{part: part, path: path, data: []byte(text), whole: true}
	}
	file := func(part, path, text, attrs string) item {
		return item{part: part, path: path, data: []byte(text), attrs: attrs, pkg: "p"}
	}
	for _, tt := range []struct {
		name string
		a, b *image
		want string // of Report.Write, the lines that name changes
	}{
		{"files", pair(whole("rootfs", "", "1"), file("rootfs", "etc/a", "abc", "x"), file("rootfs", "etc/b", "", "x"), file("rootfs", "etc/c", "c", "rw")),
			pair(whole("rootfs", "", "2"), file("rootfs", "etc/a", "abd", "x"), file("rootfs", "etc/c", "c", "ro"), file("rootfs", "etc/d", "dd", "x")),
			"etc/a changed at byte 2, 3 -> 3 bytes p|etc/b removed, 0 bytes p|etc/c attributes (rw -> ro) p|etc/d added, 2 bytes p"},
		{"structures alone", pair(whole("rootfs", "", "one"), file("rootfs", "a", "x", "")), pair(whole("rootfs", "", "two"), file("rootfs", "a", "x", "")),
			"(the whole) same content, structures differ at byte 0"},
		{"initramfs explains the boot partition", pair(whole("boot", "", "1"), whole("boot", "boot/initramfs.cpio.zst", "1"), file("initramfs", "init", "1", "")),
			pair(whole("boot", "", "2"), whole("boot", "boot/initramfs.cpio.zst", "2"), file("initramfs", "init", "2", "")),
			"init changed at byte 0, 1 -> 1 bytes p"},
		{"only its compression", pair(whole("boot", "", "1"), whole("boot", "boot/initramfs.cpio.zst", "1"), file("initramfs", "init", "1", "")),
			pair(whole("boot", "", "2"), whole("boot", "boot/initramfs.cpio.zst", "2"), file("initramfs", "init", "1", "")),
			"boot/initramfs.cpio.zst same content, structures differ at byte 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := changes(tt.a, tt.b)
			if err != nil {
				t.Fatal(err)
			}
			r := &Report{Changes: list}
			var b bytes.Buffer
			if err := r.Write(&b); err != nil {
				t.Fatal(err)
			}
			var lines []string
			for line := range strings.Lines(b.String()) {
				if strings.HasPrefix(line, "by package") || strings.HasPrefix(line, "\nby package") {
					break
				}
				if rest, ok := strings.CutPrefix(line, "  "); ok {
					lines = append(lines, strings.Join(strings.Fields(rest), " "))
				}
			}
			if got := strings.Join(lines, "|"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestFirst(t *testing.T) {
	r := Report{Offset: 7, Changes: []Change{{Part: "rootfs", Path: "etc/x", What: "changed", Offset: 3}}}
	if got := r.First(); got != "byte 7; rootfs: /etc/x, byte 3 of it" {
		t.Errorf("got %q", got)
	}
	r.Changes = nil
	if got := r.First(); got != "byte 7 of the compressed file alone" {
		t.Errorf("got %q", got)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "same", "b": "same", "c": "sane"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for other, want := range map[string]int64{"b": -1, "c": 2} {
		if got, err := Files(filepath.Join(dir, "a"), filepath.Join(dir, other)); err != nil || got != want {
			t.Errorf("a and %s: %d, %v; want %d", other, got, err, want)
		}
	}
}
