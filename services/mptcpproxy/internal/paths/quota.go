package paths

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
)

// account adds what the device carried since the last time to the path.
func (p *path) account(s *netlink.LinkStatistics) {
	if s == nil {
		return
	}
	if !p.counted || p.countIndex != p.ifindex || s.RxBytes < p.rx || s.TxBytes < p.tx {
		// A new device counts from 0; what is found at our start was before us,
		// but for the part that a file remembers of this very device.
		if p.counted {
			p.used += s.RxBytes + s.TxBytes
		}
	} else {
		p.used += s.RxBytes - p.rx + s.TxBytes - p.tx
	}
	p.counted, p.countIndex = true, p.ifindex
	p.rx, p.tx = s.RxBytes, s.TxBytes
}

// period is the start of the quota period that now is in (local time).
func period(kind string, now time.Time) time.Time {
	y, mo, d := now.Date()
	switch kind {
	case "day":
	case "week": // begins on Monday
		d -= (int(now.Weekday()) + 6) % 7
	default:
		d = 1
	}
	return time.Date(y, mo, d, 0, 0, 0, 0, now.Location())
}

func checkPeriod(s string) error {
	switch s {
	case "", "day", "week", "month":
		return nil
	}
	return fmt.Errorf("quota period %q: expected day, week or month", s)
}

// renew starts the next period when it has come, and tells whether the quota
// is used up.
func (p *path) spent(now time.Time) bool {
	if start := period(p.w.Period, now); !p.period.Equal(start) {
		// A clock that is set at boot (no RTC) may jump forward out of the
		// past; it must not give the quota away twice. Backward is no new period.
		if start.After(p.period) {
			if !p.period.IsZero() {
				p.used = 0
			}
			p.period = start
		}
	}
	return p.w.Quota > 0 && p.used >= p.w.Quota
}

// kept is what survives a restart.
type kept struct {
	Sysctl map[string]string    `json:"sysctl,omitempty"` // values to restore
	Quota  map[string]keptQuota `json:"quota,omitempty"`  // by path
}

type keptQuota struct {
	Used   uint64    `json:"used"`
	Period time.Time `json:"period"`
	Boot   string    `json:"boot"` // the device's counters go on while this is the same
	Index  int       `json:"ifindex"`
	Rx     uint64    `json:"rx"`
	Tx     uint64    `json:"tx"`
}

const stateFile = "paths.json"

// load reads the kept state; a file that is not there or broken is empty state.
func load(dir string) (kept, error) {
	var k kept
	if dir == "" {
		return k, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, fmt.Errorf("read the state of paths: %w", err)
	}
	return parseKept(b)
}

func parseKept(b []byte) (kept, error) {
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		return kept{}, fmt.Errorf("read the state of paths in %s: %w: quotas count from 0", stateFile, err)
	}
	return k, nil
}

// save writes the state so that a crash leaves the old or the new file.
func save(dir string, k kept) error {
	if dir == "" {
		return nil
	}
	b, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("write the state of paths: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the state of paths: %w", err)
	}
	name := filepath.Join(dir, stateFile)
	f, err := os.CreateTemp(dir, stateFile+".*")
	if err != nil {
		return fmt.Errorf("write the state of paths: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write the state of paths: %w", err)
	}
	return nil
}

// bootID differs after each start of the kernel.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(b)
}
