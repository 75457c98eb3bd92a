package pins

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
)

// Bounds on control data (deb822, the format of Packages, Release and
// copyright files), in bytes.
const (
	maxControlLine = 1 << 20
	maxParagraph   = 8 << 20
)

// paragraph is one block of a control file. Keys are lower-case; the lines of
// a value that spans several are joined by newlines, without their margin.
type paragraph map[string]string

// paragraphs reads control data (deb-control(5) of dpkg, Debian Policy 5.1).
// If keep is set only those fields (lower-case) are kept. It ends after the
// first error.
func paragraphs(r io.Reader, keep func(field string) bool) iter.Seq2[paragraph, error] {
	return func(yield func(paragraph, error) bool) {
		sc := bufio.NewScanner(r)
		sc.Buffer(make([]byte, 64<<10), maxControlLine)
		p := paragraph{}
		field, size, line := "", 0, 0
		var value strings.Builder // of the field, of which only the first line came yet if single
		flush := func() {
			if field != "" {
				p[field] = value.String()
			}
			field = ""
			value.Reset()
		}
		skip := false // the field is not kept
		for sc.Scan() {
			line++
			text := strings.TrimRight(sc.Text(), " \t\r")
			if size += len(text); size > maxParagraph {
				yield(nil, fmt.Errorf("line %d: a paragraph of more than %d bytes", line, maxParagraph))
				return
			}
			switch {
			case text == "":
				flush()
				if len(p) > 0 {
					if !yield(p, nil) {
						return
					}
					p = paragraph{}
				}
				size, skip = 0, false
			case text[0] == '#':
			case text[0] == ' ' || text[0] == '\t':
				if skip {
					continue
				}
				if field == "" {
					yield(nil, fmt.Errorf("line %d: a continuation without a field before it", line))
					return
				}
				value.WriteByte('\n')
				value.WriteString(strings.TrimSpace(text))
			default:
				flush()
				name, v, ok := strings.Cut(text, ":")
				if !ok || name == "" || strings.ContainsAny(name, " \t") {
					yield(nil, fmt.Errorf("line %d: expected \"Field: value\"", line))
					return
				}
				name = strings.ToLower(name)
				if skip = keep != nil && !keep(name); skip {
					continue
				}
				if _, dup := p[name]; dup {
					yield(nil, fmt.Errorf("line %d: field %q twice in one paragraph", line, name))
					return
				}
				field = name
				value.WriteString(strings.TrimSpace(v))
			}
		}
		if err := sc.Err(); err != nil {
			yield(nil, fmt.Errorf("line %d: %w", line+1, err))
			return
		}
		flush()
		if len(p) > 0 {
			yield(p, nil)
		}
	}
}

// licences gives the short names in a machine-readable copyright file (DEP 5),
// sorted and joined by ", "; empty if the file is not machine-readable.
func licences(r io.Reader) string {
	var names []string
	first := true
	for p, err := range paragraphs(r, func(f string) bool { return f == "format" || f == "files" || f == "license" }) {
		if err != nil {
			return ""
		}
		if first {
			if !strings.Contains(p["format"], "copyright-format") {
				return ""
			}
			first = false
		}
		short, _, _ := strings.Cut(p["license"], "\n")
		short = strings.Join(strings.Fields(short), " ")
		if short == "" || len(short) > 200 || (p["files"] == "" && p["format"] == "") {
			continue // a stand-alone paragraph is the text of a name used elsewhere
		}
		if !slices.Contains(names, short) {
			names = append(names, short)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
