package network

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"weft/init/uci"
)

// TestRescue: a configuration of which nothing is usable leaves a device within
// reach, and never takes down what is up.
func TestRescue(t *testing.T) {
	const (
		good    = "config interface lan\n\toption device eth7\n\toption proto static\n\tlist ipaddr 10.1.2.3/24\n"
		garbage = "config interface \"lan\n\toption \001\377 }{\n"
	)
	dir := t.TempDir()
	board := filepath.Join(dir, "board.json")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, boardJSON, board string
		loads                  []string
		device, address        string // of lan; empty: there is none
	}{
		{"device, garbage", board, `{"network":{"lan":{"ports":["eth3","eth4"]}}}`, []string{garbage}, "eth3", rescueAddress},
		{"device, garbage, one port", board, `{"network":{"lan":{"device":"lan0"}}}`, []string{garbage}, "lan0", rescueAddress},
		{"device, garbage in board.json too", board, `{{`, []string{garbage}, "eth0", rescueAddress},
		{"device, hostile name in board.json", board, `{"network":{"lan":{"device":"a'\n b/c"}}}`, []string{garbage}, "eth0", rescueAddress},
		{"device, garbage at a reload", board, `{}`, []string{good, garbage}, "eth7", "10.1.2.3/24"},
		{"device, repaired", board, `{}`, []string{garbage, good}, "eth7", "10.1.2.3/24"},
		{"device, one bad line", board, `{}`, []string{good + "rubbish\n"}, "eth7", "10.1.2.3/24"},
		{"device, empty on purpose", board, `{}`, []string{"# nothing\n"}, "", ""},
		{"not a device", "", `{}`, []string{garbage}, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newManager(slog.New(slog.NewTextHandler(io.Discard, nil)), nil)
			m.bus = silent{}
			m.tree = uci.Tree{ConfDir: t.TempDir(), NonStrict: true}
			m.boardJSON = tc.boardJSON
			write(board, tc.board)
			for _, text := range tc.loads {
				write(filepath.Join(m.tree.ConfDir, "network"), text)
				m.load()
			}
			s := m.states["lan"]
			switch {
			case tc.device == "" && s == nil:
			case s == nil || tc.device == "":
				t.Errorf("lan is %+v", s)
			case s.cfg.Device != tc.device || len(s.cfg.Addrs) != 1 || s.cfg.Addrs[0].String() != tc.address:
				t.Errorf("lan has %v on %q, want %s on %s", s.cfg.Addrs, s.cfg.Device, tc.address, tc.device)
			}
		})
	}
}
