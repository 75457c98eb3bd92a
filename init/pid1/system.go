package pid1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
)

// systemMethods are those of the object `system` (openwrt/procd system.c).
func (p *pid1) systemMethods() []bus.Method {
	arg := func(name string, t bus.Type) bus.Arg { return bus.Arg{Name: name, Type: t} }
	return append([]bus.Method{
		{Name: "board", Handle: func(_ context.Context, r *bus.Request) error { return r.Reply(board("")) }},
		{Name: "info", Handle: func(_ context.Context, r *bus.Request) error { return r.Reply(info("", time.Now())) }},
		{Name: "reboot", Handle: func(_ context.Context, r *bus.Request) error {
			r.End() // the answer must be out before the broker stops
			p.request(powerRequest{reboot, "bus"})
			return nil
		}},
		{Name: "watchdog", Args: []bus.Arg{arg("frequency", bus.TypeInt32), arg("timeout", bus.TypeInt32), arg("magicclose", bus.TypeBool), arg("stop", bus.TypeBool)},
			Handle: func(_ context.Context, r *bus.Request) error {
				var req watchdogRequest
				if err := r.Decode(&req); err != nil {
					return err
				}
				s, err := p.wd.set(req)
				if err != nil {
					return fmt.Errorf("%w: %w", err, bus.StatusInvalidArgument)
				}
				return r.Reply(s)
			}},
		{Name: "signal", Args: []bus.Arg{arg("pid", bus.TypeInt32), arg("signum", bus.TypeInt32)}, Handle: func(_ context.Context, r *bus.Request) error {
			var req struct {
				PID    int `json:"pid"`
				Signum int `json:"signum"`
			}
			if err := r.Decode(&req); err != nil {
				return err
			}
			if req.PID <= 0 || req.Signum < 1 || req.Signum > 64 {
				return bus.StatusInvalidArgument
			}
			err := syscall.Kill(req.PID, syscall.Signal(req.Signum))
			switch {
			case errors.Is(err, syscall.ESRCH):
				return bus.StatusNotFound
			case err != nil:
				return bus.StatusSystemError
			}
			return nil
		}},
	}, p.upgradeMethods()...)
}

// request asks the main loop to end; when several ask, the first is heard.
func (p *pid1) request(r powerRequest) {
	select {
	case p.power <- r:
	default:
	}
}

// read is a small file without its last line break, "" if it cannot be read.
func read(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(text), "\n")
}

// board is the reply of system.board; root is put in front of all files.
func board(root string) bus.Table {
	var u unix.Utsname
	var t bus.Table
	if unix.Uname(&u) == nil {
		t = append(t, bus.Attr{Name: "kernel", Value: unix.ByteSliceToString(u.Release[:])},
			bus.Attr{Name: "hostname", Value: unix.ByteSliceToString(u.Nodename[:])})
	}
	for _, f := range []struct{ name, value string }{
		{"system", cpuName(read(root + "/proc/cpuinfo"))},
		{"model", read(root + "/tmp/sysinfo/model")},
		{"board_name", read(root + "/tmp/sysinfo/board_name")},
		{"rootfs_type", rootType(read(root + "/proc/self/mountinfo"))},
	} {
		if f.value != "" {
			t = append(t, bus.Attr{Name: f.name, Value: f.value})
		}
	}
	return append(t, bus.Attr{Name: "release", Value: release(read(root+"/etc/openwrt_release"), read(root+"/usr/lib/os-release"))})
}

// cpuName is what procd shows as system: on x86 the model name of the first
// processor, elsewhere what the platform says of itself.
func cpuName(cpuinfo string) string {
	found := map[string]string{}
	for line := range strings.Lines(cpuinfo) {
		k, v, ok := strings.Cut(line, ":")
		k = strings.ToLower(strings.TrimSpace(k))
		if ok && found[k] == "" {
			found[k] = strings.TrimSpace(v)
		}
	}
	for _, k := range []string{"system type", "processor", "cpu", "model name", "hardware"} {
		// "processor" is a name on ARM and a number elsewhere.
		if v := found[k]; v != "" {
			if _, err := strconv.Atoi(v); err != nil {
				return v
			}
		}
	}
	return ""
}

// rootType is the file system below the overlay, or the root's own.
func rootType(mountinfo string) string {
	typ := ""
	for _, m := range parseMounts(mountinfo) {
		switch m.path {
		case "/rom":
			return m.fstype
		case "/":
			typ = m.fstype
		}
	}
	return typ
}

// release reads openwrt_release, DISTRIB_ID='x', in the words of the reply.
func release(distrib, osRelease string) bus.Table {
	vals := shellVars(distrib)
	os := shellVars(osRelease)
	t := bus.Table{}
	for _, f := range []struct{ name, value string }{
		{"distribution", vals["DISTRIB_ID"]},
		{"version", vals["DISTRIB_RELEASE"]},
		{"revision", vals["DISTRIB_REVISION"]},
		{"codename", vals["DISTRIB_CODENAME"]},
		{"target", vals["DISTRIB_TARGET"]},
		{"description", vals["DISTRIB_DESCRIPTION"]},
		{"builddate", os["OPENWRT_BUILD_DATE"]},
	} {
		if f.value != "" {
			t = append(t, bus.Attr{Name: f.name, Value: f.value})
		}
	}
	return t
}

// shellVars reads NAME='value' lines.
func shellVars(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		if len(v) >= 2 && (v[0] == '\'' || v[0] == '"') && v[len(v)-1] == v[0] {
			v = v[1 : len(v)-1]
		}
		out[k] = v
	}
	return out
}

// info is the reply of system.info.
func info(root string, now time.Time) bus.Table {
	_, offset := now.Zone()
	t := bus.Table{{Name: "localtime", Value: now.Unix() + int64(offset)}}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		loads := bus.Array{}
		for _, l := range si.Loads {
			loads = append(loads, int64(l)) // fixed point: divide by 65536
		}
		t = append(t, bus.Attr{Name: "uptime", Value: int64(si.Uptime)}, bus.Attr{Name: "load", Value: loads})
	}
	mem := memory(read(root + "/proc/meminfo"))
	t = append(t, bus.Attr{Name: "memory", Value: bus.Table{
		{Name: "total", Value: mem["MemTotal"]}, {Name: "free", Value: mem["MemFree"]}, {Name: "shared", Value: mem["Shmem"]},
		{Name: "buffered", Value: mem["Buffers"]}, {Name: "available", Value: mem["MemAvailable"]}, {Name: "cached", Value: mem["Cached"]},
	}})
	for _, f := range []struct{ name, path string }{{"root", "/"}, {"tmp", "/tmp"}} {
		var st unix.Statfs_t
		if unix.Statfs(root+f.path, &st) != nil {
			continue
		}
		kib := func(blocks uint64) int64 { return int64(blocks) * int64(st.Frsize) / 1024 }
		t = append(t, bus.Attr{Name: f.name, Value: bus.Table{
			{Name: "total", Value: kib(st.Blocks)}, {Name: "free", Value: kib(st.Bfree)},
			{Name: "used", Value: kib(st.Blocks - st.Bfree)}, {Name: "avail", Value: kib(st.Bavail)},
		}})
	}
	return append(t, bus.Attr{Name: "swap", Value: bus.Table{{Name: "total", Value: mem["SwapTotal"]}, {Name: "free", Value: mem["SwapFree"]}}})
}

// memory reads /proc/meminfo into bytes.
func memory(meminfo string) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(meminfo) {
		k, v, ok := strings.Cut(line, ":")
		f := strings.Fields(v)
		if !ok || len(f) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			if len(f) > 1 && f[1] == "kB" {
				n *= 1024
			}
			out[k] = n
		}
	}
	return out
}
