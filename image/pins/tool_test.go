package pins

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// selfPackages are packages with this test binary as the program helper, and
// with the machine's C library: what really runs must really load.
func selfPackages(t *testing.T) []testDeb {
	t.Helper()
	self := readFile(t, "/proc/self/exe")
	program := testDeb{name: "helper", depends: "libc6", files: []file{
		{name: "usr/bin/helper", data: self, mode: 0o755},
		{name: "usr/share/helper/data", data: "DEFAULT"},
		{name: "usr/share/doc/helper/x", data: "x"},
	}, ext: ".plain"}
	libs := testDeb{name: "libc6", ext: ".plain"}
	todo := []string{"libgcc_s.so.1"}
	facts, err := readELF(strings.NewReader(self))
	if err != nil {
		t.Fatal(err)
	}
	if facts.interp == "" {
		return []testDeb{program}
	}
	todo = append(append(todo, path.Base(facts.interp)), facts.needed...)
	seen := map[string]bool{}
	for len(todo) > 0 {
		lib := todo[0]
		todo = todo[1:]
		if seen[lib] {
			continue
		}
		seen[lib] = true
		found := false
		for _, dir := range libraryDirs(hostArch()) {
			data, err := os.ReadFile("/" + dir + "/" + lib)
			if err != nil {
				continue
			}
			facts, err := readELF(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			todo = append(todo, facts.needed...)
			libs.files = append(libs.files, file{name: libraryDirs(hostArch())[0] + "/" + lib, data: string(data), mode: 0o755})
			found = true
			break
		}
		if !found {
			t.Skipf("this machine's library %s is not where Debian has it", lib)
		}
	}
	return []testDeb{program, libs}
}

const selfRequest = `
[tool.helper]
package = "helper"
program = "usr/bin/helper"
names = ["other-name"]
files = ["usr/share/helper"]
env = { WEFT_PINS_TEST_HELPER = "tool", DATA = "{dir}/usr/share/helper/data {lib}" }
args = ["--data={dir}/usr/share/helper"]
`

func TestToolRuns(t *testing.T) {
	if hostArch() != "amd64" {
		t.Skip("the archive of this test is for amd64")
	}
	a := newArchive(t).add(selfPackages(t)...)
	o := a.options(t)
	s := a.locked(t, o, selfRequest)
	t.Setenv("SECRET", "leaked")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("LD_LIBRARY_PATH", "/nonexistent")
	var stdout, stderr bytes.Buffer
	code, err := s.Run(t.Context(), nil, &stdout, &stderr, "other-name", "one", "two words")
	if err != nil || code != 3 {
		t.Fatalf("exit code %d, %v: %s", code, err, &stderr)
	}
	tool, err := s.Tool(t.Context(), "helper")
	if err != nil {
		t.Fatal(err)
	}
	want := "argv0 other-name args [--data=" + tool.Dir() + "/usr/share/helper one two words] LC_ALL C SECRET  DATA " + tool.Dir() + "/usr/share/helper/data usr/lib/x86_64-linux-gnu\n"
	if tool.spec.Loader == "" {
		want = strings.Replace(want, "argv0 other-name", "argv0 helper", 1) // a static program is its own file
	}
	if stdout.String() != want {
		t.Errorf("got  %swant %s", &stdout, want)
	}
	if exists(filepath.Join(tool.Dir(), "usr/share/doc")) {
		t.Error("the tree has files that nobody asked for")
	}
	// Another store finds it without the archive.
	a.server.Close()
	o.Lock = s.lockName
	again, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	again.host = "amd64"
	other, err := again.Tool(t.Context(), "helper")
	if err != nil || other.Dir() != tool.Dir() {
		t.Errorf("got %v, %v", other, err)
	}
}

func TestToolUnknown(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest+"[tool.hi]\npackage = \"hello\"\nprogram = \"usr/share/hello\"\nnames = [\"hullo\"]\n")
	if _, err := s.Tool(t.Context(), "goodbye"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "hi, hullo") {
		t.Errorf("got %v, want ErrUnknown with the tools there are", err)
	}
	s.host = "riscv64"
	if _, err := s.Tool(t.Context(), "hi"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "--arch riscv64") {
		t.Errorf("on another machine: got %v, want ErrUnknown with the command that adds it", err)
	}
}

func TestToolFollowsItsInputs(t *testing.T) {
	a := newArchive(t).add(hello())
	request := helloRequest + "[tool.hi]\npackage = \"hello\"\nprogram = \"usr/share/hello\"\n"
	o := a.options(t)
	first, err := a.locked(t, o, request).Tool(t.Context(), "hi")
	if err != nil {
		t.Fatal(err)
	}
	same, err := a.locked(t, o, request).Tool(t.Context(), "hi")
	if err != nil || same.Dir() != first.Dir() {
		t.Errorf("the same lock gives another tree: %v", err)
	}
	env, err := a.locked(t, o, request+"env = { A = \"b\" }\n").Tool(t.Context(), "hi")
	if err != nil || env.Dir() == first.Dir() {
		t.Errorf("another definition gives the same tree: %v", err)
	}
	a.withdraw("hello")
	newer := hello()
	newer.version = "1.1"
	a.add(newer)
	next, err := a.locked(t, o, request).Tool(t.Context(), "hi")
	if err != nil || next.Dir() == first.Dir() {
		t.Errorf("another version gives the same tree: %v", err)
	}
}

func TestToolReplace(t *testing.T) {
	program := "\x00before\x00/usr/lib/x86_64-linux-gnu/qemu\x00/usr/lib/x86_64-linux-gnu/qemu/more\x00"
	a := newArchive(t).add(testDeb{name: "hello", files: []file{{name: "usr/bin/hello", data: program, mode: 0o755}}})
	request := "[tool.hello]\npackage = \"hello\"\nprogram = \"usr/bin/hello\"\nreplace = { \"/{lib}/qemu\" = \"/none\" }\n"
	s := a.locked(t, a.options(t), request)
	tool, err := s.Tool(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	want := "\x00before\x00/none" + strings.Repeat("\x00", len("/usr/lib/x86_64-linux-gnu/qemu")-len("/none")+1) + "/usr/lib/x86_64-linux-gnu/qemu/more\x00"
	if got := readFile(t, tool.Path()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	dir, err := s.Unpack(t.Context(), "hello")
	if err != nil || readFile(t, dir+"/usr/bin/hello") != program {
		t.Errorf("the package's tree was changed: %v", err)
	}
	for _, bad := range []string{`{ "/usr/lib/other" = "/none" }`, `{ "before" = "longer than before" }`} {
		s := a.locked(t, a.options(t), strings.Replace(request, `{ "/{lib}/qemu" = "/none" }`, bad, 1))
		if _, err := s.Tool(t.Context(), "hello"); err == nil {
			t.Errorf("replace = %s: accepted", bad)
		}
	}
}

func TestFilesErrors(t *testing.T) {
	a := world(t, "6.12.1", "1.0").add(testDeb{name: "linked", files: []file{
		{name: "dangling", link: "nowhere"}, {name: "out", link: "../../x"}, {name: "loop", link: "loop"}}})
	s := a.locked(t, a.options(t), worldRequest+"[data.linked]\n")
	for name, tt := range map[string]struct {
		arch string
		want Want
		text string
	}{
		"no architecture": {"vax", Want{Package: "foo"}, "vax"},
		"no package":      {"amd64", Want{Package: "bar", Paths: []string{"x"}}, "[image.bar]"},
		"no paths":        {"amd64", Want{Package: "linked"}, "no paths"},
		"no file":         {"amd64", Want{Package: "foo", Paths: []string{"usr/bin/food"}}, "has no file usr/bin/food"},
		"outside":         {"amd64", Want{Package: "foo", Paths: []string{"../x"}}, "below the root"},
		"a dangling link": {"amd64", Want{Package: "linked", Paths: []string{"dangling"}}, "has no file nowhere"},
		"a link out":      {"amd64", Want{Package: "linked", Paths: []string{"out"}}, "leads out"},
	} {
		if _, err := s.Files(t.Context(), tt.arch, []Want{tt.want}); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tt.text)
		}
	}
	if files, err := s.Files(t.Context(), "amd64", []Want{{Package: "linked", Paths: []string{"loop"}}}); err != nil || len(files) != 1 {
		t.Errorf("a link to itself: %v %v", files, err)
	}
	if files, err := s.Files(t.Context(), "amd64", []Want{{Package: "foo", Paths: []string{"/usr/bin/foo"}}, {Package: "foo-data", Paths: []string{"usr/share/foo"}}}); err != nil || len(files) != 8 {
		t.Errorf("a path with a slash before it, and a folder: %v %v", files, err)
	}
}

func TestFilesMissingLibrary(t *testing.T) {
	a := newArchive(t).add(libc("amd64")...).add(
		testDeb{name: "foo", depends: "libc6, libssl3t64", files: []file{
			{name: "usr/bin/foo", data: elfFile{needed: []string{"libssl.so.3"}}.String()},
			{name: "usr/bin/plain", data: elfFile{needed: []string{"libc.so.6"}}.String()},
		}},
		testDeb{name: "libssl3t64", files: []file{{name: "usr/lib/x86_64-linux-gnu/libssl.so.3", data: elfFile{soname: "libssl.so.3"}.String()}}},
	)
	// The lock was made for a file that needs no more than the C library.
	s := a.locked(t, a.options(t), "[image.foo]\nfiles = [\"usr/bin/plain\"]\n")
	_, err := s.Files(t.Context(), "amd64", []Want{{Package: "foo", Paths: []string{"usr/bin/foo"}}})
	if !errors.Is(err, ErrUnknown) {
		t.Fatalf("got %v, want ErrUnknown", err)
	}
	for _, want := range []string{"libssl.so.3", "usr/bin/foo of foo 1.0", "package libssl3", updateHint} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
}

func TestGuessPackage(t *testing.T) {
	for lib, want := range map[string]string{
		"libssl.so.3": "libssl3", "libnl-3.so.200": "libnl-3-200", "libpng16.so.16": "libpng16-16",
		"libcom_err.so.2": "libcom-err2", "libX11.so.6": "libx11-6", "libstdc++.so.6": "libstdc++6", "libfoo.so": "libfoo", "foo": "foo",
	} {
		if got := guessPackage(lib); got != want {
			t.Errorf("guessPackage(%s) = %s, want %s", lib, got, want)
		}
	}
}

func TestReadELF(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "armhf"} {
		facts, err := readELF(strings.NewReader(elfFile{arch: arch, interp: "/lib/ld.so", soname: "libx.so.1", needed: []string{"a.so", "b.so"}, runpath: "$ORIGIN/x:/y"}.String()))
		if err != nil {
			t.Fatal(err)
		}
		if facts.interp != "/lib/ld.so" || facts.soname != "libx.so.1" || !slices.Equal(facts.needed, []string{"a.so", "b.so"}) ||
			!slices.Equal(facts.runpath, []string{"$ORIGIN/x:/y"}) || facts.machine != machines[arch].elf || facts.class != machines[arch].class {
			t.Errorf("%s: got %+v", arch, facts)
		}
	}
	if facts, err := readELF(strings.NewReader("#!/bin/sh\n")); err != nil || facts.isObject {
		t.Errorf("a script: %+v %v", facts, err)
	}
	if _, err := readELF(strings.NewReader(elfFile{needed: []string{"../../evil.so"}}.String())); err == nil {
		t.Error("a library named by a path was accepted")
	}
}

func TestRunpathOrigin(t *testing.T) {
	a := newArchive(t).add(testDeb{name: "foo", files: []file{
		{name: "opt/foo/bin/foo", data: elfFile{needed: []string{"libin.so"}, runpath: "$ORIGIN/../lib:/elsewhere"}.String()},
		{name: "opt/foo/lib/libin.so", data: elfFile{soname: "libin.so"}.String()},
	}})
	s := a.locked(t, a.options(t), "[image.foo]\nfiles = [\"opt/foo/bin/foo\"]\n")
	files, err := s.Files(t.Context(), "amd64", []Want{{Package: "foo"}})
	if err != nil || len(files) != 2 || files[1].Path != "opt/foo/lib/libin.so" {
		t.Errorf("got %v, %v", files, err)
	}
}

// TestPinnedTools runs the tools of the lock in the repository.
func TestPinnedTools(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads packages unless the cache has them")
	}
	s, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Architectures(), s.Host()) {
		t.Skipf("the lock does not cover this machine's %s", s.Host())
	}
	run := func(dir, name string, args ...string) string {
		t.Helper()
		tool, err := s.Tool(t.Context(), name)
		if errors.Is(err, ErrUnreachable) {
			t.Skipf("the packages are not in the cache, and there is no network: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		cmd := tool.Command(t.Context(), args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatal(err)
			}
			t.Errorf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/tree/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/tree/etc/hello", "hello\n")

	run(dir, "mksquashfs", "tree", "x.squashfs", "-all-root", "-quiet", "-no-progress", "-comp", "xz")
	if out := run(dir, "unsquashfs", "-lls", "x.squashfs"); !strings.Contains(out, "squashfs-root/etc/hello") {
		t.Errorf("unsquashfs lists\n%s", out)
	}

	run(dir, "mformat", "-C", "-i", "fat.img", "-N", "12345678", "-v", "KERNEL", "-T", "131072", "-F", "::")
	run(dir, "mmd", "-i", "fat.img", "::/boot")
	run(dir, "mcopy", "-i", "fat.img", "tree/etc/hello", "::/boot/A long name")
	if out := run(dir, "mtype", "-i", "fat.img", "::/boot/A long name"); out != "hello\n" {
		t.Errorf("mtype gives %q", out)
	}
	run(dir, "fsck.fat", "-n", "fat.img")

	run(dir, "mke2fs", "-q", "-t", "ext4", "-d", "tree", "ext4.img", "8M")
	run(dir, "e2fsck", "-fn", "ext4.img")
	if out := run(dir, "debugfs", "-R", "cat /etc/hello", "ext4.img"); !strings.HasSuffix(out, "hello\n") {
		t.Errorf("debugfs gives %q", out)
	}

	run(dir, "qemu-img", "create", "-q", "-f", "raw", "disk.img", "8M")
	run(dir, "sgdisk", "-o", "-n", "1:2048:4095", "disk.img")
	if out := run(dir, "sfdisk", "-d", "disk.img"); !strings.Contains(out, "label: gpt") {
		t.Errorf("sfdisk gives\n%s", out)
	}
	run(dir, "xz", "-k", "fat.img")
	run(dir, "zstd", "-q", "fat.img")
	run(dir, "cpio", "--version")
	run(dir, "grub-editenv", "grubenv", "create")

	for _, name := range s.ToolNames() {
		tool, err := s.Tool(t.Context(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// The loader itself tells whether all libraries are found, and where.
		argv := tool.argv()
		if tool.spec.Loader == "" {
			continue
		}
		cmd := exec.CommandContext(t.Context(), argv[0], append([]string{"--list"}, slices.Concat(argv[1:4], argv[6:])...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: list its libraries: %v\n%s", name, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if _, place, ok := strings.Cut(line, "=>"); ok && !strings.HasPrefix(strings.TrimSpace(place), tool.Dir()) {
				t.Errorf("%s takes a library of the machine: %s", name, line)
			}
		}
	}

	if _, ok := s.Package("grub-pc-bin:amd64"); ok {
		grub, err := s.Unpack(t.Context(), "grub-pc-bin:amd64")
		if err != nil {
			t.Fatal(err)
		}
		run(dir, "grub-mkimage", "-O", "i386-pc", "-d", filepath.Join(grub, "usr/lib/grub/i386-pc"), "-p", "/boot", "-o", "core.img", "biosdisk", "part_msdos", "fat")
		if st, err := os.Stat(dir + "/core.img"); err != nil || st.Size() < 20_000 {
			t.Errorf("grub-mkimage made %v %v", st, err)
		}
	}
	if out := run(dir, "qemu-system-x86_64", "-machine", "help"); !strings.Contains(out, "q35") {
		t.Errorf("qemu lists\n%s", out)
	}
}

func BenchmarkWarm(b *testing.B) {
	s, err := Open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.Tool(b.Context(), "mksquashfs"); err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		s, err := Open(Options{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Tool(b.Context(), "mksquashfs"); err != nil {
			b.Fatal(err)
		}
	}
}
