package overlay

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Bounds of what is saved from a broken file system: the configuration, not
// what users piled up.
const (
	maxSalvage     = 16 << 20
	maxSalvageFile = 1 << 20
)

// saved is what could be read from a broken file system.
type saved struct {
	dir   string
	files int
	lost  int
}

func (s saved) text() string {
	if s.files == 0 {
		return ""
	}
	return fmt.Sprintf(", but %d files of its /etc could be read and are kept", s.files)
}

// salvage copies upper/etc of a file system that does not mount for writing
// into Scratch, without replaying its journal.
func (d *Data) salvage() saved {
	if err := d.Kernel.Mount(d.Device, d.Dir, "ext4", unix.MS_RDONLY, "noload"); err != nil {
		d.say(slog.LevelWarn, "nothing can be read from %s: %v", d.name(), err)
		return saved{}
	}
	defer d.Kernel.Unmount(d.Dir)
	s := saved{dir: filepath.Join(d.Scratch, "salvage")}
	from := filepath.Join(d.Root(), "upper/etc")
	if _, err := os.Lstat(from); err != nil {
		from = filepath.Join(d.Dir, "upper/etc") // the layout before there were slots
	}
	if err := copyTree(from, filepath.Join(s.dir, "etc"), &s); err != nil {
		d.say(slog.LevelWarn, "what is readable on %s is saved in part: %v", d.name(), err)
	}
	return s
}

// putBack copies what was saved into the new upper.
func (d *Data) putBack(s saved) error {
	if s.files == 0 {
		return nil
	}
	if err := os.MkdirAll(d.Root(), 0o755); err != nil {
		return err
	}
	var again saved
	if err := copyTree(filepath.Join(s.dir, "etc"), filepath.Join(d.Root(), "upper/etc"), &again); err != nil {
		d.say(slog.LevelWarn, "what was saved from %s is put back in part: %v", d.name(), err)
	}
	if err := syncFS(d.Dir); err != nil {
		return err
	}
	if err := SetState(d.Root(), Ready); err != nil {
		return err
	}
	return os.RemoveAll(s.dir)
}

// copyTree copies plain files, folders and links with their owners and modes,
// passing over what cannot be read.
func copyTree(from, to string, s *saved) error {
	left := int64(maxSalvage)
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			s.lost++
			if e != nil && e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			s.lost++
			return nil
		}
		dst := filepath.Join(to, rel)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			s.lost++
			return nil
		}
		switch {
		case e.IsDir():
			if err := os.MkdirAll(dst, fi.Mode().Perm()); err != nil {
				return err
			}
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				s.lost++
				return nil
			}
			if err := os.Symlink(target, dst); err != nil {
				return err
			}
		case e.Type() == 0:
			if fi.Size() > maxSalvageFile || fi.Size() > left {
				s.lost++
				return nil
			}
			ok, err := copyFile(path, dst, fi)
			if err != nil {
				return err
			}
			if !ok {
				s.lost++
				return nil
			}
			left -= fi.Size()
			s.files++
		case e.Type()&fs.ModeCharDevice != 0 && st.Rdev == 0:
			// A whiteout: the file was deleted.
			if err := unix.Mknod(dst, unix.S_IFCHR, 0); err != nil {
				return fmt.Errorf("keep the deletion of %s: %w", rel, err)
			}
		default:
			return nil
		}
		if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return nil
	})
}

// copyFile reports false when the source cannot be read in full.
func copyFile(from, to string, fi fs.FileInfo) (bool, error) {
	src, err := os.Open(from)
	if err != nil {
		return false, nil
	}
	defer src.Close()
	data, err := io.ReadAll(io.LimitReader(src, maxSalvageFile))
	if err != nil {
		return false, nil
	}
	if err := os.WriteFile(to, data, fi.Mode().Perm()); err != nil {
		return false, err
	}
	return true, os.Chtimes(to, fi.ModTime(), fi.ModTime())
}
