package mptcpnl

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestEndpoints lets ip(8) judge what we tell the kernel, and the other way round.
func TestEndpoints(t *testing.T) {
	b := newBed(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2 as the judge")
	}
	in(t, b.near, func() error {
		c, err := Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		ip := func(args ...string) string {
			out, err := exec.Command("ip", append([]string{"mptcp"}, args...)...).CombinedOutput()
			if err != nil {
				t.Errorf("ip mptcp %v: %v: %s", args, err, out)
			}
			return string(out)
		}
		l, err := unixIndex("p2")
		if err != nil {
			return err
		}
		want := []Addr{
			{Addr: addr("10.2.0.1"), ID: 7, Flags: FlagSubflow | FlagBackup, IfIndex: l},
			{Addr: addr("fd00::9"), ID: 9, Flags: FlagSignal},
			{Addr: addr("10.1.0.1"), ID: 11, Port: 8123, Flags: FlagSignal},
		}
		for _, a := range want {
			if err := c.AddAddr(a); err != nil {
				return err
			}
		}
		show := strings.Fields(ip("endpoint", "show"))
		for _, w := range []string{"10.2.0.1", "7", "subflow", "backup", "p2", "fd00::9", "9", "8123", "signal"} {
			if !slices.Contains(show, w) {
				t.Errorf("ip mptcp endpoint show: %q lacks %s", show, w)
			}
		}
		got, err := c.Addrs()
		if err != nil {
			return err
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("Addrs (-want +got):\n%s", d)
		}
		if err := c.SetFlags(Addr{ID: 7, Flags: FlagFullmesh}); err != nil {
			return err
		}
		a, err := c.Addr(7)
		if err != nil {
			return err
		}
		if a.Flags&(FlagFullmesh|FlagBackup) != FlagFullmesh {
			t.Errorf("flags %#x after SetFlags, want fullmesh without backup", a.Flags)
		}
		if err := c.DelAddr(Addr{ID: 7}); err != nil {
			return err
		}
		ip("endpoint", "add", "10.1.0.7", "id", "3", "signal")
		if got, err = c.Addrs(); err != nil || !slices.ContainsFunc(got, func(a Addr) bool { return a.ID == 3 && a.Addr == addr("10.1.0.7") }) {
			t.Errorf("Addrs = %v, %v; want the endpoint 3 that ip added", got, err)
		}
		if err := c.SetLimits(Limits{AcceptAddAddr: 3, Subflows: 5}); err != nil {
			return err
		}
		if s := ip("limits", "show"); !strings.Contains(s, "add_addr_accepted 3 subflows 5") {
			t.Errorf("ip mptcp limits show: %q", s)
		}
		ip("limits", "set", "subflows", "4", "add_addr_accepted", "1")
		if lim, err := c.Limits(); err != nil || lim != (Limits{1, 4}) {
			t.Errorf("Limits = %v, %v", lim, err)
		}
		if err := c.Flush(); err != nil {
			return err
		}
		if s := ip("endpoint", "show"); strings.TrimSpace(s) != "" {
			t.Errorf("ip mptcp endpoint show after Flush: %q", s)
		}
		if err := c.DelAddr(Addr{ID: 7}); err == nil {
			t.Error("removing an endpoint that is not there succeeded")
		}
		return nil
	})
}

func unixIndex(dev string) (int, error) {
	b, err := exec.Command("ip", "-o", "link", "show", dev).Output()
	if err != nil {
		return 0, err
	}
	var n int
	for _, r := range string(b) {
		if r < '0' || r > '9' {
			break
		}
		n = n*10 + int(r-'0')
	}
	return n, nil
}

// userspace puts both ends under the userspace path manager.
func (b *bed) userspace(t *testing.T) (near, far *Conn, nearEv, farEv <-chan Event) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	in(t, b.near, func() (err error) {
		if _, err = SetPathManager(UserspacePM); err == nil {
			if near, err = Dial(); err == nil {
				nearEv, err = near.Events(ctx)
			}
		}
		return err
	})
	in(t, b.far, func() (err error) {
		if _, err = SetPathManager(UserspacePM); err == nil {
			if far, err = Dial(); err == nil {
				farEv, err = far.Events(ctx)
			}
		}
		return err
	})
	t.Cleanup(func() { near.Close(); far.Close() })
	return
}

// wait reads events until one of the kind comes.
func wait(t *testing.T, ch <-chan Event, k EventKind) Event {
	t.Helper()
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				t.Fatalf("events ended before %v", k)
			}
			if e.Kind == k {
				return e
			}
		case <-t.Context().Done():
			t.Fatalf("no event %v", k)
		}
	}
}

func TestSubflows(t *testing.T) {
	b := newBed(t)
	nc, fc, ne, fe := b.userspace(t)
	near, far := b.pair(t, unix.AF_INET6, "[::ffff:10.1.0.1]:0", "[::ffff:10.1.0.2]:6240")
	created := wait(t, fe, EventCreated)
	if !created.ServerSide || created.Local != netip.MustParseAddrPort("[::ffff:10.1.0.2]:6240") {
		t.Errorf("far: created %+v", created)
	}
	if e := wait(t, ne, EventCreated); e.ServerSide || e.Remote != netip.MustParseAddrPort("[::ffff:10.1.0.2]:6240") {
		t.Errorf("near: created %+v", e)
	}
	info, err := GetInfo(near)
	must(t, err)
	r2 := netip.MustParseAddrPort("10.2.0.2:6240")
	l2 := Addr{Addr: addr("10.2.0.1"), ID: 5, Flags: FlagBackup}
	if err := nc.SubflowCreate(info.Token, l2, r2); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("subflow before the connection is fully established: %v, want ENOTCONN", err)
	}
	exchange(t, near, far)
	wait(t, ne, EventEstablished)
	must(t, nc.SubflowCreate(info.Token, l2, r2))
	e := wait(t, ne, EventSubEstablished)
	if e.Token != info.Token || e.LocID != 5 || e.Local.Addr() != l2.Addr || e.Remote != r2 {
		t.Errorf("near: joined %+v", e)
	}
	fj := wait(t, fe, EventSubEstablished)
	if fj.RemID != 5 || !fj.Backup || fj.Token != created.Token {
		t.Errorf("far: joined %+v", fj)
	}

	full, subs, err := GetFullInfo(near, nil)
	must(t, err)
	if full.Token != info.Token || full.Total != 2 || len(subs) != 2 || subs[1].Local != e.Local || subs[1].Remote != r2 || subs[0].TCP.State != 1 || subs[1].TCP.Snd_mss == 0 {
		t.Errorf("GetFullInfo = %+v %+v", full, subs)
	}
	s := new(scratch)
	_, older, err := s.olderInfo(near, nil)
	must(t, err)
	if len(older) != 2 || older[0].Local != subs[0].Local || older[1].Remote != subs[1].Remote || older[1].TCP.Snd_mss != subs[1].TCP.Snd_mss {
		t.Errorf("the older options say %+v, MPTCP_FULL_INFO %+v", older, subs)
	}
	if as, err := SubflowAddrs(near, nil); err != nil || len(as) != 2 || as[1].Local != e.Local {
		t.Errorf("SubflowAddrs = %+v, %v", as, err)
	}
	if ti, err := TCPInfos(near, nil); err != nil || len(ti) != 2 || ti[1].State != 1 {
		t.Errorf("TCPInfos = %+v, %v", ti, err)
	}
	if as, err := nc.TokenAddrs(info.Token); err == nil { // since 6.10
		if len(as) != 1 || as[0].ID != 5 || as[0].Addr != l2.Addr {
			t.Errorf("TokenAddrs = %+v", as)
		}
	}

	must(t, nc.SetSubflowFlags(info.Token, e.Local, e.Remote, 0))
	if p := wait(t, fe, EventSubPriority); p.Backup {
		t.Errorf("far: priority %+v, want no backup", p)
	}

	must(t, nc.Announce(info.Token, Addr{Addr: addr("10.9.9.9"), ID: 77, Port: 99}))
	if a := wait(t, fe, EventAnnounced); a.RemID != 77 || a.Remote != netip.MustParseAddrPort("10.9.9.9:99") {
		t.Errorf("far: announced %+v", a)
	}
	must(t, nc.Remove(info.Token, 77))
	if a := wait(t, fe, EventRemoved); a.RemID != 77 {
		t.Errorf("far: removed %+v", a)
	}

	must(t, nc.Remove(info.Token, 5))
	// The other end closes it too, and may be faster.
	if err := nc.SubflowDestroy(info.Token, e.Local, e.Remote); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Error(err)
	}
	wait(t, ne, EventSubClosed)
	if c := wait(t, fe, EventSubClosed); c.RemID != 5 {
		t.Errorf("far: closed %+v", c)
	}
	if err := nc.SubflowDestroy(info.Token, e.Local, e.Remote); !errors.Is(err, unix.ESRCH) {
		t.Errorf("destroying it again: %v, want ESRCH", err)
	}
	exchange(t, near, far)

	// Abort ends the first subflow for good; the connection waits for another.
	must(t, nc.SubflowCreate(info.Token, Addr{Addr: addr("10.2.0.1"), ID: 6}, r2))
	wait(t, fe, EventSubEstablished)
	must(t, fc.Abort(created.Local, created.Remote))
	wait(t, ne, EventSubClosed)
	exchange(t, near, far)
	if _, subs, err = GetFullInfo(near, subs); err != nil || len(subs) != 1 {
		t.Errorf("GetFullInfo after Abort = %+v, %v; want one subflow", subs, err)
	}
	if err := nc.Abort(netip.MustParseAddrPort("10.2.0.1:9"), e.Remote); !errors.Is(err, unix.ENOENT) {
		t.Errorf("aborting what is not there: %v, want ENOENT", err)
	}

	in(t, b.near, func() error {
		cs, err := Counters()
		if err == nil && cs["MPJoinSynAckRx"] != 2 {
			t.Errorf("MPJoinSynAckRx = %d, want 2", cs["MPJoinSynAckRx"])
		}
		return err
	})
}

func TestFullInfoDoesNotAllocate(t *testing.T) {
	b := newBed(t)
	near, _ := b.pair(t, unix.AF_INET6, "[::ffff:10.1.0.1]:0", "[::ffff:10.1.0.2]:6240")
	subs := make([]SubflowInfo, 0, 8)
	GetFullInfo(near, subs)
	n := testing.AllocsPerRun(100, func() {
		var err error
		if _, subs, err = GetFullInfo(near, subs); err != nil || len(subs) != 1 {
			t.Fatal(subs, err)
		}
	})
	if n >= 1 {
		t.Errorf("GetFullInfo allocates %v times", n)
	}
}

func BenchmarkGetFullInfo(bb *testing.B) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, ProtoMPTCP)
	if err != nil {
		bb.Skip("no MPTCP: ", err)
	}
	defer unix.Close(fd)
	var subs []SubflowInfo
	bb.ReportAllocs()
	for bb.Loop() {
		if _, subs, err = GetFullInfo(fd, subs); err != nil {
			bb.Fatal(err)
		}
	}
}

func TestFallback(t *testing.T) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		must(t, err)
		defer unix.Close(fd)
		if _, err := GetInfo(fd); !errors.Is(err, ErrFallback) {
			t.Errorf("GetInfo of plain TCP: %v, want ErrFallback", err)
		}
		if _, _, err := GetFullInfo(fd, nil); !errors.Is(err, ErrFallback) {
			t.Errorf("GetFullInfo of plain TCP: %v, want ErrFallback", err)
		}
		if _, err := TCPInfos(fd, nil); !errors.Is(err, ErrFallback) {
			t.Errorf("TCPInfos of plain TCP: %v, want ErrFallback", err)
		}
		if is, err := IsMPTCP(fd); is || err != nil {
			t.Errorf("IsMPTCP of plain TCP = %v, %v", is, err)
		}
	}
	if _, err := GetInfo(-1); err == nil || errors.Is(err, ErrFallback) {
		t.Errorf("GetInfo of no socket: %v, want another error than ErrFallback", err)
	}
	// A connection whose other end does not speak MPTCP.
	b := newBed(t)
	l := -1
	in(t, b.far, func() (err error) {
		l, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		return err
	})
	defer unix.Close(l)
	must(t, unix.Bind(l, sockaddr("10.1.0.2:80")))
	must(t, unix.Listen(l, 1))
	fd := socket(t, b.near, unix.AF_INET)
	if is, err := IsMPTCP(fd); !is || err != nil {
		t.Errorf("IsMPTCP of an MPTCP socket = %v, %v", is, err)
	}
	must(t, unix.Connect(fd, sockaddr("10.1.0.2:80")))
	if _, _, err := GetFullInfo(fd, nil); !errors.Is(err, ErrFallback) {
		t.Errorf("GetFullInfo after fallback: %v, want ErrFallback", err)
	}
	if is, err := IsMPTCP(fd); is || err != nil {
		t.Errorf("IsMPTCP after fallback = %v, %v", is, err)
	}
}

func TestSysctl(t *testing.T) {
	b := newBed(t)
	in(t, b.near, func() error {
		if pm, err := PathManager(); pm != KernelPM || err != nil {
			t.Errorf("PathManager = %q, %v; want kernel in a new namespace", pm, err)
		}
		if old, err := SetPathManager(UserspacePM); old != KernelPM || err != nil {
			t.Errorf("SetPathManager = %q, %v", old, err)
		}
		if pm, err := PathManager(); pm != UserspacePM || err != nil {
			t.Errorf("PathManager = %q, %v", pm, err)
		}
		if _, err := SetPathManager("nonsense"); err == nil {
			t.Error("an unknown path manager was accepted")
		}
		if old, err := SetSysctl("stale_loss_cnt", "2"); old != "4" || err != nil {
			t.Errorf("SetSysctl = %q, %v", old, err)
		}
		if v, err := Sysctl("stale_loss_cnt"); v != "2" || err != nil {
			t.Errorf("Sysctl = %q, %v", v, err)
		}
		if _, err := SetSysctl("no_such_thing", "1"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("SetSysctl of nothing: %v, want fs.ErrNotExist", err)
		}
		return nil
	})
}

func TestEventsEndWithContext(t *testing.T) {
	b := newBed(t)
	var c *Conn
	in(t, b.near, func() (err error) { c, err = Dial(); return err })
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var ch <-chan Event
	in(t, b.near, func() (err error) { ch, err = c.Events(ctx); return err })
	cancel()
	for range ch {
	}
}
