package rescue

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fallbackAddress is LEDE's.
const fallbackAddress = "192.168.1.1/24"

// Times of the DHCP client: the first port is asked about for a while, and a
// server that answers late is met on the others.
const (
	dhcpWait   = 3 * time.Second
	dhcpTries  = 3
	dhcpPause  = 10 * time.Second
	linkWait   = 5 * time.Second
	minRenewal = 30 * time.Second
)

// network gives every Ethernet port an address until ctx ends, and says what it
// did.
func (r *system) network(ctx context.Context) {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := netlink.LinkSetUp(lo); err != nil {
			r.say("lo: %v", err)
		}
	}
	ports, err := ports("/sys/class/net")
	if err != nil || len(ports) == 0 {
		r.say("no Ethernet port: is its driver in the image? %v", err)
		return
	}
	for n, p := range ports {
		r.jobs.Go(func() { r.port(ctx, p, n == 0) })
	}
}

// ports lists the Ethernet ports by the order of their names: the kernel's, in
// which their drivers found them.
func ports(sys string) ([]string, error) {
	entries, err := os.ReadDir(sys)
	if err != nil {
		return nil, fmt.Errorf("list the network ports: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(sys, e.Name(), "device")); err != nil {
			continue // not a device: lo, a tunnel
		}
		if t, err := os.ReadFile(filepath.Join(sys, e.Name(), "type")); err != nil || strings.TrimSpace(string(t)) != "1" {
			continue // ARPHRD_ETHER
		}
		names = append(names, e.Name())
	}
	sort.Slice(names, func(i, j int) bool {
		if len(names[i]) != len(names[j]) {
			return len(names[i]) < len(names[j]) // eth2 before eth10
		}
		return names[i] < names[j]
	})
	return names, nil
}

// port serves one port.
func (r *system) port(ctx context.Context, name string, first bool) {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		r.say("%s: %v", name, err)
		return
	}
	tries := 0
	for ctx.Err() == nil {
		wait, err := r.lease(ctx, link)
		if err == nil {
			first = false
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		tries++
		if first && tries >= dhcpTries {
			addr, err := netlink.ParseAddr(fallbackAddress)
			if err == nil {
				err = netlink.AddrReplace(link, addr)
			}
			if err != nil {
				r.say("%s: give it %s: %v", name, fallbackAddress, err)
				return
			}
			r.say("%s has %s (no answer to DHCP)", name, fallbackAddress)
			return
		}
		if !first && !sleep(ctx, dhcpPause) {
			return
		}
	}
}

// lease asks for an address once, sets it and returns when to ask again.
func (r *system) lease(ctx context.Context, link netlink.Link) (time.Duration, error) {
	name := link.Attrs().Name
	c, err := nclient4.New(name, nclient4.WithTimeout(dhcpWait), nclient4.WithRetry(1))
	if err != nil {
		sleep(ctx, time.Second)
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	defer c.Close()
	l, err := c.Request(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	mask := l.ACK.SubnetMask()
	if ones, bits := mask.Size(); bits != 32 || ones == 0 || l.ACK.YourIPAddr.To4() == nil {
		return 0, fmt.Errorf("%s: the server gave no usable address", name)
	}
	address := &net.IPNet{IP: l.ACK.YourIPAddr.To4(), Mask: mask}
	seconds := l.ACK.IPAddressLeaseTime(time.Hour)
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: address}); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	text := ""
	if gw := l.ACK.Router(); len(gw) > 0 {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw[0], Priority: 100 + link.Attrs().Index}
		if err := netlink.RouteReplace(route); err != nil && !errors.Is(err, unix.EEXIST) {
			r.say("%s: default route: %v", name, err)
		}
		text = ", gateway " + gw[0].String()
	}
	r.sayOnce("lease "+name+address.String(), "%s has %s (DHCP%s)", name, address, text)
	return max(seconds/2, minRenewal), nil
}

// sleep waits and says whether ctx still runs.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
