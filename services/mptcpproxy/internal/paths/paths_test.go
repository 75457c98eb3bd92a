package paths

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/services/internal/mptcpnl"
)

// pair starts both managers and one registered trunk.
func (b *bed) pair() (near, far *Manager, l int, tr trunk) {
	near, far = b.manager(b.near, b.nearOptions()), b.manager(b.far, b.farOptions())
	l = b.listen()
	tr = b.dial(l, near)
	near.Register(tr.near, "exit", true)
	far.Register(tr.far, "near", false)
	return
}

func find(m *Manager, name string) Path {
	for _, p := range m.Paths() {
		if p.Name == name {
			return p
		}
	}
	return Path{}
}

func TestJoinAndReturn(t *testing.T) {
	b := newBed(t, 2)
	near, far, _, tr := b.pair()
	until(t, "joined on both paths", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && has(t, tr.far, "10.1.0.2", "10.2.0.2") })
	for i, p := range []string{"p1", "p2"} {
		rest := []string{"10.2.0.1", "10.1.0.1"}[i]
		b.up(b.near, p, false)
		until(t, p+" gone", func() bool { return has(t, tr.near, rest) && len(subflows(t, tr.far)) == 1 })
		tr.exchange(b)
		if st := find(near, fmt.Sprintf("wan%d", i+1)).State; st != Down {
			t.Errorf("%s is %v, want down", p, st)
		}
		b.up(b.near, p, true)
		until(t, p+" back", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && len(subflows(t, tr.far)) == 2 })
	}
	b.up(b.far, "p1", false)
	until(t, "p1 cut at the far side", func() bool { return has(t, tr.near, "10.2.0.1") && has(t, tr.far, "10.2.0.2") })
	b.up(b.far, "p1", true)
	until(t, "p1 back", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	tr.exchange(b)
	until(t, "subflows counted at both ends", func() bool {
		return find(near, "wan1").Subflows == 1 && find(near, "wan2").Subflows == 1 && find(far, "wan1").Subflows == 1 && find(far, "wan2").Subflows == 1
	})
	if j := find(near, "wan1").Joins + find(near, "wan2").Joins; j < 4 {
		t.Errorf("%d joins counted, want 4 or more", j)
	}
}

// TestLastSubflowStays: with every path down there is nothing to move to.
func TestLastSubflowStays(t *testing.T) {
	b := newBed(t, 2)
	near, _, _, tr := b.pair()
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	b.up(b.near, "p1", false)
	until(t, "p1 gone", func() bool { return has(t, tr.near, "10.2.0.1") && find(near, "wan1").State == Down })
	b.up(b.near, "p2", false)
	until(t, "p2 down", func() bool { return find(near, "wan2").State == Down })
	if !has(t, tr.near, "10.2.0.1") {
		t.Error("the only subflow was destroyed")
	}
	if _, _, _, err := near.Pick("exit"); err == nil {
		t.Error("Pick found a path although all are down")
	}
	b.up(b.near, "p1", true)
	until(t, "moved to p1", func() bool { return has(t, tr.near, "10.1.0.1") })
	tr.exchange(b)
	b.up(b.near, "p2", true)
	until(t, "both again", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	tr.exchange(b)
}

// TestReset: a subflow that ends by itself comes back.
func TestReset(t *testing.T) {
	b := newBed(t, 2)
	near, _, _, tr := b.pair()
	var pm *mptcpnl.Conn
	b.in(b.far, func() (err error) { pm, err = mptcpnl.Dial(); return err })
	defer pm.Close()
	for round := range 4 {
		until(t, "joined", func() bool {
			return has(t, tr.near, "10.1.0.1", "10.2.0.1") && len(subflows(t, tr.far)) == 2
		})
		_, subs, err := mptcpnl.GetFullInfo(tr.far, nil)
		b.ok(err)
		before := find(near, "wan1").Lost + find(near, "wan2").Lost
		b.ok(pm.Abort(subs[round%2].Local, subs[round%2].Remote))
		until(t, "loss noticed", func() bool { return find(near, "wan1").Lost+find(near, "wan2").Lost > before })
		tr.exchange(b)
	}
	until(t, "joined again", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
}

func TestManyTrunks(t *testing.T) {
	b := newBed(t, 2)
	near, far := b.manager(b.near, b.nearOptions()), b.manager(b.far, b.farOptions())
	l := b.listen()
	var trs []trunk
	for range 200 {
		tr := b.dial(l, near)
		near.Register(tr.near, "exit", true)
		far.Register(tr.far, "near", false)
		trs = append(trs, tr)
	}
	all := func(addrs ...string) func() bool {
		return func() bool {
			for _, tr := range trs {
				if !has(t, tr.near, addrs...) || len(subflows(t, tr.far)) != len(addrs) {
					return false
				}
			}
			return true
		}
	}
	until(t, "all joined", all("10.1.0.1", "10.2.0.1"))
	b.up(b.far, "p1", false)
	until(t, "all without p1", all("10.2.0.1"))
	b.up(b.far, "p1", true)
	until(t, "all joined again", all("10.1.0.1", "10.2.0.1"))
	for i, tr := range trs {
		if i%2 == 0 {
			near.Unregister(tr.near)
			far.Unregister(tr.far)
			unix.Close(tr.near)
			unix.Close(tr.far)
		}
	}
	until(t, "closed ones forgotten", func() bool { return find(near, "wan1").Subflows == 100 && find(far, "wan2").Subflows == 100 })
}

// TestSpread: trunks start on both paths in turn; on a master if there is one.
func TestSpread(t *testing.T) {
	b := newBed(t, 2)
	o := b.nearOptions()
	o.Wanted[0].Weight = 3
	near := b.manager(b.near, o)
	count := func() map[string]int {
		n := map[string]int{}
		for range 40 {
			local, dev, remote, err := near.Pick("exit")
			b.ok(err)
			if dev == "p1" != (local == netip.MustParseAddr("10.1.0.1")) || dev == "p1" != (remote == netip.MustParseAddrPort("10.1.0.2:6240")) {
				t.Fatalf("Pick = %v %v %v", local, dev, remote)
			}
			n[dev]++
		}
		return n
	}
	if n := count(); n["p1"] != 30 || n["p2"] != 10 {
		t.Errorf("weights 3 and 1: %v", n)
	}
	o.Wanted[1].Mode = Master
	near.Update(o)
	if n := count(); n["p2"] != 40 {
		t.Errorf("p2 master: %v", n)
	}
	o.Wanted[1].Mode = Backup
	near.Update(o)
	if n := count(); n["p1"] != 40 {
		t.Errorf("p2 backup: %v", n)
	}
	b.up(b.near, "p1", false)
	until(t, "p1 down", func() bool { return find(near, "wan1").State == Down })
	if n := count(); n["p2"] != 40 {
		t.Errorf("p1 down: %v", n)
	}
	if _, _, _, err := near.Pick("nobody"); err == nil {
		t.Error("Pick of an unknown peer succeeded")
	}
}

// backups tells which subflows of a connection the other end should avoid.
func backups(m *Manager, fd int) map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]bool{}
	for _, s := range m.fds[fd].subs {
		out[s.path.w.Name] = s.backup
	}
	return out
}

func TestModes(t *testing.T) {
	b := newBed(t, 2)
	o := b.nearOptions()
	o.Wanted[1].Mode = Backup
	near, far := b.manager(b.near, o), b.manager(b.far, b.farOptions())
	l := b.listen()
	// The first subflow is on the backup path, as if p1 had been down.
	tr := b.dialFrom(l, netip.MustParseAddr("10.2.0.1"), netip.MustParseAddrPort("10.2.0.2:6240"))
	near.Register(tr.near, "exit", true)
	far.Register(tr.far, "near", false)
	until(t, "joined, wan2 as backup", func() bool {
		bk := backups(near, tr.near)
		return has(t, tr.near, "10.1.0.1", "10.2.0.1") && len(bk) == 2 && !bk["wan1"] && bk["wan2"]
	})
	// What is sent now goes by wan1 alone, in both directions.
	sent := func(m *Manager, fd int, path string) uint64 {
		m.mu.Lock()
		m.refresh(m.fds[fd], time.Now())
		m.mu.Unlock()
		return find(m, path).SentBytes
	}
	n, f := sent(near, tr.near, "wan2"), sent(far, tr.far, "wan2")
	for range 100 {
		tr.exchange(b)
	}
	if a, c := sent(near, tr.near, "wan2")-n, sent(far, tr.far, "wan2")-f; a != 0 || c != 0 {
		t.Errorf("the backup path carried %d and %d bytes", a, c)
	}
	o.Wanted[1].Mode = On
	near.Update(o)
	until(t, "wan2 on", func() bool { return !backups(near, tr.near)["wan2"] })
	o.Wanted[1].Mode = Handover
	near.Update(o)
	until(t, "no subflow on a handover path", func() bool { return has(t, tr.near, "10.1.0.1") })
	b.up(b.near, "p1", false)
	until(t, "handed over", func() bool { return has(t, tr.near, "10.2.0.1") })
	tr.exchange(b)
	b.up(b.near, "p1", true)
	until(t, "handed back", func() bool { return has(t, tr.near, "10.1.0.1") })
	tr.exchange(b)
	o.Wanted[0].Mode = Off
	near.Update(o)
	until(t, "wan1 off", func() bool { return has(t, tr.near, "10.2.0.1") })
	o.Wanted = o.Wanted[1:]
	near.Update(o)
	o.Wanted = b.wanted()
	near.Update(o)
	until(t, "wan1 wanted again", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
}

// TestProbes: what probes say decides, once they have been answered.
func TestProbes(t *testing.T) {
	b := newBed(t, 2)
	near, far, _, tr := b.pair()
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && len(subflows(t, tr.far)) == 2 })
	near.SetAlive("exit", "wan1", false, 0) // UDP may be blocked
	near.SetAlive("exit", "nonsense", false, 0)
	near.SetAlive("exit", "wan2", true, 7*time.Millisecond)
	if p := find(near, "wan2"); p.State != Up || p.RTT != 7*time.Millisecond {
		t.Errorf("wan2 = %+v", p)
	}
	b.run(b.far, "nft", "add table inet f; add chain inet f c { type filter hook prerouting priority raw; }; add rule inet f c iifname p2 drop")
	near.SetAlive("exit", "wan2", false, 0)
	until(t, "wan2 left at both ends", func() bool { return has(t, tr.near, "10.1.0.1") && len(subflows(t, tr.far)) == 1 })
	until(t, "wan2 dead", func() bool { return find(near, "wan2").State == Dead })
	pairs := near.Pairs("exit")
	if len(pairs) != 2 || pairs[0].State != Up || pairs[1].State != Dead {
		t.Errorf("Pairs = %+v: the dead path must be there, for probes", pairs)
	}
	tr.exchange(b)
	b.run(b.far, "nft", "delete table inet f")
	near.SetAlive("exit", "wan2", true, time.Millisecond)
	until(t, "wan2 used again", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	if p := find(near, "wan2"); p.State != Up {
		t.Errorf("wan2 = %+v", p)
	}
	// The far side is told by its own probes.
	far.SetAlive("near", "wan1", true, 0)
	b.run(b.far, "nft", "add table inet f; add chain inet f c { type filter hook prerouting priority raw; }; add rule inet f c iifname p1 drop")
	far.SetAlive("near", "wan1", false, 0)
	until(t, "wan1 left because far says so", func() bool { return has(t, tr.near, "10.2.0.1") && has(t, tr.far, "10.2.0.2") })
	tr.exchange(b)
}

// TestBlackHole: without probes TCP itself shows that nothing comes back.
func TestBlackHole(t *testing.T) {
	b := newBed(t, 2)
	near, _, _, tr := b.pair()
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	f := transfer(tr.near, tr.far)
	until(t, "both carry", func() bool { return find(near, "wan1").SentBytes > 1<<20 && find(near, "wan2").SentBytes > 1<<20 })
	b.run(b.far, "nft", "add table inet f; add chain inet f c { type filter hook prerouting priority raw; }; add rule inet f c iifname p2 drop")
	until(t, "wan2 dead", func() bool { return find(near, "wan2").State == Dead && has(t, tr.near, "10.1.0.1") })
	if p := find(near, "wan2"); p.Reason != byTCP {
		t.Errorf("reason %q", p.Reason)
	}
	at := f.bytes.Load()
	until(t, "the transfer goes on", func() bool { return f.bytes.Load() > at+1<<20 })
	b.run(b.far, "nft", "delete table inet f")
	until(t, "wan2 used again", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && find(near, "wan2").State == Up })
	f.stop.Store(true)
	<-f.done
}

// TestAddressChange: DHCP gives another address under a live connection.
func TestAddressChange(t *testing.T) {
	b := newBed(t, 2)
	near, _, _, tr := b.pair()
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	// One has the new address before the old one is gone, one after.
	b.in(b.near, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/promote_secondaries", []byte("1"), 0o644)
	})
	b.addr(b.near, "p1", "10.1.0.7/24", true)
	b.addr(b.near, "p1", "10.1.0.1/24", false)
	b.addr(b.near, "p2", "10.2.0.1/24", false)
	b.addr(b.near, "p2", "10.2.0.7/24", true)
	until(t, "moved", func() bool { return has(t, tr.near, "10.1.0.7", "10.2.0.7") && len(subflows(t, tr.far)) == 2 })
	tr.exchange(b)
	rules := b.run(b.near, "ip", "rule")
	if strings.Contains(rules, "10.1.0.1 ") || !strings.Contains(rules, "10.1.0.7 ") {
		t.Errorf("rules after the change:\n%s", rules)
	}
	if a := near.Addrs(); len(a) < 2 || a[0] != netip.MustParseAddr("10.1.0.7") {
		t.Errorf("Addrs = %v", a)
	}
}

// TestOneFamily: a path with IPv6 alone beside one with IPv4 alone.
func TestOneFamily(t *testing.T) {
	b := newBed(t, 2)
	for i, ns := range []int{1, 2} {
		h := b.near
		if i == 1 {
			h = b.far
		}
		b.addr(h, "p2", fmt.Sprintf("10.2.0.%d/24", ns), false)
		b.addr(h, "p1", fmt.Sprintf("fd00:1::%d/64", ns), false)
	}
	o := b.nearOptions()
	o.Peers[0].Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:2::2")}
	near, far := b.manager(b.near, o), b.manager(b.far, b.farOptions())
	l := b.listen()
	for range 2 { // one trunk begins on each path
		tr := b.dial(l, near)
		near.Register(tr.near, "exit", true)
		far.Register(tr.far, "near", false)
		until(t, "joined", func() bool {
			return has(t, tr.near, "10.1.0.1", "fd00:2::1") && has(t, tr.far, "10.1.0.2", "fd00:2::2")
		})
		tr.exchange(b)
		// Also again, when only the IPv4 subflow is left.
		b.up(b.far, "p2", false)
		until(t, "IPv6 gone", func() bool { return has(t, tr.near, "10.1.0.1") })
		b.up(b.far, "p2", true)
		b.in(b.far, func() error { // the kernel took it away with the link
			l, err := netlink.LinkByName("p2")
			if err != nil {
				return err
			}
			a, _ := netlink.ParseAddr("fd00:2::2/64")
			return netlink.AddrReplace(l, a)
		})
		until(t, "IPv6 back", func() bool { return has(t, tr.near, "10.1.0.1", "fd00:2::1") })
	}
}

// TestPeerGrows: the far side tells its other address when we are connected.
func TestPeerGrows(t *testing.T) {
	b := newBed(t, 2)
	o := b.nearOptions()
	all := o.Peers[0].Addrs
	o.Peers[0].Addrs = all[:1]
	near, far := b.manager(b.near, o), b.manager(b.far, b.farOptions())
	l := b.listen()
	tr := b.dial(l, near)
	near.Register(tr.near, "exit", true)
	far.Register(tr.far, "near", false)
	if p := find(near, "wan2"); p.Reason == "" {
		t.Errorf("wan2 = %+v: it reaches no address of the peer and must say so", p)
	}
	if n := len(near.Pairs("exit")); n != 1 {
		t.Errorf("%d pairs", n)
	}
	o = b.nearOptions()
	o.Peers[0].Addrs = all
	near.Update(o)
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	if n := len(near.Pairs("exit")); n != 2 {
		t.Errorf("%d pairs", n)
	}
}

// TestStripped: something on the second path takes MPTCP options out.
func TestStripped(t *testing.T) {
	for _, verdict := range []string{"reset tcp option 30", "drop"} {
		t.Run(verdict, func(t *testing.T) {
			b := newBed(t, 2)
			rule := "add rule inet f c iifname p2 tcp flags syn tcp option 30 exists " + verdict
			b.run(b.far, "nft", "add table inet f; add chain inet f c { type filter hook prerouting priority raw; }; "+rule)
			near, far := b.manager(b.near, b.nearOptions()), b.manager(b.far, b.farOptions())
			l := b.listen()
			tr := b.dialFrom(l, netip.MustParseAddr("10.1.0.1"), netip.MustParseAddrPort("10.1.0.2:6240"))
			near.Register(tr.near, "exit", true)
			far.Register(tr.far, "near", false)
			near.SetAlive("exit", "wan2", true, time.Millisecond)
			until(t, "stripped seen", func() bool { return find(near, "wan2").Stripped })
			if p := find(near, "wan1"); p.Stripped {
				t.Errorf("wan1 = %+v", p)
			}
			for range 4 {
				if _, dev, _, err := near.Pick("exit"); dev != "p1" {
					t.Errorf("Pick = %v, %v; want the path that is not stripped", dev, err)
				}
			}
			b.run(b.far, "nft", "delete table inet f")
			// It is tried again rarely; a link that comes up is tried at once.
			b.up(b.near, "p2", false)
			until(t, "p2 down", func() bool { return find(near, "wan2").State == Down })
			b.up(b.near, "p2", true)
			until(t, "joined and clean", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && !find(near, "wan2").Stripped })
		})
	}
}

// TestFallback: a trunk that came to be as plain TCP names the path.
func TestFallback(t *testing.T) {
	b := newBed(t, 2)
	near := b.manager(b.near, b.nearOptions())
	b.run(b.far, "nft", "add table inet f; add chain inet f c { type filter hook prerouting priority raw; }; add rule inet f c iifname p2 tcp option 30 exists reset tcp option 30")
	l := b.listen()
	for range 2 {
		tr := b.dialFrom(l, netip.MustParseAddr("10.2.0.1"), netip.MustParseAddrPort("10.2.0.2:6240"))
		near.Register(tr.near, "exit", true)
		near.Unregister(tr.near)
	}
	if p := find(near, "wan2"); !p.Stripped || find(near, "wan1").Stripped {
		t.Errorf("wan2 = %+v", p)
	}
}

func TestQuota(t *testing.T) {
	b := newBed(t, 2)
	o := b.nearOptions()
	o.StateDir = t.TempDir()
	o.Wanted[1].Quota = 3 << 20
	near, stop := b.start(b.near, o)
	defer stop()
	far := b.manager(b.far, b.farOptions())
	l := b.listen()
	tr := b.dial(l, near)
	near.Register(tr.near, "exit", true)
	far.Register(tr.far, "near", false)
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	f := transfer(tr.near, tr.far)
	until(t, "spent", func() bool { return find(near, "wan2").State == Spent })
	until(t, "not used", func() bool { return has(t, tr.near, "10.1.0.1") })
	if n := near.Pairs("exit"); len(n) != 1 || n[0].Path != "wan1" {
		t.Errorf("Pairs = %+v", n)
	}
	f.stop.Store(true)
	<-f.done
	near.Unregister(tr.near)
	used := find(near, "wan2").Used
	stop()
	again, stop := b.start(b.near, o)
	if p := find(again, "wan2"); p.State != Spent || p.Used < used {
		t.Errorf("after a restart: %+v, want %d bytes used or more", p, used)
	}
	stop()
	// The next period begins anew.
	name := filepath.Join(o.StateDir, stateFile)
	raw, err := os.ReadFile(name)
	b.ok(err)
	k, err := parseKept(raw)
	b.ok(err)
	q := k.Quota["wan2"]
	q.Period = q.Period.AddDate(0, -1, 0)
	k.Quota["wan2"] = q
	raw, _ = json.Marshal(k)
	b.ok(os.WriteFile(name, raw, 0o600))
	again, stop = b.start(b.near, o)
	defer stop()
	if p := find(again, "wan2"); p.State != Up || p.Used > 1<<20 {
		t.Errorf("in the next period: %+v", p)
	}
}

func TestPeriod(t *testing.T) {
	day := func(s string) time.Time {
		d, err := time.ParseInLocation(time.DateTime, s+" 00:00:00", time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	now := day("2026-03-04").Add(13 * time.Hour) // a Wednesday
	for kind, want := range map[string]string{"": "2026-03-01", "month": "2026-03-01", "week": "2026-03-02", "day": "2026-03-04"} {
		if got := period(kind, now); !got.Equal(day(want)) {
			t.Errorf("period %q = %v, want %v", kind, got, want)
		}
	}
	if got := period("week", day("2026-03-01").Add(time.Hour)); !got.Equal(day("2026-02-23")) {
		t.Errorf("the week of a Sunday begins on %v", got)
	}
	p := &path{w: Wanted{Quota: 10}, used: 10, period: day("2026-03-01")}
	if !p.spent(now) || p.spent(now.AddDate(0, -2, 0)) != true {
		t.Error("a clock that goes back must not renew the quota")
	}
	if p.spent(now.AddDate(0, 1, 0)) {
		t.Error("the next month must renew the quota")
	}
}

func TestAccount(t *testing.T) {
	p := &path{ifindex: 2}
	at := func(rx, tx uint64) *netlink.LinkStatistics {
		s := &netlink.LinkStatistics{}
		s.RxBytes, s.TxBytes = rx, tx
		return s
	}
	p.account(at(1000, 500)) // before our time
	p.account(at(1010, 505))
	if p.used != 15 {
		t.Errorf("used %d, want 15", p.used)
	}
	p.ifindex = 3 // plugged out and in
	p.account(at(7, 3))
	p.account(nil)
	if p.used != 25 {
		t.Errorf("used %d, want 25", p.used)
	}
}

// TestCleanUp: whatever way the manager ends, nothing is left.
func TestCleanUp(t *testing.T) {
	b := newBed(t, 2)
	o := b.nearOptions()
	o.StateDir = t.TempDir()
	state := func() string {
		var s string
		for _, f := range []string{"-4", "-6"} {
			for _, what := range []string{"rule", "route show table all"} {
				for line := range strings.Lines(b.run(b.near, append([]string{"ip", f}, strings.Fields(what)...)...)) {
					// Routes of the kernel's own come and go with the links.
					if what == "rule" || strings.Contains(line, "table 62") {
						s += strings.Replace(line, " linkdown", "", 1)
					}
				}
			}
		}
		return s
	}
	b.in(b.near, func() error {
		_, err := mptcpnl.SetSysctl("blackhole_timeout", "1234")
		return err
	})
	before := state()
	until(t, "links up", func() bool { return !strings.Contains(b.run(b.near, "ip", "route"), "linkdown") })
	var killed *Manager
	b.in(b.near, func() (err error) { killed, err = New(o); return err }) // never run, never closed
	if s := state(); s == before {
		t.Fatal("New set no rules or routes")
	}
	during := state()
	m, stop := b.start(b.near, o)
	if s := state(); s != during {
		t.Errorf("after a kill and a start:\n%s\nwant\n%s", s, during)
	}
	if len(m.Paths()) != 2 {
		t.Error("paths missing")
	}
	stop()
	if s := state(); s != before {
		t.Errorf("left behind:\n%s\nwant\n%s", s, before)
	}
	b.in(b.near, func() error {
		if v, err := mptcpnl.Sysctl("blackhole_timeout"); v != "1234" {
			t.Errorf("blackhole_timeout %s %v, want 1234 as before", v, err)
		}
		if pm, err := mptcpnl.PathManager(); pm != mptcpnl.KernelPM {
			t.Errorf("path manager %s %v, want kernel as before", pm, err)
		}
		return nil
	})
	killed.o.StateDir = ""
	killed.state.Sysctl = nil
	killed.close()
}

// TestFlapping: no rule, route, address or subflow is left over or missing
// after a link went up and down a thousand times.
func TestFlapping(t *testing.T) {
	b := newBed(t, 2)
	near, far, _, tr := b.pair()
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	rules, routes := b.run(b.near, "ip", "rule"), b.run(b.near, "ip", "-4", "route", "show", "table", "all")
	b.in(b.near, func() error {
		l, err := netlink.LinkByName("p2")
		if err != nil {
			return err
		}
		for range 1000 {
			if err := netlink.LinkSetDown(l); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		return nil
	})
	until(t, "joined again", func() bool {
		return has(t, tr.near, "10.1.0.1", "10.2.0.1") && len(subflows(t, tr.far)) == 2 && find(near, "wan2").State == Up
	})
	tr.exchange(b)
	until(t, "the same rules and routes", func() bool {
		return b.run(b.near, "ip", "rule") == rules && b.run(b.near, "ip", "-4", "route", "show", "table", "all") == routes
	})
	info, err := mptcpnl.GetInfo(tr.near)
	b.ok(err)
	if as, err := near.pm.TokenAddrs(info.Token); err == nil && len(as) > 2 {
		t.Errorf("addresses left in the kernel: %+v", as)
	}
	// The last events may still be on their way.
	for _, m := range []*Manager{near, far} {
		until(t, "nothing left in the books", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			ok := len(m.conns) == 1 && len(m.owner) <= 4
			for _, c := range m.conns {
				ok = ok && len(c.subs) <= 2 && len(c.ids) <= 2
			}
			return ok
		})
	}
}

// TestGarbage: events that make no sense change nothing for good.
func TestGarbage(t *testing.T) {
	b := newBed(t, 2)
	near, _, _, tr := b.pair()
	until(t, "joined", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	info, err := mptcpnl.GetInfo(tr.near)
	b.ok(err)
	r := rand.New(rand.NewPCG(1, 2))
	addrs := []netip.AddrPort{{}, netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:0"), netip.MustParseAddrPort("[::ffff:10.2.0.2]:6240"), netip.MustParseAddrPort("[fe80::1]:9")}
	_, subs, err := mptcpnl.GetFullInfo(tr.near, nil)
	b.ok(err)
	for _, s := range subs {
		addrs = append(addrs, s.Local, s.Remote)
	}
	for range 5000 {
		ev := mptcpnl.Event{Kind: mptcpnl.EventKind(r.IntN(20)), Token: uint32(r.IntN(5)), LocID: uint8(r.IntN(256)), RemID: uint8(r.IntN(256)),
			Local: addrs[r.IntN(len(addrs))], Remote: addrs[r.IntN(len(addrs))], Error: uint8(r.IntN(256)), ServerSide: r.IntN(2) == 0, Backup: r.IntN(2) == 0}
		if r.IntN(2) == 0 {
			ev.Token = info.Token
		}
		near.mu.Lock()
		near.event(ev, time.Now())
		near.mu.Unlock()
	}
	near.kick()
	until(t, "as before", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	tr.exchange(b)
}

// TestFarDoesNotDial: the far side, which may know only the outside of a NAT,
// never opens a subflow.
func TestFarDoesNotDial(t *testing.T) {
	b := newBed(t, 2)
	far := b.manager(b.far, b.farOptions())
	l := b.listen()
	b.in(b.near, func() error {
		_, err := mptcpnl.SetPathManager(mptcpnl.UserspacePM) // nobody joins
		return err
	})
	tr := b.dialFrom(l, netip.MustParseAddr("10.1.0.1"), netip.MustParseAddrPort("10.1.0.2:6240"))
	far.Register(tr.far, "near", false)
	b.up(b.far, "p2", false)
	b.up(b.far, "p2", true)
	until(t, "p2 seen", func() bool { return find(far, "wan2").State == Up })
	tr.exchange(b)
	b.in(b.far, func() error {
		c, err := mptcpnl.Counters()
		if c["MPJoinSynTx"] != 0 {
			t.Errorf("far sent %d joins", c["MPJoinSynTx"])
		}
		return err
	})
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no name":    {Wanted: []Wanted{{Device: "x"}}},
		"no device":  {Wanted: []Wanted{{Name: "x"}}},
		"name twice": {Wanted: []Wanted{{Name: "a", Device: "x"}, {Name: "a", Device: "y"}}},
		"one device": {Wanted: []Wanted{{Name: "a", Device: "x"}, {Name: "b", Device: "x"}}},
		"weight":     {Wanted: []Wanted{{Name: "a", Device: "x", Weight: -1}}},
		"bad period": {Wanted: []Wanted{{Name: "a", Device: "x", Period: "fortnight"}}},
		"far too many": {Wanted: func() (w []Wanted) {
			for i := range 65 {
				w = append(w, Wanted{Name: fmt.Sprint("n", i), Device: fmt.Sprint("d", i)})
			}
			return
		}()},
	} {
		if err := o.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for m := On; m <= Handover; m++ {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("mode %v reads back as %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("sometimes"); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"sysctl":{"blackhole_timeout":"3600"},"quota":{"wan":{"used":5,"period":"2026-01-01T00:00:00Z"}}}`))
	f.Add([]byte(`{"quota":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKept(b)
		if err != nil && (k.Quota != nil || k.Sysctl != nil) {
			t.Error("a broken file must count as empty")
		}
	})
}
