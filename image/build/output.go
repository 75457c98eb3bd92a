package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"weft/image/firmware"
	"weft/image/rootfs/kmod"
)

// gzipLevel is the fast end: what is in an image is compressed already, and
// the rest is zeros.
const gzipLevel = 1

// compress writes what feed writes as one gzip member without name and time,
// and the metadata trailer behind it, as LEDE does for .gz images.
func (b *Builder) compress(file string, feed func(io.Writer) error) error {
	info := firmware.NewInfo(b.board.SupportedDevices, b.board.CompatVersion, "", firmware.Version{
		Dist: Dist, Version: Version, Revision: b.revision, Target: b.board.Target, Board: b.board.Profile})
	text, err := info.Encode()
	if err != nil {
		return err
	}
	return writeTo(file, func(w io.Writer) error {
		buf := bufio.NewWriterSize(w, 1<<20)
		fw := firmware.NewWriter(buf)
		z, err := gzip.NewWriterLevel(fw, gzipLevel)
		if err != nil {
			return err
		}
		z.ModTime = time.Unix(0, 0) // the zero Time is not "none" to this package
		in := bufio.NewWriterSize(z, 1<<20)
		if err := feed(in); err != nil {
			return err
		}
		if err := errors.Join(in.Flush(), z.Close()); err != nil {
			return err
		}
		if err := fw.Append(firmware.Metadata, text); err != nil {
			return err
		}
		return buf.Flush()
	})
}

// install puts the outputs into the target's folder: files that are there
// already and the same stay untouched.
func (b *Builder) install() ([]Output, error) {
	dir := b.targetDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the output folder: %w", err)
	}
	prefix := b.imagePrefix()
	var outs []Output
	place := func(name, typ, from string, data []byte) error {
		to := filepath.Join(dir, name)
		var sum string
		var err error
		if from != "" {
			if sum, err = b.stat.hash(from); err != nil {
				return err
			}
		} else {
			sum = hashBytes(data)
		}
		if have, err := b.stat.hash(to); err != nil || have != sum {
			if from != "" {
				if data, err = os.ReadFile(from); err != nil {
					return err
				}
			}
			if err := writeFile(to, data); err != nil {
				return err
			}
		}
		st, err := os.Stat(to)
		if err != nil {
			return err
		}
		outs = append(outs, Output{Name: name, Type: typ, Size: st.Size(), SHA256: sum})
		return nil
	}
	var err error
	step := func(name, typ, step, file string) {
		if err == nil {
			err = place(name, typ, filepath.Join(b.engine.out(step), file), nil)
		}
	}
	for _, im := range b.board.Images {
		step(prefix+"-squashfs-"+im.Type+".img.gz", im.Type, "image "+im.Type, diskFile)
	}
	step(prefix+"-kernel.bin", "kernel", stepModules, kernelFile)
	step(prefix+"-squashfs-rootfs.img.gz", "rootfs", stepRootImage, rootImageFile)
	step(prefix+"-initramfs.cpio.zst", "initramfs", stepInitramfs, initramfsFile)
	step(prefix+".bom.cdx.json", "sbom", stepSBOM, sbomFile)
	if err != nil {
		return nil, err
	}
	lines, err := b.manifest()
	if err != nil {
		return nil, err
	}
	if err := place(prefix+".manifest", "manifest", "", []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		return nil, err
	}
	set, _, err := b.moduleSet()
	if err != nil {
		return nil, err
	}
	overview, err := b.profiles(outs, set)
	if err != nil {
		return nil, err
	}
	if err := place("profiles.json", "profiles", "", overview); err != nil {
		return nil, err
	}
	slices.SortFunc(outs, func(a, b Output) int { return strings.Compare(a.Name, b.Name) })
	var sums strings.Builder
	for _, o := range outs {
		fmt.Fprintf(&sums, "%s *%s\n", o.SHA256, o.Name)
	}
	if err := place("sha256sums", "sha256sums", "", []byte(sums.String())); err != nil {
		return nil, err
	}
	return outs, nil
}

// Manifest lists what the image contains, as LEDE's manifest does: lines
// "name - version", sorted. It fetches the packages that it has to look into.
func (b *Builder) Manifest(ctx context.Context) ([]string, error) {
	var lines []string
	err := b.locked(func() error {
		b.cfg.DryRun = false // looking into packages changes the cache alone
		if err := b.runSteps(ctx, nil, []string{stepForeign}); err != nil {
			return err
		}
		var err error
		lines, err = b.manifest()
		return err
	})
	return lines, err
}

func (b *Builder) manifest() ([]string, error) {
	foreign, err := b.foreignFiles()
	if err != nil {
		return nil, err
	}
	versions := map[string]string{strings.ToLower(Dist): Version + "-" + b.revision}
	kernel, ok := b.store.Package(b.kernelID())
	if !ok {
		return nil, fmt.Errorf("kernel %s is not in the lock", b.kernelID())
	}
	versions["kernel"] = kernel.Version
	for _, f := range b.features {
		if len(f.Pins) == 0 {
			versions[f.Name] = kernel.Version // a set of kernel modules
		}
	}
	for _, id := range b.loaderPackages() {
		if p, ok := b.store.Package(id); ok {
			versions[p.Name] = p.Version
		}
	}
	for _, f := range foreign {
		if p, ok := b.store.Package(f.Package + ":" + b.board.Arch.Debian); ok {
			versions[p.Name] = p.Version
		}
	}
	if b.pinState() == "drifted" {
		versions["pins"] = "drifted"
	}
	var lines []string
	for _, n := range sortedKeys(versions) {
		lines = append(lines, n+" - "+versions[n])
	}
	return lines, nil
}

// profiles returns profiles.json (lede-compat section 11): compact, sorted keys.
func (b *Builder) profiles(outs []Output, set *kmod.Set) ([]byte, error) {
	type image struct {
		Filesystem string `json:"filesystem,omitempty"`
		Name       string `json:"name"`
		SHA256     string `json:"sha256"`
		Unsigned   string `json:"sha256_unsigned"`
		Size       int64  `json:"size"`
		Type       string `json:"type"`
	}
	var images []image
	for _, o := range outs {
		switch o.Type {
		case "manifest", "sbom":
			continue
		}
		im := image{Name: o.Name, SHA256: o.SHA256, Unsigned: o.SHA256, Size: o.Size, Type: o.Type}
		if strings.Contains(o.Name, "-squashfs-") {
			im.Filesystem = "squashfs"
		}
		images = append(images, im)
	}
	version, _, _ := strings.Cut(set.Release, "+")
	version, _, _ = strings.Cut(version, "-")
	kernel, _ := b.store.Package(b.kernelID())
	rel := "1"
	if i := strings.LastIndex(kernel.Version, "-"); i >= 0 {
		rel = kernel.Version[i+1:]
	}
	var packages []string
	for _, f := range b.features {
		packages = append(packages, f.Name)
	}
	doc := map[string]any{
		"metadata_version":  1,
		"target":            b.board.Target,
		"version_code":      b.revision,
		"version_number":    Version,
		"source_date_epoch": b.epoch,
		"arch_packages":     b.board.Arch.LEDE,
		"default_packages":  packages,
		"linux_kernel":      map[string]any{"version": version, "release": rel, "vermagic": b.vermagic()},
		"pins":              b.pinState(),
		"role":              b.role.Name,
		"profiles": map[string]any{b.board.Profile: map[string]any{
			"image_prefix":      b.imagePrefix(),
			"images":            images,
			"device_packages":   []string{},
			"supported_devices": b.board.SupportedDevices,
			"titles":            b.board.Titles,
		}},
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("write profiles.json: %w", err)
	}
	return append(text, '\n'), nil
}
