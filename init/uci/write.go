package uci

import (
	"bytes"
	"io"
	"strings"
)

// WriteTo writes the package as a commit does: with comments, without the
// names of unnamed sections.
func (p *Package) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(p.text(form{comments: true}))
	return int64(n), err
}

// Export writes the package as `uci export` does: a `package` line first and
// no comments. nameUnnamed writes the ids of unnamed sections as names.
func (p *Package) Export(w io.Writer, nameUnnamed bool) error {
	_, err := w.Write(p.text(form{header: true, names: nameUnnamed}))
	return err
}

// form is what distinguishes the written forms.
type form struct {
	header   bool // first line `package NAME`
	names    bool // names of unnamed sections
	comments bool
}

func (p *Package) text(f form) []byte {
	var b bytes.Buffer
	lines := func(indent string, ls []string) {
		for _, l := range ls {
			if l != "" {
				b.WriteString(indent)
				b.WriteString(l)
			}
			b.WriteByte('\n')
		}
	}
	endLine := func(trail string) {
		if f.comments && trail != "" {
			b.WriteByte(' ')
			b.WriteString(trail)
		}
		b.WriteByte('\n')
	}
	if f.header {
		b.WriteString("package " + bare(p.Name) + "\n")
	}
	for _, s := range p.Sections {
		if f.comments && len(s.before) > 0 {
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			lines("", s.before)
		}
		b.WriteByte('\n')
		if f.comments {
			lines("", s.lead)
		}
		b.WriteString("config " + bare(s.Type))
		if !s.Anonymous || f.names {
			b.WriteString(" " + Quote(s.Name))
		}
		endLine(s.trail)
		for _, o := range s.Options {
			word := "\toption "
			if o.IsList {
				word = "\tlist "
			}
			for i, v := range o.Values {
				n := o.note(i)
				if f.comments {
					lines("\t", n.lead)
				}
				b.WriteString(word + o.Name + " " + Quote(v))
				endLine(n.trail)
			}
		}
		if f.comments {
			lines("\t", s.tail)
		}
	}
	if f.comments && len(p.tail) > 0 {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		lines("", p.tail)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// Quote puts a value into single quotes; `'` becomes `'\”`.
func Quote(v string) string {
	return "'" + strings.ReplaceAll(v, "'", `'\''`) + "'"
}

// bare writes a word without quotes if it reads back as itself.
func bare(w string) string {
	if w == "" || strings.ContainsAny(w, "'\"\\#; \t\n\v\f\r") {
		return Quote(w)
	}
	return w
}
