package procps

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// hz is the unit of times in /proc, USER_HZ: 100 on every architecture that Go
// knows (include/asm-generic/param.h).
const hz = 100

// proc is the folder of the process file system.
type proc string

const system proc = "/proc"

// process is one process as the kernel tells of it.
type process struct {
	pid, ppid, pgid, sid int
	tty                  uint32
	uid, gid             uint32
	state                byte
	nice, threads        int
	vsz, rss             uint64 // bytes
	ticks                uint64 // of processor time, by itself
	start                uint64 // ticks after the kernel's start
	comm                 string // at most 15 bytes, the kernel's name
}

// stat is the state in busybox's letters: W no memory, < and N by nice value.
func (p *process) stat() string {
	s := string(p.state)
	if p.rss == 0 && p.state != 'Z' {
		s += "W"
	}
	if p.nice < 0 {
		s += "<"
	} else if p.nice > 0 {
		s += "N"
	}
	return s
}

// pids are all processes, in the order of their numbers.
func (r proc) pids() ([]int, error) {
	d, err := os.Open(string(r))
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var list []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid > 0 {
			list = append(list, pid)
		}
	}
	slices.Sort(list)
	return list, nil
}

// processes reads all processes; those that end meanwhile are left out.
func (r proc) processes() ([]process, error) {
	pids, err := r.pids()
	if err != nil {
		return nil, err
	}
	list := make([]process, 0, len(pids))
	for _, pid := range pids {
		p, err := r.process(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// gone says that a process ended while it was looked at.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

func (r proc) process(pid int) (process, error) {
	dir := filepath.Join(string(r), strconv.Itoa(pid))
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, err
	}
	p, err := parseStat(b)
	if err != nil {
		return p, fmt.Errorf("%s/stat: %w", dir, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return p, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	p.uid, p.gid = st.Uid, st.Gid
	return p, nil
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)). The name stands in brackets
// and may hold any character, brackets too.
func parseStat(b []byte) (process, error) {
	var p process
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, errors.New("no name in brackets")
	}
	p.comm = string(b[open+1 : end])
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 22 || len(f[0]) != 1 {
		return p, fmt.Errorf("%d fields after the name, expected 22 or more", len(f))
	}
	p.state = f[0][0]
	var err error
	number := func(s string) int64 {
		n, e := strconv.ParseInt(s, 10, 64)
		if e != nil && err == nil {
			err = fmt.Errorf("%q is not a number", s)
		}
		return n
	}
	p.pid = int(number(strings.TrimSpace(string(b[:open]))))
	p.ppid, p.pgid, p.sid = int(number(f[1])), int(number(f[2])), int(number(f[3]))
	p.tty = uint32(number(f[4]))
	p.ticks = uint64(number(f[11])) + uint64(number(f[12]))
	p.nice, p.threads = int(number(f[16])), int(number(f[17]))
	p.start = uint64(number(f[19]))
	p.vsz = uint64(number(f[20]))
	p.rss = uint64(max(number(f[21]), 0)) * uint64(os.Getpagesize())
	return p, err
}

// args is the command line of a process; nil for kernel threads, for zombies, and
// for one that has ended.
func (r proc) args(pid int) []string {
	b, err := os.ReadFile(filepath.Join(string(r), strconv.Itoa(pid), "cmdline"))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// command is the command line as a line of text, the kernel's name in brackets
// where there is none. Control characters become question marks.
func (r proc) command(p *process) string {
	args := r.args(p.pid)
	if len(args) == 0 {
		return "[" + plain(p.comm) + "]"
	}
	return plain(strings.TrimRight(strings.Join(args, " "), " "))
}

// plain keeps a process from writing sequences to somebody's terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// named says whether a process goes by the name: the kernel's for it, the last
// part of the path it was called by or, where the name holds a slash, the path.
func (r proc) named(p *process, name string) bool {
	if !strings.Contains(name, "/") && len(name) <= 15 && p.comm == name {
		return true
	}
	args := r.args(p.pid)
	if len(args) == 0 {
		return false
	}
	if strings.Contains(name, "/") {
		exe, err := os.Readlink(filepath.Join(string(r), strconv.Itoa(p.pid), "exe"))
		return args[0] == name || err == nil && exe == name
	}
	// A login shell has a dash before its name; a script is the interpreter's
	// argument, and its own name is cut in comm.
	if strings.TrimPrefix(filepath.Base(args[0]), "-") == name {
		return true
	}
	return len(args) > 1 && len(name) > 15 && p.comm == name[:15] && filepath.Base(args[1]) == name
}

// names gives users and groups their names, asking for each once.
type names struct{ users, groups map[uint32]string }

func newNames() *names { return &names{map[uint32]string{}, map[uint32]string{}} }

func (n *names) user(id uint32) string {
	return lookup(n.users, id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (n *names) group(id uint32) string {
	return lookup(n.groups, id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

func lookup(known map[uint32]string, id uint32, ask func(string) (string, error)) string {
	if s, ok := known[id]; ok {
		return s
	}
	number := strconv.FormatUint(uint64(id), 10)
	s, err := ask(number)
	if err != nil {
		s = number // nobody has that number
	}
	known[id] = s
	return s
}

// terminal names a terminal by its device number (Documentation/admin-guide/devices.txt).
func terminal(dev uint32) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return "?"
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	case major == 5 && minor == 1:
		return "console"
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8|minor)
	case major == 204 && minor >= 64 && minor < 80:
		return fmt.Sprintf("ttyAMA%d", minor-64)
	case major == 229:
		return fmt.Sprintf("hvc%d", minor)
	}
	return fmt.Sprintf("%d:%d", major, minor)
}

// size is a number of bytes in KiB, in at most five characters up to 9 TiB.
func size(bytes uint64) string {
	k := bytes >> 10
	switch {
	case k <= 99999:
		return strconv.FormatUint(k, 10)
	case k>>10 <= 9999:
		return strconv.FormatUint(k>>10, 10) + "m"
	}
	return strconv.FormatUint(k>>20, 10) + "g"
}
