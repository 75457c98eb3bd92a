package servicecli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"weft/init/bus"
	"weft/init/unit"
)

// ServiceCall is service-call METHOD: it reads a message as the json_ functions
// of /lib/functions/procd.sh write it down and calls that method of the object
// service with it. With -p it prints the message as JSON in place of that.
//
// The message is one record a line: a letter, a name and, for values, the value,
// separated by tabs; backslash, tab and newline are escaped as \\, \t and \n.
// O and A open a table and an array, o and a close them, S is a string, I an
// integer, B a boolean (1 or 0), D a number with a fraction, N null. Inside an
// array names are ignored.
//
// service-call --state SERVICE [INSTANCE] prints in what state a service is, in
// the words of rc.common's status: running, not running, inactive, unknown (no
// such instance), or active with no instances.
func ServiceCall(ctx context.Context, c *unit.Call) int {
	return serviceCall(ctx, c, unit.DefaultBusPath)
}

func serviceCall(ctx context.Context, c *unit.Call, socket string) int {
	if len(c.Args) >= 3 && len(c.Args) <= 4 && c.Args[1] == "--state" {
		return printState(ctx, c, socket)
	}
	if len(c.Args) != 2 {
		fmt.Fprintf(c.Stderr, "Usage: service-call METHOD | -p  < RECORDS\n       service-call --state SERVICE [INSTANCE]\n")
		return 2
	}
	t, err := parseRecords(c.Stdin)
	if err != nil {
		fmt.Fprintf(c.Stderr, "service-call: %v\n", err)
		return 1
	}
	if c.Args[1] == "-p" {
		js, err := t.MarshalJSON()
		if err != nil {
			fmt.Fprintf(c.Stderr, "service-call: %v\n", err)
			return 1
		}
		fmt.Fprintf(c.Stdout, "%s\n", js)
		return 0
	}
	client, err := bus.Dial(ctx, socket)
	if err != nil {
		fmt.Fprintf(c.Stderr, "service-call: the bus does not answer: %v\n", err)
		return 1
	}
	defer client.Close()
	if _, err := client.Call(ctx, "service", c.Args[1], t); err != nil {
		fmt.Fprintf(c.Stderr, "service-call: service %s: %v\n", c.Args[1], err)
		return 1
	}
	return 0
}

func printState(ctx context.Context, c *unit.Call, socket string) int {
	s := &cli{c: c, bus: socket}
	name, inst := c.Args[2], "*"
	if len(c.Args) == 4 {
		inst = c.Args[3]
	}
	all, err := s.call(ctx, "list", bus.Table{{Name: "name", Value: name}})
	if err != nil {
		fmt.Fprintf(c.Stderr, "service-call: %v\n", err)
		return 1
	}
	svc, ok := all.Get(name).(bus.Table)
	names, list, err := instances(svc)
	if err != nil {
		fmt.Fprintf(c.Stderr, "service-call: %v\n", err)
		return 1
	}
	state := "not running"
	switch {
	case !ok:
		state = "inactive"
	case len(list) == 0:
		state = "active with no instances"
	case inst != "*" && !slices.Contains(names, inst):
		state = "unknown"
	default:
		for i, in := range list {
			if in.Running && (inst == "*" || names[i] == inst) {
				state = "running"
			}
		}
	}
	fmt.Fprintln(c.Stdout, state)
	return 0
}

// maxNesting bounds the depth of a message.
const maxNesting = 32

// container is a table or an array that is being filled.
type container struct {
	name  string
	array bool
	table bus.Table
	items bus.Array
}

func (c *container) add(name string, v any) {
	if c.array {
		c.items = append(c.items, v)
		return
	}
	for i := range c.table {
		if c.table[i].Name == name { // as in json-c, the last one counts
			c.table[i].Value = v
			return
		}
	}
	c.table = append(c.table, bus.Attr{Name: name, Value: v})
}

func (c *container) value() any {
	if c.array {
		if c.items == nil {
			return bus.Array{}
		}
		return c.items
	}
	if c.table == nil {
		return bus.Table{}
	}
	return c.table
}

// parseRecords reads a message. Containers that are open at the end are closed.
func parseRecords(r io.Reader) (bus.Table, error) {
	stack := []*container{{}}
	closeTop := func() {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		stack[len(stack)-1].add(top.name, top.value())
	}
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		line := scan.Text()
		if line == "" {
			continue
		}
		bad := func(format string, args ...any) error {
			return fmt.Errorf("record %d: %s", n, fmt.Sprintf(format, args...))
		}
		kind, rest, _ := strings.Cut(line, "\t")
		name, value, _ := strings.Cut(rest, "\t")
		name, value = unescapeRecord(name), unescapeRecord(value)
		top := stack[len(stack)-1]
		switch kind {
		case "O", "A":
			if len(stack) > maxNesting {
				return nil, bad("nested deeper than %d", maxNesting)
			}
			stack = append(stack, &container{name: name, array: kind == "A"})
		case "o", "a":
			if len(stack) == 1 || top.array != (kind == "a") {
				return nil, bad("nothing of that kind is open")
			}
			closeTop()
		case "S":
			top.add(name, value)
		case "I":
			i, err := strconv.ParseInt(strings.TrimSpace(value), 0, 64)
			if err != nil && errors.Is(err, strconv.ErrRange) {
				return nil, bad("%s: %q is too large", name, value)
			}
			// As jshn: what is no number is 0.
			if i >= -1<<31 && i < 1<<31 {
				top.add(name, int32(i))
			} else {
				top.add(name, i)
			}
		case "B":
			top.add(name, value == "1" || value == "true")
		case "D":
			f, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			top.add(name, f)
		case "N":
			top.add(name, nil)
		default:
			return nil, bad("unknown kind %q", kind)
		}
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	for len(stack) > 1 {
		closeTop()
	}
	t, _ := stack[0].value().(bus.Table)
	return t, nil
}

func unescapeRecord(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case 't':
			b.WriteByte('\t')
		case 'n':
			b.WriteByte('\n')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
