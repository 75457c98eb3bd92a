package procd

import (
	"fmt"
	"os"

	"weft/init/bus"
)

// maxDepth bounds the nesting of a trigger's script, which comes from outside.
const maxDepth = 16

// script runs a json_script (openwrt/libubox json_script.c) on an event's data
// and returns the commands that it wants run.
func script(code any, data bus.Table) ([][]string, error) {
	var out [][]string
	_, err := run(code, data, &out, 0)
	return out, err
}

// run executes one command, or a list of them; stop tells that the script
// returned.
func run(code any, data bus.Table, out *[][]string, depth int) (stop bool, err error) {
	if depth > maxDepth {
		return false, fmt.Errorf("script nests deeper than %d", maxDepth)
	}
	a, ok := code.(bus.Array)
	if !ok {
		return false, fmt.Errorf("want an array as command, got %T", code)
	}
	if len(a) == 0 {
		return false, nil
	}
	if _, list := a[0].(bus.Array); list {
		for _, c := range a {
			if stop, err := run(c, data, out, depth+1); stop || err != nil {
				return stop, err
			}
		}
		return false, nil
	}
	name, err := text(a[0])
	if err != nil {
		return false, err
	}
	switch name {
	case "if":
		if len(a) < 3 {
			return false, fmt.Errorf("if wants a condition and a command")
		}
		yes, err := test(a[1], data, depth+1)
		switch {
		case err != nil:
			return false, err
		case yes:
			return run(a[2], data, out, depth+1)
		case len(a) > 3:
			return run(a[3], data, out, depth+1)
		}
		return false, nil
	case "case":
		if len(a) < 3 {
			return false, fmt.Errorf("case wants a name and a table")
		}
		key, err := text(a[1])
		if err != nil {
			return false, err
		}
		cases, err := table(a[2])
		if err != nil {
			return false, err
		}
		val, _ := text(data.Get(key))
		if c := cases.Get(val); c != nil {
			return run(c, data, out, depth+1)
		}
		return false, nil
	case "return":
		return true, nil
	case "run_script":
		cmd, err := stringList(a[1:])
		if err != nil {
			return false, err
		}
		if len(cmd) == 0 {
			return false, fmt.Errorf("run_script wants a program")
		}
		*out = append(*out, cmd)
		return false, nil
	}
	return false, fmt.Errorf("command %q is not supported", name)
}

// test evaluates a condition.
func test(code any, data bus.Table, depth int) (bool, error) {
	if depth > maxDepth {
		return false, fmt.Errorf("script nests deeper than %d", maxDepth)
	}
	a, ok := code.(bus.Array)
	if !ok || len(a) == 0 {
		return false, fmt.Errorf("want an array as condition, got %T", code)
	}
	name, err := text(a[0])
	if err != nil {
		return false, err
	}
	switch name {
	case "and", "or":
		for _, c := range a[1:] {
			yes, err := test(c, data, depth+1)
			if err != nil {
				return false, err
			}
			if yes == (name == "or") {
				return yes, nil
			}
		}
		return name == "and", nil
	case "not":
		if len(a) != 2 {
			return false, fmt.Errorf("not wants one condition")
		}
		yes, err := test(a[1], data, depth+1)
		return !yes, err
	case "eq":
		if len(a) < 3 {
			return false, fmt.Errorf("eq wants a name and a value")
		}
		key, err := text(a[1])
		if err != nil {
			return false, err
		}
		got, err := text(data.Get(key))
		if err != nil {
			return false, nil // not there, or nothing to compare with
		}
		return anyEqual(a[2:], got)
	case "has":
		names, err := stringList(a[1:])
		if err != nil {
			return false, err
		}
		for _, n := range names {
			if data.Has(n) {
				return true, nil
			}
		}
		return false, nil
	case "isdir":
		names, err := stringList(a[1:])
		if err != nil {
			return false, err
		}
		for _, n := range names {
			if st, err := os.Stat(n); err == nil && st.IsDir() {
				return true, nil
			}
		}
		return false, nil
	}
	return false, fmt.Errorf("condition %q is not supported", name)
}

// anyEqual tells whether got is one of the values, which may come as an array.
func anyEqual(values bus.Array, got string) (bool, error) {
	for _, v := range values {
		if list, ok := v.(bus.Array); ok {
			if yes, err := anyEqual(list, got); yes || err != nil {
				return yes, err
			}
			continue
		}
		want, err := text(v)
		if err != nil {
			return false, err
		}
		if want == got {
			return true, nil
		}
	}
	return false, nil
}
