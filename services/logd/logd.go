package logd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/unit"
)

// daemon is the running log.
type daemon struct {
	env   *unit.Env
	ring  *ring
	limit limiter // of the socket's goroutine alone
	work  sync.WaitGroup
}

// Run collects and serves the log until ctx ends. Arguments after -- say where
// things are on a host: --socket FILE (default /dev/log), --kmsg FILE (default
// /dev/kmsg, "" for none).
func Run(ctx context.Context, env *unit.Env) error {
	fs := flag.NewFlagSet(env.Name, flag.ContinueOnError)
	fs.SetOutput(env.Call.Stderr)
	socket := fs.String("socket", "/dev/log", "unix datagram `socket` that programs log to")
	kmsg := fs.String("kmsg", "/dev/kmsg", "the kernel's log `device`; empty for none")
	if err := fs.Parse(env.Args); err != nil {
		return fmt.Errorf("logd: %w", err)
	}
	cfg, err := loadSettings(env.ConfigDir)
	if err != nil {
		env.Log.Warn("using defaults where the configuration is at fault", "error", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	d := &daemon{env: env, ring: newRing(cfg.ringKiB * 1024)}
	defer d.work.Wait()
	defer cancel()

	conn, err := listen(*socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	env.Ready()
	d.work.Go(func() { d.receive(ctx, conn) })
	if *kmsg != "" {
		d.work.Go(func() { d.readKernel(ctx, *kmsg) })
	}

	client := bus.Connect(ctx, env.BusPath, env.Log)
	defer client.Close()
	if _, err := client.Publish(d.object(ctx)); err != nil {
		return fmt.Errorf("publish the object log: %w", err)
	}

	// Where each output stands: a reload must neither repeat lines nor lose any.
	filePos, remotePos := unset, unset
	for {
		outCtx, stopOut := context.WithCancel(ctx)
		var outs sync.WaitGroup
		d.setConsole(cfg.consoleTo)
		if cfg.file != "" {
			outs.Go(func() { filePos = d.toFile(outCtx, cfg, filePos) })
		} else {
			filePos = unset
		}
		if cfg.remote != "" {
			outs.Go(func() { remotePos = d.toRemote(outCtx, cfg, remotePos) })
		} else {
			remotePos = unset
		}
		select {
		case <-ctx.Done():
			stopOut()
			outs.Wait()
			os.Remove(*socket) // the next one makes it anew
			return nil
		case <-env.Reload():
		}
		next, err := loadSettings(env.ConfigDir)
		if err != nil {
			env.Log.Warn("using defaults where the configuration is at fault", "error", err)
		}
		stopOut()
		outs.Wait()
		if next != cfg {
			env.Log.Info("settings changed", "ring_kib", next.ringKiB, "file", next.file, "remote", next.remote)
		}
		cfg = next
		d.ring.resize(cfg.ringKiB * 1024)
	}
}

// listen opens the socket for everybody. The kernel's receive buffer is raised so
// that a burst at boot is not lost while this process waits for the CPU.
func listen(path string) (*net.UnixConn, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the log socket: remove what is at %s: %w", path, err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open the log socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open the log socket to all users: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
				return
			}
			const buffer = 1 << 20
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
			}
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("set up the log socket: %w", err)
	}
	return conn, nil
}

// receive reads the socket until it is closed.
func (d *daemon) receive(ctx context.Context, conn *net.UnixConn) {
	buf := make([]byte, 8192) // longer datagrams are cut by the kernel
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		if d.limit.dropped {
			conn.SetReadDeadline(time.Now().Add(tellEvery)) // to tell about drops even if all fall silent
		} else {
			conn.SetReadDeadline(time.Time{})
		}
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			d.env.Log.Warn("read the log socket", "error", err)
			continue
		default:
			priority, text := parseSyslog(buf[:n])
			key, name := sender(oob[:oobn], text)
			if text != "" && d.limit.allow(key, now, name) {
				d.add(priority, fromSyslog, text)
			}
		}
		for _, line := range d.limit.report(now) {
			d.add(5<<3|4, fromLogd, line)
		}
	}
}

// sender tells who sent a datagram, by the kernel's word.
func sender(oob []byte, text string) (key string, name func() string) {
	pid := -1
	if msgs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for i := range msgs {
			if c, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
				pid = int(c.Pid)
			}
		}
	}
	if pid == 1 {
		tag, _, _ := strings.Cut(text, ":")
		tag = tag[:min(len(tag), 64)]
		return tag, func() string { return tag }
	}
	key = strconv.Itoa(pid)
	return key, func() string {
		comm, err := os.ReadFile("/proc/" + key + "/comm")
		if err != nil {
			return "process " + key // gone already
		}
		return printable(strings.TrimSpace(string(comm))) + "[" + key + "]"
	}
}

func (d *daemon) add(priority uint32, src source, text string) {
	d.ring.add(entry{time: time.Now().UnixMilli(), boot: sinceBoot(), priority: priority, source: src, text: text})
}

// sinceBoot is CLOCK_BOOTTIME in ms.
func sinceBoot() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // every kernel since 2.6.39 has it
	}
	return t.Nano() / 1e6
}

// readKernel follows the kernel's log from its first line.
func (d *daemon) readKernel(ctx context.Context, path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		d.env.Log.Warn("kernel messages are missing from the log", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	defer f.Close()
	buf := make([]byte, 8192)
	for {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.EPIPE):
			d.add(4, fromLogd, "logd: the kernel wrote faster than it was read; some of its lines are lost")
			continue
		case err != nil:
			d.env.Log.Warn("kernel messages end here", "error", err)
			return
		}
		priority, stamp, text, ok := parseKmsg(buf[:n])
		if !ok {
			continue
		}
		boot := stamp / 1000
		// printk's clock stands still in suspend, which routers do not do; it is
		// close enough to CLOCK_BOOTTIME to give the line its time of day.
		when := time.Now().UnixMilli() - (sinceBoot() - boot)
		d.ring.add(entry{
			time: when, boot: boot, priority: priority, source: fromKernel,
			text: fmt.Sprintf("[%5d.%06d] %s", stamp/1e6, stamp%1e6, text),
		})
	}
}

// setConsole sets which kernel messages reach the console, as dmesg -n does.
func (d *daemon) setConsole(level int) {
	if level == 0 {
		return
	}
	const syslogActionConsoleLevel = 8 // kernel/printk: SYSLOG_ACTION_CONSOLE_LEVEL
	if _, _, errno := unix.Syscall(unix.SYS_SYSLOG, syslogActionConsoleLevel, 0, uintptr(level)); errno != 0 {
		d.env.Log.Warn("set the console's log level", "level", level, "error", errno)
	}
}

// ensureFolder makes the folder of a file.
func ensureFolder(path string) error { return os.MkdirAll(filepath.Dir(path), 0o755) }
