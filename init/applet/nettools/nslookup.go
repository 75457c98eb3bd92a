package nettools

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"weft/init/applet/options"
	"weft/init/unit"
)

const nslookupUsage = `[-type=TYPE] [-port=N] [-timeout=SECONDS] NAME|ADDRESS [SERVER]
Ask a name server (RFC 1035), the ones of /etc/resolv.conf where none is named.
TYPE is a, aaaa, mx, ns, ptr, soa, srv, txt or any other (default a and aaaa).
Exit code 0: answers came; 1: none.
Example: nslookup -type=mx example.org 192.168.1.1`

// Nslookup asks name servers, first over UDP, over TCP where the answer is cut.
func Nslookup(ctx context.Context, c *unit.Call) int {
	var types []uint16
	port, timeout := "53", 5*time.Second
	short := *c
	short.Args = c.Args[:1:1]
	for _, a := range c.Args[1:] {
		key, value, ok := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || !ok {
			short.Args = append(short.Args, a)
			continue
		}
		switch strings.ToLower(key) {
		case "type", "query", "querytype", "q":
			t, known := dns.StringToType[strings.ToUpper(value)]
			if !known {
				fmt.Fprintf(c.Stderr, "nslookup: %q is not a record type (example: -type=mx)\n", value)
				return 2
			}
			types = append(types, t)
		case "port":
			port = value
		case "timeout":
			d, err := seconds(value)
			if err != nil {
				fmt.Fprintf(c.Stderr, "nslookup: -timeout: %v\n", err)
				return 2
			}
			timeout = d
		default:
			short.Args = append(short.Args, a)
		}
	}
	o, code := options.Parse(&short, "", nslookupUsage)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, 2); code >= 0 {
		return code
	}
	name := o.Args[0]
	if net.ParseIP(name) != nil {
		name, _ = dns.ReverseAddr(name)
		if len(types) == 0 {
			types = []uint16{dns.TypePTR}
		}
	}
	if len(types) == 0 {
		types = []uint16{dns.TypeA, dns.TypeAAAA}
	}
	var servers []string
	suffixes := []string{""}
	if conf, err := dns.ClientConfigFromFile("/etc/resolv.conf"); err == nil {
		servers = conf.Servers
		if !strings.Contains(name, ".") {
			suffixes = append(slices.Clone(conf.Search), "")
		}
	}
	if len(o.Args) == 2 {
		servers = []string{o.Args[1]}
	}
	if len(servers) == 0 {
		fmt.Fprintln(c.Stderr, "nslookup: no name server: /etc/resolv.conf names none; name one as second argument")
		return 1
	}
	var last error
	for _, server := range servers {
		client := asker{addr: net.JoinHostPort(server, port), timeout: timeout}
		for _, suffix := range suffixes {
			fqdn := dns.Fqdn(name)
			if suffix != "" {
				fqdn = dns.Fqdn(strings.TrimSuffix(name, ".") + "." + suffix)
			}
			found, err := client.ask(ctx, c, server, fqdn, types)
			if err != nil {
				last = err
				break // the next server
			}
			if found {
				return 0
			}
			last = nil
		}
		if last == nil {
			fmt.Fprintf(c.Stderr, "nslookup: %s has no such records for %s\n", server, name)
			return 1
		}
		fmt.Fprintf(c.Stderr, "nslookup: ask %s: %v\n", server, last)
	}
	return 1
}

type asker struct {
	addr    string
	timeout time.Duration
}

// ask prints the answers for a name. An error means that the server is of no use.
func (a asker) ask(ctx context.Context, c *unit.Call, server, name string, types []uint16) (found bool, err error) {
	header := false
	for _, t := range types {
		m := new(dns.Msg).SetQuestion(name, t)
		m.SetEdns0(1232, false)
		client := dns.Client{Timeout: a.timeout}
		in, _, err := client.ExchangeContext(ctx, m, a.addr)
		if err == nil && in.Truncated {
			client.Net = "tcp"
			in, _, err = client.ExchangeContext(ctx, m, a.addr)
		}
		if err != nil {
			return found, err
		}
		if in.Rcode == dns.RcodeNameError {
			return false, nil
		}
		if in.Rcode != dns.RcodeSuccess {
			return false, fmt.Errorf("the server answers %s", dns.RcodeToString[in.Rcode])
		}
		for _, rr := range in.Answer {
			if !header {
				fmt.Fprintf(c.Stdout, "Server:\t\t%s\nAddress:\t%s\n\n", server, a.addr)
				header = true
			}
			found = true
			owner := strings.TrimSuffix(rr.Header().Name, ".")
			switch r := rr.(type) {
			case *dns.A:
				fmt.Fprintf(c.Stdout, "Name:\t%s\nAddress: %s\n", owner, r.A)
			case *dns.AAAA:
				fmt.Fprintf(c.Stdout, "Name:\t%s\nAddress: %s\n", owner, r.AAAA)
			default:
				text := strings.TrimPrefix(rr.String(), rr.Header().String())
				fmt.Fprintf(c.Stdout, "%s\t%s = %s\n", owner, dns.TypeToString[rr.Header().Rrtype], text)
			}
		}
	}
	return found, nil
}
