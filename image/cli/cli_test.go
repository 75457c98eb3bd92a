package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"weft/image/pins"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"image": func() {
			os.Exit(Main(context.Background(), os.Args[1:], Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

// TestScripts runs the command lines in testdata. Those that build use the
// user's cache of pinned packages and of compiled Go.
func TestScripts(t *testing.T) {
	store, err := pins.Open(pins.Options{})
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOROOT"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env[name] = strings.TrimSpace(string(out))
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			for k, v := range env {
				e.Setenv(k, v)
			}
			e.Setenv("SOURCE", filepath.Join(e.WorkDir, "source"))
			// Steps are made anew; what is pinned is taken from the user's cache.
			cache := filepath.Join(e.WorkDir, "cache")
			e.Setenv("WEFT_CACHE", cache)
			if err := os.Mkdir(cache, 0o755); err != nil {
				return err
			}
			for _, d := range []string{"deb", "tree", "tool"} {
				if err := os.MkdirAll(filepath.Join(store.Dir(), d), 0o755); err != nil {
					return err
				}
				if err := os.Symlink(filepath.Join(store.Dir(), d), filepath.Join(cache, d)); err != nil {
					return err
				}
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			// Whether the pinned packages are there or can be fetched.
			_, err := store.Tool(t.Context(), "mksquashfs")
			return cond == "pins" && err == nil, nil
		},
	})
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 9999: "9999 B", 20 << 10: "20.0 KiB", 33 << 20: "33.0 MiB", -20 << 10: "-20.0 KiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}
