package udpflow

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var (
	c4 = netip.MustParseAddrPort("192.168.1.2:6000")
	d4 = netip.MustParseAddrPort("192.168.2.2:7000")
	c6 = netip.MustParseAddrPort("[fd01::2]:6000")
	d6 = netip.MustParseAddrPort("[fd02::2]:53")
)

func FuzzParseMessage(f *testing.F) {
	for _, m := range []message{
		{kind: msgUp, flow: 7, tos: 1, ttl: 2},
		{kind: msgUpAddrs, flow: 7, client: c4, dst: d4},
		{kind: msgUpAddrs, flow: 7, client: c6, dst: d6},
		{kind: msgDown, flow: 1 << 31},
		{kind: msgError, flow: 7, icmp: icmpError{3, 4, 1400, d4.Addr()}},
		{kind: msgError, flow: 7, icmp: icmpError{2, 0, 1280, d6.Addr()}},
		{kind: msgUnknown, flow: 7}, {kind: msgEnd, flow: 7},
	} {
		b := m.appendHead(nil)
		if m.kind <= msgDown {
			b = append(b, "payload"...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		if m.kind == msgUpAddrs && m.client.Addr().Is4() != m.dst.Addr().Is4() {
			t.Errorf("client %v and sink %v", m.client, m.dst)
		}
		if out := append(m.appendHead(nil), m.data...); !bytes.Equal(out, b) {
			t.Errorf("%x read and written is %x", b, out)
		}
	})
}

// checksum is right when the sum over everything is all ones.
func TestICMPPackets(t *testing.T) {
	p := appendICMP(nil, tuple{c4, d4}, icmpError{3, 4, 1400, d4.Addr()}, 100)
	if sum(0, p[:20]) != 0xffff || sum(0, p[20:]) != 0xffff || sum(0, p[28:48]) != 0xffff {
		t.Error("wrong checksum in the IPv4 packet")
	}
	if int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[20] != 3 || p[21] != 4 || binary.BigEndian.Uint16(p[26:]) != 1400 {
		t.Errorf("IPv4 packet % x", p)
	}
	if q := p[48:]; binary.BigEndian.Uint16(q) != 6000 || binary.BigEndian.Uint16(q[2:]) != 7000 || binary.BigEndian.Uint16(q[4:]) != 108 {
		t.Errorf("quoted UDP header % x", q)
	}
	p = appendICMP(nil, tuple{c6, d6}, icmpError{2, 0, 1280, d6.Addr()}, 100)
	if sum(uint32(len(p)-40)+58, p[8:]) != 0xffff {
		t.Error("wrong checksum in the IPv6 packet")
	}
	if int(binary.BigEndian.Uint16(p[4:])) != len(p)-40 || p[40] != 2 || binary.BigEndian.Uint32(p[44:]) != 1280 {
		t.Errorf("IPv6 packet % x", p)
	}
}

// tester is a table with counters.
type tester struct {
	*table
	opened, expired, evicted, over uint64
	gone                           []*flow
	id                             uint32
}

func newTester(max, perClient, rate int) *tester {
	x := &tester{}
	x.table = newTable(limits{
		timeout: defaultTimeout, max: max, perClient: perClient, ratePerClient: rate,
		opened: &x.opened, expired: &x.expired, evicted: &x.evicted, overLimit: &x.over,
		closed: func(f *flow) { x.gone = append(x.gone, f) },
	})
	return x
}

func (x *tester) flow(now time.Duration, client byte, port uint16) *flow {
	x.id++
	return x.add(now, tuple{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, client}), 5), netip.AddrPortFrom(d4.Addr(), port)}, number{id: x.id})
}

func (x *tester) has(f *flow) bool { return x.numbers[f.number] == f && x.tuples[f.tuple] == f }

func TestFlowsTimeOut(t *testing.T) {
	x := newTester(100, 100, 0)
	dns, oneWay, both := x.flow(0, 1, 53), x.flow(0, 1, 80), x.flow(0, 1, 81)
	x.touch(0, both, true)
	for _, tt := range []struct {
		at                time.Duration
		dns, oneWay, both bool
	}{
		{9 * time.Second, true, true, true},
		{10 * time.Second, false, true, true},
		{59 * time.Second, false, true, true},
		{60 * time.Second, false, false, true},
		{179 * time.Second, false, false, true},
		{180 * time.Second, false, false, false},
	} {
		x.expire(tt.at)
		if x.has(dns) != tt.dns || x.has(oneWay) != tt.oneWay || x.has(both) != tt.both {
			t.Errorf("at %v: DNS %v, one way %v, both ways %v", tt.at, x.has(dns), x.has(oneWay), x.has(both))
		}
	}
	if x.expired != 3 || len(x.gone) != 3 || len(x.clients) != 0 || len(x.numbers) != 0 {
		t.Errorf("expired %d, closed %d, %d clients left", x.expired, len(x.gone), len(x.clients))
	}
}

func TestClientPaysForItsOwnFlood(t *testing.T) {
	x := newTester(1000, 10, 0)
	good := x.flow(0, 1, 80)
	var bad []*flow
	for i := range 50 {
		bad = append(bad, x.flow(time.Duration(i), 2, uint16(1000+i)))
	}
	if !x.has(good) || len(x.tuples) != 11 || x.evicted != 40 {
		t.Errorf("good %v, %d flows, %d evicted", x.has(good), len(x.tuples), x.evicted)
	}
	if x.has(bad[39]) || !x.has(bad[40]) {
		t.Error("not the oldest ones were evicted")
	}
}

// From many addresses: flows that are answered outlive those that are not.
func TestAnsweredFlowsOutliveAFlood(t *testing.T) {
	x := newTester(100, 100, 0)
	good := x.flow(0, 1, 80)
	x.touch(0, good, true)
	for i := range 5000 {
		x.flow(time.Duration(i), byte(2+i%250), uint16(1+i))
	}
	if !x.has(good) || len(x.tuples) != 100 {
		t.Errorf("good %v, %d flows", x.has(good), len(x.tuples))
	}
	if len(x.clients) > 101 {
		t.Errorf("%d clients remembered for 100 flows", len(x.clients))
	}
	x.clear()
	if len(x.tuples)+len(x.numbers) != 0 || x.oneWay.head != nil || x.bothWays.tail != nil {
		t.Error("clear leaves something")
	}
}

func TestNewFlowsPerSecond(t *testing.T) {
	x := newTester(1000, 1000, 10)
	opened := 0
	for ms := range 3000 {
		if f := x.flow(time.Duration(ms)*time.Millisecond, 1, uint16(ms+1)); f != nil {
			opened++
		}
	}
	if opened < 38 || opened > 41 { // 10 at once and 10 a second
		t.Errorf("%d flows in 3 s at 10 a second", opened)
	}
	if x.over != uint64(3000-opened) {
		t.Errorf("%d refused, want %d", x.over, 3000-opened)
	}
}
