package topology

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Sizes of the drawing, in pixels.
const (
	boxWidth   = 132
	boxHeight  = 58
	columnStep = 132 + 196 // room for the words on a link
	rowStep    = 132
	margin     = 28
	laneStep   = 58 // between links that join the same two nodes
)

type point struct{ x, y float64 }

// SVG draws the topology: a box a node, a line a link with what it does to frames, nodes in columns by their distance
// from the first one. The drawing stands alone; in an HTML page it takes the page's colours from the variables
// --lab-ink, --lab-faint, --lab-box and --lab-link where they are set.
func SVG(t *Topology) string {
	at, width, height := layout(t)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img" aria-label="%s">`+"\n",
		width, height, width, height, html.EscapeString("network of the topology "+t.Name))
	b.WriteString(`<style>
.lab text{font:13px system-ui,sans-serif;fill:#1c2733;fill:var(--lab-ink,#1c2733);text-anchor:middle}
.lab .name{font-weight:600}
.lab .small{font-size:11px;fill:#5b6875;fill:var(--lab-faint,#5b6875)}
.lab .box{fill:#fff;fill:var(--lab-box,#fff);stroke:#4a6fa5;stroke:var(--lab-link,#4a6fa5);stroke-width:1.5}
.lab .image{fill:#e3ecf8;fill:var(--lab-gateway,#e3ecf8)}
.lab .link{fill:none;stroke:#4a6fa5;stroke:var(--lab-link,#4a6fa5);stroke-width:2}
.lab .wifi{stroke-dasharray:2 5;stroke-linecap:round}
.lab .strip{stroke:#b5482f;stroke:var(--lab-bad,#b5482f)}
.lab .halo{fill:#fff;fill:var(--lab-page,#fff)}
</style>
<g class="lab">
`)
	fmt.Fprintf(&b, `<rect class="halo" width="%.0f" height="%.0f"/>`+"\n", width, height)
	lanes := map[[2]*Node][]*Link{}
	for _, l := range t.Links {
		k := pairOf(l)
		lanes[k] = append(lanes[k], l)
	}
	var labels strings.Builder
	for _, l := range t.Links {
		group := lanes[pairOf(l)]
		lane := float64(slices.Index(group, l)) - float64(len(group)-1)/2
		drawLink(&b, &labels, l, at, lane)
	}
	b.WriteString(labels.String())
	for _, n := range t.Nodes {
		drawNode(&b, n, at[n])
	}
	b.WriteString("</g>\n</svg>\n")
	return b.String()
}

func pairOf(l *Link) [2]*Node {
	a, z := l.Ends[0].Node, l.Ends[1].Node
	if a.Name > z.Name {
		a, z = z, a
	}
	return [2]*Node{a, z}
}

// layout places the nodes in columns by breadth-first search; in a column they are ordered by where their neighbours to
// the left stand.
func layout(t *Topology) (map[*Node]point, float64, float64) {
	column := map[*Node]int{}
	var columns [][]*Node
	place := func(n *Node, c int) {
		column[n] = c
		for len(columns) <= c {
			columns = append(columns, nil)
		}
		columns[c] = append(columns[c], n)
	}
	for _, first := range t.Nodes {
		if _, ok := column[first]; ok {
			continue
		}
		place(first, 0)
		for queue := []*Node{first}; len(queue) > 0; queue = queue[1:] {
			for _, p := range queue[0].Ports {
				if n := p.Other().Node; n != nil {
					if _, ok := column[n]; !ok {
						place(n, column[queue[0]]+1)
						queue = append(queue, n)
					}
				}
			}
		}
	}
	at := map[*Node]point{}
	rows := 0
	for _, c := range columns {
		rows = max(rows, len(c))
	}
	// Several links between two nodes need room above and below.
	lanes, count := map[[2]*Node]int{}, 1
	for _, l := range t.Links {
		lanes[pairOf(l)]++
		count = max(count, lanes[pairOf(l)])
	}
	height := max(float64(rows)*rowStep, float64(count)*laneStep+boxHeight/2) + 2*margin
	for c, nodes := range columns {
		mean := func(n *Node) float64 {
			sum, k := 0.0, 0
			for _, p := range n.Ports {
				if o, ok := at[p.Other().Node]; ok && column[p.Other().Node] < c {
					sum += o.y
					k++
				}
			}
			return sum / math.Max(float64(k), 1)
		}
		slices.SortStableFunc(nodes, func(a, b *Node) int { return cmp.Compare(mean(a), mean(b)) })
		for i, n := range nodes {
			at[n] = point{margin + boxWidth/2 + float64(c)*columnStep, height/2 + (float64(i)-float64(len(nodes)-1)/2)*rowStep}
		}
	}
	width := 2*margin + boxWidth + float64(len(columns)-1)*columnStep
	for _, c := range columns {
		if len(c) > 2 {
			width += 40 // links inside of a column bow out to the side
			break
		}
	}
	return at, width, height
}

// figures are the words on a link.
func (l *Link) figures() string {
	var words []string
	if l.Rate != 0 {
		words = append(words, short(l.Rate))
		if l.BackRate != 0 {
			words[0] += "/" + short(l.BackRate)
		}
	}
	if l.Delay != 0 {
		d := l.Delay.String()
		if l.Jitter != 0 {
			d += "±" + l.Jitter.String()
		}
		words = append(words, d)
	}
	if l.Loss != 0 {
		words = append(words, l.Loss.String()+" loss")
	}
	if l.MTU != 1500 {
		words = append(words, fmt.Sprintf("MTU %d", l.MTU))
	}
	if l.Strip {
		words = append(words, "no MPTCP")
	}
	if l.WiFi {
		words = append(words, "Wi-Fi")
	}
	return strings.Join(words, ", ")
}

func short(r Rate) string {
	s := r.String()
	for _, u := range [][2]string{{"kbit", " kbit/s"}, {"mbit", " Mbit/s"}, {"gbit", " Gbit/s"}} {
		if n, ok := strings.CutSuffix(s, u[0]); ok {
			return n + u[1]
		}
	}
	return s
}

func drawLink(b, labels *strings.Builder, l *Link, at map[*Node]point, lane float64) {
	p, q := at[l.Ends[0].Node], at[l.Ends[1].Node]
	if p.x > q.x {
		p, q = q, p
	}
	// A quadratic curve whose middle lies to the side: half as far as its control point.
	mid := point{(p.x + q.x) / 2, (p.y + q.y) / 2}
	bow := point{0, 2 * lane * laneStep}
	if p.x == q.x { // in one column: bow out, the farther the more
		bow = point{lane * laneStep, 0}
		if span := math.Abs(q.y-p.y) / rowStep; span > 1 { // past the boxes between
			bow.x += boxWidth + 72*span
		}
	}
	class := "link"
	if l.WiFi {
		class += " wifi"
	}
	if l.Strip {
		class += " strip"
	}
	fmt.Fprintf(b, `<path class="%s" d="M%.1f %.1fQ%.1f %.1f %.1f %.1f"/>`+"\n", class, p.x, p.y, mid.x+bow.x, mid.y+bow.y, q.x, q.y)
	label := point{mid.x + bow.x/2, mid.y + bow.y/2}
	if p.x == q.x && bow.x > boxWidth { // a quarter of the way, clear of what leaves the boxes between
		label = point{p.x + bow.x*0.375, p.y + (q.y-p.y)*0.25}
	}
	if p.x != q.x && p.y != q.y && lane == 0 { // links that cross have their words in different places
		label = point{p.x + (q.x-p.x)*0.62, p.y + (q.y-p.y)*0.62}
	}
	figures := l.figures()
	lines := []struct{ class, text string }{{"name small", l.Name}, {"small", figures}}
	if figures == "" {
		lines = lines[:1]
	}
	longest := 0
	for _, w := range lines {
		longest = max(longest, len(w.text))
	}
	w, h := float64(longest)*6.4+8, float64(len(lines))*14+4
	fmt.Fprintf(labels, `<rect class="halo" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3"/>`+"\n", label.x-w/2, label.y-h/2, w, h)
	for i, w := range lines {
		fmt.Fprintf(labels, `<text class="%s" x="%.1f" y="%.1f">%s</text>`+"\n", w.class, label.x, label.y-h/2+13+float64(i)*14, html.EscapeString(w.text))
	}
}

func drawNode(b *strings.Builder, n *Node, p point) {
	radius, class := 6, "box "+string(n.Kind)
	if n.Kind == Host {
		radius = 28
	}
	fmt.Fprintf(b, `<rect class="%s" x="%.1f" y="%.1f" width="%d" height="%d" rx="%d"/>`+"\n", class, p.x-boxWidth/2, p.y-boxHeight/2, boxWidth, boxHeight, radius)
	what := map[Kind]string{Host: "end host", Plain: "router"}[n.Kind]
	if n.Kind == Image {
		what = n.Role + ", " + n.Board
	}
	addr := ""
	for _, port := range n.Ports {
		if len(port.Addrs) > 0 {
			addr = port.Addrs[0].Addr().String()
			break
		}
	}
	for i, w := range []struct{ class, text string }{{"name", n.Name}, {"small", what}, {"small", addr}} {
		fmt.Fprintf(b, `<text class="%s" x="%.1f" y="%.1f">%s</text>`+"\n", w.class, p.x, p.y-10+float64(i)*15, html.EscapeString(w.text))
	}
}
