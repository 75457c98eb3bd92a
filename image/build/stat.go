package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"weft/image/rootfs"
)

// statCache remembers the hash of files by what stat says of them, so that a
// build in which nothing changed reads no file twice.
type statCache struct {
	file string
	mu   sync.Mutex
	old  map[string]statEntry
	used map[string]statEntry
}

type statEntry struct {
	Size  int64  `json:"s"`
	MTime int64  `json:"m"` // ns
	CTime int64  `json:"c"` // ns
	Inode uint64 `json:"i"`
	Hash  string `json:"h"`
}

// settle is how old a file's last change must be for its hash to be
// remembered: a change within the clock's tick after hashing would go unseen.
const settle = 100 * time.Millisecond

func openStatCache(file string) *statCache {
	c := &statCache{file: file, old: map[string]statEntry{}, used: map[string]statEntry{}}
	if err := readJSON(file, &c.old); err != nil {
		c.old = map[string]statEntry{} // absent or damaged: files are read again
	}
	return c
}

// save writes what was used in this run.
func (c *statCache) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return writeJSON(c.file, c.used)
}

// hash returns the SHA-256 of a regular file.
func (c *statCache) hash(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return hashFile(path)
	}
	e := statEntry{Size: st.Size(), MTime: st.ModTime().UnixNano(), CTime: sys.Ctim.Nano(), Inode: sys.Ino}
	c.mu.Lock()
	for _, m := range []map[string]statEntry{c.used, c.old} {
		if known, ok := m[path]; ok {
			e.Hash = known.Hash
			if known == e {
				c.used[path] = e
				c.mu.Unlock()
				return e.Hash, nil
			}
		}
	}
	c.mu.Unlock()
	start := time.Now()
	if e.Hash, err = hashFile(path); err != nil {
		return "", err
	}
	if newest := time.Unix(0, max(e.MTime, e.CTime)); start.Sub(newest) > settle {
		c.mu.Lock()
		c.used[path] = e
		c.mu.Unlock()
	}
	return e.Hash, nil
}

// tree adds an input for each file below dir, named prefix/path: the hash of
// its content and, where keepExec is set, whether its owner may execute it. A
// missing folder adds nothing.
func (c *statCache) tree(inputs map[string]string, dir, prefix string, keepExec bool) error {
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if rel != "." && rootfs.Ignored(d.Name()) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		name := filepath.Join(prefix, rel)
		switch {
		case d.IsDir():
			inputs[name+"/"] = "folder"
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			inputs[name] = "link " + to
		default:
			h, err := c.hash(p)
			if err != nil {
				return err
			}
			if keepExec {
				st, err := d.Info()
				if err != nil {
					return err
				}
				if st.Mode()&0o100 != 0 {
					h += " executable"
				}
			}
			inputs[name] = h
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	return nil
}
