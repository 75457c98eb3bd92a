package pid1

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/stage1/handover"
	"weft/init/supervise"
	"weft/init/supervise/process"
	"weft/init/uci"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestParseInittab(t *testing.T) {
	const text = `# LEDE's
::sysinit:/etc/init.d/rcS S boot
::shutdown:/etc/init.d/rcS K shutdown
ttyS0::askfirst:/usr/libexec/login.sh
/dev/tty1::askconsole:/usr/libexec/login.sh -x
 ::respawn:/bin/x
ttyS0:bad
tty1::ask:/bin/x
tty1::respawn:
../x::respawn:/bin/x
`
	entries, errs := parseInittab(strings.NewReader(text))
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%s|%s|%s|%v%v", e.tty, e.action, strings.Join(e.command, " "), e.onTerminal(), e.asks()))
	}
	want := `|sysinit|/etc/init.d/rcS S boot|falsefalse
|shutdown|/etc/init.d/rcS K shutdown|falsefalse
ttyS0|askfirst|/usr/libexec/login.sh|truetrue
tty1|askconsole|/usr/libexec/login.sh -x|truetrue
|respawn|/bin/x|truefalse`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got:\n%s\nwant:\n%s", s, want)
	}
	var lines []string
	for _, err := range errs {
		lines = append(lines, strings.SplitN(err.Error(), " ", 2)[0])
	}
	if s := strings.Join(lines, " "); s != "/etc/inittab:7: /etc/inittab:8: /etc/inittab:9: /etc/inittab:10:" {
		t.Errorf("errors at %s", s)
	}
}

func FuzzParseInittab(f *testing.F) {
	f.Add("ttyS0::askfirst:/bin/sh\n")
	f.Fuzz(func(t *testing.T, s string) {
		entries, _ := parseInittab(strings.NewReader(s))
		for _, e := range entries {
			if len(e.command) == 0 || strings.Contains(e.tty, "..") || !actions[e.action] {
				t.Errorf("%+v", e)
			}
		}
	})
}

func TestParseMounts(t *testing.T) {
	const text = `21 1 0:19 / / rw,noatime - overlay overlayfs:/overlay rw,lowerdir=/rom
22 21 254:2 / /rom ro,relatime shared:1 master:2 - squashfs /dev/vda2 ro
23 21 0:20 / /mnt/a\040b\134c rw - tmpfs tmpfs rw
garbage
`
	got := parseMounts(text)
	want := []mountPoint{{"/", "overlay", "overlayfs:/overlay"}, {"/rom", "squashfs", "/dev/vda2"}, {`/mnt/a b\c`, "tmpfs", "tmpfs"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if typ := rootType(text); typ != "squashfs" {
		t.Errorf("root type %q", typ)
	}
	if typ := rootType("21 1 0:19 / / rw - ext4 /dev/vda2 rw"); typ != "ext4" {
		t.Errorf("root type %q", typ)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add(`22 21 254:2 / /rom\040 ro - squashfs /dev/vda2 ro`)
	f.Fuzz(func(t *testing.T, s string) { parseMounts(s) })
}

func TestParseStat(t *testing.T) {
	for in, want := range map[string]string{
		"12 (a (b) c) S 1 12 12 0 -1 4194560 1 1":   "a (b) c true",
		"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0":     "kthreadd false",
		"13 (gone) Z 1 12 12 0 -1 4194560 1 1":      "gone false",
		"13 (short":                                 " false",
		"13 (short) S":                              " false",
		"13 (badflags) S 1 12 12 0 -1 x 1 1 1 1 11": "badflags false",
	} {
		name, user := parseStat(in)
		if got := fmt.Sprintf("%s %v", name, user); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestSysctls(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []string{"kernel/panic", "net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/rp_filter"} {
		write("proc/sys/"+k, "")
	}
	write("etc/sysctl.d/10-default.conf", "# comment\nkernel.panic=3\nnet.ipv4.ip_forward = 1\n\n-net.absent.key = 1\n")
	write("etc/sysctl.d/20-x.conf", "nonsense\nkernel/../../etc/passwd = 1\nnet.ipv4.conf.eth0/1.rp_filter = 2\n")
	write("etc/sysctl.d/README", "kernel.panic=99\n")
	write("etc/sysctl.conf", "kernel/panic=5\n")
	var missing []string
	err := sysctls(root, func(k string) { missing = append(missing, k) })
	for k, want := range map[string]string{"kernel/panic": "5", "net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0.1/rp_filter": "2"} {
		if got := read(filepath.Join(root, "proc/sys", k)); got != want {
			t.Errorf("%s = %q, want %q", k, got, want)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "/etc/sysctl.d/20-x.conf:1: ") || !strings.Contains(err.Error(), "/etc/sysctl.d/20-x.conf:2: ") {
		t.Errorf("err = %v", err)
	}
	if fmt.Sprint(missing) != "[net.absent.key]" {
		t.Errorf("missing %v", missing)
	}
}

func FuzzParseSysctl(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/1.rp_filter = 2")
	f.Fuzz(func(t *testing.T, s string) {
		k, _, err := parseSysctl(s)
		if err == nil && k != "" && strings.Contains("/"+sysctlPath(k)+"/", "/../") {
			t.Errorf("%q leaves /proc/sys", k)
		}
	})
}

func TestSystemSettings(t *testing.T) {
	dir := t.TempDir()
	tree := &uci.Tree{ConfDir: dir, SaveDir: t.TempDir(), OverrideDir: t.TempDir()}
	s, err := readSystemSettings(tree)
	if err == nil || s.hostname != "OpenWrt" || s.timezone != "UTC" {
		t.Errorf("without a file: %+v, %v", s, err)
	}
	os.WriteFile(filepath.Join(dir, "system"), []byte("config system\n\toption hostname 'roof'\n\toption timezone 'CET-1CEST'\n\toption zonename 'Europe/Berlin'\n\toption conloglevel '7'\n"+
		"config service\n\toption respawn_retry '0'\n\toption respawn_timeout '9'\n"), 0o600)
	if s, err = readSystemSettings(tree); err != nil || s != (systemSettings{"roof", "CET-1CEST", "Europe/Berlin", 7}) {
		t.Errorf("%+v, %v", s, err)
	}
	if d := respawnDefaults(tree); d.Retry != 0 || d.Timeout != 9*time.Second || d.Threshold != time.Hour {
		t.Errorf("%+v", d)
	}
}

// fakeDevice is a watchdog that writes down what happens to it.
type fakeDevice struct{ log *[]string }

func (d fakeDevice) SetTimeout(s int) error {
	*d.log = append(*d.log, fmt.Sprintf("timeout %d", s))
	return nil
}
func (d fakeDevice) KeepAlive() error { *d.log = append(*d.log, "ping"); return nil }
func (d fakeDevice) Close(magic bool) error {
	*d.log = append(*d.log, fmt.Sprintf("close %v", magic))
	return nil
}

func TestWatchdog(t *testing.T) {
	var log []string
	var openErr error = fs.ErrNotExist
	why := ""
	w := newWatchdog(func() (watchdogDevice, error) { return fakeDevice{&log}, openErr }, func() string { return why }, quiet())
	took := func(want string) {
		t.Helper()
		if got := strings.Join(log, " "); got != want {
			t.Errorf("device saw %q, want %q", got, want)
		}
		log = nil
	}
	status := func(want string, r watchdogRequest) {
		t.Helper()
		s, err := w.set(r)
		if got := fmt.Sprintf("%s %d %d %v %v", s.Status, s.Timeout, s.Frequency, s.MagicClose, err == nil); got != want {
			t.Errorf("status %q (%v), want %q", got, err, want)
		}
	}
	yes, no := true, false
	num := func(n int) *int { return &n }

	if next := w.step(); next != 5*time.Second {
		t.Errorf("next step after %v", next)
	}
	took("")
	status("offline 30 5 false true", watchdogRequest{})
	openErr = nil // its driver was loaded
	w.step()
	took("timeout 30 ping")
	why = "network is backoff"
	w.step()
	w.step()
	took("") // starving: the hardware will act
	why = ""
	w.step()
	took("ping")
	status("running 60 10 false true", watchdogRequest{Timeout: num(60), Frequency: num(10)})
	took("timeout 60")
	if next := w.step(); next != 10*time.Second {
		t.Errorf("next step after %v", next)
	}
	took("ping")
	status(" 0 0 false false", watchdogRequest{Frequency: num(31)})
	status(" 0 0 false false", watchdogRequest{Timeout: num(0)})
	status("stopped 60 10 false true", watchdogRequest{Stop: &yes})
	w.step()
	took("") // stopped without magic: left armed, not pinged
	status("running 60 10 false true", watchdogRequest{Stop: &no})
	w.step()
	took("ping")
	status("stopped 60 10 true true", watchdogRequest{Stop: &yes, MagicClose: &yes})
	took("close true")
	w.step()
	took("")
	status("offline 60 10 true true", watchdogRequest{Stop: &no})
	w.step()
	took("timeout 60 ping")
}

func TestTimeline(t *testing.T) {
	tl := newTimeline()
	tl.stage1([]handover.Mark{{Name: "modules", MS: 900}, {Name: "switch root", MS: 1500}})
	tl.mark("start", 1600*time.Millisecond)
	note := func(id string, kind supervise.NoticeKind, at time.Duration) {
		tl.notice(supervise.Notice{ID: id, Kind: kind, At: at * time.Millisecond})
	}
	note("b", supervise.InstanceStart, 1700)
	note("a", supervise.InstanceStart, 1710)
	note("a", supervise.InstanceReady, 1800)
	note("a", supervise.InstanceStart, 1900) // a restart is not the boot
	note("a", supervise.InstanceReady, 1950)
	tl.setReady(2 * time.Second)
	note("late", supervise.InstanceStart, 9000)
	got := tl.get()
	if fmt.Sprint(got.Marks) != "[{kernel first line 0} {stage1 modules 900} {stage1 switch root 1500} {init start 1600} {init ready 2000}]" {
		t.Errorf("marks %v", got.Marks)
	}
	if fmt.Sprint(got.Units) != "[{b 1700 0 false} {a 1710 1800 true}]" || got.ReadyMS != 2000 {
		t.Errorf("units %v, ready %d", got.Units, got.ReadyMS)
	}
}

func TestBoard(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/cpuinfo":         "processor\t: 0\nvendor_id : X\nmodel name\t: QEMU Virtual CPU version 2.5+\n",
		"tmp/sysinfo/model":    "QEMU Standard PC\n",
		"proc/self/mountinfo":  "22 21 254:2 / /rom ro - squashfs /dev/vda2 ro\n",
		"etc/openwrt_release":  "DISTRIB_ID='Weft'\nDISTRIB_RELEASE='1.0'\nDISTRIB_TARGET=\"x86/64\"\n",
		"usr/lib/os-release":   "OPENWRT_BUILD_DATE=\"1700000000\"\n",
		"tmp/sysinfo/other":    "",
		"proc/meminfo":         "MemTotal: 100 kB\nMemFree: 50 kB\nHugePages_Total: 3\n",
		"tmp/sysinfo/.ignored": "",
	} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := board(root).MarshalJSON()
	for _, want := range []string{`"system":"QEMU Virtual CPU version 2.5+"`, `"model":"QEMU Standard PC"`, `"rootfs_type":"squashfs"`,
		`"release":{"distribution":"Weft","version":"1.0","target":"x86\/64","builddate":"1700000000"}`, `"kernel":"`, `"hostname":"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is missing in %s", want, b)
		}
	}
	if strings.Contains(string(b), "board_name") {
		t.Errorf("an empty board_name in %s", b)
	}
	i, _ := info(root, time.Unix(1000, 0).In(time.FixedZone("x", 3600))).MarshalJSON()
	for _, want := range []string{`"localtime":4600,"uptime":`, `"load":[`, `"memory":{"total":102400,"free":51200,"shared":0,`, `"root":{"total":`, `"swap":{"total":0,"free":0}`} {
		if !strings.Contains(string(i), want) {
			t.Errorf("%s is missing in %s", want, i)
		}
	}
}

func TestEarlyMessages(t *testing.T) {
	var e earlyMessages
	e.add(0, process.Message{PID: 1, Ready: true})
	e.add(time.Second, process.Message{PID: 2, Ready: true})
	e.add(time.Second, process.Message{PID: 2, HasStatus: true, Status: "x"})
	if got := e.take(2); len(got) != 2 || !got[0].Ready || got[1].Status != "x" {
		t.Errorf("%+v", got)
	}
	if got := e.take(2); got != nil {
		t.Errorf("twice: %+v", got)
	}
	for range 2 * earlyMax {
		e.add(earlyLife+2*time.Second, process.Message{PID: 3})
	}
	if len(e) != earlyMax || e.take(1) != nil {
		t.Errorf("%d kept", len(e))
	}
}

func TestRCLinks(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"S20network", "S10boot", "K80x", "Sxxbad", "S9", "S+1bad", "S95done"} {
		if err := os.Symlink("../init.d/x", filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, l := range rcLinks(dir, 'S') {
		got = append(got, fmt.Sprint(l.number, l.name))
	}
	if s := strings.Join(got, " "); s != "10boot 20network 95done" {
		t.Errorf("S links %s", s)
	}
	if k := rcLinks(dir, 'K'); len(k) != 1 || k[0].name != "x" || k[0].file != filepath.Join(dir, "K80x") {
		t.Errorf("K links %v", k)
	}
	if l := rcLinks(filepath.Join(dir, "absent"), 'S'); l != nil {
		t.Errorf("links of an absent folder: %v", l)
	}
}
