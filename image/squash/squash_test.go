package squash

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"weft/image/pins"
)

func TestParseList(t *testing.T) {
	const text = `drwxr-xr-x 0/0                71 2023-11-14 22:13 
-rwxr-xr-x 0/0           3000000 2023-11-14 22:13 /a name with  blanks
crw------- 0/0             5,  1 2023-11-14 22:13 /dev/console
lrwxrwxrwx 0/0                 8 2023-11-14 22:13 /lnk -> bin/f001
`
	got, err := parseList(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{Mode: "drwxr-xr-x", Owner: "0/0"},
		{Mode: "-rwxr-xr-x", Owner: "0/0", Size: 3000000, Path: "a name with  blanks"},
		{Mode: "crw-------", Owner: "0/0", Dev: "5,1", Path: "dev/console"},
		{Mode: "lrwxrwxrwx", Owner: "0/0", Path: "lnk", Link: "bin/f001"},
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("line %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("crw------- 0/0             5,  1 2023-11-14 22:13 /dev/console\n")
	f.Add("lrwxrwxrwx 0/0 8 2023-11-14 22:13 /lnk")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parseList(text); err != nil && !errors.Is(err, errLine) {
			t.Errorf("untyped error %v", err)
		}
	})
}

// TestRoundTrip writes a squashfs with one and with two processors and reads
// it back, by the pinned programs: with those of squashfs-tools 4.5.1 the bytes
// depend now and then on the number of processors.
func TestRoundTrip(t *testing.T) {
	store, err := pins.Open(pins.Options{})
	if err != nil {
		t.Fatal(err)
	}
	mksquashfs, err := store.Tool(t.Context(), "mksquashfs")
	if err != nil {
		t.Skipf("the pinned mksquashfs cannot be had: %v", err)
	}
	unsquashfs, err := store.Tool(t.Context(), "unsquashfs")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("some text that compresses "), 40000)
	feed := func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for _, h := range []tar.Header{
			{Name: "dev/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "dev/console", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 5, Devminor: 1},
			{Name: "f", Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(data)), Uid: 3, Gid: 4}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "f", Mode: 0o777},
		} {
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
			if h.Typeflag == tar.TypeReg {
				if _, err := tw.Write(data); err != nil {
					return err
				}
			}
		}
		return tw.Close()
	}
	var made [2][]byte
	for i := range made {
		old := runtime.GOMAXPROCS(i + 1)
		file := filepath.Join(t.TempDir(), "s")
		err := Write(t.Context(), mksquashfs, file, 1700000000, feed)
		runtime.GOMAXPROCS(old)
		if err != nil {
			t.Fatal(err)
		}
		if made[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		list, err := List(t.Context(), unsquashfs, file)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != 5 || list[3].Owner != "3/4" || list[2].Dev != "5,1" {
			t.Errorf("listed %+v", list)
		}
		var b bytes.Buffer
		if err := Cat(t.Context(), unsquashfs, file, "f", &b); err != nil || !bytes.Equal(b.Bytes(), data) {
			t.Errorf("Cat: %d bytes, %v", b.Len(), err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("one and two processors give different bytes")
	}
	boom := errors.New("boom")
	if err := Write(t.Context(), mksquashfs, filepath.Join(t.TempDir(), "s"), 1, func(io.Writer) error { return boom }); err == nil {
		t.Error("a failing feed gave a file system")
	}
}
