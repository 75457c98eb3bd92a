package reset

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/overlay"
	"weft/init/slot"
	"weft/init/unit"
)

// fakeDevice writes down what the applets do.
func fakeDevice(t *testing.T, mounts string) (device, *[]string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "mounts")
	if err := os.WriteFile(path, []byte(mounts), 0o644); err != nil {
		t.Fatal(err)
	}
	var did []string
	return device{
		mounts: path,
		dir:    "/overlay",
		reset:  func(dir string, keep bool) error { did = append(did, fmt.Sprint("reset ", dir, " ", keep)); return nil },
		volume: func() (overlay.Volume, error) {
			return overlay.Volume{Device: "/dev/vda2", Offset: 1 << 20}, nil
		},
		slot: func() (slot.ID, error) { return slot.B, nil },
		later: func(v overlay.Volume, id slot.ID, keep bool) error {
			if v.Device == "/dev/vda2" {
				return errors.New("no ext4")
			}
			did = append(did, fmt.Sprint("later ", id, " ", keep))
			return nil
		},
		mark:   func(v overlay.Volume) error { did = append(did, "mark "+v.String()); return nil },
		reboot: func() error { did = append(did, "reboot"); return nil },
	}, &did
}

const (
	mounted = "/dev/vda2 /rom squashfs ro 0 0\n/dev/vda4 /overlay ext4 rw 0 0\noverlayfs:/overlay / overlay rw 0 0\n"
	memory  = "/dev/vda2 /rom squashfs ro 0 0\noverlayfs:/tmp/root / overlay rw 0 0\n"
)

func TestFactoryReset(t *testing.T) {
	for _, tc := range []struct {
		args, stdin, mounts string
		code                int
		did                 string
	}{
		{"-y", "", mounted, 0, "reset /overlay false"},
		{"-y -k", "", mounted, 0, "reset /overlay true"},
		{"-y -r", "", mounted, 0, "reset /overlay false; reboot"},
		{"-yrk", "", mounted, 0, "reset /overlay true; reboot"},
		{"", "y\n", mounted, 0, "reset /overlay false"},
		{"", "Y\n", mounted, 0, "reset /overlay false"},
		{"", "\n", mounted, 1, ""},
		{"", "yes please\n", mounted, 1, ""},
		{"-r", "n\n", mounted, 1, ""},
		{"", "", mounted, 1, ""},
		{"-y", "", memory, 0, "mark /dev/vda2 from byte 1048576"},
		{"-y", "", "", 0, "mark /dev/vda2 from byte 1048576"},
		{"-x", "", mounted, 2, ""},
		{"-y now", "", mounted, 2, ""},
	} {
		t.Run(strings.TrimSpace(tc.args+" "+tc.stdin), func(t *testing.T) {
			d, did := fakeDevice(t, tc.mounts)
			var out, errs bytes.Buffer
			c := &unit.Call{Args: append([]string{"/sbin/firstboot"}, strings.Fields(tc.args)...), Stdin: strings.NewReader(tc.stdin), Stdout: &out, Stderr: &errs}
			if code := d.factoryReset(c); code != tc.code {
				t.Errorf("exit code %d, want %d (%s)", code, tc.code, errs.String())
			}
			if got := strings.Join(*did, "; "); got != tc.did {
				t.Errorf("did %q, want %q", got, tc.did)
			}
			if asked := strings.Contains(out.String(), "[N/y]"); asked == (strings.Contains(tc.args, "y") || tc.code == 2) {
				t.Errorf("asked: %v: %s", asked, out.String())
			}
		})
	}
}

func TestFactoryResetFails(t *testing.T) {
	d, did := fakeDevice(t, mounted)
	d.reset = func(string, bool) error { return errors.New("disk full of sand") }
	var errs bytes.Buffer
	c := &unit.Call{Args: []string{"firstboot", "-y", "-r"}, Stdin: strings.NewReader(""), Stdout: &bytes.Buffer{}, Stderr: &errs}
	if code := d.factoryReset(c); code != 1 || !strings.Contains(errs.String(), "firstboot: disk full of sand") {
		t.Errorf("code %d, %s", code, errs.String())
	}
	if len(*did) != 0 {
		t.Errorf("after a failed reset: %q", *did)
	}
}

func TestDone(t *testing.T) {
	d, _ := fakeDevice(t, mounted)
	d.dir = t.TempDir()
	if err := os.WriteFile(d.mounts, []byte("/dev/vda4 "+d.dir+" ext4 rw 0 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := overlay.SetState(d.dir, overlay.Pending); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.done(); err != nil || overlay.GetState(d.dir) != overlay.Ready {
			t.Errorf("%v, state %v", err, overlay.GetState(d.dir))
		}
	}
	d, _ = fakeDevice(t, memory)
	if err := d.done(); err != nil {
		t.Errorf("without a data file system: %v", err)
	}
}

func TestFactoryResetUnmounted(t *testing.T) {
	d, did := fakeDevice(t, "")
	d.volume = func() (overlay.Volume, error) { return overlay.Volume{Device: "/dev/vda4"}, nil }
	var out, errs bytes.Buffer
	c := &unit.Call{Args: []string{"firstboot", "-y", "-k"}, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}
	if code := d.factoryReset(c); code != 0 || strings.Join(*did, "; ") != "later b true" {
		t.Errorf("exit code %d, did %q: %s", code, *did, errs.String())
	}
}

// TestResetSlot: a reset of a slot that is not mounted leaves the other one alone
// and decides at once, by the state.
func TestResetSlot(t *testing.T) {
	data := t.TempDir()
	for _, name := range []string{"slot-a/upper/x", "slot-b/upper/x", "slot-b/" + overlay.Saved} {
		path := filepath.Join(data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"a", "b"} {
		if err := overlay.SetState(overlay.SlotDir(data, id), overlay.Ready); err != nil {
			t.Fatal(err)
		}
	}
	if err := resetSlot(data, slot.B, false); err != nil {
		t.Fatal(err)
	}
	if a, b := overlay.GetState(overlay.SlotDir(data, "a")), overlay.GetState(overlay.SlotDir(data, "b")); a != overlay.Ready || b != overlay.Pending {
		t.Errorf("states: a %v, b %v", a, b)
	}
	if _, err := os.Stat(filepath.Join(data, "slot-b", overlay.Saved)); err == nil {
		t.Error("the saved config is still there without -k")
	}
}
