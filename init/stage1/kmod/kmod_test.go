package kmod

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// set is a module folder whose loads are written down.
func set(t *testing.T) (*Set, func() []string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep": `kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc16.ko
kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko:
kernel/drivers/block/virtio_blk.ko:
kernel/drivers/ata/ahci.ko.xz:
kernel/drivers/net/e1000.ko:
kernel/drivers/net/virtio-net.ko:
kernel/drivers/net/tun.ko:
kernel/drivers/broken.ko:
`,
		"modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\n",
		"modules.alias": `# Aliases extracted from modules themselves.
alias fs-ext4 ext4
alias crc32c crc32c_generic
alias crypto-crc32c crc32c_generic
alias virtio:d00000002v* virtio_blk
alias virtio:d00000001v* virtio_net
alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias char-major-10-200 tun
alias devname:net/tun tun
`,
		"modules.softdep": "# Soft dependencies extracted from modules themselves.\nsoftdep ext4 pre: crc32c absent post: e1000\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := read(dir)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var loaded []string
	s.load = func(name, params string) error {
		mu.Lock()
		defer mu.Unlock()
		loaded = append(loaded, strings.TrimSpace(name+" "+params))
		if name == "broken" {
			return errors.New("exec format error")
		}
		return nil
	}
	return s, func() []string { return loaded }
}

func TestLoad(t *testing.T) {
	s, loaded := set(t)
	for _, name := range []string{"ext4", "fs-ext4", "ext4", "virtio-net"} {
		if err := s.Load(name, "debug=1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if want := []string{"crc32c_generic", "crc16", "jbd2", "ext4 debug=1", "virtio_net debug=1"}; !reflect.DeepEqual(loaded(), want) {
		t.Errorf("loaded %q, want %q", loaded(), want)
	}
	if err := s.Load("absent", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
	if !s.Has("virtio-pci") || s.Has("absent") {
		t.Error("Has is wrong")
	}
}

func TestLoadAll(t *testing.T) {
	s, loaded := set(t)
	err := s.LoadAll([]string{"ext4", "broken", "absent", "virtio_blk num_request_queues=1"})
	if err == nil || !strings.Contains(err.Error(), "load module broken: exec format error") || !strings.Contains(err.Error(), "load module absent") {
		t.Errorf("got %v", err)
	}
	if n := len(loaded()); n != 6 { // ext4 brings crc32c_generic, crc16 and jbd2
		t.Errorf("loaded %q", loaded())
	}
}

func TestNeeded(t *testing.T) {
	s, _ := set(t)
	list := []string{"squashfs", "ext4", "virtio_blk", "ahci", "tun", "e1000 debug=1"}
	devices := []string{"acpi:PNP0A03:", "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00", "virtio:d00000002v00001AF4"}
	if got, want := s.Needed(list, devices), []string{"squashfs", "ext4", "virtio_blk", "tun", "e1000 debug=1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// A library comes with what needs it, unless it has parameters.
	if got, want := s.Needed([]string{"jbd2", "ext4"}, nil), []string{"ext4"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, list := range [][]string{{"jbd2", "squashfs"}, {"jbd2 debug=1", "ext4"}} {
		if got := s.Needed(list, nil); !reflect.DeepEqual(got, list) {
			t.Errorf("got %q, want %q", got, list)
		}
	}
	s.aliases = nil
	if got := s.Needed(list, devices); !reflect.DeepEqual(got, list) {
		t.Errorf("without aliases: got %q", got)
	}
}

func TestDevices(t *testing.T) {
	sys := t.TempDir()
	for name, a := range map[string]string{
		"devices/pci0000:00/0000:00:03.0": "pci:second",
		"devices/pci0000:00/0000:00:02.0": "pci:first",
		"devices/virtual/x":               "",
	} {
		dir := filepath.Join(sys, name)
		bus := filepath.Join(sys, "bus", map[bool]string{true: "pci", false: "x"}[strings.Contains(name, "pci")], "devices")
		for _, err := range []error{
			os.MkdirAll(dir, 0o755),
			os.MkdirAll(bus, 0o755),
			os.WriteFile(filepath.Join(dir, "modalias"), []byte(a+"\n"), 0o644),
			os.Symlink(dir, filepath.Join(bus, filepath.Base(dir))),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := Devices(sys)
	if want := []string{"pci:first", "pci:second"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"modules.d/20-b": "b x=1\n", "modules.d/10-a": "# note\n\n a \n", "one": "c\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := List(filepath.Join(dir, "modules.d"), filepath.Join(dir, "absent"), filepath.Join(dir, "one"))
	if want := []string{"a", "b x=1", "c"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"a*", "a", true}, {"a*b", "ab", true}, {"a*b", "axbxb", true},
		{"a*b", "axbc", false}, {"*b*", "abc", true}, {"a?c", "abc", true}, {"a?c", "ac", false}, {"[0-9]x", "7x", true},
		{"[!0-9]x", "7x", false}, {"[ab", "a", false}, {"a**b", "axb", true}, {"*aab", "aaab", true}, {"*a/b*", "xa/by", true},
	} {
		if got := glob(tc.pattern, tc.s); got != tc.want {
			t.Errorf("glob(%q, %q) = %v", tc.pattern, tc.s, got)
		}
	}
}

// FuzzGlob: without slashes and backslashes the answer is path.Match's.
func FuzzGlob(f *testing.F) {
	f.Add("a*[b-d]?e*", "axxcxexx")
	f.Add("pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 64 || len(s) > 64 || strings.ContainsAny(pattern+s, `/\[]^!`) || strings.IndexFunc(pattern+s, func(r rune) bool { return r >= 0x80 }) >= 0 {
			t.Skip()
		}
		want, err := path.Match(pattern, s)
		if err != nil {
			t.Skip()
		}
		if got := glob(pattern, s); got != want {
			t.Errorf("glob(%q, %q) = %v, path.Match says %v", pattern, s, got, want)
		}
	})
}
