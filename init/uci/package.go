package uci

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Package is one configuration file: an ordered list of sections.
type Package struct {
	Name     string
	Sections []*Section

	created int      // sections made so far; part of the ids of unnamed ones
	tail    []string // comment lines after the last section; "" is a blank line
}

// Section is a typed group of options.
type Section struct {
	Name      string // for an unnamed section the generated id
	Type      string
	Anonymous bool // the name is not written to the file
	Options   []*Option

	before []string // comment block set off from the section by a blank line
	lead   []string // comment lines directly above it
	trail  string   // comment on the line of the header
	tail   []string // comment lines after the last option
}

// Option is a value or a list of values.
type Option struct {
	Name   string
	IsList bool
	// Values holds one value, or for a list any number.
	Values []string

	notes []note // comments of Values[i]; may be shorter
}

// note is what a person wrote at a value.
type note struct {
	lead  []string // comment lines above
	trail string   // comment on the same line
}

func (n note) empty() bool { return len(n.lead) == 0 && n.trail == "" }

// Section finds a section by name or by `@type[n]`: the n-th of that type, from
// the end if n is negative; `@[n]` counts all types. It returns nil if there is
// none.
func (p *Package) Section(name string) *Section {
	s, _ := p.Lookup(name)
	return s
}

// Lookup is [Package.Section] with the reason: ErrNotFound, or ErrInvalid for
// text that is neither a name nor an index.
func (p *Package) Lookup(name string) (*Section, error) {
	if ValidName(name) {
		if i := p.index(name); i >= 0 {
			return p.Sections[i], nil
		}
		return nil, fmt.Errorf("section %s.%s: %w", p.Name, name, ErrNotFound)
	}
	typ, n, err := parseIndex(name)
	if err != nil {
		return nil, err
	}
	all := p.Sections
	if typ != "" {
		all = p.SectionsOfType(typ)
	}
	if n < 0 {
		n += len(all)
	}
	if n < 0 || n >= len(all) {
		return nil, fmt.Errorf("section %s.%s: %w", p.Name, name, ErrNotFound)
	}
	return all[n], nil
}

func (p *Package) index(name string) int {
	return slices.IndexFunc(p.Sections, func(s *Section) bool { return s.Name == name })
}

// SectionsOfType returns the sections of type t in file order.
func (p *Package) SectionsOfType(t string) []*Section {
	var out []*Section
	for _, s := range p.Sections {
		if s.Type == t {
			out = append(out, s)
		}
	}
	return out
}

// Add appends a section. With an empty name it is unnamed and gets a generated
// id. The error is ErrInvalid for a bad name or type and ErrDuplicate if the
// name is taken.
func (p *Package) Add(typ, name string) (*Section, error) {
	if !ValidType(typ) {
		return nil, fmt.Errorf("add section to %s: bad type %q, expected printable ASCII without blanks: %w", p.Name, typ, ErrInvalid)
	}
	if name == "" {
		return p.add(typ, "", true), nil
	}
	if !ValidName(name) {
		return nil, fmt.Errorf("add section to %s: bad name %q, expected letters, digits and _: %w", p.Name, name, ErrInvalid)
	}
	if p.index(name) >= 0 {
		return nil, fmt.Errorf("add section %s.%s: %w", p.Name, name, ErrDuplicate)
	}
	return p.add(typ, name, false), nil
}

// add appends without checks. The id of an unnamed section is built from the
// count of all sections made so far and a hash of its type, as upstream does.
func (p *Package) add(typ, name string, anonymous bool) *Section {
	p.created++
	if name == "" {
		name = fmt.Sprintf("cfg%02x%04x", p.created, typeHash(typ))
	}
	s := &Section{Name: name, Type: typ, Anonymous: anonymous}
	p.Sections = append(p.Sections, s)
	return s
}

// typeHash is D. J. Bernstein's string hash (h·33 + c from 5381), of which
// upstream keeps 31 and then 16 bits. Bytes are signed there, as on x86.
func typeHash(s string) uint16 {
	h := uint32(5381)
	for i := 0; i < len(s); i++ {
		h = h*33 + uint32(int8(s[i]))
	}
	return uint16(h)
}

// remove takes the section at i out; a comment block that was set off from it
// stays in the file.
func (p *Package) remove(i int) {
	s := p.Sections[i]
	p.Sections = slices.Delete(p.Sections, i, i+1)
	if len(s.before) == 0 {
		return
	}
	if i < len(p.Sections) {
		p.Sections[i].before = joinBlocks(s.before, p.Sections[i].before)
	} else {
		p.tail = joinBlocks(s.before, p.tail)
	}
}

func joinBlocks(a, b []string) []string {
	if len(a) == 0 || len(b) == 0 {
		return append(slices.Clip(a), b...)
	}
	return append(append(slices.Clip(a), ""), b...)
}

// move puts a section at position pos of the order without it; beyond the end
// means last, below zero first.
func (p *Package) move(s *Section, pos int) {
	i := slices.Index(p.Sections, s)
	p.Sections = slices.Delete(p.Sections, i, i+1)
	p.Sections = slices.Insert(p.Sections, min(max(pos, 0), len(p.Sections)), s)
}

// Option returns the option of that name, nil if absent.
func (s *Section) Option(name string) *Option {
	for _, o := range s.Options {
		if o.Name == name {
			return o
		}
	}
	return nil
}

// Get returns the value of an option, or the values of a list joined with a
// blank, and whether it is present.
func (s *Section) Get(name string) (string, bool) {
	o := s.Option(name)
	if o == nil {
		return "", false
	}
	return strings.Join(o.Values, " "), true
}

// String is Get with a default.
func (s *Section) String(name, def string) string {
	if v, ok := s.Get(name); ok {
		return v
	}
	return def
}

// List returns the values of a list. A plain option is split at blanks, as
// LEDE's scripts and netifd do. It is nil if the option is absent.
func (s *Section) List(name string) []string {
	o := s.Option(name)
	switch {
	case o == nil:
		return nil
	case o.IsList:
		return slices.Clone(o.Values)
	default:
		return strings.Fields(strings.Join(o.Values, " "))
	}
}

// Bool reads 1, on, true, yes, enabled and 0, off, false, no, disabled; any
// other value, or none, gives def.
func (s *Section) Bool(name string, def bool) bool {
	switch s.String(name, "") {
	case "1", "on", "true", "yes", "enabled":
		return true
	case "0", "off", "false", "no", "disabled":
		return false
	}
	return def
}

// Int reads a decimal number; anything else gives def.
func (s *Section) Int(name string, def int) int {
	if n, err := strconv.Atoi(s.String(name, "")); err == nil {
		return n
	}
	return def
}

// Set makes name a plain option. It keeps its place and comments if it exists.
// An empty value removes it, as there are no empty options.
func (s *Section) Set(name, value string) error {
	if err := checkOption(name, value); err != nil {
		return fmt.Errorf("set %s.%s: %w", s.Name, name, err)
	}
	if value == "" {
		s.Delete(name)
		return nil
	}
	s.set(name, value)
	return nil
}

// SetList makes name a list; without values it removes it.
func (s *Section) SetList(name string, values ...string) error {
	for _, v := range values {
		if err := checkOption(name, v); err != nil {
			return fmt.Errorf("set %s.%s: %w", s.Name, name, err)
		}
	}
	if len(values) == 0 {
		s.Delete(name)
		return nil
	}
	o := s.Option(name)
	if o == nil {
		o = &Option{Name: name}
		s.Options = append(s.Options, o)
	}
	o.IsList, o.Values = true, slices.Clone(values)
	o.notes = o.notes[:min(len(o.notes), len(values))]
	return nil
}

// Delete removes an option if it is there.
func (s *Section) Delete(name string) {
	s.Options = slices.DeleteFunc(s.Options, func(o *Option) bool { return o.Name == name })
}

func checkOption(name, value string) error {
	if !ValidName(name) {
		return fmt.Errorf("bad option name, expected letters, digits and _: %w", ErrInvalid)
	}
	if !ValidValue(value) {
		return fmt.Errorf("control character in the value: %w", ErrInvalid)
	}
	return nil
}

func (s *Section) set(name, value string) *Option {
	o := s.Option(name)
	if o == nil {
		o = &Option{Name: name}
		s.Options = append(s.Options, o)
	}
	o.assign(value)
	return o
}

// assign makes o a plain option; all comments of a former list stay above it.
func (o *Option) assign(value string) {
	if len(o.notes) > 1 {
		var all note
		for _, n := range o.notes {
			all.lead = append(all.lead, n.lead...)
			if n.trail != "" {
				all.lead = append(all.lead, n.trail)
			}
		}
		o.notes = []note{all}
	}
	o.IsList, o.Values = false, []string{value}
}

func (o *Option) dropItem(i int) {
	o.Values = slices.Delete(o.Values, i, i+1)
	if i < len(o.notes) {
		o.notes = slices.Delete(o.notes, i, i+1)
	}
}

// note gives the comments of value i.
func (o *Option) note(i int) note {
	if i < len(o.notes) {
		return o.notes[i]
	}
	return note{}
}

// annotate adds comments to value i.
func (o *Option) annotate(i int, n note) {
	if n.empty() {
		return
	}
	for len(o.notes) <= i {
		o.notes = append(o.notes, note{})
	}
	o.notes[i].lead = append(o.notes[i].lead, n.lead...)
	if n.trail != "" {
		if old := o.notes[i].trail; old != "" {
			o.notes[i].lead = append(o.notes[i].lead, old)
		}
		o.notes[i].trail = n.trail
	}
}
