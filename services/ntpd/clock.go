package ntpd

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock is what the client sets.
type clock interface {
	// step moves the clock at once.
	step(by time.Duration) error
	// slew makes the clock run faster or slower until it is there; poll is how
	// often that is called, err how wrong it may be, leap what is announced.
	slew(by, poll, err time.Duration, leap uint8) (ppm float64, e error)
}

// kernelClock is the clock of the machine, adjtimex(2).
type kernelClock struct{}

// Modes and states of linux/timex.h.
const (
	staPLL    = 0x0001
	staInsert = 0x0010
	staDelete = 0x0020

	maxSlew = 500 * time.Millisecond // MAXPHASE
)

func (kernelClock) step(by time.Duration) error {
	at := time.Now().Add(by)
	ts := unix.NsecToTimespec(at.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %s (it takes CAP_SYS_TIME): %w", at.UTC().Format(time.DateTime), err)
	}
	return nil
}

func (kernelClock) slew(by, poll, err time.Duration, leap uint8) (float64, error) {
	t := unix.Timex{
		Modes:  unix.ADJ_OFFSET | unix.ADJ_STATUS | unix.ADJ_TIMECONST | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR | unix.ADJ_NANO,
		Status: staPLL,
	}
	switch leap {
	case 1:
		t.Status |= staInsert
	case 2:
		t.Status |= staDelete
	}
	setLong(&t.Offset, int64(min(max(by, -maxSlew), maxSlew)))
	constant := int64(0)
	for p := poll / time.Second; p > 1; p /= 2 {
		constant++
	}
	setLong(&t.Constant, min(constant, 10)) // MAXTC
	setLong(&t.Maxerror, err.Microseconds())
	setLong(&t.Esterror, by.Abs().Microseconds())
	if _, e := unix.Adjtimex(&t); e != nil {
		return 0, fmt.Errorf("slew the clock by %v (it takes CAP_SYS_TIME): %w", by, e)
	}
	return float64(t.Freq) / 65536, nil // scaled by 2^16, adjtimex(2)
}

// setLong sets a field whose size is the machine's.
func setLong[T int32 | int64](f *T, v int64) { *f = T(v) }
