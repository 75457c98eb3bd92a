package dhcp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/uci"
	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/dhcp4"
	"weft/services/dhcp/internal/netif"
)

// source reads UCI packages: the files, or where this process may not read them
// (they belong to root, and on a device it runs as a user of its own) the object
// uci of the bus.
type source struct {
	tree uci.Tree
	bus  *bus.Client
}

// busWait bounds a call on the bus.
const busWait = 5 * time.Second

func (s *source) load(ctx context.Context, pkg string) (*uci.Package, error) {
	p, err := s.tree.LoadCommitted(pkg)
	if p != nil || !errors.Is(err, fs.ErrPermission) {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, busWait)
	defer cancel()
	t, berr := s.bus.Call(ctx, "uci", "get", bus.Table{{Name: "config", Value: pkg}})
	if berr != nil {
		return nil, fmt.Errorf("%w; asking rpcd for it: %w", err, berr)
	}
	return packageOf(pkg, t)
}

// packageOf makes a package of the reply of `uci get`.
func packageOf(name string, t bus.Table) (*uci.Package, error) {
	values, ok := t.Get("values").(bus.Table)
	if !ok {
		return nil, fmt.Errorf("package %s: the reply of rpcd has no table values", name)
	}
	type indexed struct {
		at int32
		s  *uci.Section
	}
	var all []indexed
	for _, v := range values {
		d, ok := v.Value.(bus.Table)
		if !ok {
			continue
		}
		at, _ := d.Get(".index").(int32)
		anon, _ := d.Get(".anonymous").(bool)
		s := &uci.Section{Name: v.Name, Type: d.String(".type"), Anonymous: anon}
		for _, o := range d {
			if strings.HasPrefix(o.Name, ".") {
				continue
			}
			switch val := o.Value.(type) {
			case string:
				s.Options = append(s.Options, &uci.Option{Name: o.Name, Values: []string{val}})
			case bus.Array:
				opt := &uci.Option{Name: o.Name, IsList: true}
				for _, e := range val {
					if text, ok := e.(string); ok {
						opt.Values = append(opt.Values, text)
					}
				}
				s.Options = append(s.Options, opt)
			}
		}
		all = append(all, indexed{at, s})
	}
	slices.SortStableFunc(all, func(a, b indexed) int { return int(a.at - b.at) })
	p := &uci.Package{Name: name}
	for _, a := range all {
		p.Sections = append(p.Sections, a.s)
	}
	return p, nil
}

// fallback are the interfaces of the configuration, for a host without the
// network service: those of /etc/config/network, and devices that dhcp names.
func fallback(network *uci.Package, pools []*config.Pool) []netif.Interface {
	var out []netif.Interface
	if network != nil {
		for _, s := range network.SectionsOfType("interface") {
			dev := s.String("device", s.String("ifname", ""))
			if s.String("type", "") == "bridge" {
				dev = "br-" + s.Name
			}
			if dev != "" && !strings.HasPrefix(dev, "@") {
				out = append(out, netif.Interface{Name: s.Name, Device: dev, Proto: s.String("proto", "")})
			}
		}
	}
	for _, p := range pools {
		if !slices.ContainsFunc(out, func(i netif.Interface) bool { return i.Name == p.Interface }) {
			out = append(out, netif.Interface{Name: p.Interface, Device: p.Interface})
		}
	}
	return out
}

// maxEthers bounds what is taken over of /etc/ethers.
const maxEthers = 4096

// readEthers reads lines of MAC address and IPv4 address or name (ethers(5)).
func readEthers(r io.Reader) []dhcp4.Ether {
	var out []dhcp4.Ether
	sc := bufio.NewScanner(r)
	for sc.Scan() && len(out) < maxEthers {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		m, ok := config.ParseMAC(f[0])
		if !ok || m.IsWild() {
			continue
		}
		e := dhcp4.Ether{MAC: m.Addr}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Is4() {
			e.Addr = a
		} else if err != nil && config.ValidName(f[1]) {
			e.Name, _, _ = strings.Cut(f[1], ".")
		} else {
			continue
		}
		out = append(out, e)
	}
	return out
}

func readEthersFile(path string) ([]dhcp4.Ether, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	return readEthers(io.LimitReader(f, 1<<20)), nil
}
