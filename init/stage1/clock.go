package stage1

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// newest returns the latest modification time below dir. In a fresh image that
// is when it was built; later, the last change to the configuration.
func newest(dir string) time.Time {
	var t time.Time
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type() == fs.ModeSymlink {
			return nil
		}
		if fi, err := e.Info(); err == nil && fi.ModTime().After(t) {
			t = fi.ModTime()
		}
		return nil
	})
	return t
}

// fixClock moves the clock forward to the newest file below etc, as LEDE's
// sysfixtime does: a machine without a battery starts in 1970. It returns the
// new time, zero if the clock was right.
func fixClock(etc string, now time.Time) (time.Time, error) {
	t := newest(etc)
	if !now.Before(t) {
		return time.Time{}, nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return time.Time{}, fmt.Errorf("set the clock to %s: %w", t.UTC().Format(time.DateTime), err)
	}
	return t, nil
}
