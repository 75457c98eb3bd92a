package stage1

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// fillers are what makers leave in the DMI fields that they did not fill in.
var fillers = []string{
	"to be filled by o.e.m", "to be filled", "default string", "system manufacturer", "system product name",
	"not specified", "not applicable", "unknown", "none", "o.e.m", "oem", "empty", "n/a", "invalid",
	"base board manufacturer", "base board product name", "type1productconfigid",
}

// machine returns the board name and the model of the machine, from DMI as
// LEDE's x86 does it (compatibility facts, section 1.4), else from the device
// tree, where the board name is the first compatible string.
func machine(sys, proc string) (board, model string) {
	dmi := func(names ...string) string {
		for _, n := range names {
			text := readText(filepath.Join(sys, "class/dmi/id", n))
			if text != "" && !isFiller(text) {
				return text
			}
		}
		return ""
	}
	vendor, product := dmi("sys_vendor", "board_vendor"), dmi("product_name", "board_name")
	if model = strings.TrimSpace(vendor + " " + product); model != "" {
		return boardName(model), model
	}
	model = readText(filepath.Join(proc, "device-tree/model"))
	compatible, err := os.ReadFile(filepath.Join(proc, "device-tree/compatible"))
	if err == nil {
		first, _, _ := bytes.Cut(compatible, []byte{0})
		board = string(first)
	}
	switch {
	case model == "" && board == "":
		return "generic", "Generic machine"
	case model == "":
		model = board
	case board == "":
		board = boardName(model)
	}
	return board, model
}

// boardName turns each run of other characters than a-z 0-9 _ - into a dash.
func boardName(model string) string {
	words := strings.FieldsFunc(strings.ToLower(model), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
	return strings.Trim(strings.Join(words, "-"), "-")
}

func isFiller(text string) bool {
	text = strings.TrimRight(strings.ToLower(text), ".")
	for _, f := range fillers {
		if text == f || strings.HasPrefix(text, "to be filled") {
			return true
		}
	}
	return strings.Trim(text, "0x. ") == ""
}

// readText reads a small file of sysfs or the device tree, "" if it is not
// there.
func readText(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.TrimRight(string(b), "\x00\n"))
}

// writeSysinfo leaves them where LEDE's scripts and services look.
func writeSysinfo(dir, board, model string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write sysinfo: %w", err)
	}
	for name, text := range map[string]string{"board_name": board, "model": model} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
			return fmt.Errorf("write sysinfo: %w", err)
		}
	}
	return nil
}
