package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
)

//go:embed page.html
var pageText string

// HTML writes the report as one page that needs nothing else: the topology, the checks, and for each link what it carried
// over time, with the events.
func (r *Report) HTML(w io.Writer) error {
	page, err := template.New("page").Funcs(template.FuncMap{
		"number": number,
		"time":   func(s float64) string { return fmt.Sprintf("%.1f", s) },
		"mark": func(c Check) string {
			switch {
			case c.Skipped != "":
				return "not made"
			case c.OK:
				return "holds"
			}
			return "fails"
		},
		"class": func(c Check) string {
			switch {
			case c.Skipped != "":
				return "skip"
			case c.OK:
				return "ok"
			}
			return "bad"
		},
	}).Parse(pageText)
	if err != nil {
		return fmt.Errorf("report page: %w", err)
	}
	var b bytes.Buffer
	if err := page.Execute(&b, struct {
		*Report
		SVG    template.HTML // our own, names in it are escaped
		Charts []chart
	}{r, template.HTML(r.Graph), r.charts()}); err != nil {
		return fmt.Errorf("report page: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}

// chart is the plot of one link.
type chart struct {
	Title, Sub string
	SVG        template.HTML
}

// Sizes of a plot in pixels.
const (
	plotWidth  = 1080
	plotHeight = 170
	plotLeft   = 56
	plotRight  = 12
	plotTop    = 26
	plotBottom = 24
)

// span is the time that plots show: that of the checks and events, with some seconds around.
func (r *Report) span() (from, to float64) {
	from, to = math.Inf(1), 0
	for _, c := range r.Checks {
		if c.End > c.Start {
			from, to = min(from, c.Start), max(to, c.End)
		}
	}
	for _, e := range r.Events {
		from, to = min(from, e.At), max(to, e.At)
	}
	if to == 0 {
		from, to = 0, r.Seconds
	}
	return math.Max(math.Floor(from)-1, 0), math.Ceil(to) + 1
}

func (r *Report) charts() []chart {
	from, to := r.span()
	var out []chart
	for _, l := range r.Links {
		total := [2]uint64{}
		for d, s := range l.Bytes {
			for _, n := range s {
				total[d] += n
			}
		}
		if total[0]+total[1] == 0 {
			continue
		}
		out = append(out, chart{
			Title: l.Name,
			Sub:   fmt.Sprintf("%s → %s %.1f MB, back %.1f MB", l.A, l.B, float64(total[0])/1e6, float64(total[1])/1e6),
			SVG:   template.HTML(r.plot(l, from, to)),
		})
	}
	return out
}

// maxPoints of a line: one for every second pixel.
const maxPoints = (plotWidth - plotLeft - plotRight) / 2

// rates are Mbit/s by bins of width seconds, from the series of bytes.
func (r *Report) rates(series []uint64, from, to float64) (rates []float64, width float64) {
	bin := float64(r.BinMS) / 1e3
	group := max(int(math.Ceil((to-from)/bin/maxPoints)), 2) // 100 ms at least: single frames are no rate
	width = float64(group) * bin
	first := int(from / bin)
	for i := first; float64(i)*bin < to; i += group {
		sum := uint64(0)
		for j := i; j < min(i+group, len(series)); j++ {
			sum += series[j]
		}
		rates = append(rates, float64(sum)*8/width/1e6)
	}
	return rates, width
}

// plot draws both directions of a link over time.
func (r *Report) plot(l Link, from, to float64) string {
	top := 0.0
	var lines [2][]float64
	var width float64
	for d := range lines {
		lines[d], width = r.rates(l.Bytes[d], from, to)
		top = max(top, slices.Max(append(lines[d], 0)))
	}
	if l.Rate > 0 {
		top = max(top, l.Rate/1e6)
	}
	step := niceStep(top / 3)
	top = math.Ceil(top*1.02/step) * step
	x := func(t float64) float64 { return plotLeft + (t-from)/(to-from)*(plotWidth-plotLeft-plotRight) }
	y := func(v float64) float64 { return plotHeight - plotBottom - v/top*(plotHeight-plotTop-plotBottom) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="throughput of %s in Mbit/s over seconds">`, plotWidth, plotHeight, template.HTMLEscapeString(l.Name))
	for _, c := range r.Checks { // bands behind everything
		if c.End > c.Start && c.End > from {
			fmt.Fprintf(&b, `<rect class="band" x="%.1f" y="%d" width="%.1f" height="%d"><title>%s</title></rect>`, x(c.Start), plotTop, max(x(c.End)-x(c.Start), 1), plotHeight-plotTop-plotBottom, template.HTMLEscapeString(c.Name))
		}
	}
	for v := 0.0; v <= top+step/2; v += step {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`, plotLeft, plotWidth-plotRight, y(v), y(v), plotLeft-8, y(v)+4, number(v))
	}
	for t := math.Ceil(from/niceStep((to-from)/10)) * niceStep((to-from)/10); t <= to; t += niceStep((to - from) / 10) {
		fmt.Fprintf(&b, `<text class="tick" x="%.1f" y="%d" text-anchor="middle">%s s</text>`, x(t), plotHeight-6, number(t))
	}
	if l.Rate > 0 {
		fmt.Fprintf(&b, `<line class="limit" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, plotLeft, plotWidth-plotRight, y(l.Rate/1e6), y(l.Rate/1e6))
	}
	for d := 1; d >= 0; d-- {
		fmt.Fprintf(&b, `<path class="line dir%d" d="`, d)
		for i, v := range lines[d] {
			cmd := "L"
			if i == 0 {
				cmd = "M"
			}
			fmt.Fprintf(&b, "%s%.1f %.1f", cmd, x(min(from+(float64(i)+0.5)*width, to)), y(v))
		}
		b.WriteString(`"/>`)
	}
	last := math.Inf(-1)
	for i, e := range r.Events {
		if e.At < from || e.At > to {
			continue
		}
		fmt.Fprintf(&b, `<line class="event" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(e.At), x(e.At), plotTop-6, plotHeight-plotBottom)
		if x(e.At)-last > 16 { // numbers do not lie on each other; the list below has them all
			fmt.Fprintf(&b, `<text class="number" x="%.1f" y="%d" text-anchor="middle">%d<title>%s</title></text>`, x(e.At), plotTop-10, i+1, template.HTMLEscapeString(e.What))
			last = x(e.At)
		}
	}
	b.WriteString("</svg>")
	return b.String()
}

// niceStep is the smallest of 1, 2 and 5 times a power of ten that is not below v.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*p >= v*0.999 {
			return m * p
		}
	}
	return 10 * p
}
