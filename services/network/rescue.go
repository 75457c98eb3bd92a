package network

import (
	"encoding/json"
	"os"
	"strings"

	"weft/init/uci"
)

// rescueAddress is where a device is found whose configuration is of no use:
// the address that LEDE's preinit and failsafe mode have.
const rescueAddress = "192.168.1.1/24"

// usable tells whether a configuration leads to the device: an interface that
// can come up and is more than the loopback.
func (c *Config) usable() bool {
	for _, i := range c.Interfaces {
		if (i.Proto == "static" || i.Proto == "dhcp") && i.Device != "lo" && len(i.Problems) == 0 {
			return true
		}
	}
	return false
}

// rescueConfig is what a device without a usable configuration gets: the
// loopback, and rescueAddress on the first LAN port that board.json (as written
// by board_detect) names, on eth0 without one.
func rescueConfig(boardJSON string) *Config {
	var board struct {
		Network struct {
			LAN struct {
				Device string   `json:"device"`
				Ports  []string `json:"ports"`
			} `json:"lan"`
		} `json:"network"`
	}
	port := "eth0"
	if b, err := os.ReadFile(boardJSON); err == nil && json.Unmarshal(b, &board) == nil {
		switch lan := board.Network.LAN; {
		case lan.Device != "":
			port = lan.Device
		case len(lan.Ports) > 0:
			port = lan.Ports[0]
		}
	}
	text := "config interface loopback\n option device lo\n option proto static\n list ipaddr 127.0.0.1/8\n" +
		"config interface lan\n option device " + uci.Quote(port) + "\n option proto static\n list ipaddr " + rescueAddress + "\n"
	p, err := uci.Parse("network", strings.NewReader(text), true)
	if err == nil {
		if c := parseConfig(p, "", nil); c.usable() || boardJSON == "" {
			return c
		}
	}
	return rescueConfig("") // the name of the port is all that can be wrong
}
