package uhttpd

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
)

// instance is one section uhttpd.
type instance struct {
	name        string
	http, https []string // addresses with port; a port alone: all addresses
	redirect    bool     // http to https
	home        string
	certFile    string
	keyFile     string
	filter      bool // rfc1918_filter
	maxRequests int
	maxConns    int
	script      time.Duration // a call on the bus may take
	network     time.Duration // nothing may stand still for longer
	keepAlive   time.Duration // of a connection without a request; 0: none
	tcpKeep     time.Duration // between TCP keep-alive probes; 0: none
	prefix      string        // of JSON-RPC, "": none
	cors        bool
	noDirs      bool
	noLinks     bool
	index       []string
	errorPage   string
}

// certificate says what a new certificate has (section cert defaults).
type certificate struct {
	days                                               int
	kind                                               string // ec or rsa
	bits                                               int
	curve                                              string
	country, state, location, organization, commonName string
}

// settings reads the package uhttpd. A value that makes no sense is told, and the
// default is used.
func settings(p *uci.Package) (list []*instance, cert certificate, faults []error) {
	r := &reader{}
	for _, s := range p.SectionsOfType("uhttpd") {
		r.sec = s
		i := &instance{
			name: s.Name, http: r.list("listen_http"), https: r.list("listen_https"), redirect: r.flag("redirect_https", false),
			home: r.text("home", "/www"), certFile: r.text("cert", "/etc/uhttpd.crt"), keyFile: r.text("key", "/etc/uhttpd.key"),
			filter: r.flag("rfc1918_filter", false), maxRequests: r.number("max_requests", 3, 1, 1000), maxConns: r.number("max_connections", 100, 1, 10000),
			script: r.seconds("script_timeout", 60), network: r.seconds("network_timeout", 30), keepAlive: r.seconds("http_keepalive", 20),
			tcpKeep: r.seconds("tcp_keepalive", 1), prefix: strings.TrimRight(r.text("ubus_prefix", ""), "/"), cors: r.flag("ubus_cors", false),
			noDirs: r.flag("no_dirlists", false), noLinks: r.flag("no_symlinks", false), index: r.list("index_page"), errorPage: r.text("error_page", ""),
		}
		if len(i.index) == 0 {
			i.index = []string{"index.html", "index.htm", "default.html", "default.htm"}
		}
		if i.prefix != "" && i.prefix[0] != '/' {
			i.prefix = "/" + i.prefix
		}
		if i.script == 0 {
			i.script = time.Second
		}
		if i.network == 0 {
			i.network = time.Second
		}
		list = append(list, i)
	}
	cert = certificate{days: 397, kind: "ec", bits: 2048, curve: "P-256", country: "ZZ", state: "Somewhere", location: "Unknown", commonName: "Weft"}
	if all := p.SectionsOfType("cert"); len(all) > 0 {
		r.sec = all[0]
		cert.days = r.number("days", cert.days, 1, 36500)
		cert.kind = r.text("key_type", cert.kind)
		cert.bits = r.number("bits", cert.bits, 2048, 4096)
		cert.curve = r.text("ec_curve", cert.curve)
		cert.country, cert.state = r.text("country", cert.country), r.text("state", cert.state)
		cert.location, cert.organization = r.text("location", cert.location), r.text("organization", "")
		cert.commonName = r.text("commonname", cert.commonName)
	}
	return list, cert, r.faults
}

// reader reads the options of a section.
type reader struct {
	sec    *uci.Section
	faults []error
}

func (r *reader) text(name, def string) string { return r.sec.String(name, def) }

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
	r.faults = append(r.faults, fmt.Errorf("uhttpd.%s.%s: %q: %s was expected; the default is used", r.sec.Name, name, value, want))
}

func (r *reader) flag(name string, def bool) bool {
	switch v := strings.ToLower(r.text(name, "")); v {
	case "":
		return def
	case "1", "on", "true", "yes", "enabled":
		return true
	case "0", "off", "false", "no", "disabled":
		return false
	default:
		r.fault(name, v, "1 or 0")
		return def
	}
}

func (r *reader) number(name string, def, low, high int) int {
	v := r.text(name, "")
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		r.fault(name, v, fmt.Sprintf("a number from %d to %d", low, high))
		return def
	}
	return n
}

func (r *reader) seconds(name string, def int) time.Duration {
	return time.Duration(r.number(name, def, 0, 3600)) * time.Second
}

// address is a socket to listen on.
type address struct{ network, addr string }

// addresses reads one entry of listen_http or listen_https.
func addresses(s string) ([]address, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = "", s
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("listen on %q: ADDRESS:PORT, [ADDRESS]:PORT or PORT was expected", s)
	}
	if host == "" {
		return []address{{"tcp4", "0.0.0.0:" + port}, {"tcp6", "[::]:" + port}}, nil
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return nil, fmt.Errorf("listen on %q: an address was expected, not a name", s)
	}
	network := "tcp6"
	if ip.To4() != nil {
		network = "tcp4"
	}
	return []address{{network, net.JoinHostPort(host, port)}}, nil
}
