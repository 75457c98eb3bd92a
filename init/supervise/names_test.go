package supervise

import (
	"math"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{"HUP": 1, "sigterm": 15, "SIGUSR1": 10, "9": 9, "64": 64} {
		if got, err := ParseSignal(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "65", "-1", "HUPP"} {
		if got, err := ParseSignal(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestParseCapability(t *testing.T) {
	for in, want := range map[string]uintptr{
		"chown": unix.CAP_CHOWN, "net_admin": unix.CAP_NET_ADMIN, "CAP_SYS_MODULE": unix.CAP_SYS_MODULE, "sys_time": unix.CAP_SYS_TIME,
		"syslog": unix.CAP_SYSLOG, "checkpoint_restore": unix.CAP_CHECKPOINT_RESTORE,
	} {
		if got, err := ParseCapability(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if len(capabilities) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names for %d capabilities", len(capabilities), unix.CAP_LAST_CAP+1)
	}
	if _, err := ParseCapability("root"); err == nil {
		t.Error("root is no capability")
	}
}

func TestParseLimit(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     Limit
		number   int
	}{
		{"nofile", "1024 4096", Limit{"nofile", 1024, 4096}, unix.RLIMIT_NOFILE},
		{"core", "unlimited", Limit{"core", math.MaxUint64, math.MaxUint64}, unix.RLIMIT_CORE},
		{"as", "10 unlimited", Limit{"as", 10, math.MaxUint64}, unix.RLIMIT_AS},
		{"memlock", "0", Limit{"memlock", 0, 0}, unix.RLIMIT_MEMLOCK},
		{"rtprio", "5", Limit{"rtprio", 5, 5}, unix.RLIMIT_RTPRIO},
	} {
		got, err := ParseLimit(tc.name, tc.in)
		if err != nil || got != tc.want || got.Resource() != tc.number {
			t.Errorf("%s %q: %+v, %v", tc.name, tc.in, got, err)
		}
	}
	for _, in := range []string{"", "1 2 3", "5 4", "x", "-1", "unlimited 5"} {
		if got, err := ParseLimit("nofile", in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
	if _, err := ParseLimit("files", "1"); err == nil {
		t.Error("files is no limit")
	}
}

func TestParseFacility(t *testing.T) {
	for in, want := range map[string]int{"daemon": 3, "local7": 23} {
		if got, err := ParseFacility(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := ParseFacility("deamon"); err == nil {
		t.Error("deamon is no facility")
	}
}
