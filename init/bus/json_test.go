package bus

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// As `ubus call` prints on LEDE.
func TestAppendJSON(t *testing.T) {
	tab := Table{
		{"target", "x86/64"}, {"n", int32(-1)}, {"big", int64(1) << 40}, {"i16", int16(7)}, {"d", 0.5}, {"t", true}, {"f", false},
		{"nil", nil}, {"empty", Table{}}, {"none", Array{}}, {"l", Array{"a", Table{{"k", "v"}}}},
		{"esc", "q\" b\\ \n\t\r\b\x01 ü"}, {"plain", 3},
	}
	want := strings.Join([]string{
		"{",
		"\t\"target\": \"x86\\/64\",",
		"\t\"n\": -1,",
		"\t\"big\": 1099511627776,",
		"\t\"i16\": 7,",
		"\t\"d\": 0.500000,",
		"\t\"t\": true,",
		"\t\"f\": false,",
		"\t\"nil\": null,",
		"\t\"empty\": {",
		"\t\t",
		"\t},",
		"\t\"none\": [",
		"\t\t",
		"\t],",
		"\t\"l\": [",
		"\t\t\"a\",",
		"\t\t{",
		"\t\t\t\"k\": \"v\"",
		"\t\t}",
		"\t],",
		"\t\"esc\": \"q\\\" b\\\\ \\n\\t\\r\\b\\u0001 ü\",",
		"\t\"plain\": 3",
		"}",
	}, "\n")
	if d := cmp.Diff(want, string(tab.AppendJSON(nil, true))); d != "" {
		t.Errorf("indented (-want +got):\n%s", d)
	}
	line := string(Table{{"a", int32(1)}, {"b", Array{"x", Table{}}}}.AppendJSON([]byte("> "), false))
	if want := `> {"a":1,"b":["x",{}]}`; line != want {
		t.Errorf("compact: got %s, want %s", line, want)
	}
	if got := string(Table{{"x", math.NaN()}}.AppendJSON(nil, false)); got != `{"x":null}` {
		t.Errorf("NaN: got %s", got)
	}
	deep := Table{}
	for range 20 {
		deep = Table{{"d", deep}}
	}
	if got := string(deep.AppendJSON(nil, true)); strings.Contains(got, strings.Repeat("\t", 17)) {
		t.Errorf("indented by more than 16 tabs")
	}
}

func TestParseJSON(t *testing.T) {
	for _, c := range []struct {
		text    string
		want    Table
		lenient bool // only without strict
	}{
		{`{}`, Table{}, false},
		{` { "a" : 1 , "b":[ 1,"x",null,true , false ] } `, Table{{"a", int32(1)}, {"b", Array{int32(1), "x", nil, true, false}}}, false},
		{`{"z":1,"a":2,"z":3}`, Table{{"z", int32(1)}, {"a", int32(2)}, {"z", int32(3)}}, false},
		{`{"n":2147483647,"m":2147483648,"k":-2147483649,"f":1.5,"e":1e3,"h":99999999999999999999}`,
			Table{{"n", int32(math.MaxInt32)}, {"m", int64(math.MaxInt32) + 1}, {"k", int64(math.MinInt32) - 1}, {"f", 1.5}, {"e", 1000.0}, {"h", 1e20}}, false},
		{`{"s":"a\"b\\c\/d\n\u00e4\ud83d\ude00\ud800x"}`, Table{{"s", "a\"b\\c/d\nä😀\ufffdx"}}, false},
		{`{"o":{"p":{"q":[]}}}`, Table{{"o", Table{{"p", Table{{"q", Array{}}}}}}}, false},
		{`{'a':'it\'s',}`, Table{{"a", "it's"}}, true},
		{`{"l":[1,2,],/* c */"m":TRUE // end` + "\n}", Table{{"l", Array{int32(1), int32(2)}}, {"m", true}}, true},
		{`{"a":007}`, Table{{"a", int32(7)}}, true},
	} {
		got, err := ParseJSON(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
		} else if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.text, d)
		}
		var strict Table
		if err := strict.UnmarshalJSON([]byte(c.text)); (err != nil) != c.lenient {
			t.Errorf("strict %s: error %v, want one: %v", c.text, err, c.lenient)
		}
	}
	for _, bad := range []string{
		``, `[]`, `1`, `"a"`, `{`, `{"a"}`, `{"a":}`, `{"a":1 "b":2}`, `{"a":1}x`, `{"a":tru}`, `{a:1}`, `{"a":"x}`,
		`{"a":"\x"}`, `{"a":"\u12"}`, `{"a":"\u0000"}`, "{\"a\":\"\x00\"}", `{"a":-}`, `{"a":1.}`, `{"a":1e}`, `{"a":[1}`, `{,}`, `{"a":1e999}`,
		`{"a":` + strings.Repeat(`[`, 100000),
	} {
		if got, err := ParseJSON(bad); err == nil {
			t.Errorf("%.40s: got %v, want an error", bad, got)
		}
	}
}

// FuzzJSON holds the strict parser against encoding/json, and what is written
// against what is read.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,-2.5e3,"x\u00e4\n",null,true],"b":{"c":{}}}`, `{'a':1,}`, `{"a":"\ud83d\ude00"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ParseJSON(s)
		var tab Table
		if err := tab.UnmarshalJSON([]byte(s)); err != nil {
			return
		}
		if !json.Valid([]byte(s)) {
			t.Fatalf("accepted what is not JSON: %q", s)
		}
		out := tab.AppendJSON(nil, true)
		var back Table
		if err := back.UnmarshalJSON(out); err != nil {
			t.Fatalf("cannot read what was written: %q: %v", out, err)
		}
		if a, b := string(tab.AppendJSON(nil, false)), string(back.AppendJSON(nil, false)); a != b && !strings.Contains(s, ".") && !strings.ContainsAny(s, "eE") {
			t.Fatalf("%s became %s", a, b)
		}
	})
}
