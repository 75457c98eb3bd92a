package pins

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is an archive with one of everything that a lock may ask for.
func world(t testing.TB, kernel, foo string) *archive {
	a := newArchive(t)
	a.add(slices.Concat(libc("amd64"), libc("arm64"))...)
	for _, arch := range []string{"amd64", "arm64"} {
		dir, interp := "usr/lib/x86_64-linux-gnu/", "/lib64/ld-linux-x86-64.so.2"
		if arch == "arm64" {
			dir, interp = "usr/lib/aarch64-linux-gnu/", "/lib/ld-linux-aarch64.so.1"
		}
		a.add(
			testDeb{name: "linux-image-" + arch, version: kernel, arch: arch, source: "linux", depends: "linux-base, linux-image-" + kernel + "-" + arch + " (= " + kernel + ")"},
			testDeb{name: "linux-image-" + kernel + "-" + arch, version: kernel, arch: arch, source: "linux", files: []file{{name: "boot/vmlinuz-" + kernel, data: "kernel"}}},
			testDeb{name: "foo", version: foo, arch: arch, depends: "libfoo1 (= 1.0), unneeded | other, libc6", files: []file{
				{name: "usr/bin/foo", mode: 0o755, data: elfFile{arch: arch, interp: interp, needed: []string{"libfoo.so.1", "libc.so.6"}}.String()},
				{name: "usr/share/doc/foo/copyright", data: "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: MIT\n\nFiles: debian/*\nLicense: GPL-2+\n\nLicense: GPL-2+\n Text.\n"},
			}},
			testDeb{name: "libfoo1", version: foo, arch: arch, source: "foo", depends: "libc6, foo-private", files: []file{
				{name: dir + "libfoo.so.1", link: "libfoo.so.1.0.0"},
				{name: dir + "libfoo.so.1.0.0", data: elfFile{arch: arch, soname: "libfoo.so.1", needed: []string{"libc.so.6", "libodd.so.2"}, runpath: "/usr/lib/foo"}.String()},
			}},
			testDeb{name: "foo-private", arch: arch, files: []file{
				{name: "usr/lib/foo/libodd.so.2", data: elfFile{arch: arch, soname: "libodd.so.2"}.String()},
			}},
			testDeb{name: "unneeded", arch: arch, files: []file{{name: "usr/share/unneeded", data: "x"}}},
		)
	}
	return a.add(testDeb{name: "foo-data", arch: "all", version: foo, source: "foo", files: []file{{name: "usr/share/foo/data", data: "data"}}})
}

const worldRequest = `
[meta.kernel]
why = "the kernel"
prefix = "linux-image-6.12."
[meta.kernel.package]
amd64 = "linux-image-amd64"
arm64 = "linux-image-arm64"

[tool.foo]
package = "foo"
program = "usr/bin/foo"
names = ["bar"]
files = ["foo-data:usr/share/foo"]

[image.foo]
files = ["usr/bin/foo"]

[data.foo-data]
`

func TestUpdate(t *testing.T) {
	a := world(t, "6.12.1", "1.0")
	o := a.options(t)
	o.Lock = a.lockFile(t, o, worldRequest)
	l, err := parseLock(o.Lock, []byte(readFile(t, o.Lock)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Lock.Suites, []lockedSuite{
		{"trixie", "2026-11-21T09:15:44Z"}, {"trixie-updates", "2026-11-21T09:15:44Z"}, {"trixie-security", "2026-11-21T09:15:44Z"},
	}; !slices.Equal(got, want) {
		t.Errorf("suites: got %v, want %v", got, want)
	}
	foo := []string{"foo", "foo-private", "libc6", "libfoo1"}
	wantClosures := []lockedClosure{
		{"amd64", "data.foo-data", []string{"foo-data"}},
		{"amd64", "image.foo", foo},
		{"amd64", "meta.kernel", []string{"linux-image-6.12.1-amd64"}},
		{"amd64", "tool.foo", []string{"foo", "foo-data", "foo-private", "libc6", "libfoo1", "libgcc-s1"}},
	}
	if d := cmp.Diff(wantClosures, l.Lock.Closures); d != "" {
		t.Errorf("closures (-want +got):\n%s", d)
	}
	got := map[string]Package{}
	var ids []string
	for _, p := range l.Lock.Packages {
		got[p.Name] = p
		ids = append(ids, p.ID())
	}
	if want := []string{"foo:amd64", "foo-data:all", "foo-private:amd64", "libc6:amd64", "libfoo1:amd64", "libgcc-s1:amd64", "linux-image-6.12.1-amd64:amd64"}; !slices.Equal(ids, want) {
		t.Errorf("packages: got %q, want %q: what is needed and no more, sorted", ids, want)
	}
	for name, want := range map[string]string{"foo": "GPL-2+, MIT", "libc6": "", "libgcc-s1": "GPL-3+ with exception"} {
		if got[name].Licence != want {
			t.Errorf("licence of %s: got %q, want %q", name, got[name].Licence, want)
		}
	}
	for name, want := range map[string]string{"libfoo1": "libfoo.so.1", "foo-private": "usr/lib/foo/libodd.so.2"} {
		if !slices.Equal(got[name].Libs, []string{want}) {
			t.Errorf("libraries of %s: got %q, want %q", name, got[name].Libs, want)
		}
	}
	if p := got["foo"]; p.Version != "1.0" || p.Suite != "trixie" || p.Source != "foo" || p.Pool != "pool/main/foo/foo_1.0_amd64.deb" {
		t.Errorf("got %+v", p)
	}

	// The same archive gives the same bytes, and the request stays as it was.
	text := readFile(t, o.Lock)
	if changed, err := Update(t.Context(), UpdateOptions{Options: o}); changed || err != nil {
		t.Errorf("a second update: changed %t, %v", changed, err)
	}
	if again := readFile(t, o.Lock); again != text {
		t.Errorf("a second update (-want +got):\n%s", cmp.Diff(text, again))
	}
	if !strings.HasPrefix(text, "release = \"trixie\"\ncomponents = [\"main\"]\n"+worldRequest) {
		t.Errorf("the request was changed:\n%s", text)
	}
}

func TestUpdateChangesLittle(t *testing.T) {
	a := world(t, "6.12.1", "1.0")
	o := a.options(t)
	o.Lock = a.lockFile(t, o, worldRequest)
	old := readFile(t, o.Lock)
	// A newer version of foo's library, as a security update.
	lib := a.suites["trixie"][slices.IndexFunc(a.suites["trixie"], func(d testDeb) bool { return d.name == "libfoo1" && d.arch == "amd64" })]
	lib.version = "1.0+deb13u1"
	a.addTo("trixie-security", lib)

	var out bytes.Buffer
	changed, err := Update(t.Context(), UpdateOptions{Options: o, DryRun: true, Stdout: &out})
	if err != nil || !changed || readFile(t, o.Lock) != old {
		t.Errorf("a dry run: changed %t, %v", changed, err)
	}
	if want := "  libfoo1:amd64 1.0 -> 1.0+deb13u1 (trixie-security)\n7 packages, 1 changed\n"; out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	if _, err := Update(t.Context(), UpdateOptions{Options: o}); err != nil {
		t.Fatal(err)
	}
	before, after := strings.Split(old, "\n"), strings.Split(readFile(t, o.Lock), "\n")
	if len(before) != len(after) {
		t.Fatalf("%d lines became %d", len(before), len(after))
	}
	n := 0
	for i := range before {
		if before[i] != after[i] {
			n++
		}
	}
	if n != 5 { // version, suite, pool, sha256, size
		t.Errorf("%d lines changed, want 5:\n%s", n, cmp.Diff(before, after))
	}
}

func TestUpdateOtherArchitecture(t *testing.T) {
	a := world(t, "6.12.1", "1.0")
	o := a.options(t)
	s := a.locked(t, o, worldRequest)
	if _, err := s.Files(t.Context(), "arm64", []Want{{Package: "foo"}}); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "--arch arm64") {
		t.Errorf("before: got %v, want ErrUnknown with the command that adds it", err)
	}
	o.Lock = s.lockName
	if _, err := Update(t.Context(), UpdateOptions{Options: o, Arch: []string{"arm64"}}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Architectures(); !slices.Equal(got, []string{"amd64", "arm64"}) {
		t.Errorf("architectures: %q", got)
	}
	files, err := s.Files(t.Context(), "arm64", []Want{{Package: "foo"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		line := f.Path + " " + f.Mode.Perm().String() + " " + f.Package
		if f.Link != "" {
			line += " -> " + f.Link
		}
		got = append(got, line)
	}
	want := []string{
		"lib/ld-linux-aarch64.so.1 -rwxrwxrwx libc6:arm64 -> ../usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
		"usr/bin/foo -rwxr-xr-x foo:arm64",
		"usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1 -rwxr-xr-x libc6:arm64",
		"usr/lib/aarch64-linux-gnu/libc.so.6 -rwxr-xr-x libc6:arm64",
		"usr/lib/aarch64-linux-gnu/libfoo.so.1 -rwxrwxrwx libfoo1:arm64 -> libfoo.so.1.0.0",
		"usr/lib/aarch64-linux-gnu/libfoo.so.1.0.0 -rw-r--r-- libfoo1:arm64",
		"usr/lib/foo/libodd.so.2 -rw-r--r-- foo-private:arm64",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if _, ok := s.Package("kernel:arm64"); !ok {
		t.Error("no kernel for arm64")
	}
}

func TestUpdateErrors(t *testing.T) {
	tests := map[string]struct{ request, want string }{
		"no such package":     {"[data.bar]\n", "no package bar"},
		"no such file":        {"[image.foo]\nfiles = [\"usr/bin/food\"]\n", "has no file usr/bin/food"},
		"no such meta":        {"[meta.kernel]\nprefix = \"linux-image-6.6.\"\npackage = { amd64 = \"linux-image-amd64\" }\n", "depends on no package that starts with"},
		"a library is absent": {"[image.broken]\nfiles = [\"usr/bin/broken\"]\n", "Debian would have it in package libmissing7"},
		"unknown key":         {"[data.foo]\nwhere = \"there\"\n", "unknown key \"data.foo.where\""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := world(t, "6.12.1", "1.0").add(testDeb{name: "broken", depends: "libc6", files: []file{
				{name: "usr/bin/broken", data: elfFile{needed: []string{"libmissing.so.7"}}.String()},
			}})
			o := a.options(t)
			o.Lock = filepath.Join(t.TempDir(), "pins.toml")
			writeFile(t, o.Lock, "release = \"trixie\"\ncomponents = [\"main\"]\n"+tt.request)
			if _, err := Update(t.Context(), UpdateOptions{Options: o, Arch: []string{"amd64"}}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestDrift takes pinned versions away from the mirrors.
func TestDrift(t *testing.T) {
	a := world(t, "6.12.1", "1.0")
	o := a.options(t)
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := a.locked(t, o, worldRequest)
	if err := s.Fetch(t.Context(), "libfoo1"); err != nil { // of the same source as foo, and in the cache already
		t.Fatal(err)
	}
	next := world(t, "6.12.2", "1.1")
	a.mu.Lock()
	a.files = map[string][]byte{}
	a.suites = next.suites
	a.mu.Unlock()
	a.publishAt(testTime.Add(time.Minute), testTime.Add(time.Hour))

	strict := o
	strict.Lock, strict.Strict = s.lockName, true
	refusing, err := Open(strict)
	if err != nil {
		t.Fatal(err)
	}
	refusing.host = "amd64"
	if err := refusing.Fetch(t.Context(), "foo"); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), updateHint) {
		t.Errorf("strict: got %v, want ErrGone with the command that mends it", err)
	}

	if err := s.Fetch(t.Context(), "foo", "kernel", "libc6"); err != nil {
		t.Fatal(err)
	}
	check := func(s *Store) {
		t.Helper()
		var got []string
		for _, p := range s.Drifted() {
			got = append(got, p.String())
		}
		// libfoo1 too: it was there, but must be of foo's version. libc6 was not touched.
		want := []string{"foo 1.1 (amd64)", "foo-data 1.1 (all)", "libfoo1 1.1 (amd64)", "linux-image-6.12.2-amd64 6.12.2 (amd64)"}
		if !slices.Equal(got, want) {
			t.Errorf("drifted: got %q, want %q", got, want)
		}
		if p, ok := s.Package("kernel"); !ok || p.Name != "linux-image-6.12.2-amd64" || !p.Drifted {
			t.Errorf("the kernel is %v %t", p, ok)
		}
		dir, err := s.Unpack(t.Context(), "kernel:amd64")
		if err != nil {
			t.Fatal(err)
		}
		if !exists(dir + "/boot/vmlinuz-6.12.2") {
			t.Error("the kernel's tree is not that of the new one")
		}
		tool, err := s.Tool(t.Context(), "foo")
		if err != nil {
			t.Fatal(err)
		}
		if !exists(tool.Path()) {
			t.Error("the tool has no program")
		}
	}
	check(s)
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), updateHint) {
		t.Errorf("%d warnings, want one that names the way out:\n%s", n, &log)
	}

	// Another run needs no network, and still tells.
	a.server.Close()
	log.Reset()
	o.Lock = s.lockName
	again, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	again.host = "amd64"
	check(again)
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings in the next run, want one:\n%s", n, &log)
	}
	if refusing, err = Open(strict); err != nil || len(refusing.Drifted()) > 0 {
		t.Errorf("strict uses what another run had to replace: %v", err)
	}
}

func TestDriftNeedsSignedIndex(t *testing.T) {
	a := world(t, "6.12.1", "1.0")
	s := a.locked(t, a.options(t), worldRequest)
	next := world(t, "6.12.2", "1.1")
	a.mu.Lock()
	a.files = map[string][]byte{}
	a.suites, a.key = next.suites, next.key
	a.mu.Unlock()
	a.publish()
	if err := s.Fetch(t.Context(), "foo"); !errors.Is(err, ErrSignature) || !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want ErrGone and ErrSignature", err)
	}
	if len(s.Drifted()) > 0 || exists(s.driftPath()) {
		t.Error("something unsigned was taken")
	}
}

func TestDriftOfWhatIsListed(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	a.mu.Lock()
	for name := range a.files {
		if strings.Contains(name, "/pool/") {
			delete(a.files, name)
		}
	}
	a.mu.Unlock()
	if err := s.Fetch(t.Context(), "hello"); err == nil || !strings.Contains(err.Error(), "try again in some minutes") {
		t.Errorf("got %v, want that the mirrors are being updated", err)
	}
}

func TestDriftRecordDamaged(t *testing.T) {
	a := newArchive(t).add(hello())
	o := a.options(t)
	s := a.locked(t, o, helloRequest)
	o.Lock = s.lockName
	for _, text := range []string{"", "[]", `{"packages":{"hello:amd64":{"name":"../../x"}}}`} {
		if err := writeAtomic(s.driftPath(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "remove that file") {
			t.Errorf("record %q: got %v, want an error that says what to do", text, err)
		}
	}
}

// TestEmbeddedLock holds the lock in the repository to what Update would write.
func TestEmbeddedLock(t *testing.T) {
	l, err := parseLock(LockPath, embedded)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(l.render(), embedded) {
		t.Errorf("pins.toml is not as %q writes it: edit its first part only", updateHint)
	}
	for _, arch := range l.Lock.Architectures {
		wants := map[string]bool{}
		for _, c := range l.Lock.Closures {
			if c.Arch == arch {
				wants[c.Want] = true
			}
		}
		missing := func(kind, key string, archs []string) {
			if covers(archs, arch) && !wants[kind+"."+key] {
				t.Errorf("%s.%s is asked for but not locked for %s: run %q", kind, key, arch, updateHint)
			}
		}
		for k, w := range l.Tool {
			missing("tool", k, w.Architectures)
			if w.Why == "" {
				t.Errorf("tool.%s does not say why", k)
			}
		}
		for k, w := range l.Image {
			missing("image", k, w.Architectures)
		}
		for k, w := range l.Data {
			missing("data", k, w.Architectures)
		}
		for k, m := range l.Meta {
			if m.Package[arch] != "" {
				missing("meta", k, nil)
			}
		}
	}
}

func TestParseLockErrors(t *testing.T) {
	head := "release = \"trixie\"\ncomponents = [\"main\"]\n"
	pkg := func(change string) string {
		text := "[[lock.package]]\nname = \"foo\"\nversion = \"1\"\narch = \"amd64\"\nsuite = \"trixie\"\npool = \"pool/main/foo.deb\"\nsha256 = \"" + strings.Repeat("0", 64) + "\"\nsize = 12\n"
		key, _, _ := strings.Cut(change, " ")
		var out []string
		for _, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, key+" ") {
				line = change
			}
			out = append(out, line)
		}
		return head + strings.Join(out, "\n")
	}
	for name, tt := range map[string]struct{ text, want string }{
		"not TOML":         {"release = ", ":1:"},
		"no release":       {"components = [\"main\"]\n", "release"},
		"no components":    {"release = \"trixie\"\n", "components"},
		"unknown key":      {head + "x = 1\n", `unknown key "x"`},
		"name":             {pkg(`name = "../foo"`), "package name"},
		"version":          {pkg(`version = "a b"`), "version"},
		"pool leads out":   {pkg(`pool = "pool/../../foo.deb"`), "pool path"},
		"pool elsewhere":   {pkg(`pool = "/etc/foo.deb"`), "pool path"},
		"sum":              {pkg(`sha256 = "../../x"`), "sha256"},
		"size":             {pkg(`size = 0`), "size"},
		"library":          {pkg("size = 1\nlibs = [\"../x\"]"), "library"},
		"twice":            {pkg("size = 1") + strings.TrimPrefix(pkg("size = 1"), head), "twice"},
		"closure":          {head + "[[lock.closure]]\narch = \"amd64\"\nwant = \"tool.x\"\npackages = [\"foo\"]\n", "needs package foo"},
		"tool's path":      {head + "[tool.x]\npackage = \"foo\"\nprogram = \"../x\"\n", "program"},
		"tool's name":      {head + "[tool.\"a/b\"]\npackage = \"foo\"\nprogram = \"x\"\n", "plain name"},
		"two of one name":  {head + "[tool.x]\npackage = \"foo\"\nprogram = \"x\"\n[tool.y]\npackage = \"foo\"\nprogram = \"x\"\nnames = [\"x\"]\n", "already"},
		"image's path":     {head + "[image.foo]\nfiles = [\"/x\"]\n", "path within"},
		"longer than 4 MB": {head + "#" + strings.Repeat("x", maxLock), "more than"},
	} {
		if _, err := parseLock("pins.toml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tt.want)
		}
	}
	if _, err := Open(Options{Lock: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no lock: got %v", err)
	}
	if _, err := parseLock("pins.toml", []byte(pkg("size = 12"))); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

func TestUpdateMendsLockedPart(t *testing.T) {
	a := newArchive(t).add(hello())
	o := a.options(t)
	o.Lock = a.lockFile(t, o, helloRequest)
	good := readFile(t, o.Lock)
	for _, bad := range []string{
		strings.Replace(good, "<<<<<<<", "", 1) + "<<<<<<< mine\n", // a merge gone wrong
		strings.Replace(good, "sha256 = \"", "sha256 = \"x", 1),
	} {
		writeFile(t, o.Lock, bad)
		if _, err := Update(t.Context(), UpdateOptions{Options: o, Arch: []string{"amd64"}}); err != nil {
			t.Errorf("got %v", err)
		}
		if got := readFile(t, o.Lock); got != good {
			t.Errorf("(-want +got):\n%s", cmp.Diff(good, got))
		}
	}
}

func TestOpenCache(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("WEFT_CACHE", filepath.Join(dir, "named"))
	s, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Dir() != filepath.Join(dir, "named") {
		t.Errorf("WEFT_CACHE: got %s", s.Dir())
	}
	t.Setenv("WEFT_CACHE", filepath.Join(dir, "a:b"))
	if _, err := Open(Options{}); err == nil || !strings.Contains(fmt.Sprint(err), "WEFT_CACHE") {
		t.Errorf("a folder that no library path can hold: got %v", err)
	}
	t.Setenv("WEFT_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", dir)
	if s, err = Open(Options{}); err != nil || s.Dir() != filepath.Join(dir, "weft") {
		t.Errorf("by default: got %v %v", s.Dir(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("Open made %v %v", entries, err)
	}
	t.Setenv("WEFT_MIRROR", "ftp://example.org/debian")
	if _, err := Open(Options{}); err == nil || !strings.Contains(fmt.Sprint(err), "WEFT_MIRROR") {
		t.Errorf("a mirror of another kind: got %v", err)
	}
}
