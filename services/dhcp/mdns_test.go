package dhcp

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

var mdnsGroup = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}

// mdnsSocket is a member of the group on the clients' end of the cable.
func mdnsSocket() (*net.UDPConn, error) {
	ifi, err := net.InterfaceByName("cli0")
	if err != nil {
		return nil, err
	}
	c, err := net.ListenMulticastUDP("udp4", ifi, mdnsGroup)
	if err != nil {
		return nil, err
	}
	return c, ipv4.NewPacketConn(c).SetMulticastInterface(ifi)
}

// resolve asks by multicast until there is an answer, and prints it. Arguments:
// the name, the type, and legacy to ask as a resolver of unicast DNS does.
func resolve(args []string) error {
	qtype, ok := dns.StringToType[args[1]]
	if !ok {
		return fmt.Errorf("no type %s", args[1])
	}
	c, err := mdnsSocket()
	if err != nil {
		return err
	}
	defer c.Close()
	legacy := len(args) > 2
	if legacy {
		c.Close()
		if c, err = net.ListenUDP("udp4", &net.UDPAddr{}); err != nil {
			return err
		}
		ifi, err := net.InterfaceByName("cli0")
		if err != nil {
			return err
		}
		if err := ipv4.NewPacketConn(c).SetMulticastInterface(ifi); err != nil {
			return err
		}
	}
	q := new(dns.Msg)
	q.SetQuestion(args[0], qtype)
	q.RecursionDesired = false
	b, err := q.Pack()
	if err != nil {
		return err
	}
	buf := make([]byte, 9000)
	for range 40 {
		if _, err := c.WriteTo(b, mdnsGroup); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, _, err := c.ReadFromUDP(buf)
			if err != nil {
				break
			}
			var m dns.Msg
			if m.Unpack(buf[:n]) != nil || !m.Response || legacy && m.Id != q.Id {
				continue
			}
			for _, rr := range m.Answer {
				if strings.EqualFold(rr.Header().Name, args[0]) && rr.Header().Rrtype == qtype && rr.Header().Ttl > 0 {
					rr.Header().Class &^= 1 << 15
					fmt.Println(strings.Join(strings.Fields(rr.String()), " "))
					return nil
				}
			}
		}
	}
	return errors.New("nobody has answered")
}

// squat has the name router.local already, until its input ends.
func squat([]string) error {
	c, err := mdnsSocket()
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Println("ready")
	buf := make([]byte, 9000)
	for {
		n, _, err := c.ReadFromUDP(buf)
		if err != nil {
			return err
		}
		var m dns.Msg
		if m.Unpack(buf[:n]) != nil || m.Response || len(m.Question) != 1 || m.Question[0].Name != "router.local." {
			continue
		}
		a := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}}
		a.Answer = []dns.RR{rr("router.local. 120 IN A 192.168.1.200")}
		b, err := a.Pack()
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, mdnsGroup); err != nil {
			return err
		}
	}
}

func TestMDNS(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, "", ""))
	l.inClient("ip", "addr", "add", "192.168.1.10/24", "dev", "cli0")
	l.start()
	if got := strings.TrimSpace(l.clientHelper("resolve", "router.local.", "A")); got != "router.local. 120 IN A 192.168.1.1" {
		t.Errorf("router.local is %q", got)
	}
	if got := l.clientHelper("resolve", "router.local.", "AAAA"); !strings.Contains(got, "AAAA f") {
		t.Errorf("router.local is %q", got)
	}
	if got := strings.TrimSpace(l.clientHelper("resolve", "router.local.", "A", "legacy")); got != "router.local. 10 IN A 192.168.1.1" {
		t.Errorf("router.local for an old resolver is %q", got)
	}
	if got := strings.TrimSpace(l.clientHelper("resolve", "1.1.168.192.in-addr.arpa.", "PTR")); got != "1.1.168.192.in-addr.arpa. 120 IN PTR router.local." {
		t.Errorf("the name of 192.168.1.1 is %q", got)
	}
	l.shutdown()

	// Somebody has the name: ours gets a number.
	other := l.clientSelf("squat")
	out, err := other.StdoutPipe()
	l.must(err)
	l.must(other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	l.start()
	if got := strings.TrimSpace(l.clientHelper("resolve", "router-2.local.", "A")); got != "router-2.local. 120 IN A 192.168.1.1" {
		t.Errorf("router-2.local is %q", got)
	}
}
