package stage1

import (
	"fmt"
	"strings"
	"testing"
)

// rescueHead is the start of the archive that the builder makes.
func rescueHead(name string, size int) []byte {
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 1, 0o100444, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	return []byte(h + strings.Repeat("\x00", 512-len(h)))
}

func TestParseRescue(t *testing.T) {
	off, size, err := parseRescue(rescueHead("rescue.squashfs", 4096), 8192)
	if err != nil || off != 128 || size != 4096 {
		t.Errorf("%d, %d, %v", off, size, err)
	}
	for name, c := range map[string]struct {
		head  []byte
		total int64
	}{
		"cut": {rescueHead("rescue.squashfs", 4096), 4000}, "another file": {rescueHead("rescue.squashfx", 4096), 8192},
		"longer name": {rescueHead("rescue.squashfs.old", 4096), 8192}, "empty": {nil, 0}, "no archive": {[]byte(strings.Repeat("x", 512)), 8192},
		"no digits": {append(append(rescueHead("rescue.squashfs", 4096)[:54], "0000zz00"...), rescueHead("rescue.squashfs", 4096)[62:]...), 8192}, "no bytes": {rescueHead("rescue.squashfs", 0), 8192},
	} {
		if _, _, err := parseRescue(c.head, c.total); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseRescue(f *testing.F) {
	f.Add(rescueHead("rescue.squashfs", 4096), int64(8192))
	f.Add(rescueHead("rescue.squashfs", 1<<31), int64(1<<33))
	f.Fuzz(func(t *testing.T, head []byte, total int64) {
		off, size, err := parseRescue(head, total)
		if err == nil && (off <= 0 || size <= 0 || off+size > total) {
			t.Fatalf("%d bytes from %d on, of %d", size, off, total)
		}
	})
}

// TestOnTrial: the boot loader's word decides.
func TestOnTrial(t *testing.T) {
	for text, want := range map[string]bool{"weft.slot=b weft.trial=0 panic=10": true, "weft.slot=b": false, "weft.trial=": false} {
		if b := (&boot{args: parseCmdline(text)}); b.onTrial() != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
