package synhold

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/transparent"
)

// tun is a TUN device into which packets are written as if they had arrived.
type tun struct{ fd int }

// openTUN makes the device and brings it up. It is gone with its descriptor.
func openTUN(name string) (*tun, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun (is the module tun there?): %w", err)
	}
	if err := setUp(fd, name); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making the TUN device %s: %w", name, err)
	}
	return &tun{fd}, nil
}

func setUp(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF (does another process use that name?): %w", err)
	}
	for file, value := range map[string]string{
		// What comes from here has the source address of a host behind another device.
		"ipv4/conf/" + name + "/rp_filter": "2",
		// No link-local address, and so no packets of its own.
		"ipv6/conf/" + name + "/addr_gen_mode": "1",
	} {
		if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("setting net/%s: %w", file, err)
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	// Source addresses of other devices pass the loose check only on a device that
	// has an address itself. This one is for that: RFC 7600 section 4.8.
	err = h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 0, 8).To4(), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_LINK})
	if err != nil {
		return fmt.Errorf("giving it an address: %w", err)
	}
	return h.LinkSetUp(link)
}

// write puts a packet into the IP stack.
func (t *tun) write(packet []byte) error {
	_, err := unix.Write(t.fd, packet)
	return err
}

func (t *tun) close() { unix.Close(t.fd) }

// raw sends whole IP packets with whatever source address.
type raw struct{ v4, v6 int }

func openRaw() (*raw, error) {
	r := &raw{-1, -1}
	var err error
	if r.v4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("opening a raw socket (needs CAP_NET_RAW): %w", err)
	}
	r.v6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		r.close()
		return nil, fmt.Errorf("opening a raw IPv6 socket (needs CAP_NET_RAW): %w", err)
	}
	return r, nil
}

func (r *raw) close() {
	for _, fd := range []int{r.v4, r.v6} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (r *raw) send(packet []byte, to netip.Addr) error {
	if to.Is4() {
		return unix.Sendto(r.v4, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
	}
	return unix.Sendto(r.v6, packet, 0, &unix.SockaddrInet6{Addr: to.As16()})
}

// own is the address by which this gateway speaks with a client; its ICMP errors
// come from there.
func own(client netip.Addr) netip.Addr { return transparent.LocalAddr(client) }
