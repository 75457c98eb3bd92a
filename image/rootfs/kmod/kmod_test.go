package kmod

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// object returns a smallest ELF file with a .modinfo section.
func object(info ...string) []byte {
	modinfo := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const ehsize, shsize = 64, 64
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	off := uint64(ehsize)
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_AARCH64), Version: 1, Ehsize: ehsize, Shentsize: shsize, Shnum: 3, Shstrndx: 2,
		Shoff: off + uint64(len(modinfo)+len(names))}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	put(h)
	b.Write(modinfo)
	b.Write(names)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: off, Size: uint64(len(modinfo))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: off + uint64(len(modinfo)), Size: uint64(len(names))})
	return b.Bytes()
}

// kernel writes a small package's module folder: a needs b-c and d, b-c needs
// d, e wants f before it, g is built in.
func kernel(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for p, data := range map[string][]byte{
		"kernel/a.ko":           object("license=GPL", "depends=b_c,d", "alias=pci:v*", "firmware=a.bin"),
		"kernel/drivers/b-c.ko": object("depends=d"),
		"kernel/d.ko":           object("depends="),
		"kernel/e.ko":           object("depends=g", "softdep=pre: f nonesuch post: a"),
		"kernel/f.ko":           object("depends="),
		"kernel/broken.ko":      object("depends=lost"),
		"kernel/other.ko":       object("depends="),
	} {
		f := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if p == "kernel/d.ko" { // compressed
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			_, _ = w.Write(data)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			f, data = f+".gz", z.Bytes()
		}
		if err := os.WriteFile(f, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/g.ko\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSelect(t *testing.T) {
	dir, out := kernel(t), t.TempDir()
	s, err := Select(t.Context(), nil, "6.1", dir, []string{"a", "e", "g", "maybe"}, []string{"maybe"}, out)
	if err != nil {
		t.Fatal(err)
	}
	want := `kernel/a.ko: kernel/drivers/b-c.ko kernel/d.ko
kernel/d.ko:
kernel/drivers/b-c.ko: kernel/d.ko
kernel/e.ko: kernel/f.ko
kernel/f.ko:
`
	if got := string(s.Dep()); got != want {
		t.Errorf("modules.dep:\n%swant\n%s", got, want)
	}
	if got := s.Order([]string{"a", "e"}); !reflect.DeepEqual(got, []string{"d", "b_c", "a", "f", "e"}) {
		t.Errorf("order %v", got)
	}
	if got := string(s.Alias()); !strings.HasSuffix(got, "\nalias pci:v* a\n") {
		t.Errorf("modules.alias: %q", got)
	}
	if got := s.Subset([]string{"b-c"}); len(got.Modules) != 2 {
		t.Errorf("subset of b-c: %+v", got.Modules)
	}
	for _, m := range s.Modules {
		data, err := os.ReadFile(filepath.Join(out, m.Path))
		if err != nil || int64(len(data)) != m.Size || !bytes.HasPrefix(data, []byte("\x7fELF")) {
			t.Errorf("%s: %d bytes on disk, said %d, %v", m.Path, len(data), m.Size, err)
		}
	}
	if _, err := os.Stat(filepath.Join(out, "kernel/other.ko")); err == nil {
		t.Error("a module that nobody needs was unpacked")
	}
}

func TestSelectMissing(t *testing.T) {
	_, err := Select(t.Context(), nil, "6.1", kernel(t), []string{"broken", "nope"}, nil, t.TempDir())
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "lost") || !strings.Contains(err.Error(), "nope") {
		t.Errorf("got %v, want ErrMissing naming lost and nope", err)
	}
}

func FuzzParseModinfo(f *testing.F) {
	f.Add(object("depends=a,b", "softdep=pre: c"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := ParseModinfo(data); err == nil && m == nil {
			t.Error("neither a module nor an error")
		}
	})
}
