package ledeconfig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/test-vm/netns"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata/*/expect")

// patience bounds every wait; it is no measurement.
const patience = 2 * time.Minute

// binary is the device binary, built once.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if os.Geteuid() == 0 {
			dir, err := os.MkdirTemp("", "weft-ledeconfig-")
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(dir)
			binary = filepath.Join(dir, "weft")
			cmd := exec.Command("go", "build", "-o", binary, "weft/init")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build the device binary: %v\n%s", err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// device is a Weft machine in a namespace.
type device struct {
	t      *testing.T
	space  *netns.Space
	config string
	socket string
	// needs names what a kernel of a test machine may lack; then nothing but the
	// rules is compared, made from the configuration alone.
	needs string
}

func start(t *testing.T, folder string) *device {
	t.Helper()
	if binary == "" {
		t.Skip("needs root: makes network namespaces")
	}
	space, err := netns.New(filepath.Base(folder))
	if errors.Is(err, netns.ErrNotRoot) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = space.Close() })
	state := t.TempDir()
	d := &device{t: t, space: space, config: filepath.Join(folder, "config"), socket: filepath.Join(state, "ubus.sock")}
	about, err := os.ReadFile(filepath.Join(folder, "about.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(about)) {
		if w, ok := strings.CutPrefix(line, "needs: "); ok {
			d.needs = strings.TrimSpace(w)
		}
	}
	_, ports, ok := strings.Cut(string(about), "\nports: ")
	if !ok {
		t.Fatalf("%s/about.txt: no line of ports", folder)
	}
	ports, _, _ = strings.Cut(ports, "\n")
	if d.needs != "" {
		return d
	}
	for i, p := range strings.Fields(ports) {
		if err := space.Do(func() error { return cable(p, i) }); err != nil {
			t.Fatalf("port %s: %v", p, err)
		}
	}
	d.run("ubusd", "--bus", d.socket)
	d.run("network", "--config-dir", d.config, "--bus", d.socket, "--state-dir", filepath.Join(state, "network"))
	return d
}

// cable makes a port whose other end is up.
func cable(name string, number int) error {
	far := fmt.Sprintf("far%d", number)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far}); err != nil {
		return err
	}
	for _, n := range []string{far, name} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if n == far {
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// run starts a service that ends with the test; its log is shown if the test fails.
func (d *device) run(args ...string) {
	d.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	p, err := d.space.Start(cmd)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		p.Stop(10 * time.Second)
		if d.t.Failed() {
			d.t.Logf("log of %s:\n%s", args[0], log.String())
		}
	})
}

// command runs an applet to its end.
func (d *device) command(args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "TZ=UTC")
	p, err := d.space.Start(cmd)
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	err = p.Wait(ctx)
	return out.String(), errs.String(), err
}

// interfaces is what `network.interface dump` says, a line an interface; empty
// while nobody answers.
func (d *device) interfaces() string {
	out, _, err := d.command("ubus", "-s", d.socket, "call", "network.interface", "dump")
	if err != nil {
		return ""
	}
	var dump struct {
		Interface []struct {
			Interface string
			Up        bool
			Proto     string
			L3Device  string `json:"l3_device"`
			IPv4      []struct {
				Address string
				Mask    int
			} `json:"ipv4-address"`
			IPv6 []struct {
				Address string
				Mask    int
			} `json:"ipv6-address"`
			Assigned []struct {
				Local struct {
					Address string
					Mask    int
				} `json:"local-address"`
			} `json:"ipv6-prefix-assignment"`
			Route []struct {
				Target, Nexthop string
				Mask            int
				Metric          int
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &dump); err != nil {
		d.t.Fatalf("dump: %v: %s", err, out)
	}
	var lines []string
	for _, i := range dump.Interface {
		words := []string{i.Interface, i.Proto}
		// What has no one to talk to here stays down, and says no more.
		if !i.Up {
			lines = append(lines, strings.Join(append(words, "down"), " "))
			continue
		}
		words = append(words, "up", i.L3Device)
		for _, a := range i.IPv4 {
			words = append(words, fmt.Sprintf("%s/%d", a.Address, a.Mask))
		}
		for _, a := range i.IPv6 {
			words = append(words, fmt.Sprintf("%s/%d", a.Address, a.Mask))
		}
		for _, a := range i.Assigned {
			words = append(words, fmt.Sprintf("%s/%d", a.Local.Address, a.Local.Mask))
		}
		for _, r := range i.Route {
			w := fmt.Sprintf("to %s/%d via %s", r.Target, r.Mask, r.Nexthop)
			if r.Metric != 0 {
				w += fmt.Sprintf(" metric %d", r.Metric)
			}
			words = append(words, w)
		}
		lines = append(lines, strings.Join(words, " "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// devices lists what the kernel has: kind, VLAN, bridge, MTU and addresses.
func (d *device) devices() string {
	var lines []string
	err := d.space.Do(func() error {
		lines = nil
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		for _, l := range links {
			a := l.Attrs()
			if strings.HasPrefix(a.Name, "far") {
				continue
			}
			w := []string{a.Name, l.Type()}
			if v, ok := l.(*netlink.Vlan); ok {
				w = append(w, fmt.Sprintf("vlan %d on %s", v.VlanId, names[a.ParentIndex]))
			}
			if b, ok := l.(*netlink.Bridge); ok && b.VlanFiltering != nil && *b.VlanFiltering {
				w = append(w, "vlan-filtering")
			}
			if m := names[a.MasterIndex]; m != "" {
				w = append(w, "in "+m)
			}
			if a.MTU != 1500 && a.Name != "lo" {
				w = append(w, fmt.Sprintf("mtu %d", a.MTU))
			}
			if strings.HasPrefix(a.HardwareAddr.String(), "02:aa:bb") {
				w = append(w, a.HardwareAddr.String())
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, x := range addrs {
				w = append(w, x.IPNet.String())
			}
			lines = append(lines, strings.Join(w, " "))
		}
		return nil
	})
	if err != nil {
		return "" // a device went while it was looked at
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// rules is the ruleset that the firewall makes with these interfaces.
func (d *device) rules() string {
	out, _, err := d.command("fw4", "-q", "--config-dir", d.config, "--bus", d.socket, "print")
	if err != nil {
		return ""
	}
	return out
}

// problems is what the firewall finds wrong.
func (d *device) problems() string {
	_, errs, _ := d.command("fw4", "--config-dir", d.config, "--bus", d.socket, "check")
	return errs
}

// TestConfigurations loads each configuration and compares what comes of it.
func TestConfigurations(t *testing.T) {
	folders, err := filepath.Glob("testdata/*")
	if err != nil || len(folders) < 12 {
		t.Fatalf("%d configurations, %v; there have to be 12 at least", len(folders), err)
	}
	for _, f := range folders {
		t.Run(filepath.Base(f), func(t *testing.T) {
			d := start(t, f)
			if d.needs == "" {
				golden(t, filepath.Join(f, "expect", "interfaces.txt"), d.interfaces)
				golden(t, filepath.Join(f, "expect", "devices.txt"), d.devices)
			}
			golden(t, filepath.Join(f, "expect", "rules.txt"), d.rules)
			golden(t, filepath.Join(f, "expect", "problems.txt"), d.problems)
			// The kernel takes the rules, as they are.
			if _, errs, err := d.command("fw4", "-q", "--config-dir", d.config, "--bus", "/nonexistent", "reload"); err != nil {
				t.Errorf("fw4 reload: %v: %s", err, errs)
			}
			if _, _, err := d.command("fw4", "--bus", "/nonexistent", "stop"); err != nil {
				t.Errorf("fw4 stop: %v", err)
			}
		})
	}
}

// golden waits until get gives what the file holds: interfaces come up in their
// own time.
func golden(t *testing.T, file string, get func() string) {
	t.Helper()
	if *update {
		last, since := get(), time.Now()
		for deadline := time.Now().Add(patience); time.Since(since) < 2*time.Second && time.Now().Before(deadline); {
			if now := get(); now != last {
				last, since = now, time.Now()
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(last), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if got = get(); got == string(want) {
			return
		}
	}
	t.Errorf("%s differs (-update rewrites it); got\n%s\nwant\n%s", file, got, want)
}
