package boot

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"weft/image/rootfs/kmod"
)

// Rescue is what the rescue system consists of: the program and the drivers of
// network ports, for the kernel of the same image.
type Rescue struct {
	Program string    // file of the program
	Modules *kmod.Set // closed
	Dir     string    // where the modules' files lie, by their Path
}

// Names in the rescue system's file system, which stage 1 mounts at /rescue, and of
// its file in the archive.
const (
	RescueProgram  = "rescue"
	RescueSquashfs = "rescue.squashfs"
)

// leftOut are drivers of ports that a rescue does not come through: those of
// virtual functions and clouds, where an image is written from outside, of modems,
// and those that need firmware files, which an initramfs has none of. They are a
// third of all.
var leftOut = []string{"iavf", "igbvf", "ixgbevf", "ena", "gve", "hv_netvsc", "qmi_wwan", "cdc_mbim", "cdc_ncm", "rndis_host", "bnx2", "atlantic"}

// IsNetwork says whether the rescue system takes a module: it drives a network
// port, or is part of what all of them need.
func IsNetwork(m kmod.Module) bool {
	if slices.Contains(leftOut, m.Name) {
		return false
	}
	return strings.HasPrefix(m.Path, "kernel/drivers/net/") || strings.HasPrefix(m.Path, "kernel/net/packet/")
}

// WriteTar writes the tree of the file system: the same input gives the same bytes.
func (r *Rescue) WriteTar(w io.Writer) error {
	mods := path.Join("lib/modules", r.Modules.Release)
	type entry struct {
		mode int64
		data []byte
		file string
	}
	entries := map[string]entry{
		RescueProgram:                      {mode: 0o755, file: r.Program},
		path.Join(mods, "modules.dep"):     {mode: 0o644, data: r.Modules.Dep()},
		path.Join(mods, "modules.alias"):   {mode: 0o644, data: r.Modules.Alias()},
		path.Join(mods, "modules.softdep"): {mode: 0o644, data: r.Modules.Softdep()},
		path.Join(mods, "modules.builtin"): {mode: 0o644, data: r.Modules.BuiltinText()},
	}
	for _, m := range r.Modules.Modules {
		entries[path.Join(mods, m.Path)] = entry{mode: 0o644, file: filepath.Join(r.Dir, filepath.FromSlash(m.Path))}
	}
	folders := map[string]bool{}
	var names []string
	for n := range entries {
		names = append(names, n)
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			folders[d] = true
		}
	}
	for d := range folders {
		names = append(names, d)
	}
	slices.Sort(names)
	t := tar.NewWriter(w)
	for _, n := range names {
		if folders[n] {
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: n + "/", Mode: 0o755}); err != nil {
				return fmt.Errorf("write the rescue system: %s: %w", n, err)
			}
			continue
		}
		e := entries[n]
		data := e.data
		if e.file != "" {
			var err error
			if data, err = os.ReadFile(e.file); err != nil {
				return fmt.Errorf("write the rescue system: %w", err)
			}
		}
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: e.mode, Size: int64(len(data))})
		if err == nil {
			_, err = t.Write(data)
		}
		if err != nil {
			return fmt.Errorf("write the rescue system: %s: %w", n, err)
		}
	}
	return t.Close()
}

// WrapRescue puts a squashfs into an archive that the kernel takes beside the
// initramfs. It is not compressed a second time, so that stage 1 can mount the
// squashfs where it lies in the file.
func WrapRescue(w io.Writer, squashfs []byte) error {
	rw := cpio.Newc.Writer(w)
	info := cpio.Info{Name: RescueSquashfs, Ino: 1, Mode: cpio.S_IFREG | 0o444, NLink: 1}
	return errors.Join(rw.WriteRecord(cpio.StaticRecord(squashfs, info)), cpio.WriteTrailer(rw))
}
