package stage1

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/stage1/kmod"
)

// failsafeAddress is LEDE's.
const (
	failsafeAddress = "192.168.1.1/24"
	failsafeName    = "Weft-failsafe"
)

// enterFailsafe makes the squashfs alone the root: nothing of the overlay, which
// may be what is broken, is read or mounted.
func (b *boot) enterFailsafe() error {
	b.say(slog.LevelWarn, "failsafe mode: %s", b.reason)
	b.hand.Failsafe, b.hand.FailsafeReason = true, b.reason
	if err := os.WriteFile("/tmp/failsafe", nil, 0o644); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	if err := unix.Sethostname([]byte(failsafeName)); err != nil {
		b.say(slog.LevelWarn, "set the host name: %v", err)
	}
	if err := loadNetworkDrivers(romDir); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	port, err := failsafeNetwork(firstPort(romDir + "/etc/board.json"))
	if err != nil {
		b.say(slog.LevelWarn, "failsafe: no network: %v", err)
	} else {
		b.say(slog.LevelInfo, `failsafe: %s has %s; "mount_root" mounts the overlay`, port, failsafeAddress)
	}
	return b.enter(romDir)
}

// loadNetworkDrivers loads the drivers of what the machine has from the root
// file system, one after the other in the order of the slots, so that network
// interfaces get the same names at every boot.
func loadNetworkDrivers(root string) error {
	set, err := kmod.Open(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // everything is built in
	}
	if err != nil {
		return err
	}
	devices, err := kmod.Devices("/sys")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range set.Drivers(devices) {
		if set.Has(m) {
			errs = append(errs, set.Load(m, ""))
		}
	}
	return errors.Join(errs...)
}

// firstPort is the first LAN port that the image's board.json names, eth0
// without one.
func firstPort(boardJSON string) string {
	text, err := os.ReadFile(boardJSON)
	if err != nil {
		return "eth0"
	}
	var board struct {
		Network struct {
			LAN struct {
				Ports  []string `json:"ports"`
				Device string   `json:"device"`
			} `json:"lan"`
		} `json:"network"`
	}
	if err := json.Unmarshal(text, &board); err != nil {
		return "eth0"
	}
	if p := board.Network.LAN.Ports; len(p) > 0 {
		return p[0]
	}
	if d := board.Network.LAN.Device; d != "" {
		return d
	}
	return "eth0"
}

// failsafeNetwork gives the port, or the first Ethernet port there is, the
// address, and returns its name. The kernel keeps it; no service is needed.
func failsafeNetwork(port string) (string, error) {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := netlink.LinkSetUp(lo); err != nil {
			return "", fmt.Errorf("bring up lo: %w", err)
		}
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		links, listErr := netlink.LinkList()
		if listErr != nil {
			return "", fmt.Errorf("list network interfaces: %w", listErr)
		}
		link = nil
		for _, l := range links {
			if a := l.Attrs(); l.Type() == "device" && a.Flags&net.FlagLoopback == 0 && len(a.HardwareAddr) == 6 {
				link = l
				break
			}
		}
		if link == nil {
			return "", fmt.Errorf("there is neither %s nor another Ethernet port", port)
		}
	}
	name := link.Attrs().Name
	addr, err := netlink.ParseAddr(failsafeAddress)
	if err != nil {
		return "", err
	}
	if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("give %s the address %s: %w", name, failsafeAddress, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return "", fmt.Errorf("bring up %s: %w", name, err)
	}
	return name, nil
}
