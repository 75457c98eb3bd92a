package firstboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Board is board.json: LEDE's keys, as far as config_generate uses them.
type Board struct {
	Model         Model              `json:"model"`
	Network       map[string]Network `json:"network,omitempty"`
	NetworkDevice map[string]Device  `json:"network_device,omitempty"`
	System        *System            `json:"system,omitempty"`
}

// Model names the machine.
type Model struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Network is what the ports of a network are and how they get an address.
type Network struct {
	Ports    []string `json:"ports,omitempty"`
	Device   string   `json:"device,omitempty"`
	Protocol string   `json:"protocol,omitempty"`
	IPAddr   string   `json:"ipaddr,omitempty"`
	Netmask  string   `json:"netmask,omitempty"`
	MACAddr  string   `json:"macaddr,omitempty"`
}

// Device is a setting of one interface.
type Device struct {
	MACAddr string `json:"macaddr,omitempty"`
}

// System is the defaults for /etc/config/system.
type System struct {
	Hostname      string   `json:"hostname,omitempty"`
	CompatVersion string   `json:"compat_version,omitempty"`
	Timezone      string   `json:"timezone,omitempty"`
	NTPServer     []string `json:"ntpserver,omitempty"`
}

const (
	boardFile  = "etc/board.json"
	imageBoard = "usr/lib/weft/board.json"
	boardDir   = "etc/board.d"
	defaultsIn = "etc/uci-defaults"
)

// object is a JSON object whose unknown keys survive.
type object map[string]any

// detect is what can be said without anybody's help: the model, and LAN and WAN
// on the first two Ethernet ports (LEDE's 99-default_network).
func (s *Setup) detect() object {
	read := func(name string) string {
		b, err := os.ReadFile(s.path("tmp/sysinfo", name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	network := object{"lan": object{"device": "eth0", "protocol": "static"}}
	if _, err := os.Stat(s.path("sys/class/net/eth1")); err == nil {
		network["wan"] = object{"device": "eth1", "protocol": "dhcp"}
	}
	return object{
		"model":   object{"id": or(read("board_name"), "generic"), "name": or(read("model"), "Generic machine")},
		"network": network,
	}
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// merge puts the keys of from over those of into, objects key by key.
func merge(into, from object) {
	for k, v := range from {
		theirs, ok1 := v.(map[string]any)
		ours, ok2 := into[k].(object)
		if plain, ok := into[k].(map[string]any); ok && !ok2 {
			ours, ok2 = plain, true
		}
		if ok1 && ok2 {
			merge(ours, theirs)
			into[k] = ours
			continue
		}
		into[k] = v
	}
}

// boardDetect writes board.json, if it is missing or empty. It reports whether
// it did.
func (s *Setup) boardDetect() (bool, error) {
	path := s.path(boardFile)
	if fi, err := os.Stat(path); err == nil && fi.Size() > 0 {
		return false, nil
	}
	board := s.detect()
	if text, err := os.ReadFile(s.path(imageBoard)); err == nil {
		var more object
		if err := json.Unmarshal(text, &more); err != nil {
			return false, fmt.Errorf("read /%s: %w", imageBoard, err)
		}
		merge(board, more)
		s.onlyOne(board, more)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read /%s: %w", imageBoard, err)
	}
	text, err := json.MarshalIndent(board, "", "\t")
	if err != nil {
		return false, fmt.Errorf("write /%s: %w", boardFile, err)
	}
	text = append(text, '\n')
	if err := writeFile(path, text, 0o644); err != nil {
		return false, err
	}
	scripts, err := s.scripts(boardDir)
	if err != nil || len(scripts) == 0 {
		return true, err
	}
	for _, name := range scripts {
		if code, err := s.run("sh", filepath.Join("/", boardDir, name)); err != nil {
			return true, err
		} else if code != 0 {
			s.Log.Warn("board script failed", "script", name, "exit", code)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !json.Valid(after) {
		s.Log.Error("the scripts in /etc/board.d left a board.json that is no JSON: taking the built-in one", "error", err)
		return true, writeFile(path, text, 0o644)
	}
	return true, nil
}

// onlyOne removes the built-in device of a network for which the image names
// ports.
func (s *Setup) onlyOne(board, more object) {
	networks, _ := more["network"].(map[string]any)
	all, _ := board["network"].(object)
	for name, n := range networks {
		theirs, _ := n.(map[string]any)
		ours, _ := all[name].(object)
		if _, ok := theirs["ports"]; ok && ours != nil && theirs["device"] == nil {
			delete(ours, "device")
		}
	}
}

// readBoard reads board.json.
func (s *Setup) readBoard() (*Board, error) {
	text, err := os.ReadFile(s.path(boardFile))
	if err != nil {
		return nil, fmt.Errorf("read board.json: %w", err)
	}
	var b Board
	if err := json.Unmarshal(text, &b); err != nil {
		return nil, fmt.Errorf("read /%s: %w", boardFile, err)
	}
	return &b, nil
}

// scripts lists the files of a folder by name, hidden ones left out as in a
// glob.
func (s *Setup) scripts(dir string) ([]string, error) {
	entries, err := os.ReadDir(s.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list /%s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if fi, err := os.Stat(s.path(dir, e.Name())); err == nil && fi.Mode().IsRegular() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}
