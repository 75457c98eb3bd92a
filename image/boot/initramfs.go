package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"weft/image/rootfs/kmod"
)

// Initramfs is what GRUB loads beside the kernel: the device program as /init
// and the modules that lead to the root file system, nothing else. It is
// small on purpose: firmware reads it slowly.
type Initramfs struct {
	Init    string    // file of the device program
	Modules *kmod.Set // closed
	Dir     string    // where the modules' files lie, by their Path
	Load    []string  // modules to load, in order
}

// ModuleList is where the initramfs holds the names of Load, one a line.
const ModuleList = "etc/weft/modules"

// Write writes the archive (cpio, newc) through zstd. The same input gives the
// same bytes: entries sorted, inodes counted, times 0, owner root.
func (i *Initramfs) Write(w io.Writer) (err error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false))
	if err != nil {
		return fmt.Errorf("compress the initramfs: %w", err)
	}
	defer func() {
		if cerr := z.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("compress the initramfs: %w", cerr)
		}
	}()
	buf := bufio.NewWriterSize(z, 1<<20)
	if err := i.archive(buf); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	return buf.Flush()
}

func (i *Initramfs) archive(w io.Writer) error {
	mods := path.Join("lib/modules", i.Modules.Release)
	type entry struct {
		mode uint64
		data []byte
		file string
	}
	entries := map[string]entry{
		"init":                             {mode: cpio.S_IFREG | 0o755, file: i.Init},
		ModuleList:                         {mode: cpio.S_IFREG | 0o644, data: []byte(strings.Join(i.Load, "\n") + "\n")},
		path.Join(mods, "modules.dep"):     {mode: cpio.S_IFREG | 0o644, data: i.Modules.Dep()},
		path.Join(mods, "modules.alias"):   {mode: cpio.S_IFREG | 0o644, data: i.Modules.Alias()},
		path.Join(mods, "modules.softdep"): {mode: cpio.S_IFREG | 0o644, data: i.Modules.Softdep()},
		path.Join(mods, "modules.builtin"): {mode: cpio.S_IFREG | 0o644, data: i.Modules.BuiltinText()},
		// What the kernel opens and mounts on before anything runs.
		"dev": {mode: cpio.S_IFDIR | 0o755}, "proc": {mode: cpio.S_IFDIR | 0o755}, "sys": {mode: cpio.S_IFDIR | 0o755},
		"tmp": {mode: cpio.S_IFDIR | 0o1777}, "root": {mode: cpio.S_IFDIR | 0o700},
		"dev/console": {mode: cpio.S_IFCHR | 0o600},
	}
	for _, m := range i.Modules.Modules {
		entries[path.Join(mods, m.Path)] = entry{mode: cpio.S_IFREG | 0o644, file: filepath.Join(i.Dir, filepath.FromSlash(m.Path))}
	}
	var names []string
	for n := range entries {
		names = append(names, n)
	}
	for _, n := range names {
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			if _, ok := entries[d]; !ok {
				entries[d] = entry{mode: cpio.S_IFDIR | 0o755}
				names = append(names, d)
			}
		}
	}
	slices.Sort(names)
	rw := cpio.Newc.Writer(w)
	for n, name := range names {
		e := entries[name]
		info := cpio.Info{Name: name, Ino: uint64(n + 1), Mode: e.mode, NLink: 1}
		if e.mode&cpio.S_IFMT == cpio.S_IFCHR {
			info.Rmajor, info.Rminor = 5, 1
		}
		data := e.data
		if e.file != "" {
			var err error
			if data, err = os.ReadFile(e.file); err != nil {
				return err
			}
		}
		if err := rw.WriteRecord(cpio.StaticRecord(data, info)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := cpio.WriteTrailer(rw); err != nil {
		return err
	}
	return nil
}

// Entry is one file of an initramfs, as List reads it.
type Entry struct {
	Name string
	Mode uint64 // type and permissions, as in st_mode
	Size int64
	Data func() ([]byte, error)
}

// maxInitramfs bounds a decompressed initramfs in bytes.
const maxInitramfs = 512 << 20

// List reads an initramfs that Write made.
func List(r io.Reader) ([]Entry, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("decompress the initramfs: %w", err)
	}
	defer z.Close()
	data, err := io.ReadAll(io.LimitReader(z, maxInitramfs+1))
	if err != nil {
		return nil, fmt.Errorf("decompress the initramfs: %w", err)
	}
	if len(data) > maxInitramfs {
		return nil, fmt.Errorf("decompress the initramfs: more than %d bytes", maxInitramfs)
	}
	rr := cpio.Newc.Reader(strings.NewReader(string(data)))
	var out []Entry
	for {
		rec, err := rr.ReadRecord()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the initramfs: %w", err)
		}
		if rec.FileSize > uint64(len(data)) {
			return nil, fmt.Errorf("read the initramfs: %s claims %d bytes in an archive of %d", rec.Name, rec.FileSize, len(data))
		}
		out = append(out, Entry{Name: rec.Name, Mode: rec.Mode, Size: int64(rec.FileSize), Data: func() ([]byte, error) {
			b := make([]byte, rec.FileSize)
			if n, err := rec.ReadAt(b, 0); n < len(b) {
				return nil, fmt.Errorf("read %s of the initramfs: %w", rec.Name, err)
			}
			return b, nil
		}})
	}
}
