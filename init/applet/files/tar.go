package files

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Tar makes, lists and unpacks archives, plain or in gzip.
func Tar(ctx context.Context, c *unit.Call) int {
	call := *c
	// The old form: tar xzf file, without a dash.
	if len(c.Args) > 1 && c.Args[1] != "" && c.Args[1][0] != '-' && strings.Trim(c.Args[1], "cxtzfvOphokamCTX") == "" {
		letters := c.Args[1]
		args := []string{c.Args[0]}
		rest := c.Args[2:]
		for _, l := range letters {
			args = append(args, "-"+string(l))
			if strings.ContainsRune("fCTX", l) && len(rest) > 0 {
				args, rest = append(args, rest[0]), rest[1:]
			}
		}
		call.Args = append(args, rest...)
	}
	o, code := options.Parse(&call, "cxtzf:vC:OphokamT:X:e: create=c extract=x get=x list=t gzip=z file=f verbose=v directory=C to-stdout=O exclude=e dereference=h files-from=T exclude-from=X numeric-owner=a overwrite=a", `c|x|t [-zvhOmok] [-f FILE] [-C FOLDER] [--exclude PATTERN] [-T LIST] [-X LIST] [NAME]...
  -c make   -x unpack   -t list   -z gzip   -f archive (default: input or output)
  -C  work in FOLDER   -O  unpack to the output   -h  what links point to   -k  keep files that are there
  -m  do not set times   -o  do not set owners   -T, -X  names to take, to leave out
Example: tar -C /tmp -xzf backup.tar.gz etc/config`)
	if code >= 0 {
		return code
	}
	modes := 0
	for _, l := range []byte("cxt") {
		if o.Has(l) {
			modes++
		}
	}
	if modes != 1 {
		return o.Fail("exactly one of -c, -x and -t is needed")
	}
	t := &archiver{ctx: ctx, c: &call, o: o, dir: call.Dir, links: make(map[string]bool)}
	if d := o.Value('C', ""); d != "" {
		t.dir = call.Path(d)
		if st, err := os.Stat(t.dir); err != nil || !st.IsDir() {
			return failf(c, "-C %s: not a folder", d)
		}
	}
	t.names = o.Args
	for _, f := range o.Values('T') {
		l, err := lines(&call, f)
		if err != nil {
			return fail(c, err)
		}
		t.names = append(t.names, l...)
	}
	t.exclude = o.Values('e')
	for _, f := range o.Values('X') {
		l, err := lines(&call, f)
		if err != nil {
			return fail(c, err)
		}
		t.exclude = append(t.exclude, l...)
	}
	var err error
	if o.Has('c') {
		if len(t.names) == 0 && !o.Has('T') {
			return o.Fail("what is to go into the archive?")
		}
		err = t.create()
	} else {
		err = t.read()
	}
	if err != nil {
		t.code = fail(c, err)
	}
	return t.code
}

func lines(c *unit.Call, file string) ([]string, error) {
	f, err := input(c, file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if sc.Text() != "" {
			out = append(out, sc.Text())
		}
	}
	return out, sc.Err()
}

type archiver struct {
	ctx     context.Context
	c       *unit.Call
	o       *options.Set
	dir     string
	names   []string
	exclude []string
	code    int
	links   map[string]bool // links this archive made: nothing is unpacked through them
	hard    map[[2]uint64]string
	self    fs.FileInfo // the archive being written
}

func (t *archiver) excluded(name string) bool {
	for _, p := range t.exclude {
		p = strings.TrimSuffix(p, "/")
		if ok, _ := path.Match(p, name); ok {
			return true
		}
		if ok, _ := path.Match(p, path.Base(name)); ok {
			return true
		}
		if strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

func (t *archiver) create() (err error) {
	out := t.c.Stdout
	if f := t.o.Value('f', "-"); f != "-" {
		file, err := os.Create(t.c.Path(f))
		if err != nil {
			return err
		}
		defer func() {
			if cerr := file.Close(); err == nil {
				err = cerr
			}
		}()
		if t.self, err = file.Stat(); err != nil {
			return err
		}
		out = file
	}
	buf := bufio.NewWriterSize(out, 64*1024)
	var z *gzip.Writer
	var w io.Writer = buf
	if t.o.Has('z') {
		z = gzip.NewWriter(buf)
		w = z
	}
	tw := tar.NewWriter(w)
	t.hard = make(map[[2]uint64]string)
	for _, n := range t.names {
		if err := t.add(tw, n); err != nil {
			return err
		}
	}
	err = tw.Close()
	if z != nil {
		err = errors.Join(err, z.Close())
	}
	return errors.Join(err, buf.Flush())
}

// add writes a file and what is below it. Only an error of the archive ends the
// work; a file that cannot be read is reported and left out.
func (t *archiver) add(tw *tar.Writer, name string) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	full := name
	if !filepath.IsAbs(full) {
		full = filepath.Join(t.dir, name)
	}
	stored := strings.TrimLeft(name, "/")
	if t.excluded(strings.TrimPrefix(stored, "./")) {
		return nil
	}
	stat := os.Lstat
	if t.o.Has('h') {
		stat = os.Stat
	}
	info, err := stat(full)
	if err != nil {
		t.code = fail(t.c, err)
		return nil
	}
	if t.self != nil && os.SameFile(info, t.self) || info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(full); err != nil {
			t.code = fail(t.c, err)
			return nil
		}
	}
	if stored == "" {
		stored = "."
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		t.code = fail(t.c, err)
		return nil
	}
	st := info.Sys().(*syscall.Stat_t)
	h.Name = stored
	if info.IsDir() {
		h.Name = strings.TrimSuffix(stored, "/") + "/"
	}
	h.Uname, h.Gname = "", ""
	h.ModTime = h.ModTime.Truncate(time.Second)
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if st.Nlink > 1 && info.Mode().IsRegular() {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.hard[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			t.hard[id] = stored
		}
	}
	var f *os.File
	if h.Typeflag == tar.TypeReg {
		if f, err = os.Open(full); err != nil {
			t.code = fail(t.c, err)
			return nil
		}
		defer f.Close()
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if t.o.Has('v') {
		to := t.c.Stdout
		if t.o.Value('f', "-") == "-" {
			to = t.c.Stderr
		}
		fmt.Fprintln(to, h.Name)
	}
	if f != nil {
		// A file that grows or shrinks meanwhile must not break the archive.
		n, err := io.Copy(tw, io.LimitReader(f, h.Size))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n < h.Size {
			t.code = failf(t.c, "%s: became shorter while it was read; filled up with zeros", name)
			if _, err := io.CopyN(tw, zeros{}, h.Size-n); err != nil {
				return err
			}
		}
	}
	if !info.IsDir() {
		return nil
	}
	entries, err := os.ReadDir(full)
	if err != nil {
		t.code = fail(t.c, err)
		return nil
	}
	for _, e := range entries {
		if err := t.add(tw, strings.TrimSuffix(name, "/")+"/"+e.Name()); err != nil {
			return err
		}
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// read lists or unpacks.
func (t *archiver) read() error {
	in, err := input(t.c, t.o.Value('f', "-"))
	if err != nil {
		return err
	}
	defer in.Close()
	br := bufio.NewReaderSize(in, 64*1024)
	var r io.Reader = br
	if head, err := br.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		if r, err = gzip.NewReader(br); err != nil {
			return err
		}
	} else if t.o.Has('z') {
		return errors.New("the archive is not in gzip format")
	}
	tr := tar.NewReader(r)
	wanted := make(map[string]bool, len(t.names))
	type late struct {
		path string
		h    *tar.Header
	}
	var folders []late // their modes and times are set when all is in them
	for {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		name := path.Clean(h.Name)
		if !t.selected(name, wanted) || t.excluded(name) {
			continue
		}
		switch {
		case t.o.Has('t'):
			t.list(h)
			continue
		case t.o.Has('O'):
			if h.Typeflag == tar.TypeReg {
				if _, err := io.Copy(t.c.Stdout, tr); err != nil {
					return err
				}
			}
			continue
		}
		if t.o.Has('v') {
			fmt.Fprintln(t.c.Stdout, h.Name)
		}
		name = strings.TrimLeft(name, "/")
		if name == ".." || strings.HasPrefix(name, "../") {
			t.code = failf(t.c, "%s: leads out of the folder; left out", h.Name)
			continue
		}
		if name == "." || name == "" {
			continue
		}
		target, err := t.unpack(tr, h, name)
		if err != nil {
			t.code = fail(t.c, err)
			continue
		}
		if h.Typeflag == tar.TypeDir {
			folders = append(folders, late{target, h})
		} else if err := t.attributes(target, h); err != nil {
			t.code = fail(t.c, err)
		}
	}
	for _, f := range slices.Backward(folders) {
		if err := t.attributes(f.path, f.h); err != nil {
			t.code = fail(t.c, err)
		}
	}
	for _, n := range t.names {
		if !wanted[n] {
			t.code = failf(t.c, "%s: not in the archive", n)
		}
	}
	return nil
}

func (t *archiver) selected(name string, wanted map[string]bool) bool {
	if len(t.names) == 0 {
		return true
	}
	for _, n := range t.names {
		clean := path.Clean(n)
		ok, _ := path.Match(clean, name)
		if ok || name == clean || strings.HasPrefix(name, clean+"/") {
			wanted[n] = true
			return true
		}
	}
	return false
}

func (t *archiver) list(h *tar.Header) {
	if !t.o.Has('v') {
		fmt.Fprintln(t.c.Stdout, h.Name)
		return
	}
	kinds := map[byte]uint32{tar.TypeReg: unix.S_IFREG, tar.TypeLink: unix.S_IFREG, tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeDir: unix.S_IFDIR, tar.TypeFifo: unix.S_IFIFO}
	arrow := ""
	switch h.Typeflag {
	case tar.TypeSymlink:
		arrow = " -> " + h.Linkname
	case tar.TypeLink:
		arrow = " link to " + h.Linkname
	}
	fmt.Fprintf(t.c.Stdout, "%s %d/%d %9d %s %s%s\n", modeText(kinds[h.Typeflag]|uint32(h.Mode)&0o7777), h.Uid, h.Gid, h.Size, h.ModTime.Format("2006-01-02 15:04:05"), h.Name, arrow)
}

// unpack writes one entry and returns where it went.
func (t *archiver) unpack(r io.Reader, h *tar.Header, name string) (string, error) {
	for p := path.Dir(name); p != "."; p = path.Dir(p) {
		if t.links[p] {
			return "", fmt.Errorf("%s: would be written through the link %s of the same archive; left out", name, p)
		}
	}
	target := filepath.Join(t.dir, name)
	if h.Typeflag == tar.TypeDir {
		if st, err := os.Stat(target); err == nil && st.IsDir() {
			return target, nil
		}
		return target, os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return "", err
	}
	if st, err := os.Lstat(target); err == nil {
		if t.o.Has('k') {
			return "", &fs.PathError{Op: "unpack", Path: name, Err: fs.ErrExist}
		}
		if !st.IsDir() || h.Typeflag != tar.TypeDir {
			if err := os.Remove(target); err != nil {
				return "", err
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(f, r)
		return target, errors.Join(err, f.Close())
	case tar.TypeSymlink:
		t.links[name] = true
		return target, os.Symlink(h.Linkname, target)
	case tar.TypeLink:
		from := path.Clean(strings.TrimLeft(h.Linkname, "/"))
		if from == ".." || strings.HasPrefix(from, "../") || t.links[from] {
			return "", fmt.Errorf("%s: a link to %s, which leads out of the folder; left out", name, h.Linkname)
		}
		return target, os.Link(filepath.Join(t.dir, from), target)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		return target, wrapPath("make", target, unix.Mknod(target, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))))
	}
	return "", fmt.Errorf("%s: entries of kind %q are not supported; left out", name, h.Typeflag)
}

// attributes sets owner, mode and time of an unpacked entry.
func (t *archiver) attributes(target string, h *tar.Header) error {
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	var err error
	if os.Geteuid() == 0 && !t.o.Has('o') {
		err = os.Lchown(target, h.Uid, h.Gid)
	}
	if h.Typeflag != tar.TypeSymlink {
		mode := uint32(h.Mode) & 0o7777
		if os.Geteuid() != 0 && !t.o.Has('p') {
			mode &^= umask()
		}
		err = errors.Join(err, wrapPath("chmod", target, unix.Chmod(target, mode)))
	}
	if !t.o.Has('m') {
		ts := unix.NsecToTimespec(h.ModTime.UnixNano())
		err = errors.Join(err, wrapPath("set the time of", target, unix.UtimesNanoAt(unix.AT_FDCWD, target, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)))
	}
	return err
}
