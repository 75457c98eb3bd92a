package firstboot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/uci"
)

// ntpServers are LEDE's.
var ntpServers = []string{"0.openwrt.pool.ntp.org", "1.openwrt.pool.ntp.org", "2.openwrt.pool.ntp.org", "3.openwrt.pool.ntp.org"}

// Defaults of a device nobody has named.
const (
	defaultHostname = "Weft"
	lanAddress      = "192.168.1.1"
	lanNetmask      = "255.255.255.0"
)

// configGenerate writes the packages that are missing or empty and reports
// their names.
func (s *Setup) configGenerate() ([]string, error) {
	var missing []string
	for _, name := range []string{"network", "system"} {
		if fi, err := os.Stat(filepath.Join(s.configDir(), name)); err != nil || fi.Size() == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	board, err := s.readBoard()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.configDir(), 0o755); err != nil {
		return nil, err
	}
	for _, name := range missing {
		var p *uci.Package
		if name == "network" {
			p, err = generateNetwork(board)
		} else {
			p, err = generateSystem(board)
		}
		if err != nil {
			return nil, fmt.Errorf("generate /etc/config/%s: %w", name, err)
		}
		var text bytes.Buffer
		if _, err := p.WriteTo(&text); err != nil {
			return nil, fmt.Errorf("generate /etc/config/%s: %w", name, err)
		}
		if err := writeFile(filepath.Join(s.configDir(), name), text.Bytes(), 0o600); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// builder collects sections; the first error sticks.
type builder struct {
	p   *uci.Package
	err error
}

// add appends a section with options in pairs; a value of "" leaves the option
// out, a []string makes a list.
func (b *builder) add(typ, name string, pairs ...any) {
	if b.err != nil {
		return
	}
	sec, err := b.p.Add(typ, name)
	if err != nil {
		b.err = err
		return
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		o := &uci.Option{Name: pairs[i].(string)}
		switch v := pairs[i+1].(type) {
		case string:
			if v == "" {
				continue
			}
			o.Values = []string{v}
		case []string:
			if len(v) == 0 {
				continue
			}
			o.IsList, o.Values = true, v
		}
		for _, v := range o.Values {
			if !uci.ValidValue(v) {
				b.err = fmt.Errorf("option %s: the value %q of board.json cannot be written", o.Name, v)
				return
			}
		}
		sec.Options = append(sec.Options, o)
	}
}

func generateNetwork(board *Board) (*uci.Package, error) {
	b := &builder{p: &uci.Package{Name: "network"}}
	b.add("interface", "loopback", "device", "lo", "proto", "static", "ipaddr", []string{"127.0.0.1/8"})
	b.add("globals", "globals", "dhcp_default_duid", "auto", "ula_prefix", "auto")

	// lan first, wan second, the rest by name.
	var names []string
	for name := range board.Network {
		names = append(names, name)
	}
	rank := func(name string) int { return slices.Index([]string{"lan", "wan"}, name) & 3 } // 0, 1, others 3
	slices.SortFunc(names, func(x, y string) int {
		if d := rank(x) - rank(y); d != 0 {
			return d
		}
		return strings.Compare(x, y)
	})
	done := map[string]bool{}
	next := 2 // 192.168.<next>.1 for further static networks
	for _, name := range names {
		n := board.Network[name]
		if n.Device == "" && len(n.Ports) == 0 {
			continue
		}
		device, ports := n.Device, n.Ports
		if name == "lan" && len(ports) == 0 {
			ports = []string{device} // others may be bridged to it later: Wi-Fi
		}
		if len(ports) > 0 {
			device = "br-" + name
			b.add("device", "", "name", device, "type", "bridge", "ports", ports, "macaddr", n.MACAddr)
			done[device] = true
		} else if n.MACAddr != "" {
			b.add("device", "", "name", device, "macaddr", n.MACAddr)
			done[device] = true
		}
		switch proto := or(n.Protocol, "none"); proto {
		case "static":
			addr := or(n.IPAddr, lanAddress)
			if name != "lan" && n.IPAddr == "" {
				addr = fmt.Sprintf("192.168.%d.1", next)
				next++
			}
			cidr, err := withPrefix(addr, or(n.Netmask, lanNetmask))
			if err != nil {
				return nil, fmt.Errorf("network %s in board.json: %w", name, err)
			}
			b.add("interface", name, "device", device, "proto", proto, "ipaddr", []string{cidr}, "ip6assign", "60")
		case "pppoe":
			b.add("interface", name, "device", device, "proto", proto, "username", "username", "password", "password", "ipv6", "1")
			b.add("interface", name+"6", "device", "@"+name, "proto", "dhcpv6")
		case "dhcp":
			b.add("interface", name, "device", device, "proto", proto)
			b.add("interface", name+"6", "device", device, "proto", "dhcpv6")
		default:
			b.add("interface", name, "device", device, "proto", proto)
		}
	}
	var devices []string
	for name := range board.NetworkDevice {
		devices = append(devices, name)
	}
	slices.Sort(devices)
	for _, name := range devices {
		if mac := board.NetworkDevice[name].MACAddr; mac != "" && !done[name] {
			b.add("device", "", "name", name, "macaddr", mac)
		}
	}
	return b.p, b.err
}

// withPrefix turns address and netmask into the form of 25.12.
func withPrefix(addr, mask string) (string, error) {
	if _, err := netip.ParsePrefix(addr); err == nil {
		return addr, nil
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return "", fmt.Errorf("ipaddr: %w", err)
	}
	m := net.ParseIP(mask).To4()
	if m == nil {
		return "", fmt.Errorf("netmask %q: expected the form 255.255.255.0", mask)
	}
	ones, bits := net.IPMask(m).Size()
	if bits == 0 {
		return "", fmt.Errorf("netmask %q: expected ones followed by zeros", mask)
	}
	return ip.String() + "/" + strconv.Itoa(ones), nil
}

func generateSystem(board *Board) (*uci.Package, error) {
	var sys System
	if board.System != nil {
		sys = *board.System
	}
	servers := sys.NTPServer
	if len(servers) == 0 {
		servers = ntpServers
	}
	b := &builder{p: &uci.Package{Name: "system"}}
	b.add("system", "", "hostname", or(sys.Hostname, defaultHostname), "timezone", or(sys.Timezone, "GMT0"), "zonename", "UTC",
		"ttylogin", "0", "log_size", "128", "urandom_seed", "0", "compat_version", or(sys.CompatVersion, "1.0"))
	b.add("timeserver", "ntp", "enabled", "1", "enable_server", "0", "server", servers)
	return b.p, b.err
}

// fillAuto replaces the value auto of network.globals once.
func (s *Setup) fillAuto() error {
	tree := s.tree()
	p, err := tree.Load("network")
	if p == nil {
		if errors.Is(err, uci.ErrNotFound) {
			return nil
		}
		return fmt.Errorf("make an ULA prefix: %w", err)
	}
	g := p.Section("globals")
	if g == nil {
		return nil
	}
	var changes []uci.Change
	if g.String("ula_prefix", "") == "auto" {
		// RFC 4193, section 3.2: fd and 40 random bits.
		r := random(5)
		changes = append(changes, uci.Change{Op: uci.Set, Section: "globals", Option: "ula_prefix", Value: fmt.Sprintf("fd%x:%x:%x::/48", r[0:1], r[1:3], r[3:5])})
	}
	if g.String("dhcp_default_duid", "") == "auto" {
		// RFC 6355: type 4, a UUID.
		u := random(16)
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		changes = append(changes, uci.Change{Op: uci.Set, Section: "globals", Option: "dhcp_default_duid", Value: fmt.Sprintf("0004%x", u)})
	}
	if len(changes) == 0 {
		return nil
	}
	if err := tree.Stage("network", changes...); err != nil {
		return fmt.Errorf("make an ULA prefix: %w", err)
	}
	return tree.Commit("network")
}

// random does not wait for the kernel's generator: these ids must differ
// between devices, nobody must be kept from guessing them, and a virtual
// machine without a source of randomness would stand still for seconds.
func random(n int) []byte {
	b := make([]byte, n)
	if _, err := unix.Getrandom(b, unix.GRND_INSECURE); err != nil {
		unix.Getrandom(b, 0) // before Linux 5.6
	}
	return b
}

// writeFile replaces a file durably: a power cut leaves the old one or the new
// one.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("bring %s to the medium: %w", dir, err)
	}
	return nil
}
