// Package bare makes the smallest system that boots on a given kernel: an initramfs with one static Go program as init
// and a few modules. It is what the lab tests itself with, and the floor that the boot bench compares an image with.
package bare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// consoleModules are what hvc0 needs, in the order of their dependencies; those that a kernel has built in are missing
// from its package and are left out.
var consoleModules = []string{
	"virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_console",
}

// System is a kernel and an initramfs.
type System struct{ Kernel, Initrd string }

// Build compiles the guest for goarch and packs it, with the console modules found below modules (a tree with the
// kernel's .ko or .ko.xz files; empty = no modules), into dir/bare.cpio.
func Build(ctx context.Context, dir, goarch, kernel, modules string) (System, error) {
	fail := func(err error) (System, error) { return System{}, fmt.Errorf("build the bare system: %w", err) }
	program := filepath.Join(dir, "guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", program, "weft/test-vm/lab/bare/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+goarch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("go build: %w: %s", err, out))
	}
	code, err := os.ReadFile(program)
	if err != nil {
		return fail(err)
	}
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), // the kernel opens it for init's output
		cpio.StaticFile("init", string(code), 0o755),
	}
	var names []string
	if modules != "" {
		found, err := findModules(modules)
		if err != nil {
			return fail(err)
		}
		for _, m := range found {
			data, err := os.ReadFile(m)
			if err != nil {
				return fail(err)
			}
			names = append(names, "/"+filepath.Base(m))
			records = append(records, cpio.StaticFile(filepath.Base(m), string(data), 0o644))
		}
	}
	records = append(records, cpio.StaticFile("modules", strings.Join(names, "\n"), 0o644))
	if err := cpio.WriteRecords(w, records); err != nil {
		return fail(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return fail(err)
	}
	initrd := filepath.Join(dir, "bare.cpio")
	if err := os.WriteFile(initrd, b.Bytes(), 0o644); err != nil {
		return fail(err)
	}
	return System{Kernel: kernel, Initrd: initrd}, nil
}

// findModules finds the console modules below root, in loading order.
func findModules(root string) ([]string, error) {
	at := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _, ok := strings.Cut(d.Name(), ".ko")
		if ok && !d.IsDir() {
			at[strings.ReplaceAll(name, "-", "_")] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find modules: %w", err)
	}
	var out []string
	for _, name := range consoleModules {
		if path := at[name]; path != "" {
			out = append(out, path)
		}
	}
	return out, nil
}

// FindKernel finds the kernel below an unpacked kernel package, and the folder of its modules.
func FindKernel(tree string) (kernel, modules string, err error) {
	kernels, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinu[xz]-*"))
	if err != nil {
		return "", "", fmt.Errorf("find kernel: %w", err)
	}
	if len(kernels) != 1 {
		return "", "", fmt.Errorf("find kernel: %d files match %s/boot/vmlinu[xz]-*, expected one", len(kernels), tree)
	}
	var dirs []string
	for _, below := range []string{"usr/lib/modules", "lib/modules"} {
		entries, err := os.ReadDir(filepath.Join(tree, below))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("find kernel: %w", err)
		}
		for _, e := range entries {
			dirs = append(dirs, filepath.Join(tree, below, e.Name()))
		}
	}
	sort.Strings(dirs)
	if len(dirs) == 0 {
		return "", "", fmt.Errorf("find kernel: %s has no modules below lib/modules", tree)
	}
	return kernels[0], dirs[0], nil
}
