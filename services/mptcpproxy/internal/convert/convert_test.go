package convert

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

// The bytes were worked out by hand from the figures of RFC 8803, section 6.
var goldens = []struct {
	name  string
	m     Message
	bytes string
}{
	{"empty", Message{}, "01 01 2263"},
	{"info", Message{Has: HasInfo}, "01 02 2263 01 01 0000"},
	{"connect to IPv4",
		Message{Has: HasConnect, Connect: netip.MustParseAddrPort("192.0.2.7:443"), ConnectOptions: []byte{}},
		"01 06 2263 0a 05 01bb 00000000 00000000 0000ffff c0000207"},
	{"connect to IPv6 with options",
		Message{Has: HasConnect, Connect: netip.MustParseAddrPort("[2001:db8::1]:80"), ConnectOptions: []byte{4, 2, 1, 0}},
		"01 07 2263 0a 06 0050 20010db8 00000000 00000000 00000001 04 02 01 00"},
	{"extended TCP header", Message{Has: HasExtHeader, ExtHeader: []byte{2, 4, 5, 0xb4, 4, 2, 0, 0}},
		"01 04 2263 14 03 0000 02 04 05 b4 04 02 00 00"},
	{"supported extensions, one byte of padding", Message{Has: HasExtensions, Extensions: []byte{8, 5, 30}},
		"01 03 2263 15 02 0000 08 05 1e 00"},
	{"cookie", Message{Has: HasCookie, Cookie: []byte("eightbyt")},
		"01 04 2263 16 03 0000 65696768 74627974"},
	{"not authorized", Message{Has: HasError, Code: CodeNotAuthorized, Value: []byte{0}},
		"01 02 2263 1e 01 20 00"},
	{"unreachable, ICMP code 3", Message{Has: HasError, Code: CodeUnreachable, Value: []byte{3}},
		"01 02 2263 1e 01 61 03"},
	{"unsupported options", Message{Has: HasError, Code: CodeOption, Value: []byte{30, 8, 5, 0, 0}},
		"01 03 2263 1e 02 21 1e 08 05 00 00"},
	{"open of our own gateways",
		Message{Has: HasConnect | HasClient | HasFramed,
			Connect: netip.MustParseAddrPort("192.168.2.2:5201"), ConnectOptions: []byte{},
			Client:  netip.MustParseAddrPort("192.168.1.2:40000"),
			Framing: 1, Flags: 2},
		"01 0c 2263 0a 05 1451 00000000 00000000 0000ffff c0a80202" +
			"c0 05 9c40 00000000 00000000 0000ffff c0a80102 c1 01 01 02"},
}

func TestGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			want := unhex(t, g.bytes)
			got, err := g.m.Append([]byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[1:], want) {
				t.Errorf("append: got %x, want %x", got[1:], want)
			}
			if g.m.Len() != len(want) {
				t.Errorf("Len() = %d, want %d", g.m.Len(), len(want))
			}
			var m Message
			n, err := Parse(append(bytes.Clone(want), "payload"...), &m)
			if err != nil || n != len(want) {
				t.Fatalf("parse: %d, %v", n, err)
			}
			if !reflect.DeepEqual(m, g.m) {
				t.Errorf("parse: got %+v, want %+v", m, g.m)
			}
			for i := range want {
				need, err := Parse(want[:i], &m)
				if !errors.Is(err, ErrShort) || need <= i || need > len(want) {
					t.Errorf("first %d bytes: need %d, error %v", i, need, err)
				}
			}
		})
	}
}

func TestPadding(t *testing.T) {
	for name, m := range map[string]Message{
		"01 07 2263 0a 06 0050 20010db8 00000000 00000000 00000001 04 02 00 00": {Has: HasConnect,
			Connect: netip.MustParseAddrPort("[2001:db8::1]:80"), ConnectOptions: []byte{4, 2}},
		"01 03 2263 1e 02 03 0102030400":  {Has: HasError, Code: CodeCookie, Value: []byte{1, 2, 3, 4}},
		"01 03 2263 16 02 0000 01 000000": {Has: HasCookie, Cookie: []byte{1}},
		"01 02 2263 1e 01 60 00":          {Has: HasError, Code: CodeReset},
	} {
		got, err := m.Append(nil)
		if want := unhex(t, name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %x, %v, want %x", got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name, bytes string
		want        error
		code        Code
		answer      bool
	}{
		{"HTTP", "47455420 2f204854", ErrMalformed, CodeMalformed, false},
		{"TLS", "16030100", ErrMalformed, CodeMalformed, false},
		{"version 2", "02 01 2263", ErrVersion, CodeVersion, true},
		{"total length 0", "01 00 2263", ErrMalformed, CodeMalformed, true},
		{"element length 0", "01 02 2263 01 00 0000", ErrMalformed, CodeMalformed, true},
		{"element longer than message", "01 02 2263 01 02 0000", ErrMalformed, CodeMalformed, true},
		{"short connect", "01 02 2263 0a 01 01bb", ErrMalformed, CodeMalformed, true},
		{"long info", "01 03 2263 01 02 0000 00000000", ErrMalformed, CodeMalformed, true},
		{"short client", "01 02 2263 c0 01 01bb", ErrMalformed, CodeMalformed, true},
		{"long framed", "01 03 2263 c1 02 0100 00000000", ErrMalformed, CodeMalformed, true},
		{"twice", "01 03 2263 01 01 0000 01 01 0000", ErrMalformed, CodeMalformed, true},
		{"unknown element", "01 02 2263 63 01 0000", ErrUnsupported, CodeUnsupported, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := unhex(t, c.bytes)
			var m Message
			_, err := Parse(b, &m)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			code, answer := ErrorFor(err, b)
			if code != c.code || answer != c.answer {
				t.Errorf("answer %v %v, want %v %v", code, answer, c.code, c.answer)
			}
		})
	}
}

// What is known is parsed although something unknown stands before it.
func TestUnknownElementIsSkipped(t *testing.T) {
	var m Message
	_, err := Parse(unhex(t, "01 03 2263 63 01 0000 01 01 0000"), &m)
	if !errors.Is(err, ErrUnsupported) || m.Has != HasInfo {
		t.Errorf("got %v, %+v", err, m)
	}
}

func TestTooLong(t *testing.T) {
	m := Message{Has: HasCookie, Cookie: make([]byte, MaxLen-7)}
	b, err := m.Append([]byte("x"))
	if !errors.Is(err, ErrTooLong) || string(b) != "x" {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
	m.Cookie = m.Cookie[:MaxLen-8]
	if b, err = m.Append(nil); err != nil || len(b) != MaxLen {
		t.Errorf("the longest message: %d bytes, %v", len(b), err)
	}
}

func TestNoAllocation(t *testing.T) {
	buf := make([]byte, 0, MaxLen)
	m := goldens[len(goldens)-1].m
	var got Message
	if n := testing.AllocsPerRun(100, func() {
		b, _ := m.Append(buf)
		_, _ = Parse(b, &got)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNames(t *testing.T) {
	for _, ty := range []Type{TypeInfo, TypeConnect, TypeExtHeader, TypeExtensions, TypeCookie, TypeError, TypeClient, TypeFramed} {
		if strings.HasPrefix(ty.String(), "element") {
			t.Errorf("type %d has no name", ty)
		}
	}
	for _, c := range []Code{0, 1, 2, 3, 32, 33, 64, 65, 96, 97} {
		if strings.HasPrefix(c.String(), "error") {
			t.Errorf("code %d has no name", c)
		}
	}
	if Type(99).String() != "element 99" || Code(98).Error() != "converter: error 98" {
		t.Error("unknown numbers must show")
	}
}

func FuzzParse(f *testing.F) {
	for _, g := range goldens {
		f.Add(unhex(f, g.bytes))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Message
		n, err := Parse(b, &m)
		if err != nil {
			if errors.Is(err, ErrShort) && n <= len(b) && n != HeaderLen {
				t.Fatalf("short, but %d of %d bytes are there", len(b), n)
			}
			return
		}
		if n > len(b) {
			t.Fatalf("message of %d bytes in %d", n, len(b))
		}
		// What was parsed can be written and reads as the same.
		out, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		var again Message
		if k, err := Parse(out, &again); err != nil || k != len(out) {
			t.Fatalf("own bytes %x: %d, %v", out, k, err)
		}
		if !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}
