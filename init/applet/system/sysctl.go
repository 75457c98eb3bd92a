package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Sysctl shows and sets the kernel's settings below /proc/sys.
func Sysctl(ctx context.Context, c *unit.Call) int { return sysctl(ctx, c, "/proc/sys") }

func sysctl(ctx context.Context, c *unit.Call, root string) int {
	o, code := options.Parse(c, "anNewqp all=a values=n names=N ignore=e write=w quiet=q load=p", `[-enNq] [-w] KEY[=VALUE]... | -a | -p [FILE]...
Show or set settings of the kernel.
  -n  values alone     -N  names alone     -e  pass over keys that are not there     -q  do not show what is set
  -a  show all         -p  set what FILE says (/etc/sysctl.conf)
Example: sysctl -w net.ipv4.ip_forward=1`)
	if code >= 0 {
		return code
	}
	s := &settings{call: c, root: root, ignore: o.Has('e'), quiet: o.Has('q'), values: o.Has('n'), names: o.Has('N')}
	switch {
	case o.Has('a'):
		if code := o.Operands(0, 0); code >= 0 {
			return code
		}
		s.all(ctx)
		return s.code
	case o.Has('p'):
		if len(o.Args) == 0 {
			o.Args = []string{"/etc/sysctl.conf"}
		}
		for _, name := range o.Args {
			s.load(name)
		}
		return s.code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	for _, a := range o.Args {
		key, value, set := strings.Cut(a, "=")
		switch {
		case set:
			s.set(strings.TrimSpace(key), strings.TrimSpace(value))
		case o.Has('w'):
			return o.Fail("%q sets nothing: KEY=VALUE", a)
		default:
			s.show(key)
		}
	}
	return s.code
}

// settings is one run of sysctl.
type settings struct {
	call                         *unit.Call
	root                         string
	ignore, quiet, values, names bool
	code                         int
}

// path is the file of a key: dots part names, and a slash is a dot inside a name
// (net.ipv4.conf.eth0/1.rp_filter), unless a slash comes first: then the two
// change places (sysctl(8)).
func (s *settings) path(key string) (string, error) {
	name := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	if !fs.ValidPath(name) || name == "." {
		return "", fmt.Errorf("%q is not a key", key)
	}
	return filepath.Join(s.root, name), nil
}

// key is the name of a file below root, the other way round.
func (s *settings) key(path string) string {
	rel, err := filepath.Rel(s.root, path)
	if err != nil {
		return path
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, rel)
}

func (s *settings) fault(key string, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		if s.ignore {
			return
		}
		err = fmt.Errorf("error: '%s' is an unknown key", key)
	} else {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		err = fmt.Errorf("%s: %w", key, err)
	}
	s.code = fail(s.call, err)
}

// print shows a value; each of several lines with its key.
func (s *settings) print(key, value string) {
	if s.names {
		fmt.Fprintln(s.call.Stdout, key)
		return
	}
	for line := range strings.SplitSeq(strings.TrimRight(value, "\n"), "\n") {
		if s.values {
			fmt.Fprintln(s.call.Stdout, line)
		} else {
			fmt.Fprintf(s.call.Stdout, "%s = %s\n", key, line)
		}
	}
}

func (s *settings) show(key string) {
	path, err := s.path(key)
	if err != nil {
		s.fault(key, err)
		return
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		s.walk(context.Background(), path)
		return
	}
	b, err := os.ReadFile(path)
	if err != nil {
		s.fault(key, err)
		return
	}
	s.print(s.key(path), string(b))
}

func (s *settings) set(key, value string) {
	path, err := s.path(key)
	if err == nil {
		// Never make a file: /proc/sys has those that there are.
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, err = f.WriteString(value + "\n")
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		s.fault(key, err)
		return
	}
	if !s.quiet {
		s.print(s.key(path), value)
	}
}

// load sets what a file says, sysctl.conf(5): key = value, # and ; comments, a dash
// before a key that may fail.
func (s *settings) load(name string) {
	b, err := os.ReadFile(s.call.Path(name))
	if err != nil {
		if !(s.ignore && errors.Is(err, fs.ErrNotExist)) {
			s.code = fail(s.call, err)
		}
		return
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key, mayFail := strings.CutPrefix(strings.TrimSpace(key), "-")
		if !ok || key == "" {
			s.code = fail(s.call, fmt.Errorf("%s:%d: expected KEY=VALUE", name, n))
			continue
		}
		before, beforeCode := s.ignore, s.code
		s.ignore = s.ignore || mayFail
		s.set(key, strings.TrimSpace(value))
		s.ignore = before
		if mayFail {
			s.code = beforeCode
		}
	}
}

func (s *settings) all(ctx context.Context) { s.walk(ctx, s.root) }

func (s *settings) walk(ctx context.Context, dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || d.IsDir() {
			return nil // gone since, or not for us
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil // some can only be written, some only in some states
		}
		s.print(s.key(path), string(b))
		return nil
	})
	if err != nil {
		s.code = fail(s.call, err)
	}
}
