package rpcd

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/init/bus"
)

const (
	// maxFile bounds what read returns and each stream of exec, in bytes.
	maxFile = 256 << 10
	// maxCommand bounds a command line that is held against the grants.
	maxCommand = 1024
	// maxExecs bounds the commands that run at the same time.
	maxExecs = 16
	// The time a command may take: default and bounds of the option timeout.
	defaultExecTime, minExecTime, maxExecTime = 30 * time.Second, time.Second, 600 * time.Second
	// pipeGrace is how long the output of a command that has ended stays open for
	// what it started.
	pipeGrace = time.Second
	// pollTime bounds reading from what is no regular file.
	pollTime = 3 * time.Second
)

// fileStatus turns an error of the file system into rpcd's status for it.
func fileStatus(err error) error {
	s := bus.StatusUnknownError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s = bus.StatusNotFound
	case errors.Is(err, fs.ErrPermission):
		s = bus.StatusPermissionDenied
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		s = bus.StatusInvalidArgument
	default:
		return err
	}
	return fmt.Errorf("%w: %w", err, s)
}

// path returns the path that a call is about, cleaned, if the caller may.
func (s *server) path(args bus.Table, perm string) (string, error) {
	p, ok := str(args, "path")
	if !ok || !filepath.IsAbs(p) {
		return "", bus.StatusInvalidArgument
	}
	p = filepath.Clean(p)
	return p, s.mayFile(args, p, perm)
}

func (s *server) mayFile(args bus.Table, path, perm string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.caller(args)
	if err != nil {
		return err
	}
	if !may(ses, "file", path, perm) {
		return bus.StatusPermissionDenied
	}
	return nil
}

// cString cuts data at its first NUL byte: the bus cannot carry one.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func (s *server) fileRead(_ context.Context, args bus.Table, reply func(any) error) error {
	path, err := s.path(args, "read")
	if err != nil {
		return err
	}
	// Without O_NONBLOCK opening a FIFO would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fileStatus(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fileStatus(err)
	}
	if fi.Size() >= maxFile && fi.Mode().IsRegular() {
		return fmt.Errorf("read %s: %d bytes, limit %d: %w", path, fi.Size(), maxFile, bus.StatusNotSupported)
	}
	_ = f.SetReadDeadline(time.Now().Add(pollTime)) // only where it can block
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fileStatus(err)
	}
	if len(b) == 0 {
		return bus.StatusNoData
	}
	if flag(args, "base64") {
		return reply(bus.Table{{Name: "data", Value: base64.StdEncoding.EncodeToString(b)}})
	}
	return reply(bus.Table{{Name: "data", Value: cString(b)}})
}

func (s *server) fileWrite(_ context.Context, args bus.Table, _ func(any) error) error {
	path, err := s.path(args, "write")
	if err != nil {
		return err
	}
	text, ok := str(args, "data")
	if !ok {
		return bus.StatusInvalidArgument
	}
	data := []byte(text)
	if flag(args, "base64") {
		if data, err = base64.StdEncoding.DecodeString(strings.TrimSpace(text)); err != nil {
			return fmt.Errorf("write %s: data: %w: %w", path, err, bus.StatusInvalidArgument)
		}
	}
	mode := fs.FileMode(0o644)
	if m, ok := args.Get("mode").(int32); ok {
		mode = fs.FileMode(m) & fs.ModePerm
	}
	how := os.O_TRUNC
	if flag(args, "append") {
		how = os.O_APPEND
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK|how, mode)
	if err != nil {
		return fileStatus(err)
	}
	_, err = f.Write(data)
	if serr := f.Sync(); err == nil && !errors.Is(serr, syscall.EINVAL) {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fileStatus(err)
	}
	return nil
}

// stat is the form of a file's attributes in replies.
func stat(fi fs.FileInfo) bus.Table {
	kind := "unknown"
	switch fi.Mode().Type() {
	case 0:
		kind = "file"
	case fs.ModeDir:
		kind = "directory"
	case fs.ModeSymlink:
		kind = "symlink"
	case fs.ModeDevice:
		kind = "block"
	case fs.ModeDevice | fs.ModeCharDevice:
		kind = "char"
	case fs.ModeNamedPipe:
		kind = "fifo"
	case fs.ModeSocket:
		kind = "socket"
	}
	t := bus.Table{{Name: "type", Value: kind}, {Name: "size", Value: fi.Size()}}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		t = append(t, bus.Table{
			{Name: "mode", Value: int(st.Mode)}, {Name: "atime", Value: int64(st.Atim.Sec)}, {Name: "mtime", Value: int64(st.Mtim.Sec)},
			{Name: "ctime", Value: int64(st.Ctim.Sec)}, {Name: "inode", Value: int64(st.Ino)}, {Name: "uid", Value: int(st.Uid)}, {Name: "gid", Value: int(st.Gid)},
		}...)
	}
	for i, a := range t { // small numbers in 32 bits, as upstream sends them
		if n, ok := a.Value.(int64); ok && int64(int32(n)) == n {
			t[i].Value = int32(n)
		}
	}
	return t
}

func (s *server) fileList(_ context.Context, args bus.Table, reply func(any) error) error {
	path, err := s.path(args, "list")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fileStatus(err)
	}
	list := make(bus.Array, 0, len(entries))
	for _, e := range entries {
		fi, err := os.Stat(filepath.Join(path, e.Name()))
		if err != nil {
			fi, err = e.Info() // a link that leads nowhere
		}
		if err != nil || strings.IndexByte(e.Name(), 0) >= 0 {
			continue
		}
		list = append(list, append(bus.Table{{Name: "name", Value: e.Name()}}, stat(fi)...))
	}
	return reply(bus.Table{{Name: "entries", Value: list}})
}

func (s *server) fileStat(_ context.Context, args bus.Table, reply func(any) error) error {
	return s.statWith(os.Stat, args, reply)
}

func (s *server) fileLstat(_ context.Context, args bus.Table, reply func(any) error) error {
	return s.statWith(os.Lstat, args, reply)
}

func (s *server) statWith(f func(string) (fs.FileInfo, error), args bus.Table, reply func(any) error) error {
	path, err := s.path(args, "list")
	if err != nil {
		return err
	}
	fi, err := f(path)
	if err != nil {
		return fileStatus(err)
	}
	return reply(append(bus.Table{{Name: "path", Value: path}}, stat(fi)...))
}

func (s *server) fileMD5(ctx context.Context, args bus.Table, reply func(any) error) error {
	path, err := s.path(args, "read")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fileStatus(err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return bus.StatusNotSupported
	}
	h := md5.New()
	if _, err := io.Copy(h, untilDone{ctx, f}); err != nil {
		return fileStatus(err)
	}
	return reply(bus.Table{{Name: "md5", Value: hex.EncodeToString(h.Sum(nil))}})
}

// untilDone ends reading with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}

// fileRemove removes a file or a folder with all that is in it; each entry needs
// the grant. Links are removed, not followed.
func (s *server) fileRemove(_ context.Context, args bus.Table, _ func(any) error) error {
	path, err := s.path(args, "write")
	if err != nil {
		return err
	}
	if path == "/" {
		return bus.StatusInvalidArgument
	}
	if err := s.mayRemove(args, path); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return fileStatus(err)
	}
	return nil
}

// mayRemove checks path and all below it, so that nothing is removed in part.
func (s *server) mayRemove(args bus.Table, path string) error {
	if err := s.mayFile(args, path, "write"); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return fileStatus(err)
	}
	if !fi.IsDir() {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fileStatus(err)
	}
	for _, e := range entries {
		if err := s.mayRemove(args, filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// fileExec runs a command and returns its exit code and output. The grant is
// that of the program's path, or of the whole command line.
func (s *server) fileExec(ctx context.Context, args bus.Table, reply func(any) error) error {
	command, ok := str(args, "command")
	if !ok || command == "" {
		return bus.StatusInvalidArgument
	}
	program, err := exec.LookPath(command)
	if err != nil {
		return fmt.Errorf("%w: %w", err, bus.StatusNotFound)
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	var params []string
	list, _ := args.Get("params").(bus.Array)
	for _, p := range list {
		if p, ok := p.(string); ok {
			params = append(params, p)
		}
	}
	if err := s.mayFile(args, program, "exec"); err != nil {
		line := strings.Join(append([]string{program}, params...), " ")
		if len(params) == 0 || len(line) >= maxCommand || s.mayFile(args, line, "exec") != nil {
			return err
		}
	}
	cmd := exec.Command(program, params...)
	cmd.Env = os.Environ()
	env, _ := args.Get("env").(bus.Table)
	for _, a := range env {
		if v, ok := a.Value.(string); ok && a.Name != "" && !strings.Contains(a.Name, "=") {
			cmd.Env = append(cmd.Env, a.Name+"="+v)
		}
	}
	code, stdout, stderr, err := s.run(ctx, cmd)
	if err != nil {
		return err
	}
	return reply(execReply(code, stdout, stderr))
}

// execReply is the form of how a command ended in replies.
func execReply(code int, stdout, stderr []byte) bus.Table {
	out := bus.Table{{Name: "code", Value: code}}
	for _, o := range []struct {
		name string
		b    []byte
	}{{"stdout", stdout}, {"stderr", stderr}} {
		if t := cString(o.b); t != "" {
			out = append(out, bus.Attr{Name: o.name, Value: t})
		}
	}
	return out
}

// run runs a command to its end, in the time that commands may take, and returns
// its exit code (128 + signal) and output. What it has started goes with it.
func (s *server) run(ctx context.Context, cmd *exec.Cmd) (code int, out, errs []byte, err error) {
	select {
	case s.execs <- struct{}{}:
		defer func() { <-s.execs }()
	case <-ctx.Done():
		return 0, nil, nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, s.execTime())
	defer cancel()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeGrace
	stdout, stderr := &bounded{full: cancel}, &bounded{full: cancel}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return 0, nil, nil, fileStatus(err)
	}
	stop := context.AfterFunc(ctx, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err = cmd.Wait()
	stop()
	switch {
	case stdout.over || stderr.over:
		return 0, nil, nil, fmt.Errorf("%s: more than %d bytes of output: %w", cmd.Path, maxFile, bus.StatusNotSupported)
	case ctx.Err() != nil:
		return 0, nil, nil, fmt.Errorf("%s: took too long and was killed: %w", cmd.Path, bus.StatusTimeout)
	case err != nil && cmd.ProcessState == nil:
		return 0, nil, nil, fileStatus(err)
	}
	code = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	return code, stdout.buf.Bytes(), stderr.buf.Bytes(), nil
}

// bounded keeps up to maxFile bytes and calls full when there are more. The
// buffer is not embedded: its ReadFrom would let io.Copy go round Write.
type bounded struct {
	buf  bytes.Buffer
	full func()
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxFile {
		b.over = true
		b.full()
		return len(p), nil
	}
	return b.buf.Write(p)
}

// execTime is the option timeout of the section rpcd in the package rpcd,
// seconds from 1 to 600.
func (s *server) execTime() time.Duration {
	p, err := s.tree(nil).Load("rpcd")
	if err != nil {
		return defaultExecTime
	}
	sec := p.Section("@rpcd[0]")
	if sec == nil {
		return defaultExecTime
	}
	n, err := strconv.Atoi(sec.String("timeout", ""))
	if err != nil {
		return defaultExecTime
	}
	return min(max(time.Duration(n)*time.Second, minExecTime), maxExecTime)
}
