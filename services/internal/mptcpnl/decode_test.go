package mptcpnl

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func attrs(t testing.TB, f func(e *netlink.AttributeEncoder)) []byte {
	t.Helper()
	e := netlink.NewAttributeEncoder()
	f(e)
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseEvent(t *testing.T) {
	b := attrs(t, func(e *netlink.AttributeEncoder) {
		e.Uint32(evToken, 0xdeadbeef)
		e.Uint16(2, unix.AF_INET)
		e.Uint8(evLocID, 3)
		e.Uint8(evRemID, 4)
		e.Bytes(evSaddr4, []byte{10, 1, 0, 1})
		e.Bytes(evDaddr4, []byte{10, 1, 0, 2})
		e.Bytes(evSport, []byte{0x12, 0x34})
		e.Bytes(evDport, []byte{0x18, 0x60})
		e.Uint8(evBackup, 1)
		e.Uint8(evError, 111)
		e.Uint32(evTimeout, 1500)
		e.Int32(evIfIdx, 7)
		e.Uint32(evResetReason, 6)
		e.Uint32(evResetFlags, 1)
		e.Uint16(evFlags, flagServerSide)
		e.Uint32(200, 1) // of a kernel to come
	})
	got, err := parseEvent(11, b)
	if err != nil {
		t.Fatal(err)
	}
	want := Event{Kind: EventSubClosed, Token: 0xdeadbeef, LocID: 3, RemID: 4,
		Local: netip.MustParseAddrPort("10.1.0.1:4660"), Remote: netip.MustParseAddrPort("10.1.0.2:6240"),
		Backup: true, Error: 111, Timeout: 1500 * time.Millisecond, IfIndex: 7, ResetReason: 6, ResetFlags: 1,
		Flags: flagServerSide, ServerSide: true}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if _, err := parseEvent(11, b[:len(b)-2]); err == nil {
		t.Error("a message cut short was accepted")
	}
}

func TestParseInfo(t *testing.T) {
	var full [infoSize]byte
	ne := binary.NativeEndian
	full[0], full[42], full[80] = 2, 1, 3
	ne.PutUint32(full[8:], infoFlagFallback)
	ne.PutUint32(full[12:], 99)
	ne.PutUint64(full[16:], 1000)
	ne.PutUint64(full[24:], 400)
	ne.PutUint64(full[56:], 77)
	ne.PutUint32(full[92:], 250)
	i := parseInfo(full[:])
	if i.Subflows != 2 || !i.Fallback() || i.Token != 99 || i.Unacked() != 600 || !i.Checksum || i.BytesSent != 77 || i.Total != 3 || i.LastAckRecv != 250*time.Millisecond {
		t.Errorf("got %+v", i)
	}
	// Kernel 6.1 knows 48 bytes.
	if i := parseInfo(full[:48]); i.Token != 99 || !i.Checksum || i.BytesSent != 0 || i.Total != 0 {
		t.Errorf("short: got %+v", i)
	}
	if i := (&Info{WriteSeq: 1, SndUna: 2}); i.Unacked() != 0 {
		t.Error("unacknowledged data must not be negative")
	}
}

func TestParseCounters(t *testing.T) {
	s := "TcpExt: A B\nTcpExt: 1 2\nMPTcpExt: MPCapableSYNRX Blackhole\nMPTcpExt: 7 18446744073709551615\n"
	c, err := parseCounters(s)
	if err != nil || c["MPCapableSYNRX"] != 7 || c["Blackhole"] != 1<<64-1 || len(c) != 2 {
		t.Errorf("got %v, %v", c, err)
	}
	for _, bad := range []string{"", "MPTcpExt: A\n", "MPTcpExt: A B\nMPTcpExt: 1\n", "MPTcpExt: A\nMPTcpExt: x\n", "MPTcpExt: A\nMPTcpExt: -1\n"} {
		if c, err := parseCounters(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, c)
		}
	}
}

func TestDiagRequest(t *testing.T) {
	got := hex.EncodeToString(diagRequest(netip.MustParseAddrPort("10.1.0.1:4660"), netip.MustParseAddrPort("10.1.0.2:6240")))
	want := "02060000" + "ffffffff" + "1234" + "1860" + "0a010001" + "000000000000000000000000" + "0a010002" + "000000000000000000000000" + "00000000" + "ffffffffffffffff"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzEvent(f *testing.F) {
	f.Add(uint8(1), attrs(f, func(e *netlink.AttributeEncoder) {
		e.Uint32(evToken, 1)
		e.Bytes(evSaddr6, make([]byte, 16))
		e.Bytes(evSport, []byte{1})
	}))
	f.Add(uint8(10), []byte{4, 0, 1, 0})
	f.Add(uint8(99), []byte{})
	f.Fuzz(func(t *testing.T, k uint8, b []byte) {
		ev, err := parseEvent(k, b)
		if err == nil && uint8(ev.Kind) != k {
			t.Errorf("kind %v of %d", ev.Kind, k)
		}
		_ = ev.Kind.String()
	})
}

func FuzzAddr(f *testing.F) {
	a := Addr{Addr: netip.MustParseAddr("10.0.0.1"), Port: 1, ID: 2, Flags: 3, IfIndex: 4}
	f.Add(attrs(f, func(e *netlink.AttributeEncoder) { e.Nested(attrAddr, nested(a)) }))
	f.Add(attrs(f, func(e *netlink.AttributeEncoder) { e.Uint32(attrSubflows, 1); e.Uint32(attrRcvAddAddrs, 1) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseAddrMessage(b); err == nil && a.Addr.IsValid() {
			again := attrs(t, func(e *netlink.AttributeEncoder) { e.Nested(attrAddr, nested(a)) })
			if got, err := parseAddrMessage(again); err != nil || got != a {
				t.Errorf("%+v became %+v, %v", a, got, err)
			}
		}
		_, _ = parseLimits(b)
	})
}

func FuzzSocketStructs(f *testing.F) {
	f.Add(make([]byte, 128))
	f.Add([]byte{2, 0, 1, 2, 3, 4, 5, 6})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a := parseSockaddr(b); a.Addr().IsValid() && len(b) < 28 {
			t.Errorf("%v out of %d bytes", a, len(b))
		}
		i := parseInfo(b)
		if i.Unacked() > i.WriteSeq {
			t.Errorf("unacked %d of %d", i.Unacked(), i.WriteSeq)
		}
	})
}

func FuzzCounters(f *testing.F) {
	f.Add("MPTcpExt: A B\nMPTcpExt: 1 2\n")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := parseCounters(s); err == nil && c == nil {
			t.Error("neither counters nor an error")
		}
	})
}
