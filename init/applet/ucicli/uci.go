// Package ucicli is the uci command: it reads and changes configuration files
// with upstream's commands, options, messages and exit codes.
//
// On purpose different from upstream: options may also follow the command, a
// rename onto an existing name is refused, `import -m` into a file that does
// not parse is refused instead of replacing it, and `set` of an absent
// `@type[n]` to a type is refused.
package ucicli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weft/init/uci"
	"weft/init/unit"
)

// Exit codes besides 0 and 1; `add` returns those of libuci.
const (
	codeOK        = 0
	codeInvalid   = 2
	codeNotFound  = 3
	codeIO        = 4
	codeParse     = 5
	codeDuplicate = 6
	codeUsage     = 255
	codeExit      = -1 // batch ends
)

// maxWords is the longest command of a batch, `add <config> <type>`.
const maxWords = 3

// UCI runs the uci command.
func UCI(_ context.Context, c *unit.Call) int { return run(c, uci.Tree{}) }

// run starts from the folders of tree; the options may name others.
func run(c *unit.Call, tree uci.Tree) int {
	out := bufio.NewWriter(c.Stdout)
	cmd := &command{name: filepath.Base(c.Args[0]), call: c, out: out, errOut: c.Stderr, tree: tree, delimiter: " ", index: true}
	args, code, ok := cmd.options(c.Args[1:])
	if cmd.input != nil {
		defer cmd.input.Close()
	}
	if !ok {
		return code
	}
	if len(args) == 0 {
		cmd.usage()
		return codeOK
	}
	var in io.Reader = c.Stdin
	if cmd.input != nil {
		in = cmd.input
	}
	cmd.in = bufio.NewReader(in)
	code = cmd.run(args)
	if code == codeUsage {
		cmd.usage()
	}
	if err := out.Flush(); err != nil && code == codeOK {
		fmt.Fprintf(c.Stderr, "%s: write the output: %v\n", cmd.name, err)
		return 1
	}
	return code
}

// command is one run of the program.
type command struct {
	name   string
	call   *unit.Call
	out    *bufio.Writer
	errOut io.Writer
	input  *os.File
	in     *bufio.Reader

	tree      uci.Tree
	delimiter string // -d
	merge     bool   // -m
	quiet     bool   // -q
	noCommit  bool   // -P
	index     bool   // not -X
	batch     bool   // inside a batch
}

// options parses the options and returns the other arguments; with ok false
// the program ends with the code.
func (c *command) options(args []string) (rest []string, code int, ok bool) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return append(rest, args...), 0, true
		}
		if len(arg) < 2 || arg[0] != '-' {
			rest = append(rest, arg)
			continue
		}
		for flags := arg[1:]; flags != ""; {
			f := flags[0]
			flags = flags[1:]
			value := ""
			if strings.IndexByte("cCdfpPt", f) >= 0 {
				switch {
				case flags != "":
					value, flags = flags, ""
				case len(args) > 0:
					value, args = args[0], args[1:]
				default:
					fmt.Fprintf(c.errOut, "%s: option requires an argument: %c\n", c.name, f)
					c.usage()
					return nil, codeOK, false
				}
			}
			switch f {
			case 'c':
				c.tree.ConfDir = c.call.Path(value)
			case 'C':
				c.tree.OverrideDir = c.call.Path(value)
			case 'd':
				c.delimiter = value
			case 'f':
				if c.input != nil {
					c.error("Too many input files.\n")
					return nil, 1, false
				}
				f, err := os.Open(c.call.Path(value))
				if err != nil {
					var pe *fs.PathError
					if errors.As(err, &pe) {
						err = pe.Err
					}
					c.error("%s: %s: %v\n", c.name, value, err)
					return nil, 1, false
				}
				c.input = f
			case 'm':
				c.merge = true
			case 'n':
				c.tree.NameUnnamed = true
			case 'N':
				c.tree.NameUnnamed = false
			case 'p':
				c.addDelta(c.call.Path(value))
			case 'P':
				c.saveTo(c.call.Path(value))
				c.noCommit = true
			case 't':
				c.saveTo(c.call.Path(value))
			case 'q':
				c.quiet = true
			case 's':
				c.tree.NonStrict = false
			case 'S':
				c.tree.NonStrict = true
			case 'X':
				c.index = false
			default:
				if f != 'L' { // upstream has -L, for plugins it no longer has
					fmt.Fprintf(c.errOut, "%s: unrecognized option: %c\n", c.name, f)
				}
				c.usage()
				return nil, codeOK, false
			}
		}
	}
	return rest, 0, true
}

func (c *command) addDelta(dir string) {
	if !slices.Contains(c.tree.DeltaDirs, dir) {
		c.tree.DeltaDirs = append(c.tree.DeltaDirs, dir)
	}
}

// saveTo makes dir the save folder; the former one is still read.
func (c *command) saveTo(dir string) {
	old := c.tree.SaveDir
	if old == "" {
		old = uci.DefaultSaveDir
	}
	c.addDelta(old)
	c.tree.SaveDir = dir
}

// run executes one command.
func (c *command) run(args []string) int {
	switch verb := strings.ToLower(args[0]); verb {
	case "batch":
		if c.batch {
			return codeUsage
		}
		return c.doBatch()
	case "show", "changes", "export", "commit":
		return c.packages(verb, args[1:])
	case "get", "set", "add_list", "del_list", "rename", "revert", "reorder", "delete":
		return c.section(verb, args[1:])
	case "ren":
		return c.section("rename", args[1:])
	case "del":
		return c.section("delete", args[1:])
	case "import":
		return c.doImport(args[1:])
	case "add":
		return c.add(args[1:])
	case "help":
		c.usage()
		return codeOK
	}
	return codeUsage
}

// section runs a command on one section or option.
func (c *command) section(verb string, args []string) int {
	if len(args) != 1 {
		return codeUsage
	}
	a, err := uci.ParseAddress(args[0])
	if err != nil {
		return c.fail(err)
	}
	p := c.load(a.Package)
	if p == nil {
		return 1
	}
	s, o, complete, err := find(p, a)
	if err != nil {
		return c.fail(err)
	}
	stage := func(op uci.Op) int {
		return c.report(c.tree.Stage(a.Package, uci.Change{Op: op, Section: a.Section, Option: a.Option, Value: a.Value}))
	}
	switch verb {
	case "get":
		switch {
		case a.HasValue:
			return 1
		case !complete:
			return c.fail(uci.ErrNotFound)
		case o != nil:
			fmt.Fprintln(c.out, c.values(o, false))
		case s != nil:
			fmt.Fprintln(c.out, s.Type)
		}
		return codeOK
	case "revert":
		if a.HasValue {
			return 1
		}
		// Like upstream: nothing to revert is no failure.
		_ = c.tree.Revert(a.Package, a.Section, a.Option)
		return codeOK
	case "reorder":
		if s == nil || !a.HasValue {
			return c.fail(uci.ErrNotFound)
		}
		if a.Value == "" {
			a.Value = "0"
		}
		return stage(uci.Reorder)
	case "delete":
		if a.HasValue && a.Value != "" && !startsWithNumber(a.Value) {
			return 1
		}
		return stage(uci.Delete)
	}
	if !a.HasValue {
		return c.fail(uci.ErrInvalid)
	}
	switch verb {
	case "set":
		return stage(uci.Set)
	case "add_list":
		return stage(uci.ListAdd)
	case "del_list":
		return stage(uci.ListDel)
	default:
		return stage(uci.Rename)
	}
}

// find looks an address up. complete tells whether all its parts exist; the
// error is for a malformed index.
func find(p *uci.Package, a uci.Address) (s *uci.Section, o *uci.Option, complete bool, err error) {
	if a.Section == "" {
		return nil, nil, true, nil
	}
	s, err = p.Lookup(a.Section)
	if errors.Is(err, uci.ErrNotFound) {
		return nil, nil, false, nil
	}
	if err != nil || a.Option == "" {
		return s, nil, err == nil, err
	}
	o = s.Option(a.Option)
	return s, o, o != nil, nil
}

func startsWithNumber(s string) bool {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	if s != "" && (s[0] == '-' || s[0] == '+') {
		s = s[1:]
	}
	return s != "" && s[0] >= '0' && s[0] <= '9'
}

// packages runs a command on one package or, without arguments, on all.
func (c *command) packages(verb string, args []string) int {
	switch len(args) {
	case 0:
		names, err := c.tree.List()
		if err != nil {
			return c.fail(err)
		}
		for _, n := range names {
			c.pkg(verb, n)
		}
		return codeOK
	case 1:
		return c.pkg(verb, args[0])
	}
	return codeUsage
}

func (c *command) pkg(verb, address string) int {
	a, err := uci.ParseAddress(address)
	if err != nil {
		return c.fail(err)
	}
	p := c.load(a.Package)
	if p == nil {
		return 1
	}
	s, o, complete, err := find(p, a)
	if err != nil {
		return c.fail(err)
	}
	switch verb {
	case "show":
		switch {
		case !complete:
			return c.fail(uci.ErrNotFound)
		case o != nil:
			c.showOption(p, s.Name, o)
		case s != nil:
			c.showSection(p, s.Name, s)
		default:
			seen := map[string]int{}
			for _, s := range p.Sections {
				name := s.Name
				if s.Anonymous && c.index {
					name = fmt.Sprintf("@%s[%d]", s.Type, seen[s.Type])
				}
				seen[s.Type]++
				c.showSection(p, name, s)
			}
		}
	case "changes":
		changes, err := c.tree.Changes(a.Package)
		if err != nil {
			return c.fail(err)
		}
		for _, ch := range changes {
			c.showChange(p, ch)
		}
	case "export":
		if err := p.Export(c.out, c.tree.NameUnnamed); err != nil {
			return c.fail(err)
		}
	case "commit":
		if !c.noCommit {
			return c.report(c.tree.Commit(a.Package))
		}
	}
	return codeOK
}

func (c *command) showSection(p *uci.Package, name string, s *uci.Section) {
	fmt.Fprintf(c.out, "%s.%s=%s\n", p.Name, name, s.Type)
	for _, o := range s.Options {
		c.showOption(p, name, o)
	}
}

func (c *command) showOption(p *uci.Package, section string, o *uci.Option) {
	fmt.Fprintf(c.out, "%s.%s.%s=%s\n", p.Name, section, o.Name, c.values(o, true))
}

// values prints what an option holds. Items of a list are quoted if they
// would be ambiguous otherwise.
func (c *command) values(o *uci.Option, quote bool) string {
	var out []string
	for _, v := range o.Values {
		if quote || o.IsList && strings.ContainsAny(v, " \t\r\n") {
			v = uci.Quote(v)
		}
		out = append(out, v)
	}
	return strings.Join(out, c.delimiter)
}

func (c *command) showChange(p *uci.Package, ch uci.Change) {
	line := p.Name + "." + ch.Section
	if ch.Option != "" {
		line += "." + ch.Option
	}
	switch ch.Op {
	case uci.Delete:
		line = "-" + line
	case uci.ListAdd:
		line += "+=" + uci.Quote(ch.Value)
	case uci.ListDel:
		line += "-=" + uci.Quote(ch.Value)
	default:
		line += "=" + uci.Quote(ch.Value)
	}
	fmt.Fprintln(c.out, line)
}

func (c *command) doImport(args []string) int {
	if len(args) > 1 || len(args) == 0 && c.merge {
		return codeUsage
	}
	name := ""
	if len(args) == 1 {
		name = args[0]
	}
	if c.merge {
		err := c.tree.Merge(name, c.in)
		if !errors.Is(err, uci.ErrNotFound) {
			return c.report(err)
		}
	}
	return c.report(c.tree.Import(name, c.in))
}

func (c *command) add(args []string) int {
	if len(args) != 2 {
		return codeUsage
	}
	op := []uci.Change{{Op: uci.AddSection, Value: args[1]}}
	if err := c.tree.Stage(args[0], op...); err != nil {
		c.fail(err)
		return code(err)
	}
	fmt.Fprintln(c.out, op[0].Section)
	return codeOK
}

// doBatch reads commands, one a line, until `exit` or the end. It succeeds
// whatever becomes of them.
func (c *command) doBatch() int {
	c.batch = true
	defer func() { c.batch = false }()
	words := uci.NewWords(c.in)
	for {
		args, err := words.Next()
		var pe *uci.ParseError
		switch {
		case err == io.EOF:
			return codeOK
		case errors.As(err, &pe):
			c.fail(err)
			continue
		case err != nil:
			return c.fail(err)
		case len(args) == 0:
			continue
		case len(args) > maxWords:
			c.error("Too many arguments\n")
			continue
		case strings.EqualFold(args[0], "exit"):
			return codeOK
		}
		if c.run(args) == codeUsage {
			c.error("Unknown command\n")
		}
		// Whoever feeds commands one by one waits for the answer.
		if err := c.out.Flush(); err != nil {
			return 1
		}
	}
}

// load reads a package; nil after a failure that was reported. Bad lines that
// were skipped are reported as well.
func (c *command) load(pkg string) *uci.Package {
	p, err := c.tree.Load(pkg)
	if p == nil {
		c.fail(err)
		return nil
	}
	c.skipped(err)
	return p
}

// skipped prints the bad lines among errors and returns the first other one.
func (c *command) skipped(err error) (other error) {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok && !isKind(err) {
		for _, e := range many.Unwrap() {
			if o := c.skipped(e); other == nil {
				other = o
			}
		}
		return other
	}
	var pe *uci.ParseError
	if c.tree.NonStrict && errors.As(err, &pe) {
		fmt.Fprintln(c.errOut, describe(err))
		return nil
	}
	return err
}

// isKind tells an error that wraps a kind and a cause from a list of errors.
func isKind(err error) bool {
	for _, kind := range []error{uci.ErrNotFound, uci.ErrInvalid, uci.ErrDuplicate} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// report prints an error, if there is one, and returns the exit code.
func (c *command) report(err error) int {
	if err = c.skipped(err); err != nil {
		return c.fail(err)
	}
	return codeOK
}

// fail prints an error as upstream does.
func (c *command) fail(err error) int {
	c.error("%s: %s\n", c.name, describe(err))
	return 1
}

func (c *command) error(format string, args ...any) {
	if !c.quiet {
		c.out.Flush()
		fmt.Fprintf(c.errOut, format, args...)
	}
}

// code is libuci's number for an error.
func code(err error) int {
	switch {
	case errors.Is(err, uci.ErrParse):
		return codeParse
	case errors.Is(err, uci.ErrNotFound):
		return codeNotFound
	case errors.Is(err, uci.ErrDuplicate):
		return codeDuplicate
	case errors.Is(err, uci.ErrInvalid):
		return codeInvalid
	}
	return codeIO
}

// describe is upstream's text for an error; an I/O error says which.
func describe(err error) string {
	switch code(err) {
	case codeParse:
		var pe *uci.ParseError
		if errors.As(err, &pe) {
			return fmt.Sprintf("Parse error (%s) at line %d, byte %d", pe.Msg, pe.Line, pe.Byte)
		}
		return "Parse error"
	case codeNotFound:
		return "Entry not found"
	case codeDuplicate:
		return "Duplicate entry"
	case codeInvalid:
		return "Invalid argument"
	}
	return fmt.Sprintf("I/O error (%v)", err)
}

func (c *command) usage() {
	c.out.Flush()
	fmt.Fprintf(c.errOut, usage, c.name)
}

const usage = `Usage: %s [<options>] <command> [<arguments>]

Commands:
	batch                                       run commands from the input, one a line
	export     [<config>]                       print as a file that import takes
	import     [<config>]                       read files, replacing them
	changes    [<config>]                       list what is staged
	commit     [<config>]                       write what is staged
	add        <config> <section-type>          add an unnamed section, print its id
	add_list   <config>.<section>.<option>=<string>
	del_list   <config>.<section>.<option>=<string>
	show       [<config>[.<section>[.<option>]]]
	get        <config>.<section>[.<option>]
	set        <config>.<section>[.<option>]=<value>
	delete     <config>.<section>[.<option>[=<index>]]
	rename     <config>.<section>[.<option>]=<name>
	revert     <config>[.<section>[.<option>]]  drop what is staged
	reorder    <config>.<section>=<position>    0 is the first
	help

A section is a name or @type[index]; -1 is the last one.

Options:
	-c <path>  folder of the configuration files (default: /etc/config)
	-C <path>  folder of files that override them (default: /var/run/uci)
	-d <str>   delimiter of list values in get and show (default: a blank)
	-f <file>  input instead of stdin
	-m         on import, merge into the existing file
	-n         on export and commit, name unnamed sections
	-N         do not name them (default)
	-p <path>  further folder with staged changes
	-P <path>  the same, and stage there; commit does nothing
	-t <path>  folder to stage in (default: /tmp/.uci)
	-q         do not print error messages
	-s         stop at the first bad line of a file (default)
	-S         report bad lines and skip them
	-X         in show, print the ids of unnamed sections
`
