package sysupgrade

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/image/firmware"
	"weft/image/firmware/trust"
	"weft/image/firmware/ucert"
	"weft/image/firmware/usign"
	"weft/init/rootdisk"
	"weft/init/slot"
)

// made describes an image that a test makes: small, but of the true shape.
type made struct {
	stock bool // two partitions, no slots
	gpt   bool
	boot  map[string][]byte // files of the boot partition; nil: kernel and initramfs
	root  []byte            // squashfs; nil: some KiB
	info  *firmware.Info    // nil: none
	keys  []*usign.SecretKey
	raw   bool // not gzipped
	sig   uint32
}

const (
	p1Start     = 512
	p1Sectors   = 5120
	rootStart   = 6144
	rootSectors = 1024 // 512 KiB
)

var testBoard = "qemu-standard-pc"

func testInfo() *firmware.Info {
	return firmware.NewInfo([]string{testBoard}, "1.0", "", firmware.Version{Dist: "Weft", Version: "0.2.0", Revision: "r2", Target: "x86/64", Board: "generic"})
}

// noise is data that does not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

// squash is something with a squashfs superblock.
func squash(seed uint64, n int) []byte {
	b := noise(seed, n)
	copy(b, "hsqs")
	binary.LittleEndian.PutUint64(b[40:], uint64(n))
	return append(b, make([]byte, (4096-n%4096)%4096)...)
}

func bootFiles(seed uint64) map[string][]byte {
	return map[string][]byte{
		"boot/vmlinuz":            noise(seed, 70000),
		"boot/initramfs.cpio.zst": noise(seed+1, 33333),
		"boot/grub/grub.cfg":      []byte("linux /boot/vmlinuz root=PARTUUID=1a2b3c4d-02 rootwait\n"),
	}
}

// fat16 makes a file system as mtools lays it out: folders first, then files.
func fat16(t testing.TB, sectors int, files map[string][]byte) []byte {
	t.Helper()
	const reserved, fats, entries = 1, 2, 512
	fatSectors := (sectors + 255) / 256
	img := make([]byte, sectors*512)
	copy(img, []byte{0xeb, 0x3c, 0x90})
	le := binary.LittleEndian
	le.PutUint16(img[11:], 512)
	img[13] = 1
	le.PutUint16(img[14:], reserved)
	img[16] = fats
	le.PutUint16(img[17:], entries)
	le.PutUint16(img[19:], uint16(sectors))
	img[21] = 0xf8
	le.PutUint16(img[22:], uint16(fatSectors))
	copy(img[54:], "FAT16   ")
	img[510], img[511] = 0x55, 0xaa
	root := (reserved + fats*fatSectors) * 512
	data := root + entries*32
	next := 2
	alloc := func(b []byte) int {
		first := next
		for n := 0; n < max(len(b), 1); n += 512 {
			copy(img[data+(next-2)*512:], b[n:min(n+512, len(b))])
			link := uint16(next + 1)
			if n+512 >= len(b) {
				link = 0xffff
			}
			for k := range fats {
				le.PutUint16(img[(reserved+k*fatSectors)*512+2*next:], link)
			}
			next++
		}
		return first
	}
	type dir struct{ at, used int }
	dirs := map[string]*dir{".": {at: root}}
	add := func(name string, attr byte, first, size int) {
		d := dirs[path.Dir(name)]
		base := path.Base(name)
		short := fmt.Sprintf("F%07d   ", next)
		sum := byte(0)
		for _, c := range []byte(short) {
			sum = sum>>1 | sum<<7
			sum += c
		}
		u := append([]byte(base), 0)
		parts := (len(base) + 12) / 13
		for n := parts; n >= 1; n-- {
			e := img[d.at+d.used*32:][:32]
			d.used++
			e[0] = byte(n)
			if n == parts {
				e[0] |= 0x40
			}
			e[11], e[13] = 0x0f, sum
			i := (n - 1) * 13
			for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
				for at := r[0]; at < r[1]; at += 2 {
					c := uint16(0xffff)
					if i < len(u) {
						c = uint16(u[i])
					}
					le.PutUint16(e[at:], c)
					i++
				}
			}
		}
		e := img[d.at+d.used*32:][:32]
		d.used++
		copy(e, short)
		e[11] = attr
		le.PutUint16(e[26:], uint16(first))
		le.PutUint32(e[28:], uint32(size))
	}
	var names []string
	for n := range files {
		names = append(names, n)
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			if dirs[d] == nil {
				dirs[d] = &dir{}
			}
		}
	}
	var folders []string
	for d := range dirs {
		if d != "." {
			folders = append(folders, d)
		}
	}
	slices.Sort(folders)
	slices.Sort(names)
	for _, d := range folders {
		first := alloc(make([]byte, 512))
		dirs[d].at = data + (first-2)*512
		add(d, 0x10, first, 0)
	}
	for _, n := range names {
		add(n, 0x20, alloc(files[n]), len(files[n]))
	}
	if next > sectors-data/512 {
		t.Fatal("the files do not fit")
	}
	return img
}

// disk is the plain disk image.
func (m made) disk(t testing.TB) []byte {
	t.Helper()
	if m.boot == nil {
		m.boot = bootFiles(1)
	}
	if m.root == nil {
		m.root = squash(9, 300000)
	}
	if m.sig == 0 {
		m.sig = 0x1a2b3c4d
	}
	parts := [][2]uint64{{p1Start, p1Sectors}, {rootStart, rootSectors}}
	end := rootStart + rootSectors
	if !m.stock {
		parts = append(parts, [2]uint64{7168, rootSectors}, [2]uint64{8192, 512})
		end = 8704
	}
	img := make([]byte, end*512)
	img[0], img[1] = 0xeb, 0x63
	le := binary.LittleEndian
	le.PutUint32(img[440:], m.sig)
	img[510], img[511] = 0x55, 0xaa
	if m.gpt {
		writeGPT(img, parts, m.sig)
	} else {
		for i, p := range parts {
			e := img[446+16*i:]
			e[4] = 0x83
			le.PutUint32(e[8:], uint32(p[0]))
			le.PutUint32(e[12:], uint32(p[1]))
		}
		img[446] = 0x80
	}
	copy(img[p1Start*512:], fat16(t, p1Sectors, m.boot))
	copy(img[rootStart*512:], m.root)
	return img
}

// diskGUID is what LEDE derives from a signature in these tests.
func diskGUID(sig uint32, n byte) [16]byte {
	var g [16]byte
	binary.LittleEndian.PutUint32(g[:], sig)
	copy(g[4:], []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
	g[15] = n
	return g
}

func writeGPT(img []byte, parts [][2]uint64, sig uint32) {
	le := binary.LittleEndian
	copy(img[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	le.PutUint32(img[458:], uint32(len(img)/512-1))
	for i, p := range parts {
		e := img[1024+128*i:]
		copy(e, rootdisk.TypeLinux[:])
		g := diskGUID(sig, byte(i+1))
		copy(e[16:], g[:])
		le.PutUint64(e[32:], p[0])
		le.PutUint64(e[40:], p[0]+p[1]-1)
	}
	h := img[512:1024]
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[40:], 34)
	le.PutUint64(h[48:], uint64(len(img)/512-1))
	g := diskGUID(sig, 0)
	copy(h[56:], g[:])
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(img[1024:1024+128*128]))
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
}

// file is the image file with gzip and trailers.
func (m made) file(t testing.TB) []byte {
	t.Helper()
	return wrap(t, m, m.disk(t))
}

func wrap(t testing.TB, m made, disk []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := firmware.NewWriter(&out)
	if m.raw {
		w.Write(disk)
	} else {
		z, _ := gzip.NewWriterLevel(w, 1)
		z.Write(disk)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if m.info != nil {
		text, err := m.info.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(firmware.Metadata, text); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range m.keys {
		s := &usign.Signature{Fingerprint: k.Fingerprint}
		copy(s.Bytes[:], ed25519.Sign(k.Key, out.Bytes()))
		if err := w.Append(firmware.Signature, ucert.Chain{{Signature: s}}.Encode()); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func newKey(t testing.TB) *usign.SecretKey {
	t.Helper()
	k, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ring(n int, keys ...*usign.SecretKey) *trust.Keyring {
	k := &trust.Keyring{Required: n, Revoked: map[usign.Fingerprint]bool{}}
	for _, s := range keys {
		k.Keys = append(k.Keys, s.Public())
	}
	return k
}

// bytesSource is a Source in memory.
type bytesSource struct {
	*bytes.Reader
	once bool
}

func source(b []byte) *bytesSource { return &bytesSource{Reader: bytes.NewReader(b)} }

func (s *bytesSource) Name() string { return "test image" }
func (s *bytesSource) Twice() bool  { return !s.once }
func (s *bytesSource) Close() error { return nil }
func (s *bytesSource) Stream(ctx context.Context) io.ReadCloser {
	return io.NopCloser(&ctxReader{ctx, io.NewSectionReader(s.Reader, 0, s.Size())})
}

// memVolume is a partition in memory that counts, and fails if told to.
type memVolume struct {
	data   []byte
	writes int
	flip   int64 // from this byte on reads give back something else; -1: never
	fail   error
	synced int
}

func newVolume(n int) *memVolume { return &memVolume{data: make([]byte, n), flip: -1} }

func (m *memVolume) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(b, m.data[off:])
	if m.flip >= off && m.flip < off+int64(n) {
		b[m.flip-off] ^= 1
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memVolume) WriteAt(b []byte, off int64) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	m.writes += len(b)
	if off+int64(len(b)) > int64(len(m.data)) {
		return 0, errors.New("beyond the end")
	}
	return copy(m.data[off:], b), nil
}

func (m *memVolume) Sync() error { m.synced++; return nil }

// bed is a device: slot a runs, slot b is written.
type bed struct {
	t      testing.TB
	boot   string
	data   string
	root   *memVolume
	target *Target
	dev    *Device
	opened int
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, boot: t.TempDir(), data: t.TempDir(), root: newVolume(rootSectors * 512)}
	for name, data := range bootFiles(50) {
		write(t, filepath.Join(b.boot, name), string(data))
	}
	st := slot.Fresh()
	block, err := slot.Block(st)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"grubenv", "grubenv2"} {
		write(t, filepath.Join(b.boot, "boot/grub", n), string(block))
	}
	b.target = &Target{Slot: slot.B, Root: b.root, RootSize: int64(len(b.root.data)), Data: b.data,
		Boot: func(context.Context) (string, func() error, error) {
			b.opened++
			return b.boot, func() error { return nil }, nil
		}}
	table, err := rootdisk.ReadTable(bytes.NewReader(made{}.disk(t)[:headSize]), 1<<20, 512)
	if err != nil {
		t.Fatal(err)
	}
	b.dev = &Device{Boards: []string{testBoard}, Table: table, RootSize: b.target.RootSize, Now: time.Now()}
	return b
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// state is everything on the device that a boot depends on, and the slot's root.
func (b *bed) state() string {
	b.t.Helper()
	var s strings.Builder
	for _, dir := range []string{b.boot, b.data} {
		filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, _ := os.ReadFile(p)
			fmt.Fprintf(&s, "%s %08x\n", strings.TrimPrefix(p, dir), crc32.ChecksumIEEE(text))
			return nil
		})
	}
	fmt.Fprintf(&s, "root %08x\n", crc32.ChecksumIEEE(b.root.data))
	return s.String()
}

func (b *bed) slots() slot.State {
	b.t.Helper()
	st, notes := slot.Read(b.boot)
	if len(notes) > 0 {
		b.t.Fatalf("slot state: %v", notes)
	}
	return st
}

// signed is the image with one more signature.
func (m made) signed(t testing.TB, k *usign.SecretKey) []byte {
	m.keys = append(slices.Clone(m.keys), k)
	return m.file(t)
}

// forged bears a signature of the key over other bytes; its checksums fit.
func forged(t testing.TB, k *usign.SecretKey) []byte {
	t.Helper()
	var out bytes.Buffer
	w := firmware.NewWriter(&out)
	w.Write(made{info: testInfo()}.file(t))
	s := &usign.Signature{Fingerprint: k.Fingerprint}
	copy(s.Bytes[:], ed25519.Sign(k.Key, []byte("something else")))
	if err := w.Append(firmware.Signature, ucert.Chain{{Signature: s}}.Encode()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
