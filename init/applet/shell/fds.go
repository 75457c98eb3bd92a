package shell

import (
	"errors"
	"io"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"
)

// desc is an open file with a count of the table slots that hold it.
type desc struct {
	file *os.File
	refs atomic.Int32
	keep bool // not ours to close: what the shell was started with
}

func (d *desc) release() {
	if d.refs.Add(-1) == 0 && !d.keep {
		d.file.Close()
	}
}

// fdTable maps descriptor numbers of the script to open files. A nil entry is
// a descriptor closed on purpose.
type fdTable struct {
	m map[int]*desc
}

func newTable() fdTable { return fdTable{make(map[int]*desc, 4)} }

// put places d at n, taking a reference and releasing what was there.
func (t fdTable) put(n int, d *desc) {
	if d != nil {
		d.refs.Add(1)
	}
	old := t.m[n]
	t.m[n] = d
	if old != nil {
		old.release()
	}
}

// drop empties slot n as if it had never been used.
func (t fdTable) drop(n int) {
	if old := t.m[n]; old != nil {
		old.release()
	}
	delete(t.m, n)
}

func (t fdTable) clone() fdTable {
	c := fdTable{make(map[int]*desc, len(t.m)+1)}
	for n, d := range t.m {
		if d != nil {
			d.refs.Add(1)
		}
		c.m[n] = d
	}
	return c
}

func (t fdTable) close() {
	for n := range t.m {
		t.drop(n)
	}
}

// lookup returns what descriptor n stands for. One that the script never
// touched may have come from the parent process.
func (t fdTable) lookup(n int) *desc {
	if d, ok := t.m[n]; ok {
		return d
	}
	if n < 3 {
		return nil
	}
	if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		return nil // ours, or not open
	}
	d := &desc{file: os.NewFile(uintptr(n), "fd"+strconv.Itoa(n)), keep: true}
	t.put(n, d)
	return d
}

// forChild lists the files of a child by number; -1 marks closed ones.
func (t fdTable) forChild() []uintptr {
	top := 2
	for n := range t.m {
		top = max(top, n)
	}
	files := make([]uintptr, top+1)
	for n := range files {
		files[n] = ^uintptr(0)
		if d := t.lookup(n); d != nil {
			files[n] = d.file.Fd()
		}
	}
	return files
}

// in, out and err are the standard streams for code that runs in this process.
func (s *shell) in() io.Reader {
	if d := s.fds.lookup(0); d != nil {
		return d.file
	}
	return closedFile{}
}

func (s *shell) out() io.Writer { return s.writer(1) }
func (s *shell) err() io.Writer { return s.writer(2) }

func (s *shell) writer(n int) io.Writer {
	if d := s.fds.lookup(n); d != nil {
		return d.file
	}
	return closedFile{}
}

// closedFile stands for a descriptor that is closed.
type closedFile struct{}

func (closedFile) Read([]byte) (int, error)  { return 0, unix.EBADF }
func (closedFile) Write([]byte) (int, error) { return 0, unix.EBADF }

// redirected remembers the table slots that redirections changed.
type redirected struct {
	n   int
	d   *desc
	was bool
}

// redirect applies redirections and returns what undoes them. A failed one is
// reported, undone and returned as false.
func (s *shell) redirect(list []*syntax.Redirect) (undo []redirected, ok bool) {
	for _, r := range list {
		n, d, closing, err := s.open(r)
		if err != nil {
			s.errorf("%v", err)
			s.unredirect(undo)
			return nil, false
		}
		targets := []int{n}
		if r.Op == syntax.RdrAll || r.Op == syntax.AppAll {
			targets = []int{1, 2}
		}
		for _, n := range targets {
			old, was := s.fds.m[n]
			if old != nil {
				old.refs.Add(1) // the undo list holds it
			}
			undo = append(undo, redirected{n, old, was})
			if closing {
				s.fds.put(n, nil)
			} else {
				s.fds.put(n, d)
			}
		}
	}
	return undo, true
}

func (s *shell) unredirect(undo []redirected) {
	for i := len(undo) - 1; i >= 0; i-- {
		u := undo[i]
		if !u.was {
			s.fds.drop(u.n)
			continue
		}
		s.fds.put(u.n, u.d)
		if u.d != nil {
			u.d.release()
		}
	}
}

// commit makes redirections last, as exec does.
func (s *shell) commit(undo []redirected) {
	for _, u := range undo {
		if u.d != nil {
			u.d.release()
		}
	}
}

// open resolves one redirection to the descriptor it changes and the file.
func (s *shell) open(r *syntax.Redirect) (n int, d *desc, closing bool, err error) {
	n = 1
	switch r.Op {
	case syntax.RdrIn, syntax.RdrInOut, syntax.DplIn, syntax.Hdoc, syntax.DashHdoc, syntax.WordHdoc:
		n = 0
	}
	if r.N != nil {
		n, err = strconv.Atoi(r.N.Value)
		if err != nil || n > 65535 {
			return 0, nil, false, errors.New(r.N.Value + ": not a descriptor number")
		}
	}
	switch r.Op {
	case syntax.Hdoc, syntax.DashHdoc:
		d, err = memoryFile(s.hereDocument(r))
		return n, d, false, err
	case syntax.WordHdoc:
		d, err = memoryFile(s.text(r.Word) + "\n")
		return n, d, false, err
	}
	arg := s.text(r.Word)
	flags := 0
	switch r.Op {
	case syntax.DplIn, syntax.DplOut:
		if arg == "-" {
			return n, nil, true, nil
		}
		from, err := strconv.Atoi(arg)
		if err != nil {
			return 0, nil, false, errors.New(arg + ": not a descriptor number")
		}
		if d = s.fds.lookup(from); d == nil {
			return 0, nil, false, errors.New(arg + ": bad file descriptor")
		}
		return n, d, false, nil
	case syntax.RdrIn:
		flags = os.O_RDONLY
	case syntax.RdrInOut:
		flags = os.O_RDWR | os.O_CREATE
	case syntax.AppOut, syntax.AppAll:
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	case syntax.RdrOut, syntax.RdrAll:
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		if s.opt.noclobber {
			if st, serr := os.Stat(abs(s.dir, arg)); serr == nil && st.Mode().IsRegular() {
				return 0, nil, false, errors.New("cannot create " + arg + ": file exists (set -C is on; >| overwrites)")
			}
		}
	case syntax.RdrClob:
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	default:
		return 0, nil, false, errors.New(r.Op.String() + ": redirection is not supported")
	}
	if arg == "" {
		return 0, nil, false, errors.New("redirection to an empty name")
	}
	d, err = s.openPath(arg, flags)
	if err != nil {
		verb := "open"
		if flags&os.O_CREATE != 0 {
			verb = "create"
		}
		return 0, nil, false, errors.New("cannot " + verb + " " + arg + ": " + cause(err))
	}
	return n, d, false, nil
}

// openPath opens a file. /dev/stdin, /dev/stdout, /dev/stderr and /dev/fd/N mean
// the script's descriptors, which are not the process's.
func (s *shell) openPath(path string, flags int) (*desc, error) {
	fd := -1
	switch path {
	case "/dev/stdin":
		fd = 0
	case "/dev/stdout":
		fd = 1
	case "/dev/stderr":
		fd = 2
	}
	if fd >= 0 {
		d := s.fds.lookup(fd)
		if d == nil {
			return nil, unix.EBADF
		}
		return d, nil
	}
	// Opened without the poller: children get a blocking descriptor, and a
	// FIFO blocks until its other end is there, as scripts expect.
	for {
		h, err := unix.Open(abs(s.dir, path), flags|unix.O_CLOEXEC|unix.O_LARGEFILE, 0o666)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &desc{file: os.NewFile(uintptr(h), path)}, nil
	}
}

// hereDocument is the text of << and <<-.
func (s *shell) hereDocument(r *syntax.Redirect) string {
	if r.Hdoc == nil {
		return ""
	}
	literalBody := false
	for _, p := range r.Word.Parts {
		switch p := p.(type) {
		case *syntax.SglQuoted, *syntax.DblQuoted:
			literalBody = true
		case *syntax.Lit:
			for i := 0; i < len(p.Value); i++ {
				literalBody = literalBody || p.Value[i] == '\\'
			}
		}
	}
	body := r.Hdoc
	if r.Op == syntax.DashHdoc {
		body = stripTabs(body)
	}
	if literalBody {
		if len(body.Parts) == 1 {
			if lit, ok := body.Parts[0].(*syntax.Lit); ok {
				return lit.Value
			}
		}
	}
	return s.document(body)
}

// stripTabs removes the tabs at the start of each line of a here-document as
// written; what expansions bring in keeps its own.
func stripTabs(w *syntax.Word) *syntax.Word {
	out := &syntax.Word{}
	lineStart := true
	for _, p := range w.Parts {
		lit, ok := p.(*syntax.Lit)
		if !ok {
			out.Parts = append(out.Parts, p)
			lineStart = false
			continue
		}
		b := make([]byte, 0, len(lit.Value))
		for i := 0; i < len(lit.Value); i++ {
			c := lit.Value[i]
			if c == '\t' && lineStart {
				continue
			}
			lineStart = c == '\n'
			b = append(b, c)
		}
		out.Parts = append(out.Parts, &syntax.Lit{ValuePos: lit.ValuePos, ValueEnd: lit.ValueEnd, Value: string(b)})
	}
	return out
}

// memoryFile is a file in memory, at its start. Unlike a pipe it can hold any
// amount without somebody to write it, and read can take more than a byte at once.
func memoryFile(text string) (*desc, error) {
	h, err := unix.MemfdCreate("here-document", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, errors.New("make a here-document: " + err.Error())
	}
	f := os.NewFile(uintptr(h), "here-document")
	if _, err = f.WriteString(text); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, errors.New("write a here-document: " + cause(err))
	}
	return &desc{file: f}, nil
}

// cause is the innermost text of an error, without paths that were said already.
func cause(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
