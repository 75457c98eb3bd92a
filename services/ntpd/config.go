package ntpd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/uci"
)

// config is the section `timeserver ntp`.
type config struct {
	enabled    bool
	serve      bool
	servers    []string
	useDHCP    bool
	dhcpFrom   []string // interfaces whose servers count; none: all
	interfaces []string // that the server answers on; none: all
}

// parse reads a section; nil means that there is none: then nothing is done.
func parse(s *uci.Section) config {
	if s == nil {
		return config{}
	}
	return config{
		enabled: s.Bool("enabled", true), serve: s.Bool("enable_server", false),
		servers: s.List("server"), useDHCP: s.Bool("use_dhcp", true),
		dhcpFrom: s.List("dhcp_interface"), interfaces: s.List("interface"),
	}
}

// ask bounds a question on the bus.
const ask = 10 * time.Second

// load reads the configuration. The file belongs to root and this service does
// not run as root: then rpcd reads it.
func load(ctx context.Context, tree uci.Tree, client *bus.Client) (config, error) {
	p, err := tree.LoadCommitted("system")
	if errors.Is(err, fs.ErrPermission) {
		ctx, cancel := context.WithTimeout(ctx, ask)
		defer cancel()
		t, berr := client.Call(ctx, "uci", "get", bus.Table{{Name: "config", Value: "system"}, {Name: "section", Value: "ntp"}})
		switch {
		case errors.Is(berr, bus.StatusNotFound):
			return config{}, nil
		case berr != nil:
			return config{}, fmt.Errorf("%w; asking rpcd for it: %w", err, berr)
		}
		return parse(sectionOf(t)), nil
	}
	if p == nil {
		return config{}, fmt.Errorf("read the configuration: %w", err)
	}
	return parse(p.Section("ntp")), nil
}

// sectionOf makes a section of the reply of `uci get`.
func sectionOf(t bus.Table) *uci.Section {
	values, _ := t.Get("values").(bus.Table)
	if values.String(".type") != "timeserver" {
		return nil
	}
	s := &uci.Section{Name: "ntp", Type: "timeserver"}
	for _, v := range values {
		switch x := v.Value.(type) {
		case string:
			if !strings.HasPrefix(v.Name, ".") {
				s.Options = append(s.Options, &uci.Option{Name: v.Name, Values: []string{x}})
			}
		case bus.Array:
			o := &uci.Option{Name: v.Name, IsList: true}
			for _, e := range x {
				if e, ok := e.(string); ok {
					o.Values = append(o.Values, e)
				}
			}
			s.Options = append(s.Options, o)
		}
	}
	return s
}

// network is what the interfaces have to say.
type network struct {
	servers []string            // that DHCP servers have named
	devices map[string][]string // of interfaces
}

// look asks for the interfaces; without an answer there are none.
func look(ctx context.Context, client *bus.Client, c config) network {
	n := network{devices: map[string][]string{}}
	select {
	case <-client.Connected():
	default:
		return n
	}
	ctx, cancel := context.WithTimeout(ctx, ask)
	defer cancel()
	dump, err := client.Call(ctx, "network.interface", "dump", nil)
	if err != nil {
		return n
	}
	list, _ := dump.Get("interface").(bus.Array)
	for _, x := range list {
		t, _ := x.(bus.Table)
		name := t.String("interface")
		if d := t.String("l3_device"); d != "" {
			n.devices[name] = append(n.devices[name], d)
		}
		data, _ := t.Get("data").(bus.Table)
		if c.useDHCP && (len(c.dhcpFrom) == 0 || slices.Contains(c.dhcpFrom, name)) {
			n.servers = append(n.servers, strings.Fields(data.String("ntpserver"))...)
		}
	}
	return n
}
