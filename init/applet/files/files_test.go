package files

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/unit"
)

var table = map[string]unit.Func{
	"base64": Base64, "basename": Basename, "cat": Cat, "chgrp": Chown, "chmod": Chmod, "chown": Chown, "cmp": Cmp, "cp": Cp, "dd": Dd, "df": Df,
	"dirname": Dirname, "du": Du, "find": Find, "gunzip": Gzip, "gzip": Gzip, "ln": Ln, "ls": Ls, "md5sum": Sum, "mkdir": Mkdir, "mkfifo": Mkfifo,
	"mknod": Mknod, "mktemp": Mktemp, "mv": Mv, "readlink": Readlink, "realpath": Realpath, "rm": Rm, "rmdir": Rmdir, "sha256sum": Sum, "stat": Stat,
	"sync": Sync, "tar": Tar, "touch": Touch, "truncate": Truncate, "zcat": Gzip,
}

// do runs an applet by a line of words; 'a b' is one word.
func do(t *testing.T, dir, stdin, line string) (out, errOut string, code int) {
	t.Helper()
	var args []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	f := table[args[0]]
	if f == nil {
		t.Fatalf("no applet %s", args[0])
	}
	var o, e bytes.Buffer
	code = f(t.Context(), &unit.Call{Args: args, Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &e, Dir: dir, Getenv: func(string) string { return "" }})
	return o.String(), e.String(), code
}

// tree makes a folder to work on.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.Local)
	for name, text := range map[string]string{"a.txt": "alpha\n", "b.txt": "beta\n", "sub/c.txt": "gamma\n", "sub/deep/d.conf": "delta\n", ".hidden": "h\n", "sp ace": ""} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a.txt", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestAgainstHost runs commands in two equal trees, ours in one and the host's
// (GNU) in the other: output, exit code (0 or not) and the trees must agree.
func TestAgainstHost(t *testing.T) {
	for _, line := range []string{
		"ls", "ls -a", "ls -A", "ls -1 sub", "ls -R", "ls nonexistent", "ls -d sub", "ls -F", "ls -r", "ls -S", "ls sub a.txt", "ls -p",
		"cat a.txt b.txt", "cat nonexistent", "basename /a/b.txt .txt", "basename /", "dirname /a/b", "dirname a", "dirname /", "dirname a//b/",
		"readlink link", "readlink a.txt", "readlink -f link", "readlink -f nonexistent", "realpath sub/../a.txt", "realpath -e nonexistent",
		"cp a.txt new", "cp a.txt sub", "cp a.txt b.txt sub", "cp sub new", "cp -r sub new", "cp -a sub link new/", "cp -a . /nonexistent/x", "cp link new", "cp -P link new", "cp -d link new", "cp -a link new",
		"cp a.txt a.txt", "cp -n a.txt b.txt", "cp nonexistent x", "cp a.txt b.txt new", "cp -p a.txt new", "cp -r sub sub/deep", "cp -f a.txt link", "cp -u a.txt b.txt", "cp -T sub/c.txt new",
		"mv a.txt new", "mv a.txt sub", "mv a.txt b.txt sub", "mv -f a.txt b.txt", "mv -n a.txt b.txt", "mv sub new", "mv nonexistent x", "mv a.txt b.txt nodir", "mv link new", "mv a.txt sub/", "mv sub a.txt",
		"rm a.txt", "rm sub", "rm -r sub", "rm -rf sub nonexistent", "rm -f nonexistent", "rm nonexistent", "rm link", "rm -f", "rm", "rm a.txt b.txt nonexistent",
		"mkdir x", "mkdir x/y", "mkdir -p x/y/z", "mkdir sub", "mkdir -p sub", "mkdir -m 700 x", "rmdir sub", "rmdir -p x",
		"ln a.txt hard", "ln -s a.txt l2", "ln -s a.txt link", "ln -sf b.txt link", "ln -s sub dl", "ln -sf a.txt sub", "ln -s a.txt b.txt sub", "ln -s nonexistent dangling", "ln nonexistent x",
		"touch new", "touch a.txt", "touch -c new",
		"chmod 600 a.txt", "chmod u+x,go-r a.txt", "chmod -x a.txt", "chmod a=rX a.txt sub", "chmod -R go-rwx sub", "chmod +x a.txt", "chmod 4755 a.txt", "chmod 999 a.txt", "chmod g=u,o= a.txt", "chmod u=rwx,g=rx,o=rx sub", "chmod 644 nonexistent",
		"find . -name *.txt", "find sub", "find . -type l", "find . -maxdepth 1 -type f", "find . -mindepth 2 -name *.conf -o -name a*", "find . ! -name *.txt -type f", "find . ( -name a.txt -o -name b.txt ) -print", "find . -name a.txt -exec cat {} ;", "find . -name *.txt -exec cat {} +",
		"find . -empty -type f", "find . -name deep -prune -o -type f -print", "find sub -delete", "find . -newer a.txt -type f", "find . -size 0 -type f", "find . -size -2c -type f", "find . -perm 644", "find . -perm -u+w -type f", "find . -path ./sub/*", "find . -iname A.TXT", "find nonexistent", "find . -type f -mtime +1", "find . -user root -maxdepth 0", "find . -name a.txt -print0", "find . -bogus", "find a.txt b.txt", "find . -depth -name sub",
		"stat -c '%n %s %a %F' a.txt sub link", "stat -c %Y a.txt", "stat -L -c %F link", "stat nonexistent",
		"cmp a.txt b.txt", "cmp a.txt a.txt", "cmp -s a.txt b.txt", "cmp a.txt nonexistent",
		"md5sum a.txt", "sha256sum a.txt b.txt", "sha256sum nonexistent", "du -s nonexistent", "truncate -s 3 a.txt", "truncate -s +2 a.txt", "truncate -s 1k new",
		"dd if=a.txt of=new bs=2 count=2 status=none", "dd if=a.txt of=b.txt bs=1 seek=2 conv=notrunc status=none", "dd if=a.txt of=b.txt bs=1 seek=2 status=none", "dd if=a.txt bs=1 skip=3 status=none", "dd if=/dev/zero of=z bs=1k count=3 status=none", "dd if=nonexistent status=none", "dd if=a.txt of=z ibs=2 obs=4 status=none", "dd if=a.txt of=z bs=4 conv=sync status=none",
		"tar cf x.tar sub a.txt", "mkfifo p", "mkfifo -m 600 p", "mkfifo a.txt", "base64 a.txt", "mktemp -d nonexistentdir/XXXXXX",
	} {
		t.Run(line, func(t *testing.T) {
			name, _, _ := strings.Cut(line, " ")
			host, err := exec.LookPath(name)
			if err != nil {
				t.Skipf("%s is not installed", name)
			}
			ours, theirs := tree(t), tree(t)
			out, errOut, code := do(t, ours, "", line)
			var args []string
			for i, part := range strings.Split(line, "'") {
				if i%2 == 1 {
					args = append(args, part)
				} else {
					args = append(args, strings.Fields(part)...)
				}
			}
			cmd := exec.Command(host, args[1:]...)
			cmd.Dir = theirs
			cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
			var o, e bytes.Buffer
			cmd.Stdout, cmd.Stderr = &o, &e
			cmd.Run() // the exit code is compared below
			want := strings.ReplaceAll(o.String(), theirs, ours)
			if name == "find" || name == "ls" && strings.Contains(line, "-R") {
				out, want = sorted(out), sorted(want) // order of a folder is the file system's
			}
			if out != want {
				t.Errorf("stdout %q\n   want %q", out, want)
			}
			if (code == 0) != (cmd.ProcessState.ExitCode() == 0) {
				t.Errorf("exit code %d (%s), the host's %d (%s)", code, errOut, cmd.ProcessState.ExitCode(), &e)
			}
			if code != 0 && name != "cmp" && name != "readlink" && errOut == "" {
				t.Error("failed without a word")
			}
			if line == "cp -r sub sub/deep" {
				return // what was copied before the host noticed depends on the order of its folder
			}
			if a, b := snapshot(t, ours), snapshot(t, theirs); a != b {
				t.Errorf("tree:\n%s\nwant:\n%s", a, b)
			}
		})
	}
}

func sorted(s string) string {
	end := "\n"
	if strings.Contains(s, "\x00") {
		end = "\x00"
	}
	l := strings.SplitAfter(s, end)
	for i := range l {
		for j := i + 1; j < len(l); j++ {
			if l[j] < l[i] {
				l[i], l[j] = l[j], l[i]
			}
		}
	}
	return strings.Join(l, "")
}

// snapshot describes a tree: names, kinds, modes, contents.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		b.WriteString(info.Mode().String() + " " + rel)
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			b.WriteString(" -> " + l)
		case info.Mode().IsRegular() && !strings.HasSuffix(rel, ".tar"):
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			b.WriteString(" " + string(text))
			if info.ModTime().Year() == 2020 {
				b.WriteString(" old")
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTarRoundTrip(t *testing.T) {
	dir := tree(t)
	for _, step := range []string{"tar -czf x.tgz sub a.txt link", "mkdir out", "tar -C out -xzf x.tgz", "tar -xOf x.tgz a.txt", "tar tzf x.tgz sub", "tar -C out -x -f x.tgz nosuch", "tar -cf y.tar --exclude '*.conf' sub", "tar tf y.tar"} {
		out, errOut, code := do(t, dir, "", step)
		switch step {
		case "tar -xOf x.tgz a.txt":
			if out != "alpha\n" {
				t.Errorf("%s: %q", step, out)
			}
		case "tar tzf x.tgz sub":
			if out != "sub/\nsub/c.txt\nsub/deep/\nsub/deep/d.conf\n" {
				t.Errorf("%s: %q", step, out)
			}
		case "tar tf y.tar":
			if out != "sub/\nsub/c.txt\nsub/deep/\n" {
				t.Errorf("%s: %q", step, out)
			}
		case "tar -C out -x -f x.tgz nosuch":
			if code != 1 || !strings.Contains(errOut, "nosuch: not in the archive") {
				t.Errorf("%s: %d %q", step, code, errOut)
			}
			continue
		}
		if code != 0 {
			t.Fatalf("%s: %d %s", step, code, errOut)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "out/sub/c.txt"))
	if err != nil || st.ModTime().Year() != 2020 {
		t.Errorf("unpacked: %v %v", st, err)
	}
	if host, err := exec.LookPath("tar"); err == nil {
		b, err := exec.Command(host, "-C", dir, "-tzf", filepath.Join(dir, "x.tgz")).Output()
		if err != nil || !strings.HasPrefix(string(b), "sub/\nsub/c.txt\n") {
			t.Errorf("the host's tar lists %q, %v", b, err)
		}
	}
}

func TestTarRefusesToLeave(t *testing.T) {
	host, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed: no archive to try")
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "src/evil"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "out"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "src/evil/file"), []byte("x"), 0o644))
	must(os.Symlink(dir, filepath.Join(dir, "src/ln")))
	// First a link named evil, then a file below it; and a name with ..
	must(exec.Command(host, "-C", filepath.Join(dir, "src"), "--transform", "s,^ln$,evil,", "-cf", filepath.Join(dir, "x.tar"), "ln", "evil/file").Run())
	must(exec.Command(host, "-C", filepath.Join(dir, "src"), "-P", "--transform", "s,^evil/file$,../escaped,", "-rf", filepath.Join(dir, "x.tar"), "evil/file").Run())
	_, errOut, code := do(t, dir, "", "tar -C out -xf x.tar")
	if code != 1 || !strings.Contains(errOut, "through the link evil") || !strings.Contains(errOut, "../escaped: leads out") {
		t.Errorf("code %d, stderr %q", code, errOut)
	}
	for _, p := range []string{"file", "escaped"} {
		if _, err := os.Lstat(filepath.Join(dir, p)); err == nil {
			t.Errorf("%s was written outside", p)
		}
	}
}

func TestLongListing(t *testing.T) {
	dir := tree(t)
	if err := os.Chmod(filepath.Join(dir, "a.txt"), os.ModeSetuid|0o750); err != nil {
		t.Fatal(err)
	}
	out, _, code := do(t, dir, "", "ls -ln a.txt link sub/c.txt")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 3 || !strings.HasPrefix(lines[0], "-rws") || !strings.HasSuffix(lines[1], "link -> a.txt") || !strings.Contains(lines[2], "Jan  2  2020 sub/c.txt") {
		t.Errorf("%d:\n%s", code, out)
	}
	if out, _, _ = do(t, dir, "", "df /"); !strings.Contains(out, "Mounted on\n") || !strings.HasSuffix(out, " /\n") {
		t.Errorf("df: %q", out)
	}
	if out, _, code = do(t, dir, "", "du -a sub"); code != 0 || !strings.HasSuffix(out, "\tsub\n") || strings.Count(out, "\n") != 4 {
		t.Errorf("du: %q", out)
	}
	for n, want := range map[uint64]string{0: "0", 1023: "1023", 1024: "1.0K", 1536: "1.5K", 1 << 30: "1.0G", 1<<20 - 1: "1.0M"} {
		if got := Human(n); got != want {
			t.Errorf("Human(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestGzip(t *testing.T) {
	dir := tree(t)
	for _, step := range []string{"gzip -k a.txt", "zcat a.txt.gz", "rm a.txt", "gunzip a.txt.gz", "cat a.txt", "gzip -c a.txt"} {
		out, errOut, code := do(t, dir, "", step)
		if code != 0 {
			t.Fatalf("%s: %d %s", step, code, errOut)
		}
		if (step == "zcat a.txt.gz" || step == "cat a.txt") && out != "alpha\n" {
			t.Errorf("%s: %q", step, out)
		}
	}
	if out, _, code := do(t, dir, "aGk=\n", "base64 -d"); code != 0 || out != "hi" {
		t.Errorf("base64 -d: %d %q", code, out)
	}
}

func TestInputsAndChecks(t *testing.T) {
	dir := tree(t)
	out, _, _ := do(t, dir, "", "sha256sum a.txt b.txt")
	if out2, errOut, code := do(t, dir, out, "sha256sum -c"); code != 0 || out2 != "a.txt: OK\nb.txt: OK\n" {
		t.Errorf("%d %q %q", code, out2, errOut)
	}
	if _, _, code := do(t, dir, strings.Replace(out, "a.txt", "b.txt", 1), "sha256sum -c -s"); code != 1 {
		t.Errorf("a wrong sum gives %d", code)
	}
	if out, _, _ := do(t, dir, "piped", "cat"); out != "piped" {
		t.Errorf("cat: %q", out)
	}
	if out, _, code := do(t, dir, "n\n", "rm -ri a.txt"); code != 0 {
		t.Errorf("rm -i: %d %q", code, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "a.txt")); err != nil {
		t.Error("removed in spite of n")
	}
	for _, wrong := range []string{"ls --nope", "rm -Z", "cp a", "mv a", "chmod 644", "find . -type q", "dd bs=x", "stat", "tar f x", "tar -cxf y z", "cat -Q", "mkdir -Q x"} {
		if _, errOut, code := do(t, dir, "", wrong); code != 2 || !strings.Contains(errOut, "sage") {
			t.Errorf("%s: %d %q", wrong, code, errOut)
		}
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var o, e bytes.Buffer
	if code := Dd(ctx, &unit.Call{Args: []string{"dd", "if=/dev/zero", "of=/dev/null"}, Stdout: &o, Stderr: &e, Dir: "/"}); code != 0 {
		t.Errorf("dd: %d %s", code, &e)
	}
}

func FuzzMode(f *testing.F) {
	f.Add("u+x,go-w", uint32(0o644))
	f.Add("a=rX", uint32(0o40755))
	f.Fuzz(func(t *testing.T, spec string, old uint32) {
		if m, err := ParseMode(spec, old, 0o22, old&0o40000 != 0); err == nil && m > 0o7777 {
			t.Errorf("%q gives %o", spec, m)
		}
	})
}
