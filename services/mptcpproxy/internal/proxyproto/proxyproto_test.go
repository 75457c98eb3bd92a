package proxyproto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const sig = "0d0a0d0a000d0a515549540a "

var goldens = []struct {
	name     string
	src, dst string
	tlvs     []TLV
	checksum bool
	bytes    string
}{
	{"IPv4", "192.168.1.2:40000", "192.168.2.2:5201", nil, false,
		sig + "21 11 000c c0a80102 c0a80202 9c40 1451"},
	{"IPv6", "[fd01::2]:40000", "[fd02::2]:80", nil, false,
		sig + "21 21 0024 fd010000000000000000000000000002 fd020000000000000000000000000002 9c40 0050"},
	{"mapped is IPv4", "[::ffff:192.168.1.2]:1", "[::ffff:192.168.2.2]:2", nil, false,
		sig + "21 11 000c c0a80102 c0a80202 0001 0002"},
	{"elements", "192.168.1.2:1", "192.168.2.2:2", []TLV{{TypeAuthority, []byte("a.b")}, {TypeNoop, nil}}, false,
		sig + "21 11 0015 c0a80102 c0a80202 0001 0002 02 0003 612e62 04 0000"},
	{"local", "", "", nil, false, sig + "20 00 0000"},
}

func addr(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func TestV2(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			want := unhex(t, g.bytes)
			got, err := AppendV2TLV([]byte("x"), addr(g.src), addr(g.dst), g.tlvs, g.checksum)
			if err != nil || !bytes.Equal(got[1:], want) {
				t.Errorf("got %x, %v, want %x", got[1:], err, want)
			}
			var h Header
			n, err := Parse(append(bytes.Clone(want), "GET /"...), &h)
			if err != nil || n != len(want) {
				t.Fatalf("parse: %d, %v", n, err)
			}
			if h.Version != 2 || h.Local != (g.src == "") || h.Src.Port() != addr(g.src).Port() || h.Src.Addr() != addr(g.src).Addr().Unmap() || h.Dst.Addr() != addr(g.dst).Addr().Unmap() {
				t.Errorf("parsed %+v", h)
			}
			var tlvs []TLV
			h.Each(func(e TLV) bool { tlvs = append(tlvs, e); return true })
			if len(tlvs) != len(g.tlvs) {
				t.Errorf("elements %v", tlvs)
			}
			for i := range tlvs {
				if tlvs[i].Type != g.tlvs[i].Type || !bytes.Equal(tlvs[i].Value, g.tlvs[i].Value) {
					t.Errorf("element %d: %v", i, tlvs[i])
				}
			}
			for i := range want {
				if _, err := Parse(want[:i], &h); !errors.Is(err, ErrShort) {
					t.Errorf("first %d bytes: %v", i, err)
				}
			}
		})
	}
}

// The checksum is tried against every single changed bit; that it is the right
// one, HAProxy says in the interop test.
func TestChecksum(t *testing.T) {
	b, err := AppendV2TLV(nil, addr("192.168.1.2:1"), addr("192.168.2.2:2"), []TLV{{TypeUniqueID, []byte("id")}}, true)
	if err != nil {
		t.Fatal(err)
	}
	var h Header
	if n, err := Parse(b, &h); err != nil || n != len(b) {
		t.Fatalf("parse: %d, %v", n, err)
	}
	for i := 16 * 8; i < len(b)*8; i++ {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		// A changed type or length of an element may make the checksum itself
		// disappear or be cut off; the rest must be noticed.
		if _, err := Parse(c, &h); err == nil && c[len(c)-7] == byte(TypeCRC32C) && i/8 < 28 {
			t.Errorf("bit %d: not noticed", i)
		}
	}
}

func TestV1(t *testing.T) {
	for _, c := range []struct {
		line, src, dst string
		err            error
	}{
		{"PROXY TCP4 192.168.1.2 192.168.2.2 40000 5201\r\n", "192.168.1.2:40000", "192.168.2.2:5201", nil},
		{"PROXY TCP6 fd01::2 fd02::2 1 65535\r\n", "[fd01::2]:1", "[fd02::2]:65535", nil},
		{"PROXY UNKNOWN\r\n", "", "", nil},
		{"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "", "", nil},
		{"PROXY TCP4 192.168.1.2 192.168.2.2 40000 5201\n", "", "", ErrMalformed},
		{"PROXY TCP4 fd01::2 fd02::2 1 2\r\n", "", "", ErrMalformed},
		{"PROXY TCP4 192.168.1.2 192.168.2.2 040 5201\r\n", "", "", ErrMalformed},
		{"PROXY TCP4 192.168.1.2 192.168.2.2 65536 1\r\n", "", "", ErrMalformed},
		{"PROXY TCP4 192.168.1.2  1 2\r\n", "", "", ErrMalformed},
		{"PROXY UDP4 192.168.1.2 192.168.2.2 1 2\r\n", "", "", ErrMalformed},
		{"PROXY \r\n", "", "", ErrMalformed},
		{"PROXY \n", "", "", ErrMalformed},
		{"PROXY " + strings.Repeat("x", 200), "", "", ErrMalformed},
		{"PROXY TCP4 192.168", "", "", ErrShort},
		{"PRO", "", "", ErrShort},
		{"", "", "", ErrShort},
		{"GET / HTTP/1.1\r\n", "", "", ErrNone},
		{"\r\n\r\nx", "", "", ErrNone},
	} {
		var h Header
		n, err := Parse([]byte(c.line), &h)
		if !errors.Is(err, c.err) {
			t.Errorf("%q: %v, want %v", c.line, err, c.err)
		}
		if err == nil && (n != len(c.line) || h.Src != addr(c.src) || h.Dst != addr(c.dst) || h.Version != 1) {
			t.Errorf("%q: %d, %+v", c.line, n, h)
		}
	}
}

func TestV2Refuses(t *testing.T) {
	for name, c := range map[string]struct {
		bytes string
		err   error
	}{
		"version 1 in binary":    {sig + "11 11 000c c0a80102 c0a80202 0001 0002", ErrMalformed},
		"command 2":              {sig + "22 11 000c c0a80102 c0a80202 0001 0002", ErrMalformed},
		"family 4":               {sig + "21 41 000c c0a80102 c0a80202 0001 0002", ErrMalformed},
		"transport 3":            {sig + "21 13 000c c0a80102 c0a80202 0001 0002", ErrMalformed},
		"addresses cut":          {sig + "21 11 000b c0a80102 c0a80202 0001 00", ErrMalformed},
		"element cut":            {sig + "21 11 000f c0a80102 c0a80202 0001 0002 02 0003", ErrMalformed},
		"element without length": {sig + "21 11 000e c0a80102 c0a80202 0001 0002 02 00", ErrMalformed},
		"short checksum":         {sig + "21 11 0011 c0a80102 c0a80202 0001 0002 03 0002 0000", ErrMalformed},
		"wrong checksum":         {sig + "21 11 0013 c0a80102 c0a80202 0001 0002 03 0004 00000000", ErrChecksum},
	} {
		var h Header
		if _, err := Parse(unhex(t, c.bytes), &h); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
	// UDP and UNIX sockets are understood, without addresses.
	var h Header
	for _, s := range []string{sig + "21 12 000c c0a80102 c0a80202 0001 0002", sig + "21 31 00d8" + strings.Repeat("00", 216)} {
		if _, err := Parse(unhex(t, s), &h); err != nil || h.Src.IsValid() {
			t.Errorf("%v, %+v", err, h)
		}
	}
	if _, err := AppendV2TLV(nil, addr("1.2.3.4:1"), addr("1.2.3.4:1"), []TLV{{TypeALPN, make([]byte, 65535)}}, false); err == nil {
		t.Error("a header beyond 64 KiB was written")
	}
}

func TestNoAllocation(t *testing.T) {
	buf := make([]byte, 0, 64)
	src, dst := addr("192.168.1.2:1"), addr("192.168.2.2:2")
	var h Header
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(AppendV2(buf, src, dst), &h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, g := range goldens {
		f.Add(unhex(f, g.bytes))
	}
	f.Add([]byte("PROXY TCP4 192.168.1.2 192.168.2.2 40000 5201\r\n"))
	f.Add([]byte("PROXY \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		n, err := Parse(b, &h)
		if err != nil {
			return
		}
		if n > len(b) {
			t.Fatalf("header of %d bytes in %d", n, len(b))
		}
		if h.Version != 2 || !h.Src.IsValid() {
			return
		}
		var tlvs []TLV
		h.Each(func(e TLV) bool { tlvs = append(tlvs, e); return true })
		out, err := AppendV2TLV(nil, h.Src, h.Dst, tlvs, false)
		if err != nil {
			t.Fatal(err)
		}
		var again Header
		if _, err := Parse(out, &again); err != nil && !errors.Is(err, ErrChecksum) {
			t.Fatal(err)
		} else if err == nil && (again.Src != h.Src || again.Dst != h.Dst || !reflect.DeepEqual(again.TLVs, h.TLVs)) {
			t.Fatalf("%+v became %+v", h, again)
		}
	})
}
