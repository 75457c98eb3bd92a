package boards

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestEveryBoardLoads holds each embedded board against all checks.
func TestEveryBoardLoads(t *testing.T) {
	if len(List()) == 0 {
		t.Fatal("no boards embedded")
	}
	for _, name := range List() {
		b, err := Load(name)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		for _, im := range b.Images {
			for _, l := range im.Loaders {
				if _, ok := b.Loader(l); !ok {
					t.Errorf("%s: image %s names loader %s, which Loader does not find", name, im.Type, l)
				}
			}
		}
	}
}

func TestLoadByProfile(t *testing.T) {
	b, err := Load("generic")
	if err != nil || b.Name != "x86-64" {
		t.Errorf("Load(generic) = %v, %v; want the board x86-64", b, err)
	}
	_, err = Load("wrt54gl")
	if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "make info") {
		t.Errorf("Load(wrt54gl): %v; want ErrUnknown and the way to the list", err)
	}
}

// TestFaults changes one thing of a good board and reads the message and the line.
func TestFaults(t *testing.T) {
	good, err := os.ReadFile("x86-64/board.toml")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, old, new string
		want           []string // each must stand in the error
		at             string   // text of the line that must be named; "" = not checked
	}{
		{"unknown key", "timeout = 1 ", "timeoutt = 1 ", []string{`unknown key "grub.timeoutt"`}, "timeoutt"},
		{"unknown key in an array", `file = "efi`, `fille = "efi`, []string{`unknown key "loaders.fille"`, "want a path in the boot partition"}, ""},
		{"no TOML", `[kernel]`, `[kernel`, []string{"board.toml:36:"}, ""},
		{"wrong type", `timeout = 1 `, `timeout = "1" `, []string{"incompatible types"}, `timeout = "1"`},
		{"target", `target = "x86/64"`, `target = "x86"`, []string{"want target/subtarget"}, "target ="},
		{"loader", `loaders = ["bios", "efi"]`, `loaders = ["uboot"]`, []string{`loader "uboot" is not among`}, `["uboot"]`},
		{"kind", `kind = "grub-efi"`, `kind = "lilo"`, []string{`kind "lilo"`}, "lilo"},
		{"table", `table = "gpt"`, `table = "apm"`, []string{`table "apm"`}, "apm"},
		{"twice", `"nvme",`, `"nvme", "nvme",`, []string{`"nvme" stands there twice`}, `"nvme"`},
		{"module name", `"nvme",`, `"nvme.ko",`, []string{`"nvme.ko" is not a valid name`}, `nvme.ko`},
		{"quotes in cmdline", `console=tty1 `, `x='a b' `, []string{"do not survive"}, "cmdline ="},
		{"no GOARCH", `GOARCH = "amd64", `, "", []string{"no GOARCH"}, "go ="},
		{"GOOS", `GOARCH = "amd64"`, `GOARCH = "amd64", GOOS = "plan9"`, []string{"GOOS does not choose a processor"}, "go ="},
		{"two at once", `align_kib = 256
boot = 64`, `align_kib = 100
boot = 1`, []string{"power of two", "partitions.boot 1: want 40 to 1024"}, "align_kib = 100"},
		{"missing table", `[kernel]
pin = "kernel"`, `[kernel]`, []string{"kernel.pin is missing"}, "[kernel]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(string(good), tt.old) == 0 {
				t.Fatalf("the board no longer contains %q", tt.old)
			}
			text := strings.Replace(string(good), tt.old, tt.new, 1)
			_, err := Parse("x86-64", "board.toml", []byte(text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q:\n%v", w, err)
				}
			}
			line, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "board.toml:"), ":")
			for i, l := range strings.Split(text, "\n") {
				if tt.at != "" && strings.Contains(l, tt.at) {
					if got := line; got != strconv.Itoa(i+1) {
						t.Errorf("fault placed at line %s, want %d (%s)", got, i+1, l)
					}
					break
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	good, err := os.ReadFile("x86-64/board.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("[[loaders]]\nname=1"))
	f.Add([]byte("a.b.c = 1\n[a]\n[a.b]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := Parse("x", "x", text)
		if (b == nil) && err == nil {
			t.Error("neither a board nor an error")
		}
	})
}
