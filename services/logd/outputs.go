package logd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// batch is how many entries an output takes at once.
const batch = 64

// unset is the position of an output that has not started: it takes all there is.
const unset = ^uint64(0)

// follow feeds entries from the position on to f until ctx ends. f says whether
// it is done with them; if not, they come again after a pause that grows from one
// second to a minute. lost counts entries that left the ring before f took them.
// The result is the position of the first entry not taken.
func (d *daemon) follow(ctx context.Context, pos uint64, f func(list []entry, lost int) error, failed func(error)) uint64 {
	if pos == unset {
		pos = d.ring.newest(0)
	}
	pause := time.Duration(0)
	lostBefore := 0
	for {
		list, next, lost, changed := d.ring.from(pos, batch)
		lost += lostBefore
		if len(list) == 0 && lost == 0 {
			select {
			case <-ctx.Done():
				return pos
			case <-changed:
			}
			continue
		}
		err := f(list, lost)
		if err == nil {
			pos, pause, lostBefore = next, 0, 0
			continue
		}
		if pause == 0 {
			failed(err) // once, not with every try
		}
		lostBefore = lost
		pos = max(pos, next-uint64(len(list)))
		pause = min(max(2*pause, time.Second), time.Minute)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return pos
		case <-timer.C:
		}
	}
}

// toFile appends lines to the file; when it is full it becomes file.0.
func (d *daemon) toFile(ctx context.Context, cfg settings, pos uint64) uint64 {
	var f *os.File
	size := int64(0)
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	write := func(text string) error {
		if f == nil {
			if err := ensureFolder(cfg.file); err != nil {
				return err
			}
			var err error
			if f, err = os.OpenFile(cfg.file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
				return err
			}
			st, err := f.Stat()
			if err != nil {
				return err
			}
			size = st.Size()
		}
		n, err := f.WriteString(text)
		size += int64(n)
		if err == nil && size >= int64(cfg.fileKiB)*1024 {
			err = errors.Join(f.Close(), os.Rename(cfg.file, cfg.file+".0"))
			f = nil
		}
		if err != nil && f != nil {
			f.Close()
			f = nil
		}
		return err
	}
	return d.follow(ctx, pos, func(list []entry, lost int) error {
		text := ""
		if lost > 0 {
			text = fmt.Sprintf("%s syslog.warn logd: %d lines left the memory before they could be written\n", time.Now().Format("Mon Jan _2 15:04:05 2006"), lost)
		}
		for i := range list {
			text += list[i].line() + "\n"
		}
		return write(text)
	}, func(err error) {
		d.env.Log.Error("log file is not written; trying again", "file", cfg.file, "error", err)
	})
}

// toRemote sends lines to a syslog server (RFC 3164). The ring is its queue.
func (d *daemon) toRemote(ctx context.Context, cfg settings, pos uint64) uint64 {
	proto := "udp"
	if cfg.tcp {
		proto = "tcp"
	}
	var conn net.Conn
	closeConn := func() {
		if conn != nil {
			conn.Close()
			conn = nil
		}
	}
	defer closeConn()
	up := false
	dialer := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return d.follow(ctx, pos, func(list []entry, lost int) error {
		if conn == nil {
			c, err := dialer.DialContext(ctx, proto, cfg.remote)
			if err != nil {
				return err
			}
			conn = c
			if !up {
				d.env.Log.Info("sending the log on", "to", cfg.remote, "proto", proto)
			}
			up = true
		}
		if lost > 0 {
			now := entry{time: time.Now().UnixMilli(), priority: 5<<3 | 4, source: fromLogd, text: fmt.Sprintf("logd: %d lines left the memory before they could be sent", lost)}
			list = append([]entry{now}, list...)
		}
		conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
		for i := range list {
			if _, err := conn.Write(list[i].packet(cfg)); err != nil {
				if !cfg.tcp {
					continue // nobody listens there at the moment: UDP has no memory
				}
				closeConn()
				return err
			}
		}
		return nil
	}, func(err error) {
		up = false
		if ctx.Err() == nil {
			d.env.Log.Warn("log server is not reached; trying again", "server", cfg.remote, "error", err)
		}
	})
}

// packet is an entry as RFC 3164 wants it.
func (e *entry) packet(cfg settings) []byte {
	b := fmt.Appendf(nil, "<%d>%s ", e.priority, time.UnixMilli(e.time).Format(time.Stamp))
	if cfg.hostname != "" {
		b = append(append(b, cfg.hostname...), ' ')
	}
	if cfg.prefix != "" {
		b = append(append(b, cfg.prefix...), ": "...)
	}
	if e.source == fromKernel {
		b = append(b, "kernel: "...)
	}
	b = append(b, e.text...)
	if cfg.tcp {
		end := byte('\n')
		if cfg.nul {
			end = 0
		}
		b = append(b, end)
	}
	return b
}
