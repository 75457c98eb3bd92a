package sshd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/unit"
)

const (
	// maxRecord bounds one line of the protocol, in bytes.
	maxRecord = 8 << 10
	// maxDepth bounds folders in folders.
	maxDepth = 128
)

// SCP is the far side of scp in its old protocol (rcp's): -t takes files, -f gives
// them. Modern clients use sftp unless told otherwise (scp -O), dbclient and
// scripts on LEDE devices do not. It cannot connect to other hosts.
func SCP(ctx context.Context, c *unit.Call) int {
	s := &scp{r: bufio.NewReader(c.Stdin), w: c.Stdout, ctx: ctx}
	var names []string
	to, from, options := false, false, true
	for _, a := range c.Args[1:] {
		if !options || len(a) < 2 || a[0] != '-' {
			names = append(names, a)
			continue
		}
		if a == "--" {
			options = false
			continue
		}
		for _, o := range a[1:] {
			switch o {
			case 't':
				to = true
			case 'f':
				from = true
			case 'r':
				s.recursive = true
			case 'p':
				s.preserve = true
			case 'd':
				s.mustDir = true
			case 'v', 'q':
			default:
				fmt.Fprintf(c.Stderr, "scp: option -%c is not known\n", o)
				return 1
			}
		}
	}
	if to == from || len(names) == 0 || to && len(names) != 1 {
		fmt.Fprintln(c.Stderr, "scp: only the far side of a copy is here (-t or -f): start scp on the other host")
		return 1
	}
	for i, n := range names {
		names[i] = c.Path(n)
	}
	var err error
	if to {
		err = s.sink(names[0])
	} else {
		err = s.source(names)
	}
	if err != nil {
		if !errors.Is(err, errTold) {
			fmt.Fprintf(c.Stderr, "scp: %v\n", err)
		}
		return 1
	}
	if s.faults > 0 {
		return 1
	}
	return 0
}

type scp struct {
	ctx                          context.Context
	r                            *bufio.Reader
	w                            io.Writer
	recursive, preserve, mustDir bool
	faults                       int
}

// errTold is an error that the other side knows, or has told.
var errTold = errors.New("the other side was told")

func (s *scp) ack() error { return s.send("\x00") }

func (s *scp) send(text string) error {
	_, err := io.WriteString(s.w, text)
	return err
}

// warn tells the other side of a fault after which it goes on.
func (s *scp) warn(err error) error {
	s.faults++
	return s.send("\x01scp: " + strings.ReplaceAll(err.Error(), "\n", " ") + "\n")
}

// fatal tells the other side of a fault that ends the copy.
func (s *scp) fatal(err error) error {
	if werr := s.send("\x02scp: " + strings.ReplaceAll(err.Error(), "\n", " ") + "\n"); werr != nil {
		return werr
	}
	return errTold
}

// line reads up to a line feed.
func (s *scp) line() (string, error) {
	var b []byte
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return string(b), nil
		}
		if b = append(b, c); len(b) > maxRecord {
			return "", errors.New("line too long")
		}
	}
}

// answer reads what the other side says to a record: nothing, a fault after which
// it goes on (goOn is false), or one that ends the copy.
func (s *scp) answer() (goOn bool, err error) {
	c, err := s.r.ReadByte()
	if err != nil {
		return false, fmt.Errorf("the other side is gone: %w", err)
	}
	switch c {
	case 0:
		return true, nil
	case 1, 2:
		if _, err := s.line(); err != nil {
			return false, err
		}
		s.faults++
		if c == 2 {
			return false, errTold
		}
		return false, nil
	}
	return false, fmt.Errorf("answer %q: the protocol of scp was expected", c)
}

// record is a line that announces something.
type record struct {
	kind         byte // C file, D folder, E end of folder, T times
	mode         fs.FileMode
	size         int64
	name         string
	mtime, atime time.Time
}

// parseRecord reads a line without its line feed.
func parseRecord(l string) (record, error) {
	bad := fmt.Errorf("record %q: the protocol of scp was expected", l)
	if l == "" {
		return record{}, bad
	}
	r := record{kind: l[0]}
	switch r.kind {
	case 'E':
		if l != "E" {
			return record{}, bad
		}
	case 'T': // T<mtime> 0 <atime> 0
		f := strings.Split(l[1:], " ")
		if len(f) != 4 {
			return record{}, bad
		}
		for i, to := range map[int]*time.Time{0: &r.mtime, 2: &r.atime} {
			n, err := strconv.ParseInt(f[i], 10, 63)
			us, err2 := strconv.ParseUint(f[i+1], 10, 20)
			if err != nil || err2 != nil || n < 0 || us > 999999 {
				return record{}, bad
			}
			*to = time.Unix(n, int64(us)*1000)
		}
	case 'C', 'D': // C<mode> <size> <name>
		f := strings.SplitN(l[1:], " ", 3)
		if len(f) != 3 || len(f[0]) != 4 {
			return record{}, bad
		}
		mode, err := strconv.ParseUint(f[0], 8, 16)
		size, err2 := strconv.ParseInt(f[1], 10, 63)
		if err != nil || err2 != nil || size < 0 || mode > 0o7777 {
			return record{}, bad
		}
		// A name that leads elsewhere would write what was not asked for.
		if n := f[2]; n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return record{}, fmt.Errorf("unexpected file name %q", n)
		}
		r.mode, r.size, r.name = fs.FileMode(mode).Perm(), size, f[2]
	default:
		return record{}, bad
	}
	return r, nil
}

// sink takes files into target.
func (s *scp) sink(target string) error {
	fi, err := os.Stat(target)
	isDir := err == nil && fi.IsDir()
	if s.mustDir && !isDir {
		return s.fatal(fmt.Errorf("%s: not a folder", target))
	}
	if err := s.ack(); err != nil {
		return err
	}
	return s.take(target, isDir, 0)
}

// take reads records until the end of the folder, or of the input at the top.
func (s *scp) take(dir string, isDir bool, depth int) error {
	var times *record
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		first, err := s.r.Peek(1)
		if err == io.EOF && depth == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if first[0] == 1 || first[0] == 2 {
			if _, err := s.answer(); err != nil {
				return err
			}
			continue
		}
		l, err := s.line()
		if err != nil {
			return err
		}
		r, err := parseRecord(l)
		if err != nil {
			return s.fatal(err)
		}
		path := dir
		if isDir {
			path = filepath.Join(dir, r.name)
		}
		switch r.kind {
		case 'T':
			times = &r
			if err := s.ack(); err != nil {
				return err
			}
			continue
		case 'E':
			if depth == 0 {
				return s.fatal(errors.New("end of a folder that was not begun"))
			}
			return s.ack()
		case 'D':
			if !s.recursive {
				return s.fatal(errors.New("a folder, without -r"))
			}
			if depth >= maxDepth {
				return s.fatal(fmt.Errorf("more than %d folders in each other", maxDepth))
			}
			err = s.takeDir(path, r, times, depth)
		case 'C':
			err = s.takeFile(path, r, times)
		}
		times = nil
		if err != nil {
			return err
		}
	}
}

func (s *scp) takeDir(path string, r record, times *record, depth int) error {
	fi, err := os.Stat(path)
	switch {
	case err == nil && !fi.IsDir():
		return s.fatal(fmt.Errorf("%s: not a folder", path))
	case err != nil:
		if err := os.Mkdir(path, r.mode|0o700); err != nil {
			return s.fatal(err)
		}
	}
	made := err != nil
	if err := s.ack(); err != nil {
		return err
	}
	if err := s.take(path, true, depth+1); err != nil {
		return err
	}
	if s.preserve || made {
		err = s.attributes(path, r, times, made)
	} else {
		err = nil
	}
	if err != nil {
		return s.warn(err)
	}
	return nil
}

// attributes gives a file its mode and, with -p, its times.
func (s *scp) attributes(path string, r record, times *record, made bool) error {
	var err error
	if s.preserve {
		err = os.Chmod(path, r.mode)
	} else if made && r.mode&0o700 != 0o700 {
		err = os.Chmod(path, r.mode)
	}
	if s.preserve && times != nil {
		err = errors.Join(err, os.Chtimes(path, times.atime, times.mtime))
	}
	return err
}

func (s *scp) takeFile(path string, r record, times *record) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, r.mode|0o200)
	if err != nil {
		return s.warn(err)
	}
	if err := s.ack(); err != nil {
		f.Close()
		return err
	}
	// The bytes come whether or not they can be written.
	w := &faultWriter{w: f}
	_, err = io.CopyN(w, s.r, r.size)
	cerr := f.Close()
	if err != nil {
		return err
	}
	goOn, err := s.answer()
	if err != nil {
		return err
	}
	err = errors.Join(w.err, cerr)
	if err == nil && goOn {
		err = s.attributes(path, r, times, r.mode&0o200 == 0)
	}
	if err != nil {
		return s.warn(err)
	}
	return s.ack()
}

// faultWriter drops what comes after the first fault.
type faultWriter struct {
	w   io.Writer
	err error
}

func (f *faultWriter) Write(b []byte) (int, error) {
	if f.err == nil {
		_, f.err = f.w.Write(b)
	}
	return len(b), nil
}

// source gives files.
func (s *scp) source(names []string) error {
	if _, err := s.answer(); err != nil {
		return err
	}
	for _, n := range names {
		matches := []string{n}
		if _, err := os.Lstat(n); err != nil {
			if m, gerr := filepath.Glob(n); gerr == nil && len(m) > 0 {
				matches = m
			}
		}
		for _, m := range matches {
			if err := s.give(m, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// give gives one file or folder.
func (s *scp) give(path string, depth int) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return s.warn(err)
	}
	switch {
	case fi.IsDir() && !s.recursive:
		return s.warn(fmt.Errorf("%s: a folder, without -r", path))
	case fi.IsDir() && depth >= maxDepth:
		return s.warn(fmt.Errorf("%s: more than %d folders in each other", path, maxDepth))
	case fi.IsDir():
		return s.giveDir(path, fi, depth)
	case !fi.Mode().IsRegular():
		return s.warn(fmt.Errorf("%s: not a regular file", path))
	}
	f, err := os.Open(path)
	if err != nil {
		return s.warn(err)
	}
	defer f.Close()
	goOn, err := s.announce("C", fi, fi.Size())
	if err != nil || !goOn {
		return err
	}
	// As many bytes as announced, even if the file changes meanwhile.
	n, err := io.CopyN(s.w, f, fi.Size())
	short := n < fi.Size()
	if err != nil && err != io.EOF {
		return err
	}
	if short {
		if _, err := io.CopyN(s.w, zeros{}, fi.Size()-n); err != nil {
			return err
		}
		if err := s.warn(fmt.Errorf("%s: became shorter while it was copied", path)); err != nil {
			return err
		}
	} else if err := s.ack(); err != nil {
		return err
	}
	_, err = s.answer()
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// announce sends the times with -p, then the record of a file or folder.
func (s *scp) announce(kind string, fi fs.FileInfo, size int64) (goOn bool, err error) {
	if s.preserve {
		t := fi.ModTime().Unix()
		if err := s.send(fmt.Sprintf("T%d 0 %d 0\n", t, t)); err != nil {
			return false, err
		}
		if goOn, err := s.answer(); err != nil || !goOn {
			return false, err
		}
	}
	if err := s.send(fmt.Sprintf("%s%04o %d %s\n", kind, fi.Mode().Perm(), size, strings.ReplaceAll(fi.Name(), "\n", "?"))); err != nil {
		return false, err
	}
	return s.answer()
}

func (s *scp) giveDir(path string, fi fs.FileInfo, depth int) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return s.warn(err)
	}
	goOn, err := s.announce("D", fi, 0)
	if err != nil || !goOn {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := s.give(filepath.Join(path, e.Name()), depth+1); err != nil {
			return err
		}
	}
	if err := s.send("E\n"); err != nil {
		return err
	}
	_, err = s.answer()
	return err
}
