package sshd

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
)

const (
	defaultPort = 22
	// defaultKeepAlive and defaultTries are those of LEDE's Dropbear.
	defaultKeepAlive = 300 * time.Second
	defaultTries     = 3
	// maxBanner bounds what is shown before the login, in bytes.
	maxBanner = 8 << 10
)

// instance is one section of the package dropbear.
type instance struct {
	name            string
	port            uint16
	network         string // interface whose addresses are listened on; "": all
	device          string // device that is listened on; "": all
	passwords       bool
	rootPasswords   bool
	rootLogin       bool
	gatewayPorts    bool
	keyFiles        []string
	banner          string // file
	idle, keepAlive time.Duration
	tries           int
	force           string // command that runs instead of any other
}

// settings reads the package dropbear. Faults are told one by one; a section with
// a fault in a value works with the default.
func settings(p *uci.Package) (list []*instance, faults []error) {
	for _, s := range p.SectionsOfType("dropbear") {
		r := reader{sec: s}
		i := &instance{
			name: s.Name, network: r.text("Interface"), device: r.text("DirectInterface"),
			passwords: r.flag("PasswordAuth", true), rootPasswords: r.flag("RootPasswordAuth", true), rootLogin: r.flag("RootLogin", true),
			gatewayPorts: r.flag("GatewayPorts", false), banner: r.text("BannerFile"), force: r.text("ForceCommand"),
			port: uint16(r.number("Port", defaultPort, 1, 65535)), tries: int(r.number("MaxAuthTries", defaultTries, 1, 50)),
			idle: r.seconds("IdleTimeout", 0), keepAlive: r.seconds("SSHKeepAlive", defaultKeepAlive),
		}
		i.keyFiles = append(r.list("keyfile"), r.list("rsakeyfile")...)
		enabled := r.flag("enable", true)
		faults = append(faults, r.faults...)
		if enabled {
			list = append(list, i)
		}
	}
	return list, faults
}

// reader reads the options of a section.
type reader struct {
	sec    *uci.Section
	faults []error
}

func (r *reader) text(name string) string { return r.sec.String(name, "") }

func (r *reader) list(name string) []string {
	o := r.sec.Option(name)
	if o == nil {
		return nil
	}
	if o.IsList {
		return slices.Clone(o.Values)
	}
	return strings.Fields(o.Values[0])
}

func (r *reader) fault(name, value, want string) {
	r.faults = append(r.faults, fmt.Errorf("dropbear.%s.%s: %q: %s was expected; the default is used", r.sec.Name, name, value, want))
}

func (r *reader) flag(name string, def bool) bool {
	switch v := strings.ToLower(r.text(name)); v {
	case "":
		return def
	case "1", "on", "true", "yes", "enabled":
		return true
	case "0", "off", "false", "no", "disabled":
		return false
	default:
		r.fault(name, v, "on or off")
		return def
	}
}

func (r *reader) number(name string, def, low, high uint64) uint64 {
	v := r.text(name)
	if v == "" {
		return def
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n < low || n > high {
		r.fault(name, v, fmt.Sprintf("a number from %d to %d", low, high))
		return def
	}
	return n
}

func (r *reader) seconds(name string, def time.Duration) time.Duration {
	return time.Duration(r.number(name, uint64(def/time.Second), 0, 1<<24)) * time.Second
}

// readBanner is the text of a banner file, "" without one.
func readBanner(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("banner: %w", err)
	}
	defer f.Close()
	b := make([]byte, maxBanner)
	n, err := f.Read(b)
	if n == 0 && err != nil {
		return "", fmt.Errorf("banner: %w", err)
	}
	return strings.ToValidUTF8(string(b[:n]), "?"), nil
}
