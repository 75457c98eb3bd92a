package dhcp

import (
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
)

// heap is the memory in use after everything that can be freed is.
func heap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// TestFlood floods the service with DISCOVERs from 50,000 MAC addresses and
// with 50,000 questions for random names, and looks whether those who behave are
// served and the memory stays bounded.
func TestFlood(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	good := newUpstream(l, "www.good.example. 60 IN A 9.51.100.77")
	// The server for everything else takes questions and answers none.
	hole, err := net.ListenPacket("udp4", "127.0.0.1:0")
	l.must(err)
	defer hole.Close()
	u := &upstream{addr: hole.LocalAddr().String()}
	host, port, _ := net.SplitHostPort(good.addr)
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, u.option()+fmt.Sprintf("\tlist server '/good.example/%s#%s'\n", host, port), ""))
	l.inClient("ip", "addr", "add", "192.168.1.10/24", "dev", "cli0")
	l.inClient("ip", "addr", "add", "192.168.1.11/24", "dev", "cli0")
	l.start()
	dig := l.judge("dig", "bind9-dnsutils")
	l.dig("@192.168.1.1", "www.good.example") // everything has been used once
	l.clientHelper("crowd", "1", "1")
	before := heap()

	const count = "50000"
	var wg sync.WaitGroup
	run := func(name string, args ...string) {
		wg.Go(func() { l.clientHelper(name, args...) })
	}
	run("flood", count)
	run("dns-flood", count, "192.168.1.1")
	// While it lasts a client gets a lease, and another host a name.
	if got := l.clientHelper("crowd", "3", "9"); strings.Count(got, "192.168.1.") != 3 {
		t.Errorf("clients in the flood: %q", got)
	}
	var got string
	l.eventually("an answer in the flood", func() bool {
		out, err := l.clientCmd(dig, "@192.168.1.1", "-b", "192.168.1.11", "+tries=3", "+time=3", "+short", "www.good.example").CombinedOutput()
		got = strings.TrimSpace(string(out))
		return err == nil && got == "9.51.100.77"
	})
	wg.Wait()
	// After it as well, and what it has cost is little.
	if got := l.clientHelper("crowd", "1", "10"); strings.Count(got, "192.168.1.") != 1 {
		t.Errorf("a client after the flood: %q", got)
	}
	const most = 12 << 20
	if after := heap(); after > before+most {
		t.Errorf("the heap has grown from %d to %d KiB", before>>10, after>>10)
	} else {
		t.Logf("heap in use: %d KiB before, %d KiB after", before>>10, after>>10)
	}
	if n := strings.Count(l.leases(), "\n"); n != 5 {
		t.Errorf("%d leases in the file, want those of the 5 clients:\n%s", n, l.leases())
	}
}
