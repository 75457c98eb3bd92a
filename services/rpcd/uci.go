package rpcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"weft/init/bus"
	"weft/init/uci"
)

// tree is the configuration as a session sees it: each has a staging folder of
// its own; a call without a session shares that of the uci command.
func (s *server) tree(ses *session) *uci.Tree {
	t := &uci.Tree{ConfDir: s.configDir}
	if ses != nil {
		t.SaveDir = s.stagingDir(ses.id)
	}
	return t
}

// config returns the package that a call is about, if the caller may.
func (s *server) config(args bus.Table, perm string) (*uci.Tree, string, error) {
	name, ok := str(args, "config")
	// A path would lead out of the folder, past the grants.
	if !ok || !uci.ValidPackage(name) {
		return nil, "", bus.StatusInvalidArgument
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.caller(args)
	if err != nil {
		return nil, "", err
	}
	if !may(ses, "uci", name, perm) {
		return nil, "", bus.StatusPermissionDenied
	}
	return s.tree(ses), name, nil
}

// text is the form in which a value is stored; ok is false for one that is not
// stored (nothing, an empty string, a table).
func text(v any) (s string, ok bool) {
	switch v := v.(type) {
	case string:
		return v, v != ""
	case bool:
		if v {
			return "1", true
		}
		return "0", true
	case int16:
		return strconv.Itoa(int(v)), true
	case int32:
		return strconv.Itoa(int(v)), true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}

// fits says whether a section has the type and the values asked for: a list has
// to hold the value, an option to have it among its words.
func fits(sec *uci.Section, args bus.Table) bool {
	if t, ok := str(args, "type"); ok && t != sec.Type {
		return false
	}
	values, _ := args.Get("match").(bus.Table)
	found, asked := false, false
	for _, a := range values {
		want, ok := text(a.Value)
		if !ok {
			continue
		}
		asked = true
		o := sec.Option(a.Name)
		if o == nil {
			continue
		}
		words := o.Values
		if !o.IsList {
			words = strings.FieldsFunc(o.Values[0], func(r rune) bool { return r == ' ' || r == '\t' })
		}
		if !slices.Contains(words, want) {
			return false
		}
		found = true
	}
	return found || !asked
}

func optionValue(o *uci.Option) any {
	if o.IsList {
		return o.Values
	}
	return o.Values[0]
}

// sectionTable is the form of a section in replies; index is left out if
// negative.
func sectionTable(sec *uci.Section, index int) bus.Table {
	t := bus.Table{
		{Name: ".anonymous", Value: sec.Anonymous}, {Name: ".type", Value: sec.Type}, {Name: ".name", Value: sec.Name},
	}
	if index >= 0 {
		t = append(t, bus.Attr{Name: ".index", Value: index})
	}
	for _, o := range sec.Options {
		t = append(t, bus.Attr{Name: o.Name, Value: optionValue(o)})
	}
	return t
}

func (s *server) uciConfigs(_ context.Context, _ bus.Table, reply func(any) error) error {
	names, err := s.tree(nil).List()
	if err != nil {
		return statusOf(err)
	}
	return reply(bus.Table{{Name: "configs", Value: names}})
}

func (s *server) uciGet(_ context.Context, args bus.Table, reply func(any) error) error {
	return s.get(args, "", reply)
}

// uciState is get with the volatile state on top, as `uci -P /var/state`.
func (s *server) uciState(_ context.Context, args bus.Table, reply func(any) error) error {
	return s.get(args, s.varState, reply)
}

func (s *server) get(args bus.Table, saveDir string, reply func(any) error) error {
	tree, name, err := s.config(args, "read")
	if err != nil {
		return err
	}
	if saveDir != "" {
		tree.SaveDir = saveDir
	}
	p, err := tree.Load(name)
	if err != nil {
		return statusOf(err)
	}
	section, ok := str(args, "section")
	if !ok {
		t := bus.Table{}
		for i, sec := range p.Sections {
			if fits(sec, args) {
				t = append(t, bus.Attr{Name: sec.Name, Value: sectionTable(sec, i)})
			}
		}
		return reply(bus.Table{{Name: "values", Value: t}})
	}
	sec, err := p.Lookup(section)
	if errors.Is(err, uci.ErrNotFound) && !strings.HasPrefix(section, "@") {
		return nil // as upstream: success without data
	}
	if err != nil {
		return statusOf(err)
	}
	option, ok := str(args, "option")
	if !ok {
		return reply(bus.Table{{Name: "values", Value: sectionTable(sec, -1)}})
	}
	o := sec.Option(option)
	if o == nil {
		return nil
	}
	return reply(bus.Table{{Name: "value", Value: optionValue(o)}})
}

// set returns the changes that give an option of a section the value v, as far
// as it has not got it.
func set(sec *uci.Section, name string, option string, v any) []uci.Change {
	var o *uci.Option
	if sec != nil {
		o = sec.Option(option)
	}
	list, isList := v.(bus.Array)
	var ops []uci.Change
	if o != nil && (isList || o.IsList) {
		ops = append(ops, uci.Change{Op: uci.Delete, Section: name, Option: option})
	}
	if isList {
		for _, e := range list {
			if t, ok := text(e); ok {
				ops = append(ops, uci.Change{Op: uci.ListAdd, Section: name, Option: option, Value: t})
			}
		}
	} else if t, ok := text(v); ok {
		ops = append(ops, uci.Change{Op: uci.Set, Section: name, Option: option, Value: t})
	}
	return ops
}

func (s *server) uciAdd(_ context.Context, args bus.Table, reply func(any) error) error {
	typ, ok := str(args, "type")
	if !ok {
		return bus.StatusInvalidArgument
	}
	tree, name, err := s.config(args, "write")
	if err != nil {
		return err
	}
	s.uciMu.Lock()
	defer s.uciMu.Unlock()
	p, err := tree.Load(name)
	if err != nil {
		return statusOf(err)
	}
	op := uci.Change{Op: uci.AddSection, Value: typ}
	var sec *uci.Section
	if section, ok := str(args, "name"); ok {
		if !uci.ValidName(section) {
			return fmt.Errorf("add section %q to %s: expected letters, digits and _: %w", section, name, bus.StatusInvalidArgument)
		}
		op = uci.Change{Op: uci.Set, Section: section, Value: typ}
		sec = p.Section(section)
	} else if sec, err = p.Add(typ, ""); err != nil {
		return statusOf(err)
	} else {
		op.Section = sec.Name // the id it will have
	}
	ops := []uci.Change{op}
	values, _ := args.Get("values").(bus.Table)
	for _, a := range values {
		ops = append(ops, set(sec, op.Section, a.Name, a.Value)...)
	}
	if err := tree.Stage(name, ops...); err != nil {
		return statusOf(err)
	}
	return reply(bus.Table{{Name: "section", Value: op.Section}})
}

// targets returns the sections that a call speaks of: the one named, or those
// that fit type and match.
func targets(p *uci.Package, args bus.Table) ([]*uci.Section, error) {
	if section, ok := str(args, "section"); ok {
		sec, err := p.Lookup(section)
		if err != nil {
			return nil, statusOf(err)
		}
		return []*uci.Section{sec}, nil
	}
	var list []*uci.Section
	for _, sec := range p.Sections {
		if fits(sec, args) {
			list = append(list, sec)
		}
	}
	return list, nil
}

// namesSections says whether a call says which sections it is about.
func namesSections(args bus.Table) bool {
	_, section := str(args, "section")
	_, typ := str(args, "type")
	_, match := args.Get("match").(bus.Table)
	return section || typ || match
}

// edit stages what change makes of a package.
func (s *server) edit(args bus.Table, change func(p *uci.Package) ([]uci.Change, error)) error {
	tree, name, err := s.config(args, "write")
	if err != nil {
		return err
	}
	s.uciMu.Lock()
	defer s.uciMu.Unlock()
	p, err := tree.Load(name)
	if err != nil {
		return statusOf(err)
	}
	ops, err := change(p)
	if err != nil || len(ops) == 0 {
		return err
	}
	return statusOf(tree.Stage(name, ops...))
}

func (s *server) uciSet(_ context.Context, args bus.Table, _ func(any) error) error {
	values, ok := args.Get("values").(bus.Table)
	if !ok || !namesSections(args) {
		return bus.StatusInvalidArgument
	}
	return s.edit(args, func(p *uci.Package) (ops []uci.Change, err error) {
		list, err := targets(p, args)
		for _, sec := range list {
			for _, a := range values {
				ops = append(ops, set(sec, sec.Name, a.Name, a.Value)...)
			}
		}
		return ops, err
	})
}

func (s *server) uciDelete(_ context.Context, args bus.Table, _ func(any) error) error {
	if !namesSections(args) {
		return bus.StatusInvalidArgument
	}
	var options []string
	if list, ok := args.Get("options").(bus.Array); ok {
		options = []string{}
		for _, v := range list {
			if o, ok := v.(string); ok {
				options = append(options, o)
			}
		}
	} else if o, ok := str(args, "option"); ok {
		options = []string{o}
	}
	return s.edit(args, func(p *uci.Package) (ops []uci.Change, err error) {
		list, err := targets(p, args)
		for _, sec := range list {
			if options == nil {
				ops = append(ops, uci.Change{Op: uci.Delete, Section: sec.Name})
			}
			for _, o := range options {
				if sec.Option(o) != nil {
					ops = append(ops, uci.Change{Op: uci.Delete, Section: sec.Name, Option: o})
				}
			}
		}
		return ops, err
	})
}

func (s *server) uciRename(_ context.Context, args bus.Table, _ func(any) error) error {
	section, ok1 := str(args, "section")
	name, ok2 := str(args, "name")
	if !ok1 || !ok2 {
		return bus.StatusInvalidArgument
	}
	option, _ := str(args, "option")
	return s.edit(args, func(*uci.Package) ([]uci.Change, error) {
		return []uci.Change{{Op: uci.Rename, Section: section, Option: option, Value: name}}, nil
	})
}

// uciOrder puts the sections named first, in the order of their names; unknown
// ones are passed over.
func (s *server) uciOrder(_ context.Context, args bus.Table, _ func(any) error) error {
	list, ok := args.Get("sections").(bus.Array)
	if !ok {
		return bus.StatusInvalidArgument
	}
	return s.edit(args, func(p *uci.Package) (ops []uci.Change, _ error) {
		for _, v := range list {
			if name, _ := v.(string); p.Section(name) != nil {
				ops = append(ops, uci.Change{Op: uci.Reorder, Section: name, Value: strconv.Itoa(len(ops))})
			}
		}
		return ops, nil
	})
}

// changeNames are the kinds of staged changes in replies, by uci.Op.
var changeNames = [...]string{
	uci.Set: "set", uci.AddSection: "add", uci.Delete: "remove", uci.Rename: "rename",
	uci.Reorder: "order", uci.ListAdd: "list-add", uci.ListDel: "list-del",
}

// tuples are staged changes in the form of replies: kind, section, option and
// value as far as there are.
func tuples(changes []uci.Change) bus.Array {
	out := make(bus.Array, 0, len(changes))
	for _, c := range changes {
		t := bus.Array{changeNames[c.Op], c.Section}
		if c.Option != "" {
			t = append(t, c.Option)
		}
		if n, err := strconv.Atoi(c.Value); c.Op == uci.Reorder && err == nil {
			t = append(t, n)
		} else if c.Value != "" {
			t = append(t, c.Value)
		}
		out = append(out, t)
	}
	return out
}

func (s *server) uciChanges(_ context.Context, args bus.Table, reply func(any) error) error {
	if _, ok := str(args, "config"); ok {
		tree, name, err := s.config(args, "read")
		if err != nil {
			return err
		}
		if _, err := tree.Load(name); err != nil {
			return statusOf(err)
		}
		changes, err := tree.Changes(name)
		if err != nil {
			return statusOf(err)
		}
		return reply(bus.Table{{Name: "changes", Value: tuples(changes)}})
	}
	s.mu.Lock()
	ses, err := s.caller(args)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	tree := s.tree(ses)
	names, err := tree.List()
	if err != nil {
		return statusOf(err)
	}
	all := bus.Table{}
	for _, name := range names {
		s.mu.Lock()
		ok := may(ses, "uci", name, "read")
		s.mu.Unlock()
		if !ok {
			continue
		}
		if changes, err := tree.Changes(name); err == nil && len(changes) > 0 {
			all = append(all, bus.Attr{Name: name, Value: tuples(changes)})
		}
	}
	return reply(bus.Table{{Name: "changes", Value: all}})
}

// applying says whether an apply waits to be confirmed. uciMu is held.
func (s *server) applying() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending != nil
}

func (s *server) uciRevert(_ context.Context, args bus.Table, _ func(any) error) error {
	s.uciMu.Lock()
	defer s.uciMu.Unlock()
	if s.applying() {
		return bus.StatusPermissionDenied
	}
	tree, name, err := s.config(args, "write")
	if err != nil {
		return err
	}
	return statusOf(tree.Revert(name, "", ""))
}

func (s *server) uciCommit(ctx context.Context, args bus.Table, _ func(any) error) error {
	name, err := func() (string, error) {
		s.uciMu.Lock()
		defer s.uciMu.Unlock()
		if s.applying() {
			return "", bus.StatusPermissionDenied
		}
		tree, name, err := s.config(args, "write")
		if err != nil {
			return "", err
		}
		return name, statusOf(tree.Commit(name))
	}()
	if err != nil {
		return err
	}
	s.changed(ctx, []string{name})
	return nil
}

// uciReload runs reload_config, which is another name of this binary.
func (s *server) uciReload(ctx context.Context, _ bus.Table, _ func(any) error) error {
	args := []string{"reload_config", "-c", s.configDir, "-s", s.busPath}
	if s.configDir != uci.DefaultConfDir {
		args = append(args, "-f", filepath.Join(s.stateDir, "config.md5"))
	}
	ctx, cancel := context.WithTimeout(ctx, defaultExecTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = args
	cmd.Env = os.Environ()
	var out strings.Builder
	cmd.Stderr = &limitedWriter{w: &out, left: 4096}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("reload_config: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// limitedWriter drops what is beyond its limit.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	if _, err := l.w.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(b), nil
}
