package sysuptar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func archive(t testing.TB, board string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, board, 1767225600, Part{"root", 5, strings.NewReader("hsqs!")}, Part{"kernel", 6, strings.NewReader("kernel")}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	b := archive(t, "vendor,board-1")
	got := map[string]string{}
	board, members, err := Read(bytes.NewReader(b), 1<<20, func(m Member, r io.Reader) error {
		text, err := io.ReadAll(r)
		got[m.Name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if board != "vendor_board-1" || len(members) != 3 || got["kernel"] != "kernel" || strings.TrimRight(got["root"], "\x00") != "hsqs!" || len(got["root"]) != 1024 {
		t.Errorf("read %q %v %q", board, members, got)
	}
	if !bytes.Equal(b, archive(t, "vendor,board-1")) {
		t.Error("two runs gave different bytes")
	}
}

// TestGNUTar lets GNU tar judge: names in order, numeric owners, the time, and
// CONTROL's text.
func TestGNUTar(t *testing.T) {
	tool, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("GNU tar is not installed")
	}
	file := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(file, archive(t, "board"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, "--numeric-owner", "-tvf", file)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tar -t: %v\n%s", err, out)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"drwxr-xr-x 0/0 0 2026-01-01 00:00 sysupgrade-board/",
		"-rw-r--r-- 0/0 12 2026-01-01 00:00 sysupgrade-board/CONTROL",
		"-rw-r--r-- 0/0 6 2026-01-01 00:00 sysupgrade-board/kernel",
		"-rw-r--r-- 0/0 1024 2026-01-01 00:00 sysupgrade-board/root",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("GNU tar lists\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if out, err := exec.Command(tool, "-xOf", file, "sysupgrade-board/CONTROL").Output(); err != nil || string(out) != "BOARD=board\n" {
		t.Errorf("CONTROL: %q, %v", out, err)
	}
}

func TestRefuses(t *testing.T) {
	type member struct {
		typ        byte
		name, link string
		size       int64
		body       string
	}
	rootfs := member{typ: tar.TypeReg, name: "sysupgrade-b/root"}
	control := member{typ: tar.TypeReg, name: "sysupgrade-b/CONTROL", body: "BOARD=b\n"}
	for name, tt := range map[string]struct {
		members []member
		want    string
	}{
		"dots":          {[]member{control, {typ: tar.TypeReg, name: "sysupgrade-b/../../etc/passwd"}}, "outside"},
		"absolute":      {[]member{control, {typ: tar.TypeReg, name: "/etc/passwd"}}, "outside"},
		"link out":      {[]member{control, {typ: tar.TypeSymlink, name: "sysupgrade-b/root", link: "/dev/sda"}}, "type"},
		"hard link":     {[]member{control, {typ: tar.TypeLink, name: "sysupgrade-b/root", link: "/etc/shadow"}}, "type"},
		"device":        {[]member{control, {typ: tar.TypeBlock, name: "sysupgrade-b/root"}}, "type"},
		"twice":         {[]member{control, {typ: tar.TypeReg, name: "sysupgrade-b/root"}, {typ: tar.TypeReg, name: "sysupgrade-b/root"}}, "twice"},
		"two folders":   {[]member{control, {typ: tar.TypeReg, name: "sysupgrade-c/root"}}, "two folders"},
		"unknown":       {[]member{control, {typ: tar.TypeReg, name: "sysupgrade-b/run.sh"}}, "not known"},
		"1 GB claim":    {[]member{control, {typ: tar.TypeReg, name: "sysupgrade-b/root", size: 1 << 30}}, "claims 1073741824"},
		"large control": {[]member{{typ: tar.TypeReg, name: "sysupgrade-b/CONTROL", body: strings.Repeat("x", 5000)}}, "claims"},
		"no control":    {[]member{rootfs}, "CONTROL"},
		"no root":       {[]member{control}, "no root"},
		"other board":   {[]member{{typ: tar.TypeReg, name: "sysupgrade-b/CONTROL", body: "BOARD=c\n"}}, "CONTROL"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			tw := tar.NewWriter(&b)
			for _, m := range tt.members {
				h := &tar.Header{Typeflag: m.typ, Name: m.name, Linkname: m.link, Size: max(m.size, int64(len(m.body))), Mode: 0o644}
				if err := tw.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				io.WriteString(tw, m.body)
			}
			tw.Flush()
			_, _, err := Read(&b, 64<<20, func(m Member, _ io.Reader) error {
				if m.Size > 64<<20 {
					t.Errorf("%s of %d bytes was handed out", m.Name, m.Size)
				}
				return nil
			})
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrFormat with %q", err, tt.want)
			}
		})
	}
	whole := archive(t, "b")
	for n := range len(whole) - 2048 { // its last member is the root, of 1024 bytes
		if _, _, err := Read(bytes.NewReader(whole[:n]), 1<<20, func(_ Member, r io.Reader) error { return nil }); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
	var out bytes.Buffer
	if err := Write(&out, "a/b", 0); err == nil {
		t.Error("a board name with a slash was written")
	}
	if err := Write(&out, "a", 0, Part{"root", 10, strings.NewReader("short")}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a part shorter than it says: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(archive(f, "board"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, members, err := Read(bytes.NewReader(data), 1<<20, func(m Member, r io.Reader) error {
			n, err := io.Copy(io.Discard, r)
			if err == nil && n != m.Size || n > m.Size {
				t.Errorf("%s: %d bytes, said %d", m.Name, n, m.Size)
			}
			if err != nil {
				return errors.Join(ErrFormat, err)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("untyped error %v", err)
		}
		if len(members) > maxMembers {
			t.Errorf("%d members", len(members))
		}
	})
}
