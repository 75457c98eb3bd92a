package firmware

import (
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// image returns bytes that are no trailer, long enough to leave Split's tail.
func image(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}

func build(t testing.TB, img []byte, chunks ...any) []byte {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out)
	if _, err := w.Write(img); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(chunks); i += 2 {
		if err := w.Append(chunks[i].(Kind), chunks[i+1].([]byte)); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// TestTrailerBytes is the golden of lede-compat 4.1: a 203 byte JSON gives the
// size 0xE3 and type 1, a 516 byte ucert 0x214 and type 0, and the CRC is
// zlib's XOR 0xFFFFFFFF over all bytes before the trailer.
func TestTrailerBytes(t *testing.T) {
	img := []byte("EB63 image")
	json := bytes.Repeat([]byte("j"), 203)
	sig := bytes.Repeat([]byte("s"), 516)
	got := build(t, img, Metadata, json, Signature, sig)

	meta := append(append([]byte(nil), img...), make([]byte, 8)...)
	meta = append(meta, json...)
	want := append(meta, trailer(meta, "01", "000000e3")...)
	want = append(want, sig...)
	want = append(want, trailer(want, "00", "00000214")...)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
}

func trailer(before []byte, kind, size string) []byte {
	crc := crc32.ChecksumIEEE(before) ^ 0xffffffff
	b, err := hex.DecodeString("46577830" + hex.EncodeToString([]byte{byte(crc >> 24), byte(crc >> 16), byte(crc >> 8), byte(crc)}) + kind + "000000" + size)
	if err != nil {
		panic(err)
	}
	return b
}

func TestScanVerifySplit(t *testing.T) {
	meta, sig := []byte(`{"a":1}`), []byte("sig")
	for _, size := range []int{0, 5, 16, 1000, tailSize, 3*tailSize + 7} {
		img := image(size)
		for _, tt := range []struct {
			name   string
			chunks []any
			signed int
		}{
			{"none", nil, size},
			{"metadata", []any{Metadata, meta}, size + 8 + 7 + 16},
			{"both", []any{Metadata, meta, Signature, sig}, size + 8 + 7 + 16},
			{"signature", []any{Signature, sig}, size},
		} {
			file := build(t, img, tt.chunks...)
			f, err := Scan(bytes.NewReader(file), int64(len(file)))
			if err != nil {
				t.Fatalf("%s, %d: %v", tt.name, size, err)
			}
			if f.ImageSize != int64(size) || len(f.Chunks) != len(tt.chunks)/2 || f.Signed() != int64(tt.signed) {
				t.Errorf("%s, %d: image %d, %d chunks, signed %d", tt.name, size, f.ImageSize, len(f.Chunks), f.Signed())
			}
			if err := f.Verify(bytes.NewReader(file)); err != nil {
				t.Errorf("%s, %d: %v", tt.name, size, err)
			}
			var out bytes.Buffer
			g, err := Split(&out, iotest.HalfReader(bytes.NewReader(file)))
			if err != nil {
				t.Fatalf("%s, %d: Split: %v", tt.name, size, err)
			}
			if !bytes.Equal(out.Bytes(), img) {
				t.Errorf("%s, %d: Split gave %d bytes that are not the image", tt.name, size, out.Len())
			}
			if g.ImageSize != f.ImageSize || len(g.Chunks) != len(f.Chunks) {
				t.Errorf("%s, %d: Split found %+v, Scan %+v", tt.name, size, g, f)
			}
			for i := range g.Chunks {
				if g.Chunks[i].Offset != f.Chunks[i].Offset || !bytes.Equal(g.Chunks[i].Payload, f.Chunks[i].Payload) {
					t.Errorf("%s, %d: chunk %d: Split %+v, Scan %+v", tt.name, size, i, g.Chunks[i], f.Chunks[i])
				}
			}
			_, err = f.Payload(Metadata)
			if has := len(tt.chunks) > 0 && tt.chunks[0] == Metadata; has == errors.Is(err, ErrNotFound) {
				t.Errorf("%s: Payload(Metadata): %v", tt.name, err)
			}
		}
	}
}

// TestEveryFlippedBitIsSeen damages each byte of a small file in turn.
func TestEveryFlippedBitIsSeen(t *testing.T) {
	file := build(t, image(40), Metadata, []byte(`{"a":1}`), Signature, []byte("sig"))
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 4
		f, err := Scan(bytes.NewReader(bad), int64(len(bad)))
		if err == nil && len(f.Chunks) == 2 {
			err = f.Verify(bytes.NewReader(bad))
			// Three bytes of each trailer are unused; of these only the second
			// trailer's are covered by nothing.
			if unused := i >= len(file)-7 && i < len(file)-4; err == nil && !unused {
				t.Errorf("flipping byte %d of %d went unseen", i, len(file))
			}
		}
		_, serr := Split(io.Discard, bytes.NewReader(bad))
		if err != nil && serr == nil {
			t.Errorf("byte %d: Scan and Verify say %v, Split nothing", i, err)
		}
	}
}

func TestLimits(t *testing.T) {
	w := NewWriter(io.Discard)
	if err := w.Append(Metadata, make([]byte, MaxMetadata+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("metadata over the limit: %v", err)
	}
	if err := w.Append(Signature, make([]byte, MaxSignature+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("signature over the limit: %v", err)
	}
	file := build(t, nil, Metadata, make([]byte, MaxMetadata), Signature, make([]byte, MaxSignature))
	if f, err := Scan(bytes.NewReader(file), int64(len(file))); err != nil || len(f.Chunks) != 2 {
		t.Errorf("payloads at the limit: %v, %v", f, err)
	}
}

func TestAppendFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, image(100), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, k := range []Kind{Metadata, Signature} {
		if err := AppendFile(path, k, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := build(t, image(100), Metadata, []byte("x"), Signature, []byte("x")); !bytes.Equal(got, want) {
		t.Error("appending to a file gives other bytes than writing at once")
	}
}

func TestInfo(t *testing.T) {
	v := Version{"weft", "0.1.0", "r1-abc", "x86/64", "generic"}
	i := NewInfo([]string{"generic", "b"}, "1.0", "", v)
	text, err := i.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"metadata_version":"1.1","compat_version":"1.0","supported_devices":["generic","b"],"version":{"dist":"weft","version":"0.1.0","revision":"r1-abc","target":"x86/64","board":"generic"}}` + "\n"
	if string(text) != want {
		t.Errorf("got  %swant %s", text, want)
	}
	i = NewInfo([]string{"b"}, "2.0", "Use -n.", v)
	if len(i.SupportedDevices) != 1 || !strings.Contains(i.SupportedDevices[0], "Use -n.") || i.Devices()[0] != "b" {
		t.Errorf("compat 2.0: %+v", i)
	}
	file := build(t, image(9), Metadata, text)
	f, err := Scan(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Info(); err != nil || got.Version != v {
		t.Errorf("Info() = %+v, %v", got, err)
	}
}

func FuzzScan(f *testing.F) {
	f.Add(build(f, image(40), Metadata, []byte(`{"a":1}`), Signature, []byte("sig")))
	f.Add(build(f, nil, Signature, []byte("")))
	f.Add([]byte("FWx0aaaa\x01\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Scan(bytes.NewReader(data), int64(len(data)))
		if err == nil {
			err = file.Verify(bytes.NewReader(data))
		}
		var out bytes.Buffer
		split, serr := Split(&out, bytes.NewReader(data))
		if (err == nil) != (serr == nil) {
			t.Fatalf("Scan and Verify say %v, Split %v", err, serr)
		}
		if err == nil && (split.ImageSize != file.ImageSize || !bytes.Equal(out.Bytes(), data[:file.ImageSize])) {
			t.Fatalf("Split left %d bytes, Scan %d", split.ImageSize, file.ImageSize)
		}
		if err == nil {
			_, _ = file.Info()
		}
	})
}
