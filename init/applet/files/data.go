package files

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Sum is md5sum, sha1sum, sha256sum and sha512sum, by the name it is called by.
func Sum(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "cswbt check=c status=s warn=w", `[-c [-s]] [FILE]...
  -c  check the sums in FILE   -s  say nothing, the exit code tells
Example: sha256sum -c sha256sums`)
	if code >= 0 {
		return code
	}
	make := map[string]func() hash.Hash{"md5sum": md5.New, "sha1sum": sha1.New, "sha256sum": sha256.New, "sha512sum": sha512.New}[filepath.Base(c.Args[0])]
	if make == nil {
		make = sha256.New
	}
	sum := func(name string) (string, error) {
		f, err := input(c, name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		h := make()
		if _, err := io.Copy(h, reader{ctx, f}); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	names := o.Args
	if len(names) == 0 {
		names = []string{"-"}
	}
	code = 0
	for _, name := range names {
		if !o.Has('c') {
			s, err := sum(name)
			if err != nil {
				code = fail(c, err)
				continue
			}
			fmt.Fprintf(c.Stdout, "%s  %s\n", s, name)
			continue
		}
		f, err := input(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		bad, checked := 0, 0
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			want, file, ok := strings.Cut(sc.Text(), " ")
			file = strings.TrimLeft(file, " *")
			if !ok || file == "" {
				continue
			}
			checked++
			got, err := sum(file)
			result := "OK"
			if err != nil || !strings.EqualFold(got, want) {
				result = "FAILED"
				bad++
				if err != nil {
					fail(c, err)
				}
			}
			if !o.Has('s') {
				fmt.Fprintf(c.Stdout, "%s: %s\n", file, result)
			}
		}
		f.Close()
		switch {
		case sc.Err() != nil:
			code = fail(c, sc.Err())
		case checked == 0:
			code = failf(c, "%s: no sums in it", name)
		case bad > 0:
			code = failf(c, "%d of %d sums did NOT match", bad, checked)
		}
	}
	return code
}

// reader ends a copy when the context does.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// Dd copies with a block size.
func Dd(ctx context.Context, c *unit.Call) int {
	use := func(format string, args ...any) int {
		fmt.Fprintf(c.Stderr, "dd: %s\nUsage: dd [if=FILE] [of=FILE] [bs=N] [ibs=N] [obs=N] [count=N] [skip=N] [seek=N] [conv=notrunc,noerror,sync,fsync] [iflag=fullblock,skip_bytes,count_bytes] [oflag=append] [status=none|noxfer]\nExample: dd if=/dev/vda of=/tmp/mbr bs=512 count=1\n", fmt.Sprintf(format, args...))
		return 2
	}
	in, out, status := "", "", ""
	num := map[string]int64{"bs": 0, "ibs": 512, "obs": 512, "count": -1, "skip": 0, "seek": 0}
	flags := map[string]bool{}
	for _, a := range c.Args[1:] {
		if a == "--help" {
			use("copies data")
			return 0
		}
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			return use("%q is not NAME=VALUE", a)
		}
		switch k {
		case "if":
			in = v
		case "of":
			out = v
		case "status":
			if v != "none" && v != "noxfer" && v != "progress" {
				return use("status=%s: none or noxfer is expected", v)
			}
			status = v
		case "bs", "ibs", "obs", "count", "skip", "seek":
			n, err := blockNumber(v)
			if err != nil || n < 0 || n == 0 && strings.HasSuffix(k, "bs") {
				return use("%s=%s: not a number", k, v)
			}
			num[k] = n
		case "conv", "iflag", "oflag":
			for f := range strings.SplitSeq(v, ",") {
				switch f {
				case "notrunc", "noerror", "sync", "fsync", "fdatasync", "fullblock", "skip_bytes", "count_bytes", "seek_bytes", "append":
					flags[f] = true
				default:
					return use("%s=%s is not supported", k, f)
				}
			}
		default:
			return use("%s: there is no such operand", k)
		}
	}
	ibs, obs := num["ibs"], num["obs"]
	if num["bs"] > 0 {
		ibs, obs = num["bs"], num["bs"]
	}
	const most = 1 << 28
	if ibs > most || obs > most {
		return use("a block of more than %d bytes", most)
	}
	var src io.Reader = c.Stdin
	if in != "" {
		f, err := os.Open(c.Path(in))
		if err != nil {
			return fail(c, err)
		}
		defer f.Close()
		src = f
	}
	var dst io.Writer = c.Stdout
	var outFile *os.File
	if out != "" {
		mode := os.O_WRONLY | os.O_CREATE
		if !flags["notrunc"] && num["seek"] == 0 && !flags["append"] {
			mode |= os.O_TRUNC
		}
		if flags["append"] {
			mode |= os.O_APPEND
		}
		f, err := os.OpenFile(c.Path(out), mode, 0o666)
		if err != nil {
			return fail(c, err)
		}
		defer f.Close()
		outFile, dst = f, f
		at := num["seek"] * obs
		if flags["seek_bytes"] {
			at = num["seek"]
		}
		if at > 0 {
			if !flags["notrunc"] {
				if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
					if err := f.Truncate(at); err != nil {
						return fail(c, err)
					}
				}
			}
			if _, err := f.Seek(at, io.SeekStart); err != nil {
				return fail(c, err)
			}
		}
	}
	skip := num["skip"] * ibs
	if flags["skip_bytes"] {
		skip = num["skip"]
	}
	if skip > 0 {
		done := false
		if s, ok := src.(io.Seeker); ok {
			_, err := s.Seek(skip, io.SeekCurrent)
			done = err == nil
		}
		if !done {
			if _, err := io.CopyN(io.Discard, src, skip); err != nil && err != io.EOF {
				return fail(c, err)
			}
		}
	}
	left := num["count"] // blocks, or bytes
	buf := make([]byte, ibs)
	var pending []byte
	var inFull, inPart, outFull, outPart, total int64
	began := time.Now()
	put := func(p []byte) error {
		n, err := dst.Write(p)
		total += int64(n)
		if int64(len(p)) == obs {
			outFull++
		} else {
			outPart++
		}
		return err
	}
	code := 0
	var err error
	for left != 0 && ctx.Err() == nil {
		b := buf
		if flags["count_bytes"] && left >= 0 && left < int64(len(b)) {
			b = b[:left]
		}
		var n int
		if flags["fullblock"] {
			n, err = io.ReadFull(src, b)
			if err == io.ErrUnexpectedEOF {
				err = nil
			}
		} else {
			n, err = src.Read(b)
		}
		if n == 0 && err == nil {
			continue
		}
		if n > 0 {
			if n == len(buf) {
				inFull++
			} else {
				inPart++
			}
			if left > 0 {
				if flags["count_bytes"] {
					left -= int64(n)
				} else {
					left--
				}
			}
			if flags["sync"] && n < len(buf) {
				clear(buf[n:])
				n = len(buf)
			}
			if ibs == obs {
				err = errors.Join(ignoreEOF(err), put(buf[:n]))
			} else {
				pending = append(pending, buf[:n]...)
				for int64(len(pending)) >= obs && err == nil {
					err = put(pending[:obs])
					pending = pending[obs:]
				}
			}
		}
		if err != nil {
			if err == io.EOF {
				err = nil
				break
			}
			if flags["noerror"] && n == 0 {
				code = fail(c, err)
				if s, ok := src.(io.Seeker); ok {
					if _, serr := s.Seek(ibs, io.SeekCurrent); serr == nil {
						err = nil
						continue
					}
				}
			}
			break
		}
	}
	if err == nil && len(pending) > 0 {
		err = put(pending)
	}
	if outFile != nil && err == nil && (flags["fsync"] || flags["fdatasync"]) {
		err = outFile.Sync()
	}
	if outFile != nil && err == nil {
		err = outFile.Close()
	}
	if err != nil {
		code = fail(c, err)
	}
	if status != "none" {
		fmt.Fprintf(c.Stderr, "%d+%d records in\n%d+%d records out\n", inFull, inPart, outFull, outPart)
		if status != "noxfer" {
			took := time.Since(began).Seconds()
			fmt.Fprintf(c.Stderr, "%d bytes (%sB) copied, %.6f seconds, %sB/s\n", total, Human(uint64(total)), took, Human(uint64(float64(total)/max(took, 1e-9))))
		}
	}
	return code
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// blockNumber reads 512, 4k, 1M, 2x1024.
func blockNumber(s string) (int64, error) {
	n := int64(1)
	for part := range strings.SplitSeq(s, "x") {
		mul := int64(1)
		for _, u := range []struct {
			suffix string
			by     int64
		}{{"kB", 1000}, {"MB", 1e6}, {"GB", 1e9}, {"c", 1}, {"w", 2}, {"b", 512}, {"k", 1 << 10}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}} {
			if p, ok := strings.CutSuffix(part, u.suffix); ok {
				part, mul = p, u.by
				break
			}
		}
		v, err := strconv.ParseInt(part, 10, 64)
		if err != nil || v < 0 || v > 1<<50/mul || n > 0 && v*mul > 1<<60/n {
			return 0, fmt.Errorf("%q is not a number", s)
		}
		n *= v * mul
	}
	return n, nil
}

// Cmp compares two files byte by byte.
func Cmp(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "sln: quiet=s silent=s verbose=l bytes=n", `[-sl] [-n COUNT] FILE1 [FILE2]
  -s  say nothing: exit code 0 same, 1 different, 2 trouble   -l  list all differing bytes`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, 2); code >= 0 {
		return code
	}
	limit, code := o.Int('n', -1)
	if code >= 0 {
		return code
	}
	second := "-"
	if len(o.Args) > 1 {
		second = o.Args[1]
	}
	var in [2]*bufio.Reader
	for i, name := range []string{o.Args[0], second} {
		f, err := input(c, name)
		if err != nil {
			if !o.Has('s') {
				fail(c, err)
			}
			return 2
		}
		defer f.Close()
		in[i] = bufio.NewReader(f)
	}
	line, differ := 1, false
	for at := int64(1); limit < 0 || at <= int64(limit); at++ {
		a, erra := in[0].ReadByte()
		b, errb := in[1].ReadByte()
		if erra != nil || errb != nil {
			if erra != nil && erra != io.EOF || errb != nil && errb != io.EOF {
				fail(c, errors.Join(ignoreEOF(erra), ignoreEOF(errb)))
				return 2
			}
			if erra == nil || errb == nil {
				short := o.Args[0]
				if erra == nil {
					short = second
				}
				if !o.Has('s') {
					fmt.Fprintf(c.Stderr, "cmp: EOF on %s\n", short)
				}
				return 1
			}
			break
		}
		if a != b {
			differ = true
			if o.Has('s') {
				return 1
			}
			if !o.Has('l') {
				fmt.Fprintf(c.Stdout, "%s %s differ: char %d, line %d\n", o.Args[0], second, at, line)
				return 1
			}
			fmt.Fprintf(c.Stdout, "%4d %3o %3o\n", at, a, b)
		}
		if a == '\n' {
			line++
		}
	}
	if differ {
		return 1
	}
	return 0
}

// Truncate sets the length of files.
func Truncate(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "cs: no-create=c size=s", "[-c] -s SIZE FILE...\n  -c  do not make files   SIZE  as 4k, 10M, +1M, -512")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	spec := o.Value('s', "")
	size, err := blockNumber(strings.TrimLeft(spec, "+-"))
	if err != nil {
		return o.Fail("-s: %v", err)
	}
	code = 0
	for _, name := range o.Args {
		mode := os.O_WRONLY | os.O_CREATE
		if o.Has('c') {
			mode = os.O_WRONLY
		}
		f, err := os.OpenFile(c.Path(name), mode, 0o666)
		if errors.Is(err, fs.ErrNotExist) && o.Has('c') {
			continue
		}
		if err == nil {
			to := size
			if st, serr := f.Stat(); serr == nil && spec != "" && (spec[0] == '+' || spec[0] == '-') {
				if spec[0] == '+' {
					to = st.Size() + size
				} else {
					to = max(st.Size()-size, 0)
				}
			}
			err = errors.Join(f.Truncate(to), f.Close())
		}
		if err != nil {
			code = fail(c, err)
		}
	}
	return code
}

// Sync writes everything that is in memory to the disks, or given files.
func Sync(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "df", "[-df] [FILE]...\n  -f  the file systems that hold the files   -d  data alone")
	if code >= 0 {
		return code
	}
	if len(o.Args) == 0 {
		unix.Sync()
		return 0
	}
	code = 0
	for _, name := range o.Args {
		f, err := os.Open(c.Path(name))
		if err == nil {
			if o.Has('f') {
				err = wrapPath("sync", name, unix.Syncfs(int(f.Fd())))
			} else {
				err = f.Sync()
			}
			f.Close()
		}
		if err != nil {
			code = fail(c, err)
		}
	}
	return code
}

// Du adds up what files and folders take on the disk.
func Du(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "ashkmcd:xlL summarize=s human-readable=h all=a total=c max-depth=d one-file-system=x", `[-ashkmcx] [-d N] [FILE]...
  -a  files too   -s  sums alone   -h  units   -m  MiB   -c  a total   -d  N levels   -x  one file system
Example: du -sh /overlay/*`)
	if code >= 0 {
		return code
	}
	depth, code := o.Int('d', -1)
	if code >= 0 {
		return code
	}
	if o.Has('s') {
		depth = 0
	}
	show := func(bytes int64, name string) {
		switch {
		case o.Has('h'):
			fmt.Fprintf(c.Stdout, "%s\t%s\n", Human(uint64(bytes)), name)
		case o.Has('m'):
			fmt.Fprintf(c.Stdout, "%d\t%s\n", (bytes+1<<20-1)>>20, name)
		default:
			fmt.Fprintf(c.Stdout, "%d\t%s\n", (bytes+1023)/1024, name)
		}
	}
	type inode struct{ dev, ino uint64 }
	seen := make(map[inode]bool)
	code = 0
	var walk func(name, path string, level int, dev uint64) int64
	walk = func(name, path string, level int, dev uint64) int64 {
		info, err := os.Lstat(path)
		if err == nil && o.Has('L') {
			info, err = os.Stat(path)
		}
		if err != nil {
			code = fail(c, err)
			return 0
		}
		st := info.Sys().(*syscall.Stat_t)
		if level > 0 && o.Has('x') && uint64(st.Dev) != dev || ctx.Err() != nil || level > deepest {
			return 0
		}
		if st.Nlink > 1 && !info.IsDir() && !o.Has('l') {
			id := inode{uint64(st.Dev), st.Ino}
			if seen[id] {
				return 0
			}
			seen[id] = true
		}
		total := st.Blocks * 512
		if info.IsDir() {
			entries, err := os.ReadDir(path)
			if err != nil {
				code = fail(c, err)
			}
			for _, e := range entries {
				total += walk(strings.TrimSuffix(name, "/")+"/"+e.Name(), filepath.Join(path, e.Name()), level+1, uint64(st.Dev))
			}
		}
		if level == 0 || (info.IsDir() || o.Has('a')) && (depth < 0 || level <= depth) {
			show(total, name)
		}
		return total
	}
	names := o.Args
	if len(names) == 0 {
		names = []string{"."}
	}
	var sum int64
	for _, n := range names {
		sum += walk(n, c.Path(n), 0, 0)
	}
	if o.Has('c') {
		show(sum, "total")
	}
	return code
}

// Df shows the room on file systems.
func Df(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "hkmTPia human-readable=h print-type=T inodes=i all=a", `[-hkmTPia] [FILE]...
  -h  units   -m  MiB   -T  kinds of file systems   -i  inodes   -a  those without room too
Example: df -h /overlay`)
	if code >= 0 {
		return code
	}
	mounts, err := readMounts("/proc/self/mounts")
	if err != nil {
		return fail(c, err)
	}
	var list []mountPoint
	if len(o.Args) == 0 {
		list = mounts
	}
	for _, name := range o.Args {
		m, err := mountOf(mounts, c.Path(name))
		if err != nil {
			code = fail(c, err)
			continue
		}
		list = append(list, m)
	}
	unitName := "1K-blocks"
	size := func(n uint64) string { return strconv.FormatUint(n/1024, 10) }
	switch {
	case o.Has('i'):
		unitName = "Inodes"
		size = func(n uint64) string { return strconv.FormatUint(n, 10) }
	case o.Has('h'):
		unitName, size = "Size", Human
	case o.Has('m'):
		unitName = "1M-blocks"
		size = func(n uint64) string { return strconv.FormatUint(n>>20, 10) }
	}
	kind := ""
	if o.Has('T') {
		kind = fmt.Sprintf("%-10s ", "Type")
	}
	avail := "Available"
	if o.Has('i') {
		avail = "Free"
	}
	fmt.Fprintf(c.Stdout, "%-20s %s%10s %9s %9s Use%% Mounted on\n", "Filesystem", kind, unitName, "Used", avail)
	for _, m := range list {
		var st unix.Statfs_t
		if err := unix.Statfs(m.dir, &st); err != nil {
			if len(o.Args) > 0 {
				code = fail(c, &fs.PathError{Op: "statfs", Path: m.dir, Err: err})
			}
			continue
		}
		total, free, usable := st.Blocks*uint64(st.Bsize), st.Bfree*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
		if o.Has('i') {
			total, free, usable = st.Files, st.Ffree, st.Ffree
		}
		if total == 0 && len(o.Args) == 0 && !o.Has('a') {
			continue
		}
		used := total - free
		percent := uint64(0)
		if used+usable > 0 {
			percent = (used*100 + used + usable - 1) / (used + usable)
		}
		if o.Has('T') {
			kind = fmt.Sprintf("%-10s ", m.kind)
		}
		fmt.Fprintf(c.Stdout, "%-20s %s%10s %9s %9s %3d%% %s\n", m.dev, kind, size(total), size(used), size(usable), percent, m.dir)
	}
	return max(code, 0)
}

type mountPoint struct{ dev, dir, kind string }

// readMounts reads /proc/mounts (fstab(5), octal escapes).
func readMounts(file string) ([]mountPoint, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []mountPoint
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) >= 3 {
			list = append(list, mountPoint{UnescapeMount(f[0]), UnescapeMount(f[1]), f[2]})
		}
	}
	return list, nil
}

// UnescapeMount turns \040 and the like of /proc/mounts back into characters.
func UnescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf finds the mount that holds a path: of those whose folder is above it,
// the last one mounted on the longest.
func mountOf(mounts []mountPoint, path string) (mountPoint, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return mountPoint{}, err
	}
	var best mountPoint
	for _, m := range mounts {
		dir := strings.TrimSuffix(m.dir, "/")
		if (real == m.dir || strings.HasPrefix(real, dir+"/")) && len(m.dir) >= len(best.dir) {
			best = m
		}
		if m.dev == path {
			return m, nil
		}
	}
	return best, nil
}
