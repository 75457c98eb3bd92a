package pid1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/supervise/process"
)

// consoles are the terminals that the kernel writes to.
type consoles struct {
	mu    sync.Mutex
	names []string            // below /dev
	files map[string]*os.File // those that could be opened
}

// writeLimit bounds a write to a console that somebody stopped with Ctrl-S.
const writeLimit = 200 * time.Millisecond

// openConsoles opens the consoles in sysfs's list.
func openConsoles() *consoles {
	c := &consoles{files: map[string]*os.File{}}
	text, _ := os.ReadFile("/sys/class/tty/console/active")
	c.names = strings.Fields(string(text))
	if len(c.names) == 0 {
		c.names = []string{"console"}
	}
	for _, n := range c.names {
		c.open(n)
	}
	return c
}

func (c *consoles) open(name string) *os.File {
	f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		delete(c.files, name) // a VGA console without a card, say
		return nil
	}
	c.files[name] = f
	return f
}

// print writes a line to every console, after "weft: ".
func (c *consoles) print(format string, args ...any) {
	line := "weft: " + fmt.Sprintf(format, args...) + "\n"
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.names {
		f := c.files[n]
		if f == nil {
			continue
		}
		f.SetWriteDeadline(time.Now().Add(writeLimit))
		_, err := io.WriteString(f, line)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		// The end of a login hangs its terminal up, and with it every
		// descriptor that was open at the time.
		f.Close()
		if f = c.open(n); f != nil {
			f.SetWriteDeadline(time.Now().Add(writeLimit))
			io.WriteString(f, line)
		}
	}
}

// last is the last console in the list: /dev/console, where entries of inittab
// without a terminal go.
func (c *consoles) last() string { return c.names[len(c.names)-1] }

// prompt is LEDE's.
const prompt = "Please press Enter to activate this console."

// terminal runs one process of inittab on its terminal, again and again.
type terminal struct {
	tty     string // below /dev
	ask     bool
	command []string // path, then the arguments from argv[0] on
	env     []string
	reaper  *process.Reaper
	log     *slog.Logger
}

// Delays between two runs of a terminal's process.
const (
	terminalQuick = time.Second // a run shorter than this delays the next
	terminalWait  = 10 * time.Second
)

// run works until ctx ends or the terminal does not exist.
func (t *terminal) run(ctx context.Context) {
	wait := terminalQuick
	for ctx.Err() == nil {
		start := time.Now()
		err := t.once(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, errNoTerminal):
			t.log.Debug("terminal does not exist", "tty", t.tty, "error", err)
			return
		case err != nil:
			t.log.Warn("terminal failed", "tty", t.tty, "error", err)
		}
		if time.Since(start) >= terminalQuick {
			wait = terminalQuick
			if err == nil {
				continue
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		wait = min(wait*2, terminalWait)
	}
}

// errNoTerminal is a device that is no terminal, such as a serial port without
// hardware behind it.
var errNoTerminal = errors.New("not a terminal")

func (t *terminal) once(ctx context.Context) error {
	// O_NONBLOCK: opening a serial port must not wait for a carrier.
	f, err := os.OpenFile("/dev/"+t.tty, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if err := control(raw, sane); err != nil {
		return fmt.Errorf("%w: %w", errNoTerminal, err)
	}
	if t.ask {
		if err := t.waitEnter(ctx, f); err != nil {
			return err
		}
	}
	return t.execute(ctx)
}

func control(raw syscall.RawConn, f func(fd int) error) error {
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// sane puts a terminal into the state that a shell expects, whatever the last
// process left behind; its speed stays.
func sane(fd int) error {
	a, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	a.Iflag = unix.ICRNL | unix.IXON | unix.IUTF8
	a.Oflag = unix.OPOST | unix.ONLCR
	a.Cflag = a.Cflag&(unix.CBAUD|unix.CSTOPB|unix.PARENB|unix.PARODD|unix.CRTSCTS) | unix.CS8 | unix.CREAD | unix.HUPCL | unix.CLOCAL
	a.Lflag = unix.ISIG | unix.ICANON | unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHOCTL | unix.ECHOKE | unix.IEXTEN
	a.Cc[unix.VINTR], a.Cc[unix.VQUIT], a.Cc[unix.VERASE], a.Cc[unix.VKILL] = 3, 28, 127, 21
	a.Cc[unix.VEOF], a.Cc[unix.VSTART], a.Cc[unix.VSTOP], a.Cc[unix.VSUSP] = 4, 17, 19, 26
	a.Cc[unix.VMIN], a.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, a)
}

// waitEnter shows the prompt and returns when a line was typed.
func (t *terminal) waitEnter(ctx context.Context, f *os.File) error {
	f.SetWriteDeadline(time.Now().Add(writeLimit))
	io.WriteString(f, "\n"+prompt+"\n")
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("%w: %w", errNoTerminal, err)
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := bufio.NewReaderSize(f, 64).ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil // somebody typed a lot
	}
	return err
}

// execute runs the process with the terminal as its controlling one, to its
// end.
func (t *terminal) execute(ctx context.Context) error {
	fd, err := unix.Open("/dev/"+t.tty, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/%s: %w", t.tty, err)
	}
	defer unix.Close(fd)
	// The process must find a terminal that waits.
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	path, argv := t.command[0], t.command[1:]
	ended := make(chan struct{})
	pid, err := t.reaper.Start(path, argv, &syscall.ProcAttr{
		Dir: "/", Env: t.env, Files: []uintptr{uintptr(fd), uintptr(fd), uintptr(fd)},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	}, nil, func(int, syscall.WaitStatus) { close(ended) })
	if err != nil {
		return fmt.Errorf("execute %s on %s: %w", path, t.tty, err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		// Its shell does not stop for SIGTERM; SIGHUP says that the terminal
		// is gone.
		t.reaper.Signal(pid, syscall.SIGHUP)
		t.reaper.Signal(pid, syscall.SIGCONT)
		timer := time.NewTimer(2 * time.Second)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			t.reaper.SignalGroup(pid, syscall.SIGKILL)
			<-ended
		}
	}
	return nil
}
