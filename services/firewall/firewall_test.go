package firewall

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"weft/init/uci"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// TestMain runs this binary again for tests that need a network namespace: see
// namespace_test.go.
func TestMain(m *testing.M) {
	if inside() {
		return
	}
	os.Exit(m.Run())
}

// archive is one file of testdata: configuration in, rules and problems out.
type archive struct {
	path string
	*txtar.Archive
}

func archives(t *testing.T) []archive {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	var out []archive
	for _, f := range files {
		a, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, archive{f, a})
	}
	return out
}

func (a archive) name() string { return strings.TrimSuffix(filepath.Base(a.path), ".txtar") }

func (a archive) file(name string) string {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func (a archive) set(name, text string) {
	i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == name })
	if i < 0 {
		a.Files = append(a.Files, txtar.File{Name: name})
		i = len(a.Files) - 1
	}
	a.Files[i].Data = []byte(text)
}

// input is what the files say, on a machine that has nothing but them.
func (a archive) input(t testing.TB) Input {
	t.Helper()
	pkg := func(name string) *uci.Package {
		p, err := uci.Parse(name, strings.NewReader(a.file(name)), false)
		if err != nil {
			t.Fatalf("%s: %s: %v", a.path, name, err)
		}
		return p
	}
	return Input{
		Firewall: pkg("firewall"), Networks: configured(pkg("network")), Proxy: pkg("mptcpproxy"),
		Now:     time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
		Devices: func(d string) bool { return d == "br-lan" || d == "eth1" },
	}
}

func problemsText(list []Problem) string {
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

// TestPrint compares rules and problems with the goldens.
func TestPrint(t *testing.T) {
	for _, a := range archives(t) {
		t.Run(a.name(), func(t *testing.T) {
			out := Build(a.input(t))
			for name, got := range map[string]string{"print": out.Ruleset.Text(), "problems": problemsText(out.Problems)} {
				if *update {
					continue
				}
				if want := a.file(name); got != want {
					t.Errorf("%s: %s differs from the golden (-update rewrites it); got\n%s\nwant\n%s", a.path, name, got, want)
				}
			}
			if *update {
				a.set("print", out.Ruleset.Text())
				a.set("problems", problemsText(out.Problems))
				if err := os.WriteFile(a.path, txtar.Format(a.Archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestDefaultConfig holds the golden's configuration to the one in the image.
func TestDefaultConfig(t *testing.T) {
	image, err := os.ReadFile("../../buildroot-overlay/rootfs/etc/config/firewall")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives(t) {
		if a.name() == "default" && strings.TrimSpace(a.file("firewall")) != strings.TrimSpace(string(image)) {
			t.Error("testdata/default.txtar has another configuration than the image")
		}
	}
}

// needNft skips without the judge, or without the rights to let it judge.
func needNft(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft (Debian: nftables)")
	}
}

// TestKernelHoldsWhatIsPrinted lets nft load the text in one namespace and us
// load the rules in another, and compares what nft finds in both.
func TestKernelHoldsWhatIsPrinted(t *testing.T) {
	needNft(t)
	for _, a := range archives(t) {
		if a.name() == "includes" {
			continue // files that are not there
		}
		t.Run(a.name(), func(t *testing.T) {
			byNft := namespace(t, "nft", a.path)
			byUs := namespace(t, "kernel", a.path)
			again := namespace(t, "twice", a.path)
			if byNft != byUs {
				t.Errorf("nft made of our text < and we made >:\n%s", difference(byNft, byUs))
			}
			if sortedLines(again) != sortedLines(byUs) { // sets that were made anew come last
				t.Errorf("a second load changed < to >:\n%s", difference(byUs, again))
			}
		})
	}
}

// namespace runs one of the functions of inside in a new network namespace and
// returns what it prints.
func namespace(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "WEFT_TEST_INSIDE="+strings.Join(args, "\n"), "TZ=UTC")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// difference lists the lines that only one of two texts has.
func difference(a, b string) string {
	var out strings.Builder
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range x {
		if !slices.Contains(y, l) {
			fmt.Fprintf(&out, "< %s\n", l)
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			fmt.Fprintf(&out, "> %s\n", l)
		}
	}
	if out.Len() == 0 {
		return "the lines are the same, their order is not"
	}
	return out.String()
}

func sortedLines(s string) string {
	l := strings.Split(s, "\n")
	slices.Sort(l)
	return strings.Join(l, "\n")
}
