package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// procd's numbers (watchdog.c), in seconds.
const (
	watchdogTimeout   = 30
	watchdogFrequency = 5
)

// bootGrace is how long after the start of the kernel critical services may be
// down without the watchdog noticing: a first boot that formats its data
// partition on a slow disk takes tens of seconds.
const bootGrace = 2 * time.Minute

// watchdogDevice is /dev/watchdog.
type watchdogDevice interface {
	SetTimeout(seconds int) error
	KeepAlive() error
	// Close with magic disarms it, unless the driver was told never to
	// (nowayout); without, it stays armed.
	Close(magic bool) error
}

// watchdog pings the hardware while the house is in order.
type watchdog struct {
	open func() (watchdogDevice, error) // fs.ErrNotExist: no hardware, or its driver is not loaded yet
	// healthy is empty while it may be fed, else the reason why not.
	healthy func() string
	log     *slog.Logger

	mu         sync.Mutex
	dev        watchdogDevice
	timeout    int
	frequency  int
	magicClose bool
	stopped    bool
	starving   string
	failed     string // of the last open
}

func newWatchdog(open func() (watchdogDevice, error), healthy func() string, log *slog.Logger) *watchdog {
	return &watchdog{open: open, healthy: healthy, log: log, timeout: watchdogTimeout, frequency: watchdogFrequency}
}

// step is what happens every frequency seconds; it returns the time until the
// next one.
func (w *watchdog) step() time.Duration {
	// Asked without the lock: a supervisor that hangs must not make the bus
	// method hang, too.
	why := w.healthy()
	w.mu.Lock()
	defer w.mu.Unlock()
	next := time.Duration(w.frequency) * time.Second
	if w.stopped {
		return next
	}
	if w.dev == nil {
		dev, err := w.open()
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) && err.Error() != w.failed {
				w.failed = err.Error()
				w.log.Error("watchdog not opened", "error", err)
			}
			return next
		}
		w.dev = dev
		if err := dev.SetTimeout(w.timeout); err != nil {
			w.log.Warn("watchdog keeps its own time-out", "error", err)
		}
		w.log.Info("watchdog armed", "timeout_s", w.timeout, "ping_s", w.frequency)
	}
	switch {
	case why == "":
		if w.starving != "" {
			w.log.Warn("watchdog is fed again")
		}
		if err := w.dev.KeepAlive(); err != nil {
			w.log.Error("watchdog not pinged", "error", err)
		}
	case w.starving != why:
		w.log.Error("watchdog is not fed: the hardware will reboot", "reason", why, "timeout_s", w.timeout)
	}
	w.starving = why
	return next
}

// watchdogStatus is the reply of the bus method.
type watchdogStatus struct {
	Status     string `json:"status"` // running, stopped, offline
	Timeout    int    `json:"timeout"`
	Frequency  int    `json:"frequency"`
	MagicClose bool   `json:"magicclose"`
}

// watchdogRequest is its argument; nil leaves a value as it is.
type watchdogRequest struct {
	Frequency  *int  `json:"frequency"`
	Timeout    *int  `json:"timeout"`
	MagicClose *bool `json:"magicclose"`
	Stop       *bool `json:"stop"`
}

// set changes the watchdog as procd's method does: stop ends the pings, and the
// hardware reboots unless magicclose is set as well, which disarms it.
func (w *watchdog) set(r watchdogRequest) (watchdogStatus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	timeout, frequency := w.timeout, w.frequency
	if r.Timeout != nil {
		timeout = *r.Timeout
	}
	if r.Frequency != nil {
		frequency = *r.Frequency
	}
	if timeout < 1 || timeout > 3600 || frequency < 1 || frequency > timeout/2 && timeout > 1 {
		return watchdogStatus{}, fmt.Errorf("watchdog: frequency %d s does not fit time-out %d s: it may be half of it at most", frequency, timeout)
	}
	if timeout != w.timeout && w.dev != nil {
		if err := w.dev.SetTimeout(timeout); err != nil {
			return watchdogStatus{}, err
		}
	}
	w.timeout, w.frequency = timeout, frequency
	if r.MagicClose != nil {
		w.magicClose = *r.MagicClose
	}
	if r.Stop != nil && *r.Stop != w.stopped {
		w.stopped = *r.Stop
		w.log.Warn("watchdog changed over the bus", "stopped", w.stopped, "disarmed", w.stopped && w.magicClose)
		if w.stopped && w.magicClose && w.dev != nil {
			err := w.dev.Close(true)
			w.dev = nil
			if err != nil {
				return watchdogStatus{}, err
			}
		}
	}
	s := watchdogStatus{Status: "running", Timeout: w.timeout, Frequency: w.frequency, MagicClose: w.magicClose}
	switch {
	case w.stopped:
		s.Status = "stopped"
	case w.dev == nil:
		s.Status = "offline"
	}
	return s, nil
}

// hardwareWatchdog is the kernel's device,
// Documentation/watchdog/watchdog-api.rst.
type hardwareWatchdog struct{ f *os.File }

const watchdogPath = "/dev/watchdog"

// openWatchdog takes over the descriptor that WDTFD names, from an init that
// executed this one, or opens the device.
func openWatchdog() (watchdogDevice, error) {
	if s := os.Getenv("WDTFD"); s != "" {
		os.Unsetenv("WDTFD")
		if fd, err := strconv.Atoi(s); err == nil && fd > 2 {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR {
				unix.CloseOnExec(fd)
				return &hardwareWatchdog{os.NewFile(uintptr(fd), watchdogPath)}, nil
			}
		}
	}
	f, err := os.OpenFile(watchdogPath, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open watchdog: %w", err)
	}
	return &hardwareWatchdog{f}, nil
}

func (h *hardwareWatchdog) SetTimeout(seconds int) error {
	if err := unix.IoctlSetPointerInt(int(h.f.Fd()), unix.WDIOC_SETTIMEOUT, seconds); err != nil {
		return fmt.Errorf("set the watchdog's time-out to %d s: %w", seconds, err)
	}
	return nil
}

func (h *hardwareWatchdog) KeepAlive() error {
	if err := unix.IoctlWatchdogKeepalive(int(h.f.Fd())); err != nil {
		return fmt.Errorf("ping watchdog: %w", err)
	}
	return nil
}

func (h *hardwareWatchdog) Close(magic bool) error {
	if magic {
		if _, err := h.f.WriteString("V"); err != nil {
			return fmt.Errorf("disarm watchdog: %w", err)
		}
	}
	return h.f.Close()
}
