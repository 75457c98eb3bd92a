// Package compare explains how two firmware images differ: by partition, by
// file, by the package that a file belongs to, and by size. It reads disk
// images and root file systems, compressed or not, with or without trailers.
package compare

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"weft/image/boot"
	"weft/image/disk"
	"weft/image/firmware"
	"weft/image/rootfs"
	"weft/image/squash"
)

// Commander runs one program; *pins.Tool is one.
type Commander interface {
	Command(ctx context.Context, args ...string) *exec.Cmd
}

// Tools are the programs that look into file systems.
type Tools struct{ Unsquashfs, Mcopy Commander }

// Change is one thing that differs.
type Change struct {
	Part    string `json:"part"` // table, boot, initramfs, rootfs, trailer …
	Path    string `json:"path,omitempty"`
	Package string `json:"package,omitempty"`
	What    string `json:"what"` // added, removed, changed, attributes, structures
	SizeA   int64  `json:"size_a"`
	SizeB   int64  `json:"size_b"`
	Offset  int64  `json:"offset"` // of the first differing byte of changed content, -1 if it does not apply
	Note    string `json:"note,omitempty"`
}

// Report is the difference of two images.
type Report struct {
	A       string   `json:"a"`
	B       string   `json:"b"`
	SizeA   int64    `json:"size_a"`
	SizeB   int64    `json:"size_b"`
	Same    bool     `json:"same"`
	Offset  int64    `json:"offset"`  // of the first differing byte of the files, -1 if same
	Changes []Change `json:"changes"` // by part and path
}

// Images compares two image files.
func Images(ctx context.Context, tools Tools, a, b string) (*Report, error) {
	r := &Report{A: a, B: b}
	var err error
	if r.Offset, r.SizeA, r.SizeB, err = firstDifference(a, b); err != nil {
		return nil, err
	}
	if r.Offset < 0 {
		r.Same = true
		return r, nil
	}
	tmp, err := os.MkdirTemp("", "weft-compare-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	left, err := open(ctx, tools, a, filepath.Join(tmp, "a"))
	if err != nil {
		return nil, err
	}
	right, err := open(ctx, tools, b, filepath.Join(tmp, "b"))
	if err != nil {
		return nil, err
	}
	if r.Changes, err = changes(left, right); err != nil {
		return nil, err
	}
	return r, nil
}

// item is a named piece of an image.
type item struct {
	part, path, pkg string
	attrs           string // mode, owner, link, device
	file            string // holds the content from offset, size bytes
	offset, size    int64
	data            []byte // content where file is empty
	whole           bool   // a file system as a whole: named only if nothing in it differs
}

type image struct {
	items map[string]item // by part and path
}

func (im *image) add(i item) {
	im.items[i.part+"\x00"+i.path] = i
}

// open takes an image apart below dir.
func open(ctx context.Context, tools Tools, file, dir string) (*image, error) {
	im := &image{items: map[string]item{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	raw := filepath.Join(dir, "raw")
	trailers, err := unpack(file, raw)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	for i, c := range trailers.Chunks {
		im.add(item{part: "trailer", path: fmt.Sprintf("%d %s", i, c.Kind), data: c.Payload, size: int64(len(c.Payload))})
	}
	f, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	if string(magic[:]) == "hsqs" {
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		return im, im.rootfs(ctx, tools, raw, 0, st.Size(), dir)
	}
	l, err := disk.Read(f)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	if len(l.Partitions) < 2 {
		return nil, fmt.Errorf("open %s: %d partitions, want boot and root", file, len(l.Partitions))
	}
	first := l.Partitions[0].Start * disk.SectorSize
	im.add(item{part: "table", path: "boot code", file: raw, size: 440})
	im.add(item{part: "table", path: "disk id and partitions", file: raw, offset: 440, size: 72})
	im.add(item{part: "table", path: "GPT or boot loader", file: raw, offset: disk.SectorSize, size: first - disk.SectorSize})
	for _, p := range l.Partitions {
		off := p.Start * disk.SectorSize
		switch p.Number {
		case disk.Boot:
			err = im.boot(ctx, tools, raw, off, p.Size(), dir)
		case disk.Rootfs:
			err = im.rootfs(ctx, tools, raw, off, p.Size(), dir)
		default:
			im.add(item{part: fmt.Sprintf("partition %d", p.Number), file: raw, offset: off, size: p.Size()})
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", file, err)
		}
	}
	return im, nil
}

// unpack strips trailers and gzip; empty space stays unwritten.
func unpack(file, out string) (*firmware.File, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	trailers, err := firmware.Scan(f, st.Size())
	if err != nil {
		return nil, err
	}
	var r io.Reader = bufio.NewReaderSize(io.NewSectionReader(f, 0, trailers.ImageSize), 1<<20)
	if magic, err := r.(*bufio.Reader).Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		if r, err = gzip.NewReader(r); err != nil {
			return nil, err
		}
	}
	w, err := os.Create(out)
	if err != nil {
		return nil, err
	}
	n, err := copySparse(w, r)
	if err == nil {
		err = w.Truncate(n)
	}
	return trailers, errors.Join(err, w.Close())
}

var zeros [64 << 10]byte

func copySparse(w *os.File, r io.Reader) (int64, error) {
	buf := make([]byte, len(zeros))
	var pos int64
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, werr := w.WriteAt(buf[:n], pos); werr != nil {
				return pos, werr
			}
		}
		pos += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return pos, nil
		}
		if err != nil {
			return pos, err
		}
	}
}

func (im *image) boot(ctx context.Context, tools Tools, raw string, off, size int64, dir string) error {
	im.add(item{part: "boot", path: "", file: raw, offset: off, size: size, whole: true})
	out := filepath.Join(dir, "boot")
	if err := os.Mkdir(out, 0o700); err != nil {
		return err
	}
	cmd := tools.Mcopy.Command(ctx, "-s", "-n", "-i", fmt.Sprintf("%s@@%d", raw, off), "::", out)
	cmd.Env = append(cmd.Env, "MTOOLS_SKIP_CHECK=1")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("read the boot partition: mcopy: %w: %s", err, bytes.TrimSpace(text))
	}
	return filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(out, p)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		i := item{part: "boot", path: rel, pkg: "boot loader", file: p, size: st.Size()}
		switch rel {
		case boot.KernelFile:
			i.pkg = "kernel"
		case boot.InitramfsFile:
			i.whole = true
			if err := im.initramfs(p); err != nil {
				return err
			}
		}
		im.add(i)
		return nil
	})
}

func (im *image) initramfs(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	entries, err := boot.List(f)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := e.Data()
		if err != nil {
			return err
		}
		im.add(item{part: "initramfs", path: e.Name, pkg: owner(e.Name, nil), attrs: fmt.Sprintf("%o", e.Mode), data: data, size: e.Size})
	}
	return nil
}

func (im *image) rootfs(ctx context.Context, tools Tools, raw string, off, size int64, dir string) error {
	im.add(item{part: "rootfs", path: "", file: raw, offset: off, size: size, whole: true})
	// unsquashfs wants a file of its own.
	sq := filepath.Join(dir, "rootfs.squashfs")
	in, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer in.Close()
	w, err := os.Create(sq)
	if err != nil {
		return err
	}
	n, err := copySparse(w, io.NewSectionReader(in, off, size))
	if err == nil {
		err = w.Truncate(n)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	list, err := squash.List(ctx, tools.Unsquashfs, sq)
	if err != nil {
		return err
	}
	out := filepath.Join(dir, "rootfs")
	cmd := tools.Unsquashfs.Command(ctx, "-d", out, "-no-progress", "-quiet", "-no-xattrs", "-ignore-errors", "-no-exit-code", sq)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack the root file system: unsquashfs: %w: %s", err, bytes.TrimSpace(text))
	}
	packages := sbomPackages(filepath.Join(out, filepath.FromSlash(rootfs.SBOMPath)))
	for _, e := range list {
		i := item{part: "rootfs", path: e.Path, pkg: owner(e.Path, packages), attrs: strings.TrimSpace(e.Mode + " " + e.Owner + " " + e.Dev + " " + e.Link), size: e.Size}
		if e.Path == "" {
			i.path = "."
		}
		if e.Mode[0] == '-' {
			i.file = filepath.Join(out, filepath.FromSlash(e.Path))
		}
		im.add(i)
	}
	return nil
}

// sbomPackages reads which Debian package each file is of from the SBOM inside
// the image; images without one give none.
func sbomPackages(file string) map[string]string {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var bom cdx.BOM
	if json.Unmarshal(text, &bom) != nil || bom.Components == nil {
		return nil
	}
	out := map[string]string{}
	for _, c := range *bom.Components {
		if c.Evidence == nil || c.Evidence.Occurrences == nil {
			continue
		}
		for _, o := range *c.Evidence.Occurrences {
			out[strings.TrimPrefix(o.Location, "/")] = c.Name
		}
	}
	return out
}

func owner(p string, packages map[string]string) string {
	switch {
	case packages[p] != "":
		return packages[p]
	case packages["usr/"+p] != "": // moved out of Debian's merged /usr
		return packages["usr/"+p]
	case strings.HasPrefix(p, "lib/modules/"):
		return "kernel"
	case p == rootfs.InitPath || p == "init":
		return "weft"
	}
	return "settings"
}

// changes compares item by item. Wholes are reported only if no change was
// found in their part, since then the difference is in the structures.
func changes(a, b *image) ([]Change, error) {
	keys := map[string]bool{}
	for k := range a.items {
		keys[k] = true
	}
	for k := range b.items {
		keys[k] = true
	}
	var out []Change
	inside := map[string]bool{} // parts with a change of their own
	var wholes []Change
	for k := range keys {
		l, inA := a.items[k]
		r, inB := b.items[k]
		one := l
		if !inA {
			one = r
		}
		c := Change{Part: one.part, Path: one.path, Package: one.pkg, SizeA: l.size, SizeB: r.size, Offset: -1}
		switch {
		case !inA:
			c.What = "added"
		case !inB:
			c.What = "removed"
		default:
			off, err := itemDifference(l, r)
			if err != nil {
				return nil, err
			}
			switch {
			case off >= 0:
				c.What, c.Offset = "changed", off
				if one.whole {
					c.What = "structures"
					wholes = append(wholes, c)
					continue
				}
				c.Note = programNote(l, r)
			case l.attrs != r.attrs:
				c.What, c.Note = "attributes", l.attrs+" -> "+r.attrs
			default:
				continue
			}
		}
		inside[one.part] = true
		out = append(out, c)
	}
	for _, c := range wholes {
		part := c.Part
		if c.Path == boot.InitramfsFile {
			part = "initramfs"
			inside["boot"] = true // its file system differs for this reason
		}
		if !inside[part] {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Path, b.Path)) })
	if slices.ContainsFunc(out, func(c Change) bool { return c.Part == "boot" && c.Path != "" }) || inside["initramfs"] {
		out = slices.DeleteFunc(out, func(c Change) bool { return c.Part == "boot" && c.Path == "" && c.What == "structures" })
	}
	return out, nil
}

func itemDifference(a, b item) (int64, error) {
	if a.file == "" && b.file == "" {
		return readerDifference(bytes.NewReader(a.data), bytes.NewReader(b.data))
	}
	ra, err := a.open()
	if err != nil {
		return 0, err
	}
	defer ra.Close()
	rb, err := b.open()
	if err != nil {
		return 0, err
	}
	defer rb.Close()
	return readerDifference(ra, rb)
}

func (i item) open() (io.ReadCloser, error) {
	if i.file == "" {
		return io.NopCloser(bytes.NewReader(i.data)), nil
	}
	f, err := os.Open(i.file)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, i.offset, i.size), f}, nil
}

// readerDifference returns the offset of the first difference, -1 if there is
// none. A stream that ends early differs at its end.
func readerDifference(a, b io.Reader) (int64, error) {
	bufA, bufB := make([]byte, 256<<10), make([]byte, 256<<10)
	pos := int64(0)
	for {
		na, errA := io.ReadFull(a, bufA)
		nb, errB := io.ReadFull(b, bufB)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, err
			}
		}
		n := min(na, nb)
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			for i := range n {
				if bufA[i] != bufB[i] {
					return pos + int64(i), nil
				}
			}
		}
		if na != nb {
			return pos + int64(n), nil
		}
		pos += int64(n)
		if errA != nil {
			return -1, nil
		}
	}
}

// firstDifference compares two files.
func firstDifference(a, b string) (offset, sizeA, sizeB int64, err error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, 0, 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, 0, 0, err
	}
	defer fb.Close()
	sa, err := fa.Stat()
	if err != nil {
		return 0, 0, 0, err
	}
	sb, err := fb.Stat()
	if err != nil {
		return 0, 0, 0, err
	}
	offset, err = readerDifference(fa, fb)
	return offset, sa.Size(), sb.Size(), err
}

// Files compares two files of any kind and returns the offset of the first
// difference, -1 if they are the same.
func Files(a, b string) (int64, error) {
	off, _, _, err := firstDifference(a, b)
	return off, err
}

// programNote says which Go modules differ between two Go programs.
func programNote(a, b item) string {
	read := func(i item) map[string]string {
		r, err := i.open()
		if err != nil {
			return nil
		}
		defer r.Close()
		data, err := io.ReadAll(io.LimitReader(r, 256<<20))
		if err != nil || !bytes.HasPrefix(data, []byte("\x7fELF")) {
			return nil
		}
		info, err := buildinfo.Read(bytes.NewReader(data))
		if err != nil {
			return nil
		}
		m := map[string]string{"Go": info.GoVersion}
		for _, d := range info.Deps {
			m[d.Path] = d.Version
		}
		return m
	}
	ma, mb := read(a), read(b)
	var notes []string
	for k, v := range ma {
		if w, ok := mb[k]; !ok {
			notes = append(notes, "-"+k+" "+v)
		} else if v != w {
			notes = append(notes, k+" "+v+" -> "+w)
		}
	}
	for k, v := range mb {
		if _, ok := ma[k]; !ok {
			notes = append(notes, "+"+k+" "+v)
		}
	}
	slices.Sort(notes)
	return strings.Join(notes, ", ")
}

// Write prints the report: the parts that differ, what differs in them, and the
// change of size by package.
func (r *Report) Write(w io.Writer) error {
	if r.Same {
		_, err := fmt.Fprintf(w, "%s and %s are the same\n", r.A, r.B)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "image\t%d -> %d bytes (%+d), first difference at byte %d\n", r.SizeA, r.SizeB, r.SizeB-r.SizeA, r.Offset)
	part := ""
	packages := map[string]int64{}
	for _, c := range r.Changes {
		if c.Part != part {
			part = c.Part
			fmt.Fprintf(tw, "\n%s\n", part)
		}
		path := c.Path
		if path == "" {
			path = "(the whole)"
		}
		text := c.What
		switch c.What {
		case "added":
			text = fmt.Sprintf("added, %d bytes", c.SizeB)
		case "removed":
			text = fmt.Sprintf("removed, %d bytes", c.SizeA)
		case "changed":
			text = fmt.Sprintf("changed at byte %d, %d -> %d bytes", c.Offset, c.SizeA, c.SizeB)
		case "structures":
			text = fmt.Sprintf("same content, structures differ at byte %d", c.Offset)
		}
		if c.Note != "" {
			text += " (" + c.Note + ")"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", path, text, c.Package)
		if c.Package != "" && c.What != "attributes" {
			packages[c.Package] += c.SizeB - c.SizeA
		}
	}
	if len(packages) > 0 {
		fmt.Fprintf(tw, "\nby package (bytes, uncompressed)\n")
		var names []string
		for p := range packages {
			names = append(names, p)
		}
		slices.SortFunc(names, func(a, b string) int {
			return cmp.Or(cmp.Compare(max(packages[b], -packages[b]), max(packages[a], -packages[a])), cmp.Compare(a, b))
		})
		for _, p := range names {
			fmt.Fprintf(tw, "  %s\t%+d\n", p, packages[p])
		}
	}
	return tw.Flush()
}

// First names the first thing that differs, in one line.
func (r *Report) First() string {
	if r.Same {
		return "no difference"
	}
	s := fmt.Sprintf("byte %d", r.Offset)
	for _, c := range r.Changes {
		where := c.Part
		if c.Path != "" {
			where += ": /" + c.Path
		}
		switch {
		case c.Offset >= 0:
			return fmt.Sprintf("%s; %s, byte %d of it", s, where, c.Offset)
		default:
			return fmt.Sprintf("%s; %s: %s %s", s, where, c.What, c.Note)
		}
	}
	return s + " of the compressed file alone"
}
