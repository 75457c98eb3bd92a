package upgradetest

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// settle gives a guest settings that must survive, and the health gate little to wait for.
func (v *vm) settle(mode, hold, deadline string) {
	v.t.Helper()
	v.run("uci set system.@system[0].hostname=kept; uci set system.healthgate=healthgate; uci set system.healthgate.hold=" + hold +
		"; uci set system.healthgate.deadline=" + deadline + "; uci commit system")
	if mode != "" {
		v.run("echo " + mode + " >/etc/saboteur; echo /etc/saboteur >/etc/sysupgrade.conf; sync")
	}
	// The uplink is what it is compared with later.
	v.until(bootBound, "ubus call network.interface.wan status", func(out string) bool { return strings.Contains(out, `"up": true`) })
}

// upgradeToBad upgrades to the image with the saboteur, up to the reset.
func (v *vm) upgradeToBad() {
	v.t.Helper()
	name, err := makeBad()
	if err != nil {
		v.t.Fatal(err)
	}
	v.restart("sysupgrade "+v.bed.server+name, upgradeBound)
}

// TestHangAndPanic: a new system whose init hangs at its first try and whose kernel panics at the others is left by
// itself after three tries, for the old one with its settings.
func TestHangAndPanic(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.boot()
	v.settle("hang-then-panic", "600", "900")
	v.upgradeToBad()
	v.wait(bootBound, lineStart)
	v.wait(bootBound, lineStart) // after the watchdog
	dogs := 0
	for _, e := range v.Events() {
		if e.Name == "WATCHDOG" {
			dogs++
		}
	}
	if dogs == 0 {
		t.Errorf("it was not the watchdog that ended the hang: %v", v.Events())
	}
	for range 2 {
		v.wait(bootBound, `Kernel panic - not syncing: sysrq triggered crash`)
		v.wait(bootBound, lineStart)
	}
	v.ready()
	if n := bytes.Count(v.Serial().Raw(), []byte("weft: slot b is on trial")); n != 3 {
		t.Errorf("slot b was started %d times, want three tries", n)
	}
	v.failed("boot", "tries")
}

const lineStart = `^weft: starting on Linux `

// TestCrash: a service of the new system that crashes costs it its trial, and the reason is told.
func TestCrash(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.boot()
	v.hostile()
	v.settle("crash", "600", "5")
	v.upgradeToBad()
	v.wait(bootBound, `^weft: health gate: slot b is given up, services: saboteur is .*; rebooting into slot a`)
	v.wait(bootBound, lineStart)
	v.ready()
	v.failed("services", "saboteur is ")
}

// TestUserAndUplink: a reboot by the user within the gate is no failure and uses up no try; then DHCP does not answer any
// more, and the gate goes back.
func TestUserAndUplink(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.boot()
	v.settle("fine", "3600", "3600")
	v.upgradeToBad()
	v.ready()
	first := v.status()
	if first.Running != "b" || first.Trial != "b" || first.TriesLeft != 2 || !first.Confirmed["a"] {
		t.Fatalf("slot b is to be on trial with two more tries: %+v", first)
	}
	v.run("test -e /etc/saboteur-was-here")
	v.expect("uci get system.@system[0].hostname", "^kept$")
	v.until(bootBound, "ubus call healthgate status", func(out string) bool { return strings.Contains(out, `"state": "holding"`) })
	v.restart("reboot", commandBound)
	v.ready()
	if s := v.status(); s.Running != "b" || s.TriesLeft != 2 || s.Last.Slot != "" {
		t.Fatalf("after a reboot by the user: %+v, want the trial as it was: %+v", s, first)
	}

	// From now on frames to the wan card wait for an hour, while its cable stays in.
	filter := map[string]any{"qom-type": "filter-buffer", "id": "mute", "netdev": "nic1", "queue": "rx", "interval": uint32(3600e6)}
	if err := v.QMP(bound(t, commandBound), "object-add", filter, nil); err != nil {
		t.Fatal(err)
	}
	v.run("uci set system.healthgate.deadline=45; uci commit system")
	v.restart("reboot", commandBound)
	v.wait(bootBound, `^weft: health gate: slot b is given up, uplink: interface wan was up before the upgrade and is not now: no DHCP server has answered`)
	if err := v.QMP(bound(t, commandBound), "object-del", map[string]any{"id": "mute"}, nil); err != nil {
		t.Fatal(err)
	}
	v.wait(bootBound, lineStart)
	v.ready()
	v.failed("uplink", "no DHCP server has answered")
	if r := v.try("sysupgrade --rollback"); r.Code == 0 || !regexp.MustCompile(`(?i)no system|never|came up`).MatchString(r.Output) {
		t.Errorf("a rollback to the slot that was given up: exit %d: %s", r.Code, r.Output)
	}
}
