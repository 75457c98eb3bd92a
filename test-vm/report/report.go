// Package report is what a run of the lab found out, and its forms: text for a terminal, JSON for machines, and one HTML
// page that needs nothing else, with the throughput of every link over time and the events in it.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Report is the result of one run.
type Report struct {
	Topology string    `json:"topology"`
	Title    string    `json:"title"`
	Backend  string    `json:"backend"`
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	OK       bool      `json:"ok"`
	Error    string    `json:"error,omitempty"` // why the run could not go on
	Checks   []Check   `json:"checks"`
	Events   []Event   `json:"events"`
	BinMS    int       `json:"bin_ms"` // of the series
	Links    []Link    `json:"links"`
	Graph    string    `json:"-"` // the topology as SVG
}

// Check is the result of one check.
type Check struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	OK      bool     `json:"ok"`
	Skipped string   `json:"skipped,omitempty"` // why it was not made
	Error   string   `json:"error,omitempty"`   // why it could not be made
	Start   float64  `json:"start"`             // s since the run began, of the traffic
	End     float64  `json:"end"`
	Values  []Value  `json:"values"`
	Notes   []string `json:"notes,omitempty"`
}

// Value is something measured, with its bound if it has one.
type Value struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	Bound string  `json:"bound,omitempty"` // ">= 0.97"
	OK    bool    `json:"ok"`
}

// Event is something that was made to happen.
type Event struct {
	At   float64 `json:"at"` // s since the run began
	What string  `json:"what"`
}

// Link is what a link carried, in bytes by bin, for each direction.
type Link struct {
	Name  string   `json:"name"`
	A     string   `json:"a"`
	B     string   `json:"b"`
	Bytes Bytes    `json:"bytes"`
	Rate  float64  `json:"rate,omitempty"` // bit/s, 0 = unlimited
	Notes []string `json:"notes,omitempty"`
}

// Bytes are the series of the two directions, from a to b and back.
type Bytes [2][]uint64

// Text writes the report for people.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s): %s\n", r.Topology, r.Backend, r.Title)
	for i := range r.Checks {
		r.Checks[i].text(&b)
	}
	for _, e := range r.Events {
		fmt.Fprintf(&b, "  %6.2f s  %s\n", e.At, e.What)
	}
	if r.Error != "" {
		fmt.Fprintf(&b, "error: %s\n", r.Error)
	}
	fmt.Fprintf(&b, "%s: %s after %.0f s\n", r.Topology, r.Verdict(), r.Seconds)
	_, err := io.WriteString(w, b.String())
	return err
}

// Verdict is the run in a few words.
func (r *Report) Verdict() string {
	failed, skipped := 0, 0
	for _, c := range r.Checks {
		switch {
		case c.Skipped != "":
			skipped++
		case !c.OK:
			failed++
		}
	}
	s := fmt.Sprintf("%d of %d checks hold", len(r.Checks)-failed-skipped, len(r.Checks)-skipped)
	if skipped > 0 {
		s += fmt.Sprintf(", %d not made", skipped)
	}
	if r.Error != "" {
		s = "the run could not go on"
	}
	return s
}

func (c *Check) text(b *strings.Builder) {
	mark := "ok  "
	switch {
	case c.Skipped != "":
		mark = "skip"
	case !c.OK:
		mark = "FAIL"
	}
	fmt.Fprintf(b, "%s  %-22s", mark, c.Name)
	for i, v := range c.Values {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(b, " %s", v)
	}
	if c.Skipped != "" {
		fmt.Fprintf(b, " %s", c.Skipped)
	}
	if c.Error != "" {
		fmt.Fprintf(b, " %s", c.Error)
	}
	b.WriteString("\n")
	for _, n := range c.Notes {
		fmt.Fprintf(b, "        %s\n", n)
	}
}

func (v Value) String() string {
	s := fmt.Sprintf("%s %s", v.Name, number(v.Value))
	if v.Unit != "" {
		s += " " + v.Unit
	}
	if v.Bound != "" {
		s += " (" + v.Bound + ")"
		if !v.OK {
			s += " !"
		}
	}
	return s
}

// number has three digits behind the point below 10, less above.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%d", int64(v))
	case v < 10 && v > -10:
		return fmt.Sprintf("%.3f", v)
	case v < 1000:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// JSON writes the report for machines.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("report as JSON: %w", err)
	}
	return nil
}
