package sysupgrade

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/slot"
)

// TestUpgrade: the image's system is in the other slot, the settings beside it,
// and the boot loader tries it; the running slot is untouched.
func TestUpgrade(t *testing.T) {
	for name, m := range map[string]made{
		"MBR": {info: testInfo()}, "GPT": {gpt: true, info: testInfo()}, "not gzipped": {raw: true, info: testInfo()}, "no trailers": {},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			running, _ := os.ReadFile(filepath.Join(b.boot, "boot/vmlinuz"))
			p := &Progress{}
			o := Options{Keep: Keep{Config: true}, Config: strings.NewReader("settings"), Before: &slot.Before{Interfaces: []string{"wan"}}}
			r, err := Upgrade(t.Context(), source(m.file(t)), b.dev, b.target, o, p)
			if err != nil {
				t.Fatalf("%v\n%+v", err, r)
			}
			want := made{}.disk(t)[rootStart*512:][:303104]
			if !bytes.Equal(b.root.data[:len(want)], want) {
				t.Error("the root partition is not the image's")
			}
			for name, data := range map[string][]byte{"boot/b/vmlinuz": bootFiles(1)["boot/vmlinuz"], "boot/b/initramfs.cpio.zst": bootFiles(1)["boot/initramfs.cpio.zst"], "boot/vmlinuz": running} {
				got, err := os.ReadFile(filepath.Join(b.boot, name))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %v, %d bytes", name, err, len(got))
				}
			}
			if got, _ := os.ReadFile(filepath.Join(b.data, "slot-b/sysupgrade.tgz")); string(got) != "settings" {
				t.Errorf("settings: %q", got)
			}
			if before, err := slot.LoadBefore(b.data, slot.B); err != nil || len(before.Interfaces) != 1 {
				t.Errorf("before: %+v, %v", before, err)
			}
			if st := b.slots(); st.Trial != slot.B || st.TriesLeft != 3 || st.Preferred != slot.A || !st.Confirmed[slot.A] {
				t.Errorf("slots: %+v", st)
			}
			if left, _ := filepath.Glob(filepath.Join(b.data, StageDir, "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}

			// Again: nothing differs, so nothing is written but the state.
			writes := b.root.writes
			o.Config = strings.NewReader("settings")
			if _, err := Upgrade(t.Context(), source(m.file(t)), b.dev, b.target, o, p); err != nil {
				t.Fatal(err)
			}
			if b.root.writes != writes {
				t.Errorf("the same image again: %d bytes were written", b.root.writes-writes)
			}
			if st := p.Status(); st.Same < int64(len(want)) {
				t.Errorf("progress: %+v", st)
			}
		})
	}
}

// TestUpgradeFails: whatever goes wrong on the way, the boot loader starts the
// running slot, and the other one is not tried.
func TestUpgradeFails(t *testing.T) {
	image := made{info: testInfo()}.file(t)
	once := func(b []byte) *bytesSource { s := source(b); s.once = true; return s }
	damaged := bytes.Clone(image)
	damaged[len(damaged)/2] ^= 1
	key, other := newKey(t), newKey(t)
	for name, tt := range map[string]struct {
		src  Source
		with func(*bed)
		want string
	}{
		"disk fails":            {source(image), func(b *bed) { b.root.fail = errors.New("I/O error") }, "I/O error"},
		"disk gives back else":  {source(image), func(b *bed) { b.root.flip = 200000 }, "other bytes"},
		"damaged, read once":    {once(damaged), nil, "damaged firmware trailer"},
		"other key, read once":  {once(made{info: testInfo(), keys: nil}.signed(t, other)), func(b *bed) { b.dev.Keys = ring(1, key) }, "not in the key folder"},
		"forged, read once":     {once(forged(t, key)), func(b *bed) { b.dev.Keys = ring(1, key) }, "too few known keys"},
		"no room on data":       {source(image), func(b *bed) { b.target.Data = "/proc/none" }, "make room"},
		"boot partition absent": {source(image), func(b *bed) { b.boot = "/proc/none" }, "out of service"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			boot := b.boot
			if tt.with != nil {
				tt.with(b)
			}
			_, err := Upgrade(t.Context(), tt.src, b.dev, b.target, Options{}, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			b.boot = boot
			if st := b.slots(); st.Preferred != slot.A || st.Trial != "" || !st.Bootable(slot.A) || st.Bootable(slot.B) {
				t.Errorf("slots: %+v", st)
			}
			if _, err := os.Stat(filepath.Join(boot, "boot/b/vmlinuz")); err == nil {
				t.Error("the slot has a kernel, as if it were whole")
			}
		})
	}
}

// TestOnTrial: while the running system is on trial, the slot that the boot loader
// falls back to is not overwritten.
func TestOnTrial(t *testing.T) {
	b := newBed(t)
	image := made{info: testInfo()}.file(t)
	if _, err := Upgrade(t.Context(), source(image), b.dev, b.target, Options{}, nil); err != nil {
		t.Fatal(err)
	}
	// Slot b runs now, on trial; the next upgrade would go to a.
	a := *b.target
	a.Slot, a.Root = slot.A, newVolume(rootSectors*512)
	if _, err := Upgrade(t.Context(), source(image), b.dev, &a, Options{}, nil); !errors.Is(err, slot.ErrInUse) || !strings.Contains(err.Error(), "--confirm") {
		t.Fatalf("%v", err)
	}
	if st := b.slots(); st.Preferred != slot.A || !st.Bootable(slot.A) || a.Root.(*memVolume).writes != 0 {
		t.Errorf("%+v", st)
	}
	store, err := slot.Open(b.boot)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Confirm(slot.B); err != nil {
		t.Fatal(err)
	}
	if _, err := Upgrade(t.Context(), source(image), b.dev, &a, Options{}, nil); err != nil {
		t.Fatal(err)
	}
	if st := b.slots(); st.Trial != slot.A || st.Preferred != slot.B {
		t.Errorf("%+v", st)
	}
}
