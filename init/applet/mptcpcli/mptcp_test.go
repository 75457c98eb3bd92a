package mptcpcli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/unit"
)

const statusAnswer = `{"state":"running","reason":"1 of 1 peers up, 2 of 2 paths up","uptime":5,"faults":[],"warnings":["mptcpproxy.main: option zebra: there is no such option"],
"fail":"open","syn":"adaptive","lan":["br-lan"],"bypass":false,"fallbacks":2,"flows":{"open":3,"parked":1,"opened":10,"failed":1,"reset":2,"ended":7,"refused":0,"limited":4},
"traffic":{"to_peer":1500000,"from_peer":20,"to_peer_rate":18810000,"from_peer_rate":0,"buffered":0},"trunks":{"open":5,"idle":2,"added":6,"lost":1,"reused":8},
"udp":{"flows":1,"up":2,"down":3,"dropped":0},"tunnel":{"device":"mptcp0","sent":1,"received":1},"memory":{"heap":9000000},
"peers":[{"name":"exit1","near":true,"carrier":"convert","up":true,"since":61,"node":"far","addresses":["10.1.0.2"],"rtt_ms":12.3,"trunks":5,"idle":2,"dialled":6,"failed":0,"fallbacks":2,"datagrams":[{"path":"wan1","alive":true,"rtt_ms":3,"rate":9000000,"loss":0.01}]}],
"paths":[{"name":"wan1","device":"eth1","mode":"on","state":"up","subflows":5,"rtt_ms":10,"min_rtt_ms":2.5,"sent_rate":9400000,"received_rate":0,"sent_bytes":1000,"received_bytes":2000,"retrans_bytes":3,"bottlenecks":[{"peer":"exit1","remote":"10.1.0.2","rate":9500000,"loss":0,"congestion":"cubic"}]},
{"name":"lte","device":"wwan0","mode":"backup","state":"spent","stripped":true,"quota":500000000,"used":500000000,"bottlenecks":[]}]}`

// answers is a service that says what the map holds.
func answers(t *testing.T, m map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			var r request
			if json.Unmarshal([]byte(line), &r) == nil {
				fmt.Fprintln(c, strings.ReplaceAll(m[r.Method], "\n", ""))
			}
			c.Close()
		}
	}()
	return dir
}

func run(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errw bytes.Buffer
	code = MPTCP(context.Background(), &unit.Call{
		Args: append([]string{"mptcp"}, args...), Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errw,
		Dir: t.TempDir(), Getenv: func(string) string { return "" },
	})
	return code, out.String(), errw.String()
}

func TestStatus(t *testing.T) {
	dir := answers(t, map[string]string{
		"status": statusAnswer, "paths": statusAnswer, "peers": statusAnswer,
		"flows":  `{"flows":[{"id":1,"peer":"exit1","near":true,"src":"192.168.1.2:4000","dst":"1.2.3.4:443","state":"open","age":65,"to_peer":10,"from_peer":2000000},{"id":2,"peer":"home","src":"a","dst":"b","state":"parked"}]}`,
		"events": `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"path.down","name":"wan1","device":"eth1","reason":"no carrier"}`,
		"reload": `{"error":"mptcpproxy.main: option fail 'x': expected one of open, closed"}`,
	})
	for _, tc := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"status"}, 0, []string{"running: 1 of 1 peers up", "warning: mptcpproxy.main", "18.8 Mbit/s to peers", "3 open (1 idle without a trunk)", "2 fell back to TCP", "exit1  dialled", "up 1m1s", "spent, MPTCP stripped", "500 MB/500 MB"}},
		{[]string{"paths"}, 0, []string{"wan1  eth1", "10/2.5", "9.4 Mbit/s", "cubic"}},
		{[]string{"peers"}, 0, []string{"10.1.0.2", "alive", "1.00%"}},
		{[]string{"flows"}, 0, []string{"192.168.1.2:4000  1.2.3.4:443  -> exit1", "<- home", "2 MB"}},
		{[]string{"flows", "-n", "1"}, 0, []string{"and 1 more: mptcp flows -n 2"}},
		{[]string{"events"}, 0, []string{"path.down wan1 (eth1): no carrier"}},
		{[]string{"status", "--json"}, 0, []string{"\"to_peer_rate\": 18810000"}},
		{[]string{"reload"}, 1, []string{"expected one of open, closed"}},
		{[]string{"check"}, 0, []string{"warning: mptcpproxy.main", "the configuration is in force"}},
		{[]string{"nonsense"}, 2, []string{`there is no command "nonsense"`}},
		{[]string{"status", "x"}, 2, []string{"one argument too many"}},
		{nil, 2, []string{"a command is missing"}},
		{[]string{"--help"}, 0, []string{"Usage: mptcp"}},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			code, out, errw := run(t, "", append([]string{"--state-dir", dir}, tc.args...)...)
			if code != tc.code {
				t.Errorf("exit %d, want %d: %s", code, tc.code, errw)
			}
			for _, w := range tc.want {
				if !strings.Contains(out+errw, w) {
					t.Errorf("no %q in\n%s%s", w, out, errw)
				}
			}
		})
	}
}

func TestAway(t *testing.T) {
	code, _, errw := run(t, "", "--state-dir", "nowhere", "--bus", "nobus", "status")
	if code != exitAway || !strings.Contains(errw, "does not run") || !strings.Contains(errw, "hint:") {
		t.Errorf("exit %d, %q", code, errw)
	}
}

func TestKeys(t *testing.T) {
	_, a, _ := run(t, "", "genkey")
	_, b, _ := run(t, "", "genkey")
	if raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a)); err != nil || len(raw) != 32 || a == b {
		t.Errorf("genkey printed %q and %q", a, b)
	}
	_, pair, _ := run(t, "", "genkey", "--pair")
	var private, public string
	if _, err := fmt.Sscanf(pair, "private_key %s\npublic_key  %s\n", &private, &public); err != nil {
		t.Fatalf("%q: %v", pair, err)
	}
	code, got, _ := run(t, private+"\n", "pubkey")
	if code != 0 || strings.TrimSpace(got) != public {
		t.Errorf("pubkey: exit %d, %q, want %q", code, got, public)
	}
	if code, _, errw := run(t, "short", "pubkey"); code != 1 || !strings.Contains(errw, "32 bytes in base64") {
		t.Errorf("pubkey of nonsense: exit %d, %q", code, errw)
	}
}
