package upgradetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/image/cli"
	"weft/test-vm/lab"
)

// Bounds of waits: many times what emulation takes on two busy processors.
const (
	bootBound    = 6 * time.Minute
	commandBound = 3 * time.Minute
	upgradeBound = 12 * time.Minute
)

// bed is what the tests share.
type bed struct {
	dir    string
	images *lab.Images
	good   string // combined image
	disk   string // the same, unpacked
	server string // address of the web server with what is in dir, as guests see it
}

var tempDir string

func TestMain(m *testing.M) {
	var err error
	tempDir, err = os.MkdirTemp("", "weft-upgrade-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(tempDir)
	os.Exit(code)
}

var makeBed = sync.OnceValues(func() (*bed, error) {
	board := os.Getenv("WEFT_BOARD")
	if board == "" {
		board = "x86-64"
	}
	images, err := lab.FindImages(os.Getenv("WEFT_BIN_DIR"), board)
	if err != nil {
		return nil, err
	}
	b := &bed{dir: tempDir, images: images, disk: filepath.Join(tempDir, "good.img")}
	if b.good, err = images.Path("combined"); err != nil {
		return nil, err
	}
	if err := lab.CopyDisk(context.Background(), b.disk, b.good, 0); err != nil {
		return nil, err
	}
	if err := os.Symlink(b.good, filepath.Join(tempDir, "good.img.gz")); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go http.Serve(l, http.FileServer(http.Dir(tempDir))) // until the program ends
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	b.server = "http://" + net.JoinHostPort("10.0.2.2", port) + "/" // QEMU's way to this machine
	return b, nil
})

// saboteur is a service of the bad image. What it does is in /etc/saboteur, which the upgrade carries along; a system
// without that file is well. The boot loader's count of the tries tells it the first trial boot (2 more) from the others.
const saboteur = `#!/bin/sh
case "$(cat /etc/saboteur 2>/dev/null)" in
crash)
	exit 3 ;;
hang-then-panic)
	if grep -q weft.trial=2 /proc/cmdline; then
		exec /usr/lib/saboteur/probe freeze 1
	fi
	echo c >/proc/sysrq-trigger ;;
esac
while :; do sleep 1000; done
`

const saboteurUnit = `description = "what an upgrade must survive"
command     = ["/usr/lib/saboteur/run"]
ready       = "exec"
critical    = true
after       = ["network"]
`

// makeBad builds the image with the saboteur.
var makeBad = sync.OnceValues(func() (string, error) {
	root, err := lab.Root()
	if err != nil {
		return "", err
	}
	files := filepath.Join(tempDir, "files")
	for name, text := range map[string]string{
		"usr/lib/saboteur/run":                saboteur,
		"usr/lib/weft/services/saboteur.toml": saboteurUnit,
		"etc/init.d/saboteur":                 "#!/bin/sh\nexec service saboteur \"$@\"\n",
		"etc/saboteur-was-here":               "the new system\n",
	} {
		path := filepath.Join(files, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		mode := os.FileMode(0o755)
		if strings.HasSuffix(name, ".toml") {
			mode = 0o644
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return "", err
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(files, "usr/lib/saboteur/probe"), "weft/test-vm/boot/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the probe: %w: %s", err, out)
	}
	bin := filepath.Join(tempDir, "bad")
	var said bytes.Buffer
	if code := cli.Main(context.Background(), []string{"build", "--source", root, "--files", files, "--bin-dir", bin}, cli.Streams{Out: io.Discard, Err: &said}); code != 0 {
		return "", fmt.Errorf("build the image that is at fault: exit code %d: %s", code, &said)
	}
	images, err := lab.FindImages(bin, "x86-64")
	if err != nil {
		return "", err
	}
	path, err := images.Path("combined")
	if err != nil {
		return "", err
	}
	return "bad.img.gz", os.Symlink(path, filepath.Join(tempDir, "bad.img.gz"))
})

// slots bounds how many guests run at once: emulation takes a processor each.
var slots = make(chan struct{}, 2)

// vm is a guest of a test; its methods end the test when something fails.
type vm struct {
	*lab.Machine
	t   *testing.T
	bed *bed
}

// newVM makes a guest with the good image on a disk with room. It is off.
func newVM(t *testing.T) *vm {
	t.Helper()
	b, err := makeBed()
	if err != nil {
		t.Fatal(err)
	}
	slots <- struct{}{}
	m, err := lab.New(bound(t, commandBound), lab.Config{
		Name:     strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()),
		Disks:    []lab.Disk{{Image: b.disk, Size: 640 << 20}},
		NICs:     []lab.NIC{{Net: "192.168.1.0/24", Isolated: true}, {}},
		Consoles: []string{"hvc0"}, Watchdog: true, OneThread: true,
	})
	if err != nil {
		<-slots
		t.Fatal(err)
	}
	v := &vm{m, t, b}
	t.Cleanup(func() {
		if t.Failed() {
			v.keep()
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		<-slots
	})
	return v
}

// keep saves what the guest had to say, and shows the end of its log.
func (v *vm) keep() {
	v.t.Logf("the last lines of %s:\n%s", v.Serial().Name(), v.Serial().Tail(60))
	dir, err := lab.OutDir(v.t.Name())
	if err == nil {
		err = v.Save(context.Background(), dir)
	}
	if err != nil {
		v.t.Logf("%v", err)
	}
	v.t.Logf("consoles and logs are in %s", dir)
}

// bound is a context of at most d, times WEFT_TIMEOUT_FACTOR.
func bound(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.Timeout(d))
	t.Cleanup(cancel)
	return ctx
}

func (v *vm) boot() {
	v.t.Helper()
	ctx := bound(v.t, bootBound)
	if _, err := v.StartTo(ctx, lab.StartLine); err != nil {
		v.t.Fatal(err)
	}
	v.ready()
}

func (v *vm) ready() {
	v.t.Helper()
	if _, err := v.WaitReady(bound(v.t, bootBound)); err != nil {
		v.t.Fatal(err)
	}
}

// try runs a command whatever its exit code.
func (v *vm) try(cmd string) lab.Result {
	v.t.Helper()
	r, err := v.Run(bound(v.t, commandBound), cmd)
	if err != nil {
		v.t.Fatal(err)
	}
	return r
}

// run runs a command that must succeed and returns its output without the last newline.
func (v *vm) run(cmd string) string {
	v.t.Helper()
	r := v.try(cmd)
	if r.Code != 0 {
		v.t.Fatalf("%s: exit %d: %s", cmd, r.Code, r.Output)
	}
	return strings.TrimSuffix(r.Output, "\n")
}

// expect runs a command that must succeed and print what matches.
func (v *vm) expect(cmd, expr string) {
	v.t.Helper()
	if out := v.run(cmd); !regexp.MustCompile(expr).MatchString(out) {
		v.t.Errorf("%s: printed %q, want a match of %q", cmd, out, expr)
	}
}

// wait waits for a line on the serial console.
func (v *vm) wait(within time.Duration, expr string) string {
	v.t.Helper()
	l, err := v.Serial().WaitLine(bound(v.t, within), regexp.MustCompile(expr))
	if err != nil {
		v.t.Fatalf("%v; the last lines:\n%s", err, v.Serial().Tail(40))
	}
	return l.Text
}

// restart types a command that makes the guest reboot, and returns when it has been reset.
func (v *vm) restart(cmd string, within time.Duration) {
	v.t.Helper()
	if err := v.Reboot(bound(v.t, within), cmd); err != nil {
		v.t.Fatal(err)
	}
}

// until runs a command again and again until ok accepts what it printed.
func (v *vm) until(within time.Duration, cmd string, ok func(string) bool) {
	v.t.Helper()
	ctx := bound(v.t, within)
	var last lab.Result
	for ctx.Err() == nil {
		r, err := v.Run(ctx, cmd)
		if err != nil {
			break
		}
		if last = r; ok(r.Output) {
			return
		}
	}
	v.t.Fatalf("%s: not as expected within %v; the last time: exit %d: %s", cmd, lab.Timeout(within), last.Code, last.Output)
}

// status is what `sysupgrade --status --json` says.
type status struct {
	Running   string          `json:"running"`
	Preferred string          `json:"preferred"`
	Trial     string          `json:"trial"`
	TriesLeft int             `json:"tries_left"`
	Confirmed map[string]bool `json:"confirmed"`
	Last      struct {
		Slot   string `json:"slot"`
		Check  string `json:"check"`
		Detail string `json:"detail"`
	} `json:"last_failure"`
}

func (v *vm) status() status {
	v.t.Helper()
	text := v.run("sysupgrade --status --json")
	var s status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		v.t.Fatalf("sysupgrade --status --json: %v in %s", err, text)
	}
	return s
}

// failed expects slot a to run, and the failure of slot b to be told everywhere.
func (v *vm) failed(check, detail string) {
	v.t.Helper()
	s := v.status()
	if s.Running != "a" || s.Preferred != "a" || s.Trial != "" {
		v.t.Errorf("slot a is to run and to be preferred: %+v", s)
	}
	if s.Last.Slot != "b" || s.Last.Check != check || !strings.Contains(s.Last.Detail, detail) {
		v.t.Errorf("the failure is %+v, want check %s and %q", s.Last, check, detail)
	}
	v.expect("sysupgrade --status", `last failure +slot b, check `+check)
	v.until(commandBound, "logread", func(out string) bool { return strings.Contains(out, detail) })
	v.run("test ! -e /etc/saboteur-was-here")
	v.expect("uci get system.@system[0].hostname", "^kept$")
}
