package labtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/test-vm/bed"
	"weft/test-vm/lab"
	"weft/test-vm/report"
	"weft/test-vm/run"
	"weft/test-vm/topology"
)

func topologyFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../topologies/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no topologies: %v", err)
	}
	return files
}

// runOne runs a topology and fails the test where a check does not hold; page and logs of a failure are kept.
func runOne(t *testing.T, top *topology.Topology, backend topology.Backend) {
	t.Helper()
	out, err := lab.OutDir(top.Name + "-" + string(backend))
	if err != nil {
		t.Fatal(err)
	}
	rep, err := run.Topology(t.Context(), top, run.Options{Options: bed.Options{Backend: backend, Progress: t.Logf}, EvidenceDir: out})
	if rep != nil {
		var text strings.Builder
		if e := rep.Text(&text); e != nil {
			t.Error(e)
		}
		t.Log(text.String())
		if e := page(rep, filepath.Join(out, "report.html")); e != nil {
			t.Error(e)
		}
	}
	switch {
	case errors.Is(err, lab.ErrNoImage):
		t.Skipf("%v: run make lab-images first", err)
	case err != nil && t.Context().Err() != nil:
		t.Fatalf("%v: %v", context.Cause(t.Context()), err)
	case err != nil:
		t.Fatal(err)
	}
	for _, fault := range faults(rep) {
		t.Errorf("%s on %s: %s; see %s", top.Name, backend, fault, out)
	}
	if !rep.OK && !t.Failed() {
		t.Logf("%s on %s: what is counted holds, and of the figures: %s", top.Name, backend, rep.Verdict())
	}
}

// faults lists what is wrong whatever the machine does beside.
func faults(rep *report.Report) (all []string) {
	if rep.Error != "" {
		all = append(all, rep.Error)
	}
	for _, c := range rep.Checks {
		switch {
		case c.OK || c.Skipped != "":
		case c.Error != "":
			all = append(all, c.Name+": "+c.Error)
		case len(c.Values) == 0:
			all = append(all, c.Name+" does not hold")
		default:
			for _, v := range c.Values {
				if !v.OK && !measured(v) {
					all = append(all, fmt.Sprintf("%s: %s is %.3f %s, bound %s", c.Name, v.Name, v.Value, v.Unit, v.Bound))
				}
			}
		}
	}
	return all
}

// measured tells whether a value depends on how busy the machine is: rates and
// times are printed beside their bounds, for "test-vm run" and make lab to hold
// them against; what is counted or true decides here.
func measured(v report.Value) bool {
	for _, counted := range []string{"flows", "cases", "frames"} {
		if strings.HasPrefix(v.Name, counted) {
			return false
		}
	}
	return true
}

func page(rep *report.Report, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(rep.HTML(f), f.Close())
}

// guests is the topology that runs in QEMU.
const guests = "mptcp-two-paths"

// TestGuests runs the seed topology with the images in QEMU.
func TestGuests(t *testing.T) {
	top, err := topology.Load("../topologies/" + guests + ".toml")
	if err != nil {
		t.Fatal(err)
	}
	runOne(t, top, topology.QEMU)
}

// notHere are topologies that take too long for every test run; make lab runs them.
var notHere = map[string]bool{"three-unequal-paths": true, "unequal-rate": true, "unequal-delay": true, "lossy-path": true, "parallel-flows": true}

// TestNamespaces runs all others with the programs of make host.
func TestNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is not installed on this machine")
	}
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "bin", "host", "mptcpproxy")); err != nil {
		t.Skipf("%v: run make host first", err)
	}
	for _, file := range topologyFiles(t) {
		top, err := topology.Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if !top.On(topology.Netns) || notHere[top.Name] || top.Name == guests {
			continue
		}
		t.Run(top.Name, func(t *testing.T) { runOne(t, top, topology.Netns) })
	}
}
