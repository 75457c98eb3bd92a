package ucicli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"weft/init/uci"
	"weft/init/unit"
)

// TestMain makes `uci` a command of the scripts, on the folders config, save
// and override of the script.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"uci": func() { os.Exit(run(unit.OSCall(), folders(os.Getenv("WORK")))) },
	})
}

func folders(dir string) uci.Tree {
	return uci.Tree{
		ConfDir:     filepath.Join(dir, "config"),
		OverrideDir: filepath.Join(dir, "override"),
		SaveDir:     filepath.Join(dir, "save"),
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// With -race each of the many short processes would wait a second
			// at its end for late reports.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
	})
}

// TestExitCodes holds what scripts on LEDE depend on.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config/p":      "config a s\n\toption k v\n\tlist l one\n\tlist l 'two three'\nconfig a\n",
		"config/broken": "config a s\n\toption k v\nfoo bar\n",
		"empty":         "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const usage = "Usage: uci "
	for _, tt := range []struct {
		args   string // one word a field
		code   int
		stdout string
		stderr string // exact, or the beginning of the usage
	}{
		{"", 0, "", usage},
		{"help", 0, "", usage},
		{"-Z", 0, "", "uci: unrecognized option: Z\n" + usage},
		{"-L show", 0, "", usage},
		{"-c", 0, "", "uci: option requires an argument: c\n" + usage},
		{"frobnicate", 255, "", usage},
		{"-q frobnicate", 255, "", usage},
		{"get", 255, "", usage},
		{"get p.s.k p.s.k", 255, "", usage},
		{"show p p", 255, "", usage},
		{"add p", 255, "", usage},
		{"import a b", 255, "", usage},
		{"-m import", 255, "", usage},
		{"GET p.s.k", 0, "v\n", ""},
		{"get p.s", 0, "a\n", ""},
		{"get p", 0, "", ""},
		{"get p.s.l", 0, "one 'two three'\n", ""},
		{"-d | get p.s.l", 0, "one|'two three'\n", ""},
		{"get -d, p.s.l", 0, "one,'two three'\n", ""},
		{"get p.@a[1]", 0, "a\n", ""},
		{"get p.@a[-1]", 0, "a\n", ""},
		{"get p.@[0].k", 0, "v\n", ""},
		{"get p.s.k=x", 1, "", ""},
		{"get p.s.absent", 1, "", "uci: Entry not found\n"},
		{"get p.absent", 1, "", "uci: Entry not found\n"},
		{"get p.@zzz[0]", 1, "", "uci: Entry not found\n"},
		{"get p.@a[2].k", 1, "", "uci: Entry not found\n"},
		{"get p.@a.k", 1, "", "uci: Invalid argument\n"},
		{"get absent.s.k", 1, "", "uci: Entry not found\n"},
		{"-q get absent.s.k", 1, "", ""},
		{"get p.s.k.x", 1, "", "uci: Parse error\n"},
		{"show p.s.l", 0, "p.s.l='one' 'two three'\n", ""},
		{"show p", 0, "p.s=a\np.s.k='v'\np.s.l='one' 'two three'\np.@a[1]=a\n", ""},
		{"show p.@a[1]", 0, "p.cfg02b606=a\n", ""},
		{"-X show p", 0, "p.s=a\np.s.k='v'\np.s.l='one' 'two three'\np.cfg02b606=a\n", ""},
		{"show p.absent", 1, "", "uci: Entry not found\n"},
		{"show broken", 1, "", "uci: Parse error (invalid command) at line 3, byte 0\n"},
		{"show", 0, "p.s=a\np.s.k='v'\np.s.l='one' 'two three'\np.@a[1]=a\n", "uci: Parse error (invalid command) at line 3, byte 0\n"},
		{"-S show broken", 0, "broken.s=a\nbroken.s.k='v'\n", "Parse error (invalid command) at line 3, byte 0\n"},
		{"-S -s show broken", 1, "", "uci: Parse error (invalid command) at line 3, byte 0\n"},
		{"-c none show", 1, "", "uci: Entry not found\n"},
		{"add absent t", 3, "", "uci: Entry not found\n"},
		{"add broken t", 5, "", "uci: Parse error (invalid command) at line 3, byte 0\n"},
		{"add p b\u00e4d", 2, "", "uci: Invalid argument\n"},
		{"set p.x.bad-name=1", 1, "", "uci: Parse error\n"},
		{"set p.@zzz[0].k=v", 1, "", "uci: Invalid argument\n"},
		{"set p.absent.k=v", 1, "", "uci: Invalid argument\n"},
		{"set p.s.k", 1, "", "uci: Invalid argument\n"},
		{"set p=v", 1, "", "uci: Invalid argument\n"},
		{"set absent.s=t", 1, "", "uci: Entry not found\n"},
		{"set p.s.absent=", 0, "", ""},
		{"add_list p.absent.l=x", 1, "", "uci: Invalid argument\n"},
		{"add_list p.s.l", 1, "", "uci: Invalid argument\n"},
		{"del_list p.s.k=x", 0, "", ""},
		{"del_list p.s.absent=x", 0, "", ""},
		{"delete p.absent", 1, "", "uci: Entry not found\n"},
		{"delete p.s.absent", 1, "", "uci: Entry not found\n"},
		{"delete p", 1, "", "uci: Invalid argument\n"},
		{"delete p.s.l=x", 1, "", ""},
		{"rename p.absent=x", 1, "", "uci: Entry not found\n"},
		{"rename p.s", 1, "", "uci: Invalid argument\n"},
		{"reorder p.absent=0", 1, "", "uci: Entry not found\n"},
		{"reorder p.s", 1, "", "uci: Entry not found\n"},
		{"revert p.s=x", 1, "", ""},
		{"revert p.@zzz[0]", 0, "", ""},
		{"changes", 0, "", "uci: Parse error (invalid command) at line 3, byte 0\n"},
		{"commit absent", 1, "", "uci: Entry not found\n"},
		{"commit", 0, "", "uci: Parse error (invalid command) at line 3, byte 0\n"},
		{"-f none import", 1, "", "uci: none: no such file or directory\n"},
		{"-f empty -f empty import", 1, "", "Too many input files.\n"},
		{"-q -f empty -f empty import", 1, "", ""},
		{"-f empty import", 0, "", ""},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := run(&unit.Call{
				Args: append([]string{"/sbin/uci"}, strings.Fields(tt.args)...), Dir: dir,
				Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errOut,
				Getenv: func(string) string { return "" },
			}, folders(dir))
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if got := out.String(); got != tt.stdout {
				t.Errorf("stdout %q, want %q", got, tt.stdout)
			}
			got := errOut.String()
			if strings.HasSuffix(tt.stderr, usage) {
				got = got[:min(len(got), len(tt.stderr))]
			}
			if got != tt.stderr {
				t.Errorf("stderr %q, want %q", got, tt.stderr)
			}
		})
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestOutputThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "config"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config/p"), []byte("config a s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	code := run(&unit.Call{Args: []string{"uci", "show", "p"}, Dir: dir, Stdin: strings.NewReader(""), Stdout: failingWriter{}, Stderr: &errOut}, folders(dir))
	if code != 1 || !strings.Contains(errOut.String(), "write the output") {
		t.Errorf("exit code %d, %q", code, errOut.String())
	}
}
