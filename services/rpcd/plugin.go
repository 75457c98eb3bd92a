package rpcd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"weft/init/bus"
)

const (
	// maxPlugins and maxPluginMethods bound what is taken from the folder.
	maxPlugins, maxPluginMethods = 64, 128
)

// plugins asks the executables in the folder of plugins what they offer:
// `PLUGIN list` prints {method: {argument: example value}}. Each becomes an object
// of its name. One that fails is logged and left out.
func (s *server) plugins(ctx context.Context) []*bus.Object {
	entries, err := os.ReadDir(s.prog.plugins)
	if err != nil {
		return nil // no plugins
	}
	var list []*bus.Object
	for _, e := range entries {
		path := filepath.Join(s.prog.plugins, e.Name())
		fi, err := os.Stat(path)
		if err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if len(list) >= maxPlugins {
			s.log.Error("too many plugins, the rest is left out", "most", maxPlugins)
			break
		}
		o, err := s.plugin(ctx, path)
		if err != nil {
			s.log.Error("plugin left out", "plugin", path, "error", err)
			continue
		}
		list = append(list, o)
	}
	return list
}

// plugin asks one.
func (s *server) plugin(ctx context.Context, path string) (*bus.Object, error) {
	code, out, _, err := s.run(ctx, exec.Command(path, "list"))
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("list: exit code %d", code)
	}
	t, err := bus.ParseJSON(string(out))
	if err != nil {
		return nil, fmt.Errorf("list: {method: {argument: example}} was expected: %w", err)
	}
	o := &bus.Object{Name: filepath.Base(path)}
	for _, m := range t {
		args, ok := m.Value.(bus.Table)
		if !ok || m.Name == "" || len(o.Methods) >= maxPluginMethods {
			return nil, fmt.Errorf("list: method %q: its arguments were expected, of at most %d methods", m.Name, maxPluginMethods)
		}
		var list []bus.Arg
		for _, a := range args {
			list = append(list, bus.Arg{Name: a.Name, Type: typeOf(a.Value)})
		}
		name := m.Name
		o.Methods = append(o.Methods, method(name, func(ctx context.Context, args bus.Table, reply func(any) error) error {
			return s.callPlugin(ctx, path, name, args, reply)
		}, list...))
	}
	return o, nil
}

// typeOf is the type of an argument by its example: a number tells the width that
// it stands for (plugin.c of rpcd: 8, 16 and 64 bits, else 32).
func typeOf(v any) bus.Type {
	switch v := v.(type) {
	case bool:
		return bus.TypeBool
	case int32:
		switch v {
		case 8:
			return bus.TypeBool
		case 16:
			return bus.TypeInt16
		case 64:
			return bus.TypeInt64
		}
		return bus.TypeInt32
	case int64:
		return bus.TypeInt64
	case float64:
		return bus.TypeDouble
	case string:
		return bus.TypeString
	case bus.Array:
		return bus.TypeArray
	case bus.Table:
		return bus.TypeTable
	}
	return bus.TypeUnspec
}

// callPlugin runs `PLUGIN call METHOD` with the arguments as JSON on its input;
// what it prints is the reply.
func (s *server) callPlugin(ctx context.Context, path, name string, args bus.Table, reply func(any) error) error {
	cmd := exec.Command(path, "call", name)
	cmd.Stdin = bytes.NewReader(append(args.AppendJSON(nil, false), '\n'))
	code, out, stderr, err := s.run(ctx, cmd)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%s call %s: exit code %d: %s: %w", path, name, code, strings.TrimSpace(string(stderr)), bus.StatusUnknownError)
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return bus.StatusNoData
	}
	t, err := bus.ParseJSON(string(out))
	if err != nil {
		return fmt.Errorf("%s call %s: an object in JSON was expected: %w: %w", path, name, err, bus.StatusInvalidArgument)
	}
	return reply(t)
}
