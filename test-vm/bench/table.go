package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Table writes the results as a table, and below it the notes and errors of each case.
func Table(w io.Writer, results []Result, notes bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "case\trow\tweft\tmust\thaproxy\trouted\tok")
	for _, r := range results {
		for _, x := range r.Rows {
			verdict := "-"
			if x.OK != nil {
				verdict = "NOT"
				if *x.OK {
					verdict = "ok"
				}
			}
			ours := cell(x, Weft)
			if x.Ratio && x.Value != nil {
				ours = fmt.Sprintf("%s × (%s)", number(*x.Value), ours)
			}
			if r.Errors[Weft] != "" {
				verdict = "NOT (error)"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s %s\t%s\t%s\t%s\n", x.Case, x.Title, ours,
				map[string]string{"<=": "≤", ">=": "≥"}[x.Op], number(x.Bound), cell(x, HAProxy), cell(x, Routed), verdict)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		for _, s := range []string{Weft, HAProxy, Routed} {
			if e := r.Errors[s]; e != "" {
				fmt.Fprintf(w, "%s: %s: %s\n", r.Case, s, e)
			}
		}
		if !notes {
			continue
		}
		for _, n := range r.Notes {
			fmt.Fprintf(w, "%s: %s\n", r.Case, n)
		}
	}
	return nil
}

// cell shows a system's value with its parts; of many parts that are true or false only the false ones.
func cell(x Row, system string) string {
	m, ok := x.Measured[system]
	if !ok {
		return "-"
	}
	unit := ""
	if x.Unit != "" {
		unit = " " + x.Unit
	}
	switch {
	case len(m.Parts) == 1:
		return number(m.Value) + unit
	case len(m.Parts) > 4:
		var bad []string
		for _, p := range m.Parts {
			if p.Median < x.Bound {
				bad = append(bad, p.Name)
			}
		}
		if len(bad) == 0 {
			return "all " + fmt.Sprint(len(m.Parts))
		}
		return fmt.Sprintf("%d of %d: not %s", len(m.Parts)-len(bad), len(m.Parts), strings.Join(bad[:min(3, len(bad))], ", ")) + more(len(bad)-3)
	}
	var parts []string
	same := true
	for _, p := range m.Parts {
		parts = append(parts, number(p.Median))
		same = same && p.Median == m.Parts[0].Median
	}
	if same {
		return parts[0] + unit
	}
	// Directions are always in this order: no need to name them.
	if len(m.Parts) == 2 && slices.Contains([]string{"up", "bulk up"}, m.Parts[0].Name) {
		return strings.Join(parts, " / ") + unit
	}
	for i := range parts {
		parts[i] = m.Parts[i].Name + " " + parts[i]
	}
	return strings.Join(parts, ", ") + unit
}

func more(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

// number shows three digits, or all of a whole number.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e9 {
		return fmt.Sprintf("%.0f", v)
	}
	digits := 3
	for x := math.Abs(v); x >= 1 && digits > 0; x /= 10 {
		digits--
	}
	return fmt.Sprintf("%.*f", max(digits, map[bool]int{true: 3, false: 0}[math.Abs(v) < 1.5]), v)
}
