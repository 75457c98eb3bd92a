package dhcp

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a server for everything outside, in the router's namespace.
type upstream struct {
	addr  string
	asked atomic.Int64
}

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return r
}

// newUpstream answers from records; other names do not exist. Silent names get
// no answer.
func newUpstream(l *lab, records ...string) *upstream {
	l.Helper()
	u := &upstream{}
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	l.must(err)
	u.addr = pc.LocalAddr().String()
	ln, err := net.Listen("tcp4", u.addr)
	l.must(err)
	var rrs []dns.RR
	for _, r := range records {
		rrs = append(rrs, rr(r))
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		ask := q.Question[0]
		if strings.HasPrefix(ask.Name, "silent.") {
			return
		}
		known := false
		for _, r := range rrs {
			if strings.EqualFold(r.Header().Name, ask.Name) {
				known = true
				if r.Header().Rrtype == ask.Qtype || r.Header().Rrtype == dns.TypeCNAME {
					m.Answer = append(m.Answer, dns.Copy(r))
				}
			}
		}
		if len(m.Answer) == 0 {
			m.Ns = []dns.RR{rr("example.net. 300 IN SOA ns.example.net. root.example.net. 1 3600 600 86400 300")}
			if !known {
				m.Rcode = dns.RcodeNameError
			}
		}
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(1232, o.Do())
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			size := 512
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
			m.Truncate(size)
		}
		_ = w.WriteMsg(m) // who does not get it asks again
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() { defer close(done); _ = s.ActivateAndServe() }()
		l.await("the upstream server", started)
		l.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
	return u
}

// option is the server in the form of /etc/config/dhcp.
func (u *upstream) option() string {
	host, port, _ := net.SplitHostPort(u.addr)
	return fmt.Sprintf("option noresolv '1'\n\tlist server '%s#%s'\n", host, port)
}

var outside = []string{
	"www.example.net. 300 IN A 9.51.100.10",
	"www.example.net. 300 IN AAAA 2a00:8::10",
	"alias.example.net. 300 IN CNAME www.example.net.",
	"mail.example.net. 300 IN MX 10 mx.example.net.",
	"evil.example.net. 300 IN A 192.168.1.5",
	"evil6.example.net. 300 IN AAAA fd00::5",
	"local.example.net. 300 IN A 127.0.0.1",
	"doc.example.net. 300 IN A 203.0.113.4",
	"house.trusted.net. 300 IN A 192.168.9.9",
	"text.example.net. 300 IN TXT \"hello\"",
	"plain. 300 IN A 9.51.100.99",
	"ads.blocked.net. 300 IN A 9.51.100.66",
	"4.3.2.1.in-addr.arpa. 300 IN PTR four.example.net.",
	"5.9.168.192.in-addr.arpa. 300 IN PTR leak.example.net.",
}

// dnsSettings are the same for us and for dnsmasq.
const dnsOptions = `
	list rebind_domain 'trusted.net'
	list address '/blocked.net/203.0.113.1'
	list address '/gone.net/'
	list server '/onlylocal.net/'
`

const dnsSections = `
config domain
	option name 'printer'
	option ip '192.168.1.20'

config domain
	option name 'nas.example.net'
	option ip '192.168.1.21'

config cname
	option cname 'files.lan'
	option target 'printer.lan'

config mxhost
	option domain 'house.lan'
	option relay 'mail.lan'
	option pref '5'

config srvhost
	option srv '_sip._udp.lan'
	option target 'printer.lan'
	option port '5060'
	option class '1'
	option weight '2'
`

// ask asks a server for the rcode and the sorted answers.
func ask(l *lab, server, name string, qtype uint16) string {
	l.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.SetEdns0(1232, false)
	var r *dns.Msg
	l.eventually("an answer of "+server+" about "+name, func() bool {
		c := dns.Client{Timeout: 10 * time.Second}
		var err error
		r, _, err = c.Exchange(m, server)
		return err == nil
	})
	var out []string
	for _, a := range r.Answer {
		a.Header().Ttl = 0
		out = append(out, strings.Join(strings.Fields(strings.ToLower(a.String())), " "))
	}
	slices.Sort(out)
	return dns.RcodeToString[r.Rcode] + " " + strings.Join(out, " | ")
}

// TestLikeDnsmasq asks us and dnsmasq the same and compares.
func TestLikeDnsmasq(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	dnsmasq := l.judge("dnsmasq", "dnsmasq-base")
	u := newUpstream(l, outside...)
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, u.option()+dnsOptions, "")+dnsSections)
	l.file("state/hosts/extra", "192.168.1.30 tv tv.other.lan\n192.168.1.31\tfridge # cold\nfd00:1::31 fridge\nnonsense line\n")
	l.start()
	hosts := l.file("hosts", "192.168.1.30 tv tv.other.lan\n192.168.1.31 fridge\nfd00:1::31 fridge\n192.168.1.1 router.lan router\n")
	host, port, _ := net.SplitHostPort(u.addr)
	cmd := exec.Command(dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--user=", "--pid-file="+filepath.Join(l.dir, "pid"), "--port=5354", "--no-resolv",
		"--no-hosts", "--addn-hosts="+hosts, "--server="+host+"#"+port, "--domain-needed", "--bogus-priv", "--localise-queries", "--stop-dns-rebind", "--rebind-localhost-ok",
		"--local=/lan/", "--domain=lan", "--expand-hosts", "--rebind-domain-ok=/trusted.net/", "--address=/blocked.net/203.0.113.1", "--address=/gone.net/", "--local=/onlylocal.net/",
		"--host-record=printer.lan,printer,192.168.1.20", "--host-record=nas.example.net,192.168.1.21", "--cname=files.lan,printer.lan", "--mx-host=house.lan,mail.lan,5",
		"--srv-host=_sip._udp.lan,printer.lan,5060,1,2", "--local=/test/", "--local=/invalid/", "--local=/onion/", "--bind-interfaces", "--listen-address=127.0.0.1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = l.log
	l.must(cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for _, q := range []struct {
		name string
		t    uint16
	}{
		{"www.example.net.", dns.TypeA}, {"www.example.net.", dns.TypeAAAA}, {"WWW.Example.NET.", dns.TypeA}, {"www.example.net.", dns.TypeTXT},
		{"alias.example.net.", dns.TypeA}, {"mail.example.net.", dns.TypeMX}, {"text.example.net.", dns.TypeTXT}, {"missing.example.net.", dns.TypeA},
		{"plain.", dns.TypeA}, {"plain.", dns.TypeAAAA}, {"tv.", dns.TypeA}, {"tv.lan.", dns.TypeA}, {"tv.other.lan.", dns.TypeA}, {"TV.LAN.", dns.TypeA},
		{"tv.lan.", dns.TypeAAAA}, {"fridge.lan.", dns.TypeAAAA}, {"nobody.lan.", dns.TypeA}, {"lan.", dns.TypeA},
		{"printer.lan.", dns.TypeA}, {"printer.", dns.TypeA}, {"nas.example.net.", dns.TypeA}, {"files.lan.", dns.TypeA}, {"files.lan.", dns.TypeCNAME},
		{"house.lan.", dns.TypeMX}, {"_sip._udp.lan.", dns.TypeSRV}, {"router.lan.", dns.TypeA},
		{"ads.blocked.net.", dns.TypeA}, {"blocked.net.", dns.TypeA}, {"ads.blocked.net.", dns.TypeAAAA}, {"x.gone.net.", dns.TypeA}, {"a.onlylocal.net.", dns.TypeA},
		{"30.1.168.192.in-addr.arpa.", dns.TypePTR}, {"31.1.168.192.in-addr.arpa.", dns.TypePTR}, {"20.1.168.192.in-addr.arpa.", dns.TypePTR},
		{"5.9.168.192.in-addr.arpa.", dns.TypePTR}, {"4.3.2.1.in-addr.arpa.", dns.TypePTR}, {"1.0.0.10.in-addr.arpa.", dns.TypePTR}, {"168.192.in-addr.arpa.", dns.TypePTR},
		{"house.trusted.net.", dns.TypeA}, {"local.example.net.", dns.TypeA}, {"something.test.", dns.TypeA}, {"hidden.onion.", dns.TypeA},
	} {
		ours, theirs := ask(l, "127.0.0.1:53", q.name, q.t), ask(l, "127.0.0.1:5354", q.name, q.t)
		if ours != theirs {
			t.Errorf("%s %s: we say %q, dnsmasq says %q", q.name, dns.TypeToString[q.t], ours, theirs)
		}
	}
	// Answers that lead into the house have no address; dnsmasq's rcode for
	// them has changed over its versions.
	for _, name := range []string{"evil.example.net.", "evil6.example.net.", "doc.example.net."} {
		for _, qt := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if got := ask(l, "127.0.0.1:53", name, qt); strings.Contains(got, "192.168.") || strings.Contains(got, "fd00") || strings.Contains(got, "203.0") {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
}

func TestDNS(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	big := outside
	for i := range 60 {
		big = append(big, fmt.Sprintf("big.example.net. 300 IN A 9.51.100.%d", i+1))
	}
	u := newUpstream(l, big...)
	second := newUpstream(l, "www.corp.example. 60 IN A 9.51.100.77")
	host, port, _ := net.SplitHostPort(second.addr)
	l.config("network", networkConfig)
	conf := fmt.Sprintf(lanConfig, u.option()+fmt.Sprintf("\tlist server '/corp.example/%s#%s'\n", host, port), "")
	l.config("dhcp", conf)
	l.inClient("ip", "addr", "add", "192.168.1.10/24", "dev", "cli0")
	l.start()
	for _, args := range [][]string{{"@192.168.1.1"}, {"@192.168.1.1", "+tcp"}, {"@fd00:1::1"}, {"@fd00:1::1", "+tcp"}} {
		if args[0] == "@fd00:1::1" {
			l.inClient("ip", "addr", "replace", "fd00:1::10/64", "dev", "cli0", "nodad")
		}
		if got := l.dig(append(args, "www.example.net")...); got != "9.51.100.10" {
			t.Errorf("dig %v: %q", args, got)
		}
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times for one name", n)
	}
	if got := l.dig("@192.168.1.1", "www.corp.example"); got != "9.51.100.77" {
		t.Errorf("a domain with a server of its own: %q", got)
	}
	// Too long for UDP: dig sees TC and asks by TCP.
	if got := l.dig("@192.168.1.1", "+bufsize=512", "big.example.net"); strings.Count(got, "\n") != 59 {
		t.Errorf("a long answer has %d lines, want 60", strings.Count(got, "\n")+1)
	}
	dig := l.judge("dig", "bind9-dnsutils")
	if got := l.inClient(dig, "@192.168.1.1", "+ignore", "+notcp", "+bufsize=512", "+tries=5", "big.example.net"); !strings.Contains(got, "flags: qr tc rd") {
		t.Errorf("a long answer by UDP is not marked as cut:\n%s", got)
	}
	// A reload keeps the cache and the names of the sockets.
	before := u.asked.Load()
	l.config("dhcp", conf+"\nconfig domain\n\toption name 'new.example.net'\n\toption ip '192.168.1.99'\n")
	l.reload()
	if got := l.dig("@192.168.1.1", "www.example.net"); got != "9.51.100.10" || u.asked.Load() != before {
		t.Errorf("after a reload: %q, asked %d times more", got, u.asked.Load()-before)
	}
	if got := l.dig("@192.168.1.1", "new.example.net"); got != "192.168.1.99" {
		t.Errorf("a name that was added: %q", got)
	}
	// Who is not of the LAN gets nothing.
	l.inClient("ip", "addr", "add", "10.9.9.9/24", "dev", "cli0")
	l.inClient("ip", "route", "add", "192.168.1.1", "dev", "cli0", "src", "10.9.9.9")
	l.must(exec.Command("ip", "route", "add", "10.9.9.0/24", "dev", "br-lan").Run())
	if out, err := l.clientCmd(dig, "@192.168.1.1", "-b", "10.9.9.9", "+tries=1", "+time=1", "www.example.net").CombinedOutput(); err == nil {
		t.Errorf("a stranger was answered:\n%s", out)
	}
}
