package overlay

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a config archive. LEDE has none; a backup of /etc is some hundred
// KiB.
const (
	maxArchive = 64 << 20 // compressed bytes
	maxUnpack  = 128 << 20
	maxMembers = 20000
)

// ErrArchive says that a config archive is damaged or holds what must not be
// unpacked. Nothing was written then.
var ErrArchive = errors.New("bad config archive")

// Restore unpacks a config archive (gzip of a tar, as "sysupgrade -b" makes it)
// at root, a mounted overlay over rom. The whole archive is read and checked
// before the first byte is written, so that a damaged one changes nothing; it
// may be repeated. Names that leave root, whether by "..", by a leading slash
// that LEDE's tar would not write, or through a link, are refused. Afterwards
// the accounts that the new image has and the archive does not know are added
// (facts, section 5), and everything is on the medium.
func Restore(archive io.ReadSeeker, root, rom string) (files int, err error) {
	if err := checkArchive(archive); err != nil {
		return 0, err
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("restore the config: %w", err)
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		return 0, fmt.Errorf("restore the config: %w", err)
	}
	defer dir.Close()
	err = eachMember(archive, func(h *tar.Header, name string, body io.Reader) error {
		files++
		return unpack(dir, h, name, body)
	})
	if err != nil {
		return files, fmt.Errorf("restore the config: %w", err)
	}
	for _, name := range []string{"etc/passwd", "etc/group", "etc/shadow"} {
		if err := mergeAccounts(filepath.Join(root, name), filepath.Join(rom, name)); err != nil {
			return files, fmt.Errorf("restore the config: %w", err)
		}
	}
	return files, syncFS(root)
}

// checkArchive reads to the end, gzip's checksum included.
func checkArchive(r io.Reader) error {
	n := 0
	err := eachMember(r, func(h *tar.Header, name string, body io.Reader) error {
		n++
		_, err := io.Copy(io.Discard, body)
		return err
	})
	if err == nil && n == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return nil
}

// eachMember calls f for what is to be unpacked, in order.
func eachMember(r io.Reader, f func(h *tar.Header, name string, body io.Reader) error) error {
	gz, err := gzip.NewReader(io.LimitReader(r, maxArchive))
	if err != nil {
		return err
	}
	plain := &io.LimitedReader{R: gz, N: maxUnpack}
	if err := members(plain, f); plain.N > 0 {
		return err
	}
	return fmt.Errorf("unpacks to more than %d MiB", maxUnpack>>20)
}

// members reads a tar to its end and what pads it.
func members(plain io.Reader, f func(h *tar.Header, name string, body io.Reader) error) error {
	members := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n >= maxMembers {
			return fmt.Errorf("more than %d files", maxMembers)
		}
		name, err := memberName(h.Name)
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir, tar.TypeSymlink, tar.TypeReg:
		case tar.TypeLink:
			if h.Linkname, err = memberName(h.Linkname); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: is neither file, folder nor link (type %q)", h.Name, h.Typeflag)
		}
		if name == "." {
			continue
		}
		if err := f(h, name, members); err != nil {
			return err
		}
	}
	// The rest of the stream is padding; reading it verifies the checksum.
	_, err := io.Copy(io.Discard, plain)
	return err
}

// memberName returns the path below the root, refusing what leaves it.
func memberName(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("%s: an absolute path", name)
	}
	clean := path.Clean(name)
	if !fs.ValidPath(clean) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%s: leaves the root folder", name)
	}
	return clean, nil
}

// unpack writes one member. os.Root keeps every step below the root, links on
// the way included.
func unpack(root *os.Root, h *tar.Header, name string, body io.Reader) error {
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	old, err := root.Lstat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if old == nil {
			if err := root.Mkdir(name, 0o755); err != nil {
				return err
			}
		} else if !old.IsDir() {
			// A link to a folder stays, as tar does it: /var is one.
			if to, err := root.Stat(name); err == nil && to.IsDir() {
				return nil
			}
			return fmt.Errorf("%s: a folder in the archive, something else here", name)
		}
	} else {
		if old != nil {
			if old.IsDir() {
				return fmt.Errorf("%s: a file in the archive, a folder here", name)
			}
			if err := root.Remove(name); err != nil {
				return err
			}
		}
		switch h.Typeflag {
		case tar.TypeSymlink:
			if err := root.Symlink(h.Linkname, name); err != nil {
				return err
			}
			return root.Lchown(name, h.Uid, h.Gid)
		case tar.TypeLink:
			return root.Link(h.Linkname, name)
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	// The owner first: changing it clears the set-user-id bit.
	if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := root.Chmod(name, h.FileInfo().Mode()); err != nil {
		return err
	}
	if h.ModTime.After(time.Unix(0, 0)) {
		return root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil
}

// mergeAccounts appends the lines of the image's file whose names are missing.
func mergeAccounts(name, image string) error {
	ours, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	theirs, err := os.ReadFile(image)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	merged := mergeLines(string(ours), string(theirs))
	if merged == string(ours) {
		return nil
	}
	mode, uid, gid := fs.FileMode(0o644), 0, 0
	var st unix.Stat_t
	for _, path := range []string{image, name} {
		if err := unix.Stat(path, &st); err == nil {
			mode, uid, gid = fs.FileMode(st.Mode&0o777), int(st.Uid), int(st.Gid)
		}
	}
	tmp := name + ".new"
	if err := copyDurably(tmp, strings.NewReader(merged)); err != nil {
		return err
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return err
	}
	if err := os.Chown(tmp, uid, gid); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// mergeLines adds to ours the lines of theirs whose first field ours lacks.
func mergeLines(ours, theirs string) string {
	have := map[string]bool{}
	for line := range strings.Lines(ours) {
		name, _, _ := strings.Cut(strings.TrimRight(line, "\n"), ":")
		have[name] = true
	}
	out := ours
	for line := range strings.Lines(theirs) {
		line = strings.TrimRight(line, "\n")
		name, _, ok := strings.Cut(line, ":")
		if !ok || name == "" || have[name] {
			continue
		}
		have[name] = true
		if out != "" && !strings.HasSuffix(out, "\n") {
			out += "\n"
		}
		out += line + "\n"
	}
	return out
}

// archiveLength returns the number of compressed bytes of the gzip stream that
// r begins with, after checking it as a config archive.
func archiveLength(r *io.SectionReader) (int64, error) {
	counter := &countReader{r: r}
	buffered := bufio.NewReader(counter)
	gz, err := gzip.NewReader(buffered)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	gz.Multistream(false) // what follows is not part of it
	n, err := io.Copy(io.Discard, io.LimitReader(gz, maxUnpack))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	if n == maxUnpack {
		return 0, fmt.Errorf("%w: unpacks to more than %d MiB", ErrArchive, maxUnpack>>20)
	}
	length := counter.n - int64(buffered.Buffered())
	return length, checkArchive(io.NewSectionReader(r, 0, length))
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// copyDurably writes a file and brings it and its name to the medium.
func copyDurably(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}
