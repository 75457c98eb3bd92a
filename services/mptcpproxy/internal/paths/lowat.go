package paths

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a subflow has accepted but not sent yet stands between a broken path
// and the data that must be sent again on the others: MPTCP re-injects behind
// it. TCP_NOTSENT_LOWAT of an MPTCP socket is a matter of that socket alone
// (net/mptcp/sockopt.c); its subflows follow the namespace's setting, so that
// is what is kept at a few milliseconds of the slowest busy subflow's rate.
// Sockets that set the option themselves, as those to the hosts do, are not
// touched by it.
const (
	lowatFile = "/proc/sys/net/ipv4/tcp_notsent_lowat"
	lowatName = "ipv4.tcp_notsent_lowat" // in the kept state
	lowatTime = 20 * time.Millisecond
	lowatMin  = 16 << 10
	lowatIdle = 128 << 10 // until something is known
	lowatMax  = 8 << 20   // beyond it is no matter
)

func setLowat(v string) (old string, err error) {
	b, err := os.ReadFile(lowatFile)
	if err == nil {
		old = strings.TrimSpace(string(b))
		err = os.WriteFile(lowatFile, []byte(v), 0o644)
	}
	if err != nil {
		return old, fmt.Errorf("set net.ipv4.tcp_notsent_lowat: %w", err)
	}
	return old, nil
}

// backlogged notes the rate of a subflow that has data waiting.
func (m *Manager) backlogged(t *unix.TCPInfo) {
	if t.Notsent_bytes < lowatMin/4 || t.Delivery_rate == 0 {
		return
	}
	if m.slowest == 0 || t.Delivery_rate < m.slowest {
		m.slowest = t.Delivery_rate
	}
}

// adjust sets the limit by what was noted since the last time.
func (m *Manager) adjust() {
	if m.slowest == 0 {
		return
	}
	v := lowatFor(m.slowest)
	m.slowest = 0
	if v > m.lowat-m.lowat/4 && v < m.lowat+m.lowat/4 {
		return
	}
	if _, err := setLowat(strconv.Itoa(v)); err != nil {
		m.log.Debug("unsent data is not bounded", "error", err)
	}
	m.lowat = v
}

// lowatFor is the limit in bytes for a rate in bytes/s.
func lowatFor(rate uint64) int {
	return int(min(max(rate/uint64(time.Second/lowatTime), lowatMin), lowatMax))
}
