package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"
)

var update = flag.Bool("update", false, "write the goldens")

func sample() *Report {
	series := make([]uint64, 100)
	for i := range series {
		series[i] = 62500 // 10 Mbit/s
		if i > 40 && i < 60 {
			series[i] = 0
		}
	}
	return &Report{
		Topology: "two-paths", Title: "a <title> & more", Backend: "netns", Started: time.Date(2026, 11, 24, 18, 0, 0, 0, time.UTC), Seconds: 12.3, BinMS: 50,
		Checks: []Check{
			{Name: "up", Type: "iperf3", OK: true, Start: 0.5, End: 4.5, Values: []Value{{"goodput", 18.7, "Mbit/s", "", true}, {"of 18.811", 0.994, "", ">= 0.99", true}}},
			{Name: "lost", Type: "ping", Start: 4.6, End: 4.9, Values: []Value{{"lost", 25, "%", "<= 0", false}}, Notes: []string{"a note"}},
			{Name: "sctp", Type: "sctp", Skipped: "the kernel has no SCTP"},
			{Name: "broken", Type: "udp", Error: "the server does not answer"},
		},
		Events: []Event{{2.1, "path1 down"}, {3.2, "path1 up"}},
		Links:  []Link{{Name: "path1", A: "gw1", B: "gw2", Rate: 10e6, Bytes: Bytes{series, series[:10]}}, {Name: "idle", A: "a", B: "b"}},
		Graph:  "<svg></svg>",
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (go test ./test-vm/report -update writes it anew):\n%s", name, diff)
	}
}

func TestForms(t *testing.T) {
	r := sample()
	for name, write := range map[string]func(*bytes.Buffer) error{
		"report.txt":  func(b *bytes.Buffer) error { return r.Text(b) },
		"report.json": func(b *bytes.Buffer) error { return r.JSON(b) },
		"report.html": func(b *bytes.Buffer) error { return r.HTML(b) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
	}
}

func TestVerdict(t *testing.T) {
	r := sample()
	if got := r.Verdict(); got != "1 of 3 checks hold, 1 not made" {
		t.Error(got)
	}
	r.Error = "no network"
	if got := r.Verdict(); got != "the run could not go on" {
		t.Error(got)
	}
}

// TestPage: a browser's parser finds nothing that would be fetched, and every name escaped.
func TestPage(t *testing.T) {
	var b bytes.Buffer
	r := sample()
	r.Links[0].Name = `<script>alert(1)</script>`
	r.Events[0].What = `<img src=x>`
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	plots := 0
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "script", "img", "link", "iframe":
			t.Errorf("the page has an element %s", n.Data)
		case "path":
			plots++
		}
		for _, a := range n.Attr {
			if a.Key == "href" || a.Key == "src" || strings.Contains(a.Val, "http") {
				t.Errorf("the page asks for %s=%s", a.Key, a.Val)
			}
		}
	}
	if plots != 2 {
		t.Errorf("%d lines are plotted, want those of the two directions of the link that carried something", plots)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := sample().JSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	want := sample()
	want.Graph = ""
	if diff := cmp.Diff(*want, back); diff != "" {
		t.Errorf("what is written is not what was there:\n%s", diff)
	}
}
