package uci

import (
	"fmt"
	"slices"
	"strconv"
)

// Op is a kind of change.
type Op int

const (
	// Set gives Section.Option the Value, an empty one removes it. Without an
	// Option it makes the section or changes its type to Value.
	Set Op = iota
	// AddSection makes an unnamed section of type Value. With an empty
	// Section its id is generated.
	AddSection
	// Delete removes the section or option; with a Value the item of that
	// 0-based index from a list.
	Delete
	// Rename gives the section or option the name Value.
	Rename
	// Reorder moves the section to the 0-based position Value.
	Reorder
	// ListAdd appends Value to a list; a plain option becomes a list.
	ListAdd
	// ListDel removes all items equal to Value from a list.
	ListDel
)

// Change is one step of editing a package.
type Change struct {
	Op Op
	// Section is a name or `@type[n]`.
	Section, Option, Value string
}

// Apply makes one change to the package in memory. The error is ErrInvalid or
// ErrNotFound, and the package is then as before.
func (p *Package) Apply(c Change) error {
	_, _, err := p.apply(c)
	return err
}

// apply makes a change and returns it as it has to be staged, with names in
// place of indices; changed is false if there was nothing to do.
func (p *Package) apply(c Change) (done Change, changed bool, err error) {
	fail := func(why string, kind error) (Change, bool, error) {
		return Change{}, false, fmt.Errorf("%s %s: %s: %w", opNames[c.Op], p.path(c), why, kind)
	}
	if c.Op < Set || c.Op > ListDel {
		return Change{}, false, fmt.Errorf("change of package %s: unknown operation %d: %w", p.Name, int(c.Op), ErrInvalid)
	}
	if !ValidValue(c.Value) {
		return fail("control character in the value", ErrInvalid)
	}
	if c.Option != "" && !ValidName(c.Option) {
		return fail("bad option name, expected letters, digits and _", ErrInvalid)
	}
	if c.Op == AddSection && c.Section == "" {
		if !ValidType(c.Value) || c.Option != "" {
			return fail("bad section type, expected printable ASCII without blanks", ErrInvalid)
		}
		c.Section = p.add(c.Value, "", true).Name
		return c, true, nil
	}
	var s *Section
	if c.Section != "" {
		if s, err = p.Lookup(c.Section); err == nil {
			c.Section = s.Name
		} else if !ValidName(c.Section) {
			if c.Op == Set && c.Value != "" {
				return fail("no such section", ErrInvalid)
			}
			if _, _, err := parseIndex(c.Section); err != nil {
				return Change{}, false, err
			}
		}
	}
	var o *Option
	if s != nil && c.Option != "" {
		o = s.Option(c.Option)
	}

	switch c.Op {
	case Set, AddSection:
		if c.Option == "" {
			return p.setSection(c, s)
		}
		if s == nil {
			return fail("no such section", ErrInvalid)
		}
		if c.Value == "" {
			if o == nil {
				return c, false, nil
			}
			s.Delete(c.Option)
			c.Op = Delete
			return c, true, nil
		}
		if o != nil && !o.IsList && slices.Equal(o.Values, []string{c.Value}) {
			return c, false, nil
		}
		s.set(c.Option, c.Value)
		c.Op = Set

	case Delete:
		switch {
		case c.Section == "":
			return fail("no section given", ErrInvalid)
		case s == nil || c.Option != "" && o == nil:
			return fail("no such entry", ErrNotFound)
		case c.Option == "":
			p.remove(slices.Index(p.Sections, s))
			c.Value = ""
		case o.IsList && c.Value != "":
			n, ok := leadingInt(c.Value)
			if !ok {
				return fail("bad list index, expected a number", ErrInvalid)
			}
			if n < 0 || n >= len(o.Values) {
				return c, false, nil
			}
			o.dropItem(n)
		default:
			s.Delete(c.Option)
			c.Value = ""
		}

	case Rename:
		switch {
		case c.Section == "" || c.Value == "":
			return fail("expected a section and its new name", ErrInvalid)
		case s == nil || c.Option != "" && o == nil:
			return fail("no such entry", ErrNotFound)
		case !ValidName(c.Value):
			return fail(fmt.Sprintf("bad new name %q, expected letters, digits and _", c.Value), ErrInvalid)
		case c.Option != "":
			if twin := s.Option(c.Value); twin != nil && twin != o {
				return fail(fmt.Sprintf("the section has an option %s already", c.Value), ErrInvalid)
			}
			o.Name = c.Value
		default:
			if i := p.index(c.Value); i >= 0 && p.Sections[i] != s {
				return fail(fmt.Sprintf("there is a section %s already", c.Value), ErrInvalid)
			}
			s.Name, s.Anonymous = c.Value, false
		}

	case Reorder:
		if s == nil || c.Value == "" {
			return fail("expected an existing section and a position", ErrNotFound)
		}
		if c.Option != "" {
			return fail("options have no position", ErrInvalid)
		}
		n, _ := leadingInt(c.Value)
		p.move(s, n)
		c.Value = strconv.Itoa(n)

	case ListAdd:
		if s == nil || c.Option == "" {
			return fail("expected an existing section and an option", ErrInvalid)
		}
		if o == nil {
			o = &Option{Name: c.Option}
			s.Options = append(s.Options, o)
		}
		o.IsList = true
		o.Values = append(o.Values, c.Value)

	case ListDel:
		if s == nil || c.Option == "" {
			return fail("expected an existing section and an option", ErrInvalid)
		}
		if o == nil || !o.IsList {
			return c, false, nil
		}
		for i := len(o.Values) - 1; i >= 0; i-- {
			if o.Values[i] == c.Value {
				o.dropItem(i)
			}
		}
	}
	return c, true, nil
}

// setSection makes, retypes or removes a section.
func (p *Package) setSection(c Change, s *Section) (Change, bool, error) {
	switch {
	case c.Section == "":
		return c, false, fmt.Errorf("set %s: no section given: %w", p.Name, ErrInvalid)
	case c.Value == "":
		if s == nil {
			return c, false, nil
		}
		p.remove(slices.Index(p.Sections, s))
		c.Op = Delete
	case !ValidType(c.Value):
		return c, false, fmt.Errorf("set %s: bad section type %q, expected printable ASCII without blanks: %w", p.path(c), c.Value, ErrInvalid)
	case s == nil:
		p.add(c.Value, c.Section, c.Op == AddSection)
	default:
		s.Type = c.Value
		s.Anonymous = s.Anonymous || c.Op == AddSection
	}
	return c, true, nil
}

var opNames = [...]string{"set", "add", "delete", "rename", "reorder", "add_list", "del_list"}

// path is how a message names what a change is about.
func (p *Package) path(c Change) string {
	s := p.Name
	if c.Section != "" {
		s += "." + c.Section
	}
	if c.Option != "" {
		s += "." + c.Option
	}
	return s
}
