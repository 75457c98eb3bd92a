package proof

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// stage is a part of the recording: what a cut within it may leave.
type stage struct {
	name string
	may  map[string][]string // settings by slot
}

// factory are the settings of a system that has none of its own.
const factory = "factory"

// The stages, in their order; the log's marks are their numbers.
const (
	commitBegins = iota
	commitDone
	upgradeBegins
	confirmed
	secondCommitBegins
	secondCommitDone
	rollbackBegins
	rolledBack
	resetBegins
	resetDone
)

// stages say what is promised: a commit is one or the other until it has returned, and the new one from then on.
// Slot b begins with what slot a had; after a rollback slot a has its own.
func stages() []stage {
	both := map[string][]string{"a": {"s1"}, "b": {"s1"}}
	return []stage{
		commitBegins:       {"commit", map[string][]string{"a": {"s0", "s1"}}},
		commitDone:         {"after the commit", map[string][]string{"a": {"s1"}}},
		upgradeBegins:      {"upgrade and trial", both},
		confirmed:          {"after the confirmation", map[string][]string{"b": {"s1"}}},
		secondCommitBegins: {"commit in the new slot", map[string][]string{"b": {"s1", "s2"}}},
		secondCommitDone:   {"after that commit", map[string][]string{"b": {"s2"}}},
		rollbackBegins:     {"rollback", map[string][]string{"a": {"s1"}, "b": {"s2"}}},
		rolledBack:         {"after the rollback", map[string][]string{"a": {"s1"}}},
		resetBegins:        {"factory reset", map[string][]string{"a": {"s1", factory}}},
		resetDone:          {"after the reset", map[string][]string{"a": {factory}}},
	}
}

// question is the command that asks a guest for all that is judged.
const question = `for k in hostname description notes; do echo "$k=$(uci -q get system.@system[0].$k)"; done
echo "kept=$(cat /etc/kept 2>/dev/null)"
echo "lan=$(uci -q get network.lan.note)"
echo "failsafe=$(test -e /tmp/failsafe && echo yes)"
echo "overlay=$(grep -c ' /overlay ext4 rw' /proc/mounts)"
echo "status=$(sysupgrade --status --json)"`

// apply is the command that changes the settings to a set of that name, in one commit.
func apply(set string) string {
	return fmt.Sprintf("for k in hostname description notes; do uci set system.@system[0].$k=%s; done && uci commit system", set)
}

// answers are what a guest said.
type answers struct {
	slot     string // that runs
	settings string
	faults   []string
}

// status is the part of `sysupgrade --status --json` that is judged.
type status struct {
	Running   string          `json:"running"`
	Preferred string          `json:"preferred"`
	Trial     string          `json:"trial"`
	TriesLeft int             `json:"tries_left"`
	Confirmed map[string]bool `json:"confirmed"`
}

// understand reads what question prints, and finds what cannot be right at any moment.
func understand(text string) answers {
	var a answers
	bad := func(format string, args ...any) { a.faults = append(a.faults, fmt.Sprintf(format, args...)) }
	values := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok {
			values[k] = v
		}
	}
	for _, k := range []string{"hostname", "description", "notes", "kept", "lan", "failsafe", "overlay", "status"} {
		if _, ok := values[k]; !ok {
			bad("no answer about %s", k)
		}
	}
	// What belongs together: three options of one commit, and what was there before all of it.
	host := values["hostname"]
	switch {
	case host == values["description"] && host == values["notes"] && values["kept"] == "kept" && values["lan"] == "kept":
		a.settings = host
	case values["description"] == "" && values["notes"] == "" && values["kept"] == "" && values["lan"] == "" && host != "" && !strings.HasPrefix(host, "s"):
		a.settings = factory
	default:
		a.settings = fmt.Sprintf("mixed (hostname %q, description %q, notes %q, kept file %q, network %q)", host, values["description"], values["notes"], values["kept"], values["lan"])
	}
	if values["failsafe"] != "" {
		bad("it is in failsafe mode")
	}
	if values["overlay"] == "0" {
		bad("the overlay is not on the disk")
	}
	var s status
	if err := json.Unmarshal([]byte(values["status"]), &s); err != nil {
		bad("sysupgrade --status --json: %v in %q", err, values["status"])
		return a
	}
	a.slot = s.Running
	switch {
	case s.Running != "a" && s.Running != "b":
		bad("slot %q runs", s.Running)
	case s.Running != s.Preferred && s.Running != s.Trial:
		bad("slot %s runs, but %s is preferred and %q on trial", s.Running, s.Preferred, s.Trial)
	case s.Trial == "" && !s.Confirmed[s.Preferred]:
		bad("slot %s is preferred and not confirmed", s.Preferred)
	case s.Trial != "" && (s.TriesLeft < 0 || s.TriesLeft > 3 || s.Trial == s.Preferred || !s.Confirmed[s.Preferred]):
		bad("a trial without a fallback: %+v", s)
	}
	return a
}

// judge says what is wrong with a guest after a cut in a stage; empty if nothing is.
func judge(st stage, a answers) []string {
	faults := slices.Clone(a.faults)
	if a.slot == "" {
		return faults
	}
	sets, ok := st.may[a.slot]
	switch {
	case !ok:
		faults = append(faults, fmt.Sprintf("slot %s runs", a.slot))
	case !slices.Contains(sets, a.settings):
		faults = append(faults, fmt.Sprintf("slot %s has the settings %s, want %s", a.slot, a.settings, strings.Join(sets, " or ")))
	}
	return faults
}
