package topology

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Fault is one thing that is wrong with a file.
type Fault struct {
	File string
	Line int // 0 = the file as a whole
	Text string
}

func (f *Fault) Error() string {
	if f.Line == 0 {
		return fmt.Sprintf("%s: %s", f.File, f.Text)
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text)
}

// Load reads a file.
func Load(path string) (*Topology, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	return Parse(path, text)
}

// Parse reads the text of a file, whose name is used in errors and for the name of the topology. The error joins one
// [Fault] for everything that is wrong, in the order of the lines; a text that is no TOML has but one.
func Parse(file string, text []byte) (*Topology, error) {
	p := &parser{file: file, lines: map[string]int{}}
	var tree map[string]any
	if _, err := toml.Decode(string(text), &tree); err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, &Fault{file, pe.Position.Line, pe.Message}
		}
		return nil, &Fault{file, 0, err.Error()}
	}
	p.findLines(string(text))
	t := &Topology{File: file, Name: strings.TrimSuffix(filepath.Base(file), ".toml")}
	p.bind("", tree, reflect.ValueOf(t).Elem())
	for i, n := range t.Nodes {
		n.Line = p.line(fmt.Sprintf("node[%d]", i))
	}
	for i, l := range t.Links {
		l.Line = p.line(fmt.Sprintf("link[%d]", i))
	}
	for i, e := range t.Events {
		e.Line = p.line(fmt.Sprintf("event[%d]", i))
	}
	for i, c := range t.Checks {
		c.Line = p.line(fmt.Sprintf("check[%d]", i))
	}
	p.check(t)
	if len(p.faults) == 0 {
		return t, nil
	}
	slices.SortStableFunc(p.faults, func(a, b *Fault) int { return cmp.Compare(a.Line, b.Line) })
	errs := make([]error, len(p.faults))
	for i, f := range p.faults {
		errs[i] = f
	}
	return nil, errors.Join(errs...)
}

type parser struct {
	file   string
	lines  map[string]int // "node[1].name" -> line
	faults []*Fault
	bad    map[string]bool // keys with a fault already
}

func (p *parser) fault(key, format string, args ...any) {
	if p.bad == nil {
		p.bad = map[string]bool{}
	}
	p.bad[key] = true
	p.faults = append(p.faults, &Fault{p.file, p.line(key), fmt.Sprintf(format, args...)})
}

// line is where a key stands, or the nearest table around it.
func (p *parser) line(key string) int {
	for key != "" {
		if l, ok := p.lines[key]; ok {
			return l
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 0
}

var (
	tableLine = regexp.MustCompile(`^\s*(\[\[?)\s*([A-Za-z0-9_.\-" ]+?)\s*\]\]?\s*(#.*)?$`)
	keyLine   = regexp.MustCompile(`^\s*("[^"]*"|[A-Za-z0-9_\-]+)((?:\s*\.\s*(?:"[^"]*"|[A-Za-z0-9_\-]+))*)\s*=`)
)

// findLines notes where each table and key stands. The text is TOML already; lines inside of multi-line strings that look
// like keys do no harm, since nobody asks for them unless they are the first of their name.
func (p *parser) findLines(text string) {
	counts := map[string]int{}
	prefix := ""
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if m := tableLine.FindStringSubmatch(line); m != nil {
			name := strings.NewReplacer(`"`, "", " ", "").Replace(m[2])
			parts := strings.Split(name, ".")
			for i := 1; i < len(parts); i++ { // [node.uci] belongs to the last [[node]]
				head := strings.Join(parts[:i], ".")
				if n, ok := counts[head]; ok {
					parts[i-1] += fmt.Sprintf("[%d]", n-1)
				}
			}
			prefix = strings.Join(parts, ".")
			if m[1] == "[[" {
				prefix += fmt.Sprintf("[%d]", counts[name])
				counts[name]++
			}
			p.note(prefix, number)
			prefix += "."
			continue
		}
		if m := keyLine.FindStringSubmatch(line); m != nil {
			name := strings.NewReplacer(`"`, "", " ", "").Replace(m[1] + m[2])
			p.note(prefix+name, number)
			for i := strings.LastIndexByte(name, '.'); i > 0; i = strings.LastIndexByte(name[:i], '.') {
				p.note(prefix+name[:i], number)
			}
		}
	}
}

func (p *parser) note(key string, line int) {
	if _, ok := p.lines[key]; !ok {
		p.lines[key] = line
	}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// bind fills the struct v from a table; every value of the wrong form is a fault of its own.
func (p *parser) bind(prefix string, table map[string]any, v reflect.Value) {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("toml"); name != "-" && name != "" {
			fields[name] = v.Field(i)
		}
	}
	for key, value := range table {
		f, ok := fields[key]
		if !ok {
			known := []string{}
			for name := range fields {
				known = append(known, name)
			}
			hint := ""
			if near := nearest(key, known); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			p.fault(prefix+key, "unknown key %q%s", key, hint)
			continue
		}
		p.set(prefix+key, value, f)
	}
}

func (p *parser) set(key string, value any, f reflect.Value) {
	wrong := func(want string) { p.fault(key, "%s: want %s", key, want) }
	if f.Type() == durationType {
		s, ok := value.(string)
		d, err := time.ParseDuration(s)
		if !ok || err != nil || d < 0 {
			wrong(`a time, as "50ms" or "2s"`)
			return
		}
		f.SetInt(int64(d))
		return
	}
	if reflect.PointerTo(f.Type()).Implements(textType) {
		s, ok := value.(string)
		if !ok {
			wrong("a string")
			return
		}
		if err := f.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			if f.Type() == reflect.TypeFor[netip.Prefix]() {
				err = fmt.Errorf(`%q: want an address with its length, as "10.1.0.1/24"`, s)
			}
			if f.Type() == reflect.TypeFor[netip.Addr]() {
				err = fmt.Errorf(`%q: want an address, as "10.1.0.1"`, s)
			}
			p.fault(key, "%s: %v", key, err)
		}
		return
	}
	switch f.Kind() {
	case reflect.String:
		if s, ok := value.(string); ok {
			f.SetString(s)
		} else {
			wrong("a string")
		}
	case reflect.Int:
		if n, ok := value.(int64); ok && n >= 0 && n < 1<<31 {
			f.SetInt(n)
		} else {
			wrong("a whole number, 0 or more")
		}
	case reflect.Float64:
		switch n := value.(type) {
		case float64:
			f.SetFloat(n)
		case int64:
			f.SetFloat(float64(n))
		default:
			wrong("a number")
		}
	case reflect.Bool:
		if b, ok := value.(bool); ok {
			f.SetBool(b)
		} else {
			wrong("true or false")
		}
	case reflect.Pointer: // an optional value, or a table
		f.Set(reflect.New(f.Type().Elem()))
		if f.Type().Elem().Kind() != reflect.Struct {
			p.set(key, value, f.Elem())
			return
		}
		if table, ok := value.(map[string]any); ok {
			p.bind(key+".", table, f.Elem())
		} else {
			wrong("a table")
		}
	case reflect.Map:
		table, ok := value.(map[string]any)
		if !ok {
			wrong("a table")
			return
		}
		f.Set(reflect.ValueOf(table))
	case reflect.Slice:
		var items []any
		switch l := value.(type) {
		case []any:
			items = l
		case []map[string]any:
			for _, t := range l {
				items = append(items, t)
			}
		default:
			wrong("a list")
			return
		}
		f.Set(reflect.MakeSlice(f.Type(), len(items), len(items)))
		for i, item := range items {
			p.set(fmt.Sprintf("%s[%d]", key, i), item, f.Index(i))
		}
	default:
		panic(fmt.Sprintf("BUG: field %s of kind %s", key, f.Kind()))
	}
}

// nearest is the known word within two changes of s, if there is one.
func nearest(s string, known []string) string {
	best, found := 3, ""
	slices.Sort(known)
	for _, k := range known {
		if d := distance(s, k); d < best {
			best, found = d, k
		}
	}
	return found
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
