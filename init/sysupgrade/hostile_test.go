package sysupgrade

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"weft/image/firmware"
	"weft/init/slot"
)

// refused upgrades to the image and wants a refusal that changed nothing.
func refused(t *testing.T, b *bed, image []byte, want string) {
	t.Helper()
	before := b.state()
	_, err := Upgrade(t.Context(), source(image), b.dev, b.target, Options{Keep: Keep{Config: true}}, nil)
	if err == nil {
		t.Fatal("the image was taken")
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("refused with %q, want %q", err, want)
	}
	if after := b.state(); after != before {
		t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
	}
	if b.root.writes != 0 || b.opened != 0 {
		t.Errorf("%d bytes written, boot partition mounted %d times", b.root.writes, b.opened)
	}
}

// TestFlippedBytes flips every byte of the head and of all trailers, and a sample
// of the rest: refused, nothing written.
func TestFlippedBytes(t *testing.T) {
	key := newKey(t)
	image := made{info: testInfo(), root: squash(9, 20000), boot: map[string][]byte{"boot/vmlinuz": noise(1, 3000), "boot/initramfs.cpio.zst": noise(2, 2000)}, keys: nil}.signed(t, key)
	scan, err := firmware.Scan(bytes.NewReader(image), int64(len(image)))
	if err != nil || len(scan.Chunks) != 2 {
		t.Fatalf("%v %v", scan, err)
	}
	var at []int
	for i := range 64 {
		at = append(at, i) // gzip's header and the start of the partition table
	}
	for i := 64; i < int(scan.ImageSize); i += 97 {
		at = append(at, i)
	}
	for i := int(scan.ImageSize) - 8; i < len(image); i++ {
		at = append(at, i) // gzip's end, metadata, signature, trailers
	}
	b := newBed(t)
	b.dev.Keys, b.dev.Signers = ring(1, key), 1
	for _, i := range at {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(image)
			bad[i] ^= bit
			before := b.opened
			_, err := Upgrade(t.Context(), source(bad), b.dev, b.target, Options{}, nil)
			if err == nil || b.opened != before || b.root.writes != 0 {
				t.Fatalf("byte %d of %d, bit %#x: %v, mounted %d times, %d bytes written", i, len(image), bit, err, b.opened-before, b.root.writes)
			}
		}
	}
	t.Logf("%d bytes, two bits each", len(at))
	// And as it is, it is taken.
	if _, err := Upgrade(t.Context(), source(image), b.dev, b.target, Options{}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestTruncated(t *testing.T) {
	key := newKey(t)
	image := made{info: testInfo(), root: squash(9, 20000), keys: nil}.signed(t, key)
	b := newBed(t)
	b.dev.Keys, b.dev.Signers = ring(1, key), 1
	for _, n := range []int{0, 1, 2, 15, 16, 17, 100, 511, 512, 1024, len(image) / 3, len(image) / 2, len(image) - 300, len(image) - 17, len(image) - 16, len(image) - 1} {
		refused(t, b, image[:n], "refused")
	}
}

func TestHostile(t *testing.T) {
	key, other, third := newKey(t), newKey(t), newKey(t)
	with := func(change func(d []byte)) []byte {
		m := made{info: testInfo()}
		d := m.disk(t)
		change(d)
		return wrap(t, m, d)
	}
	info := func(change func(i *firmware.Info)) []byte {
		i := testInfo()
		change(i)
		return made{info: i}.file(t)
	}
	le := binary.LittleEndian
	fat := p1Start * 512
	compat := func(v string) []byte {
		return made{info: firmware.NewInfo([]string{testBoard}, v, "see the notes", firmware.Version{Dist: "Weft", Version: "9"})}.file(t)
	}
	for _, tt := range []struct {
		name  string
		image []byte
		with  func(*bed)
		want  string
	}{
		{"empty", nil, nil, "empty"},
		{"text", []byte("this is no image, and it is long enough to be looked at"), nil, "ends within"},
		{"wrong magic", with(func(d []byte) { d[0] = 0x11 }), nil, "EB48 or EB63"},
		{"no table", with(func(d []byte) { clear(d[446:510]) }), nil, "partition table"},
		{"partition at the end of the world", with(func(d []byte) { le.PutUint32(d[446+16+8:], 0xfffffff0) }), nil, "partition"},
		{"partitions crossed", with(func(d []byte) { le.PutUint32(d[446+16+8:], 600) }), nil, "partition 2"},
		{"no FAT", with(func(d []byte) { clear(d[fat : fat+512]) }), nil, "no FAT"},
		{"FAT of no clusters", with(func(d []byte) { le.PutUint16(d[fat+19:], 100) }), nil, "FAT"},
		{"no kernel", made{info: testInfo(), boot: map[string][]byte{"boot/initramfs.cpio.zst": noise(1, 100)}}.file(t), nil, "no boot/vmlinuz"},
		{"no squashfs", with(func(d []byte) { copy(d[rootStart*512:], "ext4") }), nil, "no squashfs"},
		{"squashfs of 1 TB", with(func(d []byte) { le.PutUint64(d[rootStart*512+40:], 1<<40) }), nil, "squashfs says"},
		{"squashfs beyond its partition", with(func(d []byte) { le.PutUint64(d[rootStart*512+40:], 600<<10) }), nil, "in a partition of"},
		{"root larger than the slot", made{info: testInfo()}.file(t), func(b *bed) { b.dev.RootSize = 4096 }, "slot's partition has"},
		{"wrong board", info(func(i *firmware.Info) { i.SupportedDevices = []string{"other-board"} }), nil, `not for this board: this is qemu-standard-pc, the image is for "other-board"`},
		{"no board", info(func(i *firmware.Info) { i.SupportedDevices = nil }), nil, "names none"},
		{"newer compat", compat("2.0"), nil, "compat version"},
		{"minor compat", compat("1.1"), nil, "without settings"},
		{"older compat", info(func(*firmware.Info) {}), func(b *bed) { b.dev.Compat = "2.0" }, "compat version"},
		{"trailing garbage", append(made{info: testInfo()}.signed(t, key), "garbage"...), func(b *bed) { b.dev.Keys, b.dev.Signers = ring(1, key), 1 }, "not signed"},
		{"unsigned", made{info: testInfo()}.file(t), func(b *bed) { b.dev.Keys, b.dev.Signers = ring(1, key), 1 }, "not signed"},
		{"unknown key", made{info: testInfo()}.signed(t, other), func(b *bed) { b.dev.Keys = ring(1, key) }, "not in the key folder"},
		{"revoked key", made{info: testInfo()}.signed(t, key), func(b *bed) { b.dev.Keys = ring(1, key); b.dev.Keys.Revoked[key.Fingerprint] = true }, "revoked"},
		{"one of two signers", made{info: testInfo()}.signed(t, key), func(b *bed) { b.dev.Keys, b.dev.Signers = ring(2, key, third), 2 }, "1, 2 must"},
		{"forged", forged(t, key), func(b *bed) { b.dev.Keys = ring(1, key) }, "does not fit"},
		{"no key folder", made{info: testInfo()}.signed(t, key), func(b *bed) { b.dev.Signers = 1 }, "no key folder"},
		{"stock", made{stock: true}.file(t), nil, "no image with two slots"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			if tt.with != nil {
				tt.with(b)
			}
			refused(t, b, tt.image, tt.want)
		})
	}
}

// TestForce: what is only not meant for this device can be forced, what is broken
// cannot.
func TestForce(t *testing.T) {
	wrong := testInfo()
	wrong.SupportedDevices = []string{"other-board"}
	b := newBed(t)
	r, err := Upgrade(t.Context(), source(made{info: wrong}.file(t)), b.dev, b.target, Options{Force: true}, nil)
	if err != nil || r.Valid || r.Tests[TestDevice] {
		t.Errorf("%v, %+v", err, r)
	}
	b = newBed(t)
	broken := made{info: testInfo()}.file(t)
	broken[len(broken)/2] ^= 1
	if _, err := Upgrade(t.Context(), source(broken), b.dev, b.target, Options{Force: true}, nil); !errors.Is(err, ErrRefused) || b.opened != 0 {
		t.Errorf("%v", err)
	}
	// Two of two signers: taken.
	k1, k2 := newKey(t), newKey(t)
	b = newBed(t)
	b.dev.Keys, b.dev.Signers = ring(2, k1, k2), 2
	m := made{info: testInfo()}
	m.keys = append(m.keys, k1)
	r, err = Upgrade(t.Context(), source(m.signed(t, k2)), b.dev, b.target, Options{}, nil)
	if err != nil || !slices.Equal(r.Signers, []string{k1.Fingerprint.String(), k2.Fingerprint.String()}) {
		t.Errorf("%v, signers %v", err, r.Signers)
	}
}

// TestBomb: an image that unpacks to much more than it should is refused without
// much memory.
func TestBomb(t *testing.T) {
	m := made{info: testInfo()}
	disk := m.disk(t)
	// The root partition is said to lie 4 GiB behind: reached only by unpacking.
	binary.LittleEndian.PutUint32(disk[446+16+8:], 6<<20)
	var out bytes.Buffer
	w := firmware.NewWriter(&out)
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	z.Write(disk)
	io.CopyN(z, zeros{}, 48<<20)
	z.Close()
	text, _ := m.info.Encode()
	w.Append(firmware.Metadata, text)
	image := out.Bytes()
	b := newBed(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_, err := Upgrade(t.Context(), source(image), b.dev, b.target, Options{}, nil)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrRefused) || b.root.writes != 0 || b.opened != 0 {
		t.Errorf("%v, %d bytes written", err, b.root.writes)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("%d MiB were allocated for an image of %d KiB", used>>20, len(image)>>10)
	}
}

// FuzzImage: no image, however made, may crash, hang, write to the running slot or
// be tried without having been whole.
func FuzzImage(f *testing.F) {
	small := made{info: testInfo(), root: squash(9, 5000), boot: map[string][]byte{"boot/vmlinuz": noise(1, 600), "boot/initramfs.cpio.zst": noise(2, 600)}}
	f.Add(small.file(f))
	raw := small
	raw.raw = true
	f.Add(raw.file(f)[:200<<10])
	f.Add([]byte{0x1f, 0x8b})
	b := newBed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Validate(t.Context(), source(data), b.dev, Keep{Config: true})
		if err != nil {
			t.Fatalf("not a verdict but an error: %v", err)
		}
		if r.Valid && len(r.Reasons) > 0 || !r.Valid && len(r.Reasons) == 0 {
			t.Errorf("%+v", r)
		}
	})
}

// FuzzFAT: whatever the boot partition holds, the wanted files come whole or not
// at all.
func FuzzFAT(f *testing.F) {
	whole := fat16(f, 4600, map[string][]byte{"boot/vmlinuz": noise(1, 600), "boot/initramfs.cpio.zst": noise(2, 600)})
	// The tables alone: the fuzzer wastes its time on empty clusters.
	f.Add(whole[:64<<10])
	f.Fuzz(func(t *testing.T, data []byte) {
		want := map[string]fatWant{}
		for _, s := range slot.Files(slot.A) {
			want[s.Image] = fatWant{s.Optional}
		}
		got := map[string]int64{}
		size := map[string]int64{}
		r := newFATReader(want, func(name string, n int64) (io.WriterAt, error) {
			size[name] = n
			return writerAt(func(b []byte, off int64) {
				if off+int64(len(b)) > n {
					t.Errorf("%s of %d bytes: %d at %d", name, n, len(b), off)
				}
				got[name] += int64(len(b))
			}), nil
		})
		_, err := r.Write(data)
		if cerr := r.Close(); err == nil {
			err = cerr
		}
		if err != nil && !errors.Is(err, ErrImage) {
			t.Errorf("untyped error %v", err)
		}
		for name, n := range size {
			if err == nil && got[name] != n {
				t.Errorf("%s: %d of %d bytes", name, got[name], n)
			}
		}
	})
}

type writerAt func([]byte, int64)

func (w writerAt) WriteAt(b []byte, off int64) (int, error) { w(b, off); return len(b), nil }
