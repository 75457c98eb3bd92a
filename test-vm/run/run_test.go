package run

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/test-vm/bed"
	"weft/test-vm/lab"
	"weft/test-vm/report"
	"weft/test-vm/topology"
)

// TestNamespaces runs a network without any of our programs: all kinds of checks, events, both kinds of links. One check
// asks for more than there is, and has to fail.
func TestNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(root, "bin", "host") // of make host, where it has been made
	for _, tool := range []string{"iperf3", "tc", "ping"} {
		_, err := exec.LookPath(tool)
		if _, err2 := os.Stat(filepath.Join(host, tool)); err != nil && err2 != nil {
			t.Skipf("%s is not installed, and make host has not been run", tool)
		}
	}
	top, err := topology.Load("testdata/routed.toml")
	if err != nil {
		t.Fatal(err)
	}
	pcaps, evidence := t.TempDir(), t.TempDir()
	rep, err := Topology(t.Context(), top, Options{
		Options:     bed.Options{Backend: topology.Netns, HostDir: host, PcapDir: pcaps, Progress: t.Logf},
		EvidenceDir: evidence,
	})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := rep.Text(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	for _, c := range rep.Checks {
		switch want := c.Name != "too-much"; {
		case c.Name == "elsewhere":
			if c.Skipped == "" {
				t.Error("a check for another back end was made")
			}
		case c.OK != want:
			t.Errorf("check %s: holds %v, want %v", c.Name, c.OK, want)
		}
	}
	if rep.OK || len(rep.Checks) != len(top.Checks) {
		t.Errorf("the run holds: %v; %d of %d checks are reported", rep.OK, len(rep.Checks), len(top.Checks))
	}
	if len(rep.Events) != 2 || rep.Events[0].What != "path down" || rep.Events[1].At-rep.Events[0].At < 0.5 {
		t.Errorf("events: %+v", rep.Events)
	}
	ping := rep.Checks[slices.IndexFunc(rep.Checks, func(c report.Check) bool { return c.Name == "ping" })]
	if p50 := ping.Values[1]; p50.Name != "p50" || p50.Value < 20 {
		t.Errorf("round trip over a wire with 10 ms each way: %v", ping.Values)
	}
	for _, l := range top.Links {
		info, err := os.Stat(filepath.Join(pcaps, l.Name+".pcap"))
		if err != nil || info.Size() < 10000 {
			t.Errorf("capture of %s: %v, %v", l.Name, info, err)
		}
	}
	if logs, err := os.ReadFile(filepath.Join(evidence, "r2-program0.log")); err != nil || string(logs) != "started\n" {
		t.Errorf("log of the node's program: %q, %v", logs, err)
	}
}

func TestPingTimes(t *testing.T) {
	for _, out := range []string{
		"PING 192.168.2.2 (192.168.2.2) 56(84) bytes of data.\n64 bytes from 192.168.2.2: icmp_seq=2 ttl=62 time=0.5 ms\n64 bytes from 192.168.2.2: icmp_seq=1 ttl=62 time=20.1 ms\n64 bytes from 192.168.2.2: icmp_seq=1 ttl=62 time=20.2 ms (DUP!)\n",
		"PING fd02::2 (fd02::2): 56 data bytes\n64 bytes from fd02::2: seq=0 ttl=62 time=0.500 ms\n64 bytes from fd02::2: seq=1 ttl=62 time=20.100 ms\n",
	} {
		if got := pingTimes(out); !slices.Equal(got, []float64{0.5, 20.1}) {
			t.Errorf("times %v of\n%s", got, out)
		}
	}
	if q := quantile([]float64{1, 2, 3, 4, 5}, 0.5); q != 3 {
		t.Errorf("median %g", q)
	}
}
