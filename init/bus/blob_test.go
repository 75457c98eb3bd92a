package bus

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unhex reads hexadecimal bytes, blanks and line ends between them.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes were worked out by hand from blob.h and blobmsg.h: header (extended
// bit, type, length with header but without padding), name length, name, NUL,
// padding, data, padding.
var blobGoldens = []struct {
	name  string
	table Table
	bytes string
}{
	{"int32", Table{{"a", int32(1)}}, "8500000c 0001 61 00 00000001"},
	{"negative int32", Table{{"a", int32(-2)}}, "8500000c 0001 61 00 fffffffe"},
	{"name with padding", Table{{"abc", int32(7)}}, "85000010 0003 616263 00 0000 00000007"},
	{"string with padding", Table{{"s", "hi"}}, "8300000b 0001 73 00 686900 00"},
	{"empty string", Table{{"s", ""}}, "83000009 0001 73 00 00 000000"},
	{"true", Table{{"b", true}}, "87000009 0001 62 00 01 000000"},
	{"false", Table{{"b", false}}, "87000009 0001 62 00 00 000000"},
	{"int16", Table{{"i", int16(258)}}, "8600000a 0001 69 00 0102 0000"},
	{"int64", Table{{"l", int64(5000000000)}}, "84000010 0001 6c 00 000000012a05f200"},
	{"double", Table{{"d", 1.5}}, "88000010 0001 64 00 3ff8000000000000"},
	{"unspec", Table{{"x", nil}}, "80000008 0001 78 00"},
	{"nested table", Table{{"t", Table{{"x", nil}}}}, "82000010 0001 74 00 80000008 0001 78 00"},
	{"empty table", Table{{"t", Table{}}}, "82000008 0001 74 00"},
	// A table or array counts the padding of its last child, as blob_nest_end
	// adds up padded lengths.
	{"array without names", Table{{"l", Array{int32(-2), "a"}}},
		"81000020 0001 6c 00  8500000c 0000 00 00 fffffffe  8300000a 0000 00 00 6100 0000"},
	{"order kept", Table{{"b", int32(1)}, {"a", int32(2)}, {"b", int32(3)}},
		"8500000c 0001 62 00 00000001 8500000c 0001 61 00 00000002 8500000c 0001 62 00 00000003"},
}

func TestBlobGoldens(t *testing.T) {
	for _, g := range blobGoldens {
		t.Run(g.name, func(t *testing.T) {
			want := unhex(t, g.bytes)
			got, err := g.table.encode()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("encoded\n got %x\nwant %x", got, want)
			}
			back, err := decodeTable(want)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(g.table, back); d != "" {
				t.Errorf("decoded (-want +got):\n%s", d)
			}
		})
	}
}

func TestBlobWithoutLastPadding(t *testing.T) {
	got, err := decodeTable(unhex(t, "8300000b 0001 73 00 686900"))
	if err != nil || got.String("s") != "hi" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestBlobRejects(t *testing.T) {
	for name, s := range map[string]string{
		"short header":             "850000",
		"length below header":      "85000003 00000000",
		"length beyond data":       "85000010 0001 61 00 00000001",
		"not extended":             "0500000c 0001 61 00 00000001",
		"no room for a name":       "85000006 0000 0000",
		"name beyond data":         "8500000c 0009 61 00 00000001",
		"name without NUL":         "8500000c 0001 61 62 00000001",
		"name with NUL in it":      "8700000d 0003 610062 00 0000 01 000000",
		"int32 too short":          "8500000a 0001 61 00 0001 0000",
		"int32 too long":           "85000010 0001 61 00 00000001 00000002",
		"bool of two bytes":        "8700000a 0001 62 00 0101 0000",
		"string without NUL":       "8300000a 0001 73 00 6869 0000",
		"string without data":      "83000008 0001 73 00",
		"unknown type":             "89000009 0001 73 00 00 000000",
		"garbage in nested table":  "8200000c 0001 74 00 ffffffff",
		"garbage behind the first": "8500000c 0001 61 00 00000001 8500",
	} {
		if v, err := decodeTable(unhex(t, s)); !errors.Is(err, errBlob) {
			t.Errorf("%s: got %v, %v, want a malformed blob", name, v, err)
		}
	}
}

func TestBlobDepth(t *testing.T) {
	nest := func(n int) Table {
		v := Table{}
		for range n {
			v = Table{{"t", v}}
		}
		return v
	}
	b, err := nest(maxDepth).encode()
	if err != nil {
		t.Fatalf("depth %d: %v", maxDepth, err)
	}
	if _, err := decodeTable(b); err != nil {
		t.Fatalf("depth %d: %v", maxDepth, err)
	}
	if _, err := nest(maxDepth + 2).encode(); !errors.Is(err, errDepth) {
		t.Errorf("encode beyond the limit: %v", err)
	}
	// The same by hand, as an attacker would send it.
	for range 3 {
		inner := b
		b = append([]byte{0x82, 0, byte((8 + len(inner)) >> 8), byte(8 + len(inner)), 0, 1, 't', 0}, inner...)
	}
	if _, err := decodeTable(b); !errors.Is(err, errDepth) {
		t.Errorf("decode beyond the limit: %v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	type loop struct{ Next *loop }
	l := &loop{}
	l.Next = l
	for name, v := range map[string]any{
		"NUL in a string":   Table{{"a", "x\x00y"}},
		"NUL in a name":     Table{{"a\x00", 1}},
		"long name":         Table{{strings.Repeat("n", 65536), 1}},
		"channel":           map[string]any{"c": make(chan int)},
		"map with int keys": map[string]any{"m": map[int]int{1: 1}},
		"not a table":       []int{1},
		"a ring":            l,
		"too large":         Table{{"a", strings.Repeat("x", maxMessage)}},
	} {
		tab, err := Encode(v)
		if err == nil {
			_, err = tab.encode()
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

type inner struct {
	Name string `json:"name"`
}

type everything struct {
	inner
	Bool    bool              `json:"bool"`
	Int     int               `json:"int"`
	Big     int64             `json:"big"`
	Byte    uint8             `json:"byte"`
	U32     uint32            `json:"u32"`
	F       float64           `json:"f"`
	List    []string          `json:"list"`
	Map     map[string]int    `json:"map"`
	Ptr     *inner            `json:"ptr"`
	Skip    string            `json:"-"`
	Empty   string            `json:"empty,omitempty"`
	Any     any               `json:"any"`
	Tab     Table             `json:"tab"`
	Sub     inner             `json:"sub"`
	Strs    map[string]string `json:"strs,omitempty"`
	NoTag   int
	private int
}

func TestStructs(t *testing.T) {
	in := everything{
		inner: inner{"n"}, Bool: true, Int: -5, Big: 1 << 40, Byte: 200, U32: math.MaxUint32, F: 2.5,
		List: []string{"x", "y"}, Map: map[string]int{"b": 2, "a": 1}, Ptr: &inner{"p"}, Skip: "no",
		Any: int32(3), Tab: Table{{"z", "1"}}, Sub: inner{"s"}, NoTag: 9, private: 1,
	}
	want := Table{
		{"name", "n"}, {"bool", true}, {"int", int32(-5)}, {"big", int64(1 << 40)}, {"byte", int32(200)},
		{"u32", int64(math.MaxUint32)}, {"f", 2.5}, {"list", Array{"x", "y"}},
		{"map", Table{{"a", int32(1)}, {"b", int32(2)}}}, {"ptr", Table{{"name", "p"}}}, {"any", int32(3)},
		{"tab", Table{{"z", "1"}}}, {"sub", Table{{"name", "s"}}}, {"NoTag", int32(9)},
	}
	got, err := Encode(in)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("Encode (-want +got):\n%s", d)
	}
	var back everything
	if err := got.Decode(&back); err != nil {
		t.Fatal(err)
	}
	in.Skip, in.private = "", 0
	if d := cmp.Diff(in, back, cmp.AllowUnexported(everything{}, inner{})); d != "" {
		t.Errorf("Decode (-want +got):\n%s", d)
	}
}

func TestDecodeMismatch(t *testing.T) {
	for name, tab := range map[string]Table{
		"string for int":   {{"int", "5"}},
		"table for list":   {{"list", Table{}}},
		"int in list":      {{"list", Array{int32(1)}}},
		"too big":          {{"byte", int32(300)}},
		"negative":         {{"byte", int32(-1)}},
		"string for table": {{"tab", "x"}},
		"fraction for int": {{"int", 1.5}},
		"in a nested one":  {{"sub", Table{{"name", int32(1)}}}},
	} {
		var v everything
		err := tab.Decode(&v)
		if !errors.Is(err, StatusInvalidArgument) {
			t.Errorf("%s: got %v, want StatusInvalidArgument", name, err)
		}
	}
	var v everything
	// An unsigned 32-bit number as C sends it, a number for a boolean, and
	// something nobody asked for.
	if err := (Table{{"u32", int32(-1)}, {"bool", int32(1)}, {"more", "x"}}).Decode(&v); err != nil || v.U32 != math.MaxUint32 || !v.Bool {
		t.Errorf("got %+v, %v", v, err)
	}
}

func FuzzTable(f *testing.F) {
	for _, g := range blobGoldens {
		f.Add(unhex(f, g.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tab, err := decodeTable(b)
		if err != nil {
			return
		}
		again, err := tab.encode()
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		back, err := decodeTable(again)
		if err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		// By their bytes: NaN differs from itself.
		third, err := back.encode()
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("not stable: %x then %x (%v)", again, third, err)
		}
	})
}

func FuzzAttrs(f *testing.F) {
	f.Add(unhex(f, "03000008 01020304 0400000a 626f61726400 0000 07000004"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := parseAttrs(b)
		if a.got(attrSignature) {
			if typ := newType(a.signature); typ != nil {
				var all []byte
				for _, m := range typ.methods {
					all = append(all, typ.sig[m[0]:m[1]]...)
				}
				if !bytes.Equal(all, typ.sig) {
					t.Fatalf("methods of %x do not add up", typ.sig)
				}
			}
		}
		describeAttrs(b)
		parseMonitor(b)
		for name, typ, v, rest, ok := nextField(b); ok; name, typ, v, rest, ok = nextField(rest) {
			_, _, _ = name, typ, v
		}
	})
}
