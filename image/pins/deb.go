package pins

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
	"os/exec"
	"path"
	"runtime"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sync/errgroup"
	"pault.ag/go/debian/deb"
)

// Bounds on what a package may hold.
const (
	maxMembers  = 16        // of the ar archive
	maxFiles    = 200_000   // of data.tar
	maxUnpacked = 8 << 30   // bytes in all
	maxWindow   = 128 << 20 // bytes of memory that a decoder may take
	copyBuffer  = 256 << 10
)

// Unpack gives the folder with a package's files, unpacking (and fetching) it
// if the cache does not have it. Folders have mode 0755, files 0444 or 0555;
// owners, special bits and device nodes are dropped. The tree is shared: do not
// change it.
func (s *Store) Unpack(ctx context.Context, pkg string) (dir string, err error) {
	p, err := s.lookup(pkg)
	if err != nil {
		return "", err
	}
	if dir := s.treePath(p); exists(dir) {
		return dir, nil
	}
	if err := s.Fetch(ctx, pkg); err != nil {
		return "", err
	}
	if p, err = s.lookup(pkg); err != nil { // a newer one may have taken its place
		return "", err
	}
	return s.unpack(ctx, p, true)
}

// unpackAll unpacks several fetched packages side by side.
func (s *Store) unpackAll(ctx context.Context, packages []string) error {
	list, err := s.lookupAll(packages)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, p := range list {
		if exists(s.treePath(p)) {
			continue
		}
		g.Go(func() error {
			_, err := s.unpack(ctx, p, true)
			return err
		})
	}
	return g.Wait()
}

// unpack unpacks a fetched package. useTool lets it run the pinned xz, which is
// twice as fast as what Go has.
func (s *Store) unpack(ctx context.Context, p Package, useTool bool) (string, error) {
	dir := s.treePath(p)
	unlock, err := s.trees.lock(ctx, p.SHA256)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(dir) {
		return dir, nil
	}
	var xz *Tool
	if useTool && p.Size > 200<<10 {
		// Not for xz's own packages: they are unpacked in Go, and their locks are ours.
		if xz, err = s.xzTool(ctx, p); err != nil {
			return "", err
		}
	}
	unlockFile, err := lockPath(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlockFile()
	if exists(dir) {
		return dir, nil
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil { // of a run that was killed
		return "", fmt.Errorf("unpack %s: %w", p, err)
	}
	err = s.unpackTo(ctx, s.debPath(p), part, xz)
	if err == nil {
		err = os.Rename(part, dir)
	}
	if err != nil {
		os.RemoveAll(part)
		return "", fmt.Errorf("unpack %s: %w", p, explainDisk(dir, err))
	}
	return dir, nil
}

// unpackTo unpacks the data of the package file at debFile into the new folder
// dir.
func (s *Store) unpackTo(ctx context.Context, debFile, dir string, xz *Tool) error {
	return withData(ctx, debFile, xz, func(r io.Reader) error {
		if err := makeDir(dir); err != nil {
			return err
		}
		return unpackTar(ctx, r, dir)
	})
}

// withData calls f with the uncompressed data.tar of a package file (deb(5)).
func withData(ctx context.Context, debFile string, xz *Tool, f func(io.Reader) error) error {
	file, err := os.Open(debFile)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	name, data, err := debData(file, st.Size())
	if err != nil {
		return fmt.Errorf("read %s: %w", debFile, err)
	}
	r, closeData, err := decompress(ctx, name, data, xz)
	if err != nil {
		return fmt.Errorf("read %s: %w", debFile, err)
	}
	err = f(r)
	if err == nil { // to the end: that is where the checksum is
		_, err = io.Copy(io.Discard, io.LimitReader(r, maxUnpacked))
	}
	if cerr := closeData(err == nil); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("read %s, %s: %w", debFile, name, err)
	}
	return nil
}

// debData finds the member data.tar.* of a package file of size bytes.
func debData(file io.ReaderAt, size int64) (name string, data *io.SectionReader, err error) {
	ar, err := deb.LoadAr(file)
	if err != nil {
		return "", nil, fmt.Errorf("not a Debian package: %w", err)
	}
	at := int64(len("!<arch>\n"))
	for n := 0; n < maxMembers; n++ {
		e, err := ar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", nil, fmt.Errorf("not a Debian package: %w", err)
		}
		at += 60
		if e.Size < 0 || e.Size > size-at {
			return "", nil, fmt.Errorf("not a Debian package: member %q of %d bytes at %d does not fit in %d", e.Name, e.Size, at, size)
		}
		if n == 0 && e.Name != "debian-binary" {
			return "", nil, fmt.Errorf("not a Debian package: it starts with member %q, not debian-binary", e.Name)
		}
		if strings.HasPrefix(e.Name, "data.tar") {
			return e.Name, e.Data, nil
		}
		at += e.Size + e.Size%2
	}
	return "", nil, errors.New("not a Debian package: no member data.tar")
}

// decompress reads a file by the ending of its name. closeData must be called;
// done tells it that all was read.
func decompress(ctx context.Context, name string, data io.Reader, tool *Tool) (r io.Reader, closeData func(done bool) error, err error) {
	nothing := func(bool) error { return nil }
	switch path.Ext(name) {
	case ".tar", "":
		return data, nothing, nil
	case ".gz":
		z, err := gzip.NewReader(bufio.NewReaderSize(data, copyBuffer))
		return z, nothing, err
	case ".zst":
		z, err := zstd.NewReader(data, zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, err
		}
		return z, func(bool) error { z.Close(); return nil }, nil
	case ".xz":
		if tool != nil {
			return runXZ(ctx, data, tool)
		}
		z, err := xz.ReaderConfig{DictCap: 64 << 20}.NewReader(bufio.NewReaderSize(data, copyBuffer))
		return z, nothing, err
	}
	return nil, nil, fmt.Errorf("%s: compressed in a way that is not known (expected .gz, .xz or .zst)", name)
}

// runXZ lets the pinned xz decompress.
func runXZ(ctx context.Context, data io.Reader, tool *Tool) (io.Reader, func(done bool) error, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := tool.Command(ctx, "--decompress", "--stdout", "--threads=0", "--memlimit-decompress=1GiB")
	cmd.Stdin = data
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("run the pinned xz: %w", err)
	}
	return bufio.NewReaderSize(out, copyBuffer), func(done bool) error {
		if !done {
			cancel()
		}
		err := cmd.Wait()
		cancel()
		var exit *exec.ExitError
		if done && errors.As(err, &exit) {
			return fmt.Errorf("the pinned xz: %w: %s", err, strings.TrimSpace(stderr.String()))
		}
		return err
	}, nil
}

// treeEntry is one thing of a data.tar as it is put into a tree.
type treeEntry struct {
	path string // clean, below the tree
	kind byte   // tar.TypeReg, TypeDir, TypeSymlink, TypeLink
	mode fs.FileMode
	size int64
	link string
}

// readEntry gives the next thing that goes into a tree, io.EOF after the last.
func readEntry(tr *tar.Reader) (treeEntry, error) {
	for {
		h, err := tr.Next()
		if err != nil {
			return treeEntry{}, err
		}
		name := path.Clean(h.Name)
		if strings.HasPrefix(name, "/") || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsRune(name, 0) {
			return treeEntry{}, fmt.Errorf("entry %q leads out of the package", h.Name)
		}
		if name == "." {
			continue
		}
		e := treeEntry{path: name, kind: h.Typeflag, size: h.Size, mode: 0o444}
		switch h.Typeflag {
		case tar.TypeReg:
			if h.Mode&0o111 != 0 {
				e.mode = 0o555
			}
		case tar.TypeDir:
			e.mode = 0o755
		case tar.TypeSymlink:
			if h.Linkname == "" || strings.ContainsRune(h.Linkname, 0) {
				return treeEntry{}, fmt.Errorf("symbolic link %q leads to %q", h.Name, h.Linkname)
			}
			e.link = h.Linkname
		case tar.TypeLink:
			e.link = path.Clean(h.Linkname)
			if !localPath(e.link) {
				return treeEntry{}, fmt.Errorf("hard link %q to %q leads out of the package", h.Name, h.Linkname)
			}
		case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
			continue
		default:
			return treeEntry{}, fmt.Errorf("entry %q is of kind %q, which packages do not have", h.Name, string(h.Typeflag))
		}
		return e, nil
	}
}

// unpackTar unpacks a package's data into dir. An os.Root keeps everything
// below dir, whatever names and links the archive has.
func unpackTar(ctx context.Context, r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	buf := make([]byte, copyBuffer)
	var total int64
	for n := 0; ; n++ {
		e, err := readEntry(tr)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if total += e.size; n >= maxFiles || total > maxUnpacked {
			return fmt.Errorf("more than %d files or %d bytes", maxFiles, int64(maxUnpacked))
		}
		if parent := path.Dir(e.path); parent != "." {
			if err := rootMkdirAll(root, parent); err != nil {
				return err
			}
		}
		switch e.kind {
		case tar.TypeDir:
			err = rootMkdirAll(root, e.path)
		case tar.TypeSymlink:
			err = root.Symlink(e.link, e.path)
		case tar.TypeLink:
			err = root.Link(e.link, e.path)
		default:
			err = rootWrite(root, e, tr, buf)
		}
		if err != nil {
			return err
		}
	}
}

// rootMkdirAll makes a folder and those above it, mode 0755 whatever the umask.
func rootMkdirAll(root *os.Root, name string) error {
	if st, err := root.Stat(name); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%q is a folder and a file", name)
		}
		return nil
	}
	if parent := path.Dir(name); parent != "." {
		if err := rootMkdirAll(root, parent); err != nil {
			return err
		}
	}
	if err := root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return root.Chmod(name, 0o755)
}

// rootWrite writes one file that was not there before.
func rootWrite(root *os.Root, e treeEntry, r io.Reader, buf []byte) error {
	f, err := root.OpenFile(e.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, buf)
	return errors.Join(err, f.Chmod(e.mode), f.Close())
}
