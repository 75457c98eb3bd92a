package mptcpnl

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestExplore(t *testing.T) {
	b := newBed(t)
	var nc, fc *Conn
	for _, s := range []struct {
		ns int
		c  **Conn
	}{{int(b.near), &nc}, {int(b.far), &fc}} {
		in(t, netnsHandle(s.ns), func() (err error) {
			if _, err := SetPathManager(UserspacePM); err != nil {
				return err
			}
			*s.c, err = Dial()
			return err
		})
	}
	var ne, fe <-chan Event
	in(t, b.near, func() (err error) { ne, err = nc.Events(context.Background()); return })
	in(t, b.far, func() (err error) { fe, err = fc.Events(context.Background()); return })
	dump := func() {
		for {
			select {
			case e := <-ne:
				t.Logf("near %v %+v", e.Kind, e)
				continue
			case e := <-fe:
				t.Logf("far  %v %+v", e.Kind, e)
				continue
			case <-time.After(100 * time.Millisecond):
			}
			return
		}
	}
	near, far := b.pair(t, unix.AF_INET6, "[::ffff:10.1.0.1]:0", "[::ffff:10.1.0.2]:6240")
	i, _ := GetInfo(near)
	t.Logf("info %+v", i)
	l := Addr{Addr: netip.MustParseAddr("10.2.0.1"), ID: 2}
	r := netip.MustParseAddrPort("10.2.0.2:6240")
	t.Log("create early:", nc.SubflowCreate(i.Token, l, r))
	exchange(t, near, far)
	t.Log("create:", nc.SubflowCreate(i.Token, l, r))
	dump()
	show := func(fd int) []SubflowInfo {
		in, sf, err := GetFullInfo(fd, nil)
		t.Logf("%+v %v", in, err)
		for _, s := range sf {
			t.Logf("   %d %v %v state %d rtt %d rto %d", s.ID, s.Local, s.Remote, s.TCP.State, s.TCP.Rtt, s.TCP.Rto)
		}
		return sf
	}
	sf := show(near)
	show(far)
	t.Log("remove 0:", nc.Remove(i.Token, 0))
	t.Log("destroy first:", nc.SubflowDestroy(i.Token, sf[0].Local, sf[0].Remote))
	dump()
	show(near)
	show(far)
	exchange(t, near, far)
	l1 := Addr{Addr: netip.MustParseAddr("10.1.0.1"), ID: 1}
	r1 := netip.MustParseAddrPort("10.1.0.2:6240")
	t.Log("re-create first:", nc.SubflowCreate(i.Token, l1, r1))
	dump()
	sf = show(near)
	show(far)
	for _, s := range sf {
		if s.Local.Addr().Unmap() == l.Addr {
			t.Log("destroy last:", nc.SubflowDestroy(i.Token, s.Local, s.Remote))
		}
	}
	dump()
	exchange(t, near, far)
	t.Log("re-create second", nc.SubflowCreate(i.Token, l, r))
	dump()
	sf = show(near)
	for _, s := range sf {
		t.Log("destroy all:", nc.SubflowDestroy(i.Token, s.Local, s.Remote))
	}
	dump()
	show(near)
	show(far)
	t.Log("re-create after none", nc.SubflowCreate(i.Token, l, r))
	dump()
	show(near)
	show(far)
	exchange(t, near, far)
}

func netnsHandle(i int) netns.NsHandle { return netns.NsHandle(i) }
