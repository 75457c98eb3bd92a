package build

import (
	"cmp"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/klauspost/compress/zstd"

	"weft/boards"
	"weft/image/boot"
)

// SizeReport attributes every byte of the first disk image.
type SizeReport struct {
	Image string `json:"image"`
	Total int64  `json:"total"`
	Rows  []Row  `json:"rows"` // largest first; their sizes add up to Total
}

// Row is one owner of bytes.
type Row struct {
	Part  string `json:"part"`  // kernel, boot loader, initramfs, rescue system, rootfs, overhead
	Owner string `json:"owner"` // "service network", "module virtio_net", "package libc6", "Go crypto" …
	Size  int64  `json:"size"`  // bytes of the compressed image
}

// ExplainSize builds, then says where the bytes of the first disk image come
// from. The sizes of parts are their gzip sizes; a file's share of a compressed
// file system is that of its size when compressed alone, scaled so that the
// shares add up; the device program is divided by the symbols of a twin that is
// built with them.
func (b *Builder) ExplainSize(ctx context.Context) (*SizeReport, error) {
	b.cfg.DryRun = false
	res, err := b.Build(ctx)
	if err != nil {
		return nil, err
	}
	twin := &step{
		name:   "device symbols",
		inputs: func() (map[string]string, error) { return b.deviceInputs(true) },
		run:    func(ctx context.Context, out string) error { return b.deviceProgram(ctx, out, true) },
	}
	err = b.locked(func() error {
		e := &engine{cache: b.engine.cache, scope: filepath.Join(b.scope, "explain"), report: b.cfg.Step}
		if err := e.run(ctx, []*step{twin}); err != nil {
			return err
		}
		for name, r := range e.results {
			b.engine.results[name] = r
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.explain(res)
}

func (b *Builder) explain(res *Result) (*SizeReport, error) {
	im := b.board.Images[0]
	rep := &SizeReport{Image: res.Path(im.Type)}
	st, err := os.Stat(rep.Image)
	if err != nil {
		return nil, err
	}
	rep.Total = st.Size()
	left := rep.Total
	add := func(part, owner string, n int64) {
		rep.Rows = append(rep.Rows, Row{part, owner, n})
		left -= n
	}
	// spread divides n bytes among files by what each takes when compressed, and
	// the share of the Go program by its symbols.
	spread := func(part, name string, n int64, files []sized) error {
		program, err := b.programShares(name)
		if err != nil {
			return err
		}
		for i, share := range distribute(n, weights(files)) {
			if files[i].owner == "init" {
				for j, s := range distribute(share, weights(program)) {
					add(part, program[j].owner, s)
				}
				continue
			}
			add(part, files[i].owner, share)
		}
		return nil
	}

	out := b.engine.out
	kernel, err := gzipSize(filepath.Join(out(stepModules), kernelFile))
	if err != nil {
		return nil, err
	}
	add("kernel", "kernel", kernel)
	for _, name := range im.Loaders {
		l, _ := b.board.Loader(name)
		n, err := gzipSize(filepath.Join(out("loader "+im.Type), name))
		if err != nil {
			return nil, err
		}
		if l.Kind == boards.GRUBPC {
			n *= 2 // behind the partition table and in the boot partition
		}
		add("boot loader", "package "+l.Package, n)
	}

	file := filepath.Join(out(stepInitramfs), initramfsFile)
	total, err := gzipSize(file)
	if err != nil {
		return nil, err
	}
	files, err := initramfsFiles(file)
	if err != nil {
		return nil, err
	}
	if err := spread("initramfs", stage1Name, total, files); err != nil {
		return nil, err
	}

	if total, err = gzipSize(filepath.Join(out(stepRescue), rescueFile)); err != nil {
		return nil, err
	}
	add("rescue system", rescueName, total)

	file = filepath.Join(out(stepRootfs), squashFile)
	if total, err = gzipSize(file); err != nil {
		return nil, err
	}
	if files, err = b.rootfsFiles(); err != nil {
		return nil, err
	}
	if err := spread("rootfs", deviceName, total, files); err != nil {
		return nil, err
	}
	add("overhead", "tables, file system structures, empty space", left)
	rep.Rows = merge(rep.Rows)
	return rep, nil
}

// sized is something with a weight.
type sized struct {
	owner string
	size  int64
}

func weights(list []sized) []int64 {
	w := make([]int64, len(list))
	for i, s := range list {
		w[i] = s.size
	}
	return w
}

// distribute divides n by weights into whole numbers that add up to n; the
// remainders of rounding go to the first ones with weight.
func distribute(n int64, weights []int64) []int64 {
	sum := int64(0)
	for _, w := range weights {
		sum += w
	}
	out := make([]int64, len(weights))
	if sum == 0 {
		if len(out) > 0 {
			out[0] = n
		}
		return out
	}
	left := n
	for i, w := range weights {
		out[i] = int64(float64(n) * float64(w) / float64(sum))
		left -= out[i]
	}
	for i := 0; left != 0; i = (i + 1) % len(out) {
		if weights[i] == 0 {
			continue
		}
		if left > 0 {
			out[i]++
			left--
		} else {
			out[i]--
			left++
		}
	}
	return out
}

func merge(rows []Row) []Row {
	sum := map[[2]string]int64{}
	for _, r := range rows {
		sum[[2]string{r.Part, r.Owner}] += r.Size
	}
	var out []Row
	for k, n := range sum {
		out = append(out, Row{k[0], k[1], n})
	}
	slices.SortFunc(out, func(a, b Row) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Part, b.Part), cmp.Compare(a.Owner, b.Owner))
	})
	return out
}

type countWriter struct{ n int64 }

func (c *countWriter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// gzipSize is what a file adds to a gzip stream, its header left out.
func gzipSize(file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var c countWriter
	z, err := gzip.NewWriterLevel(&c, gzipLevel)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(z, f); err != nil {
		return 0, fmt.Errorf("measure %s: %w", file, err)
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	return c.n - 18, nil
}

// zstdSize is what data takes when compressed alone.
func zstdSize(data []byte) (int64, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	return int64(len(z.EncodeAll(data, nil))), z.Close()
}

func initramfsFiles(file string) ([]sized, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := boot.List(f)
	if err != nil {
		return nil, err
	}
	var out []sized
	for _, e := range entries {
		data, err := e.Data()
		if err != nil {
			return nil, err
		}
		n, err := zstdSize(data)
		if err != nil {
			return nil, err
		}
		owner := "archive"
		switch {
		case e.Name == "init":
			owner = "init"
		case strings.HasSuffix(e.Name, ".ko"):
			owner = "module " + moduleName(e.Name)
		case strings.HasPrefix(e.Name, "lib/modules/"):
			owner = "module index"
		}
		out = append(out, sized{owner, n})
	}
	return out, nil
}

func moduleName(p string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(p), ".ko"), "-", "_")
}

// rootfsFiles weighs the files of the root file system. Their content is read
// from where the rootfs step took it.
func (b *Builder) rootfsFiles() ([]sized, error) {
	tree, err := b.tree()
	if err != nil {
		return nil, err
	}
	var out []sized
	for _, e := range tree.List("") {
		if !e.Mode.IsRegular() {
			out = append(out, sized{"inodes", 8}) // what an entry takes in compressed inode and folder tables
			continue
		}
		data, err := tree.Read(e.Path)
		if err != nil {
			return nil, err
		}
		n, err := zstdSize(data)
		if err != nil {
			return nil, err
		}
		out = append(out, sized{e.Origin, n})
	}
	return out, nil
}

// programShares divides a program of the device step by the symbols of its twin.
func (b *Builder) programShares(name string) ([]sized, error) {
	file := filepath.Join(b.engine.out("device symbols"), name)
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("look at the device program: %w", err)
	}
	var modules []string
	for _, m := range info.Deps {
		modules = append(modules, m.Path)
	}
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the device program's symbols: %w", err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		return nil, fmt.Errorf("read the device program's symbols: %w", err)
	}
	sizes := map[string]int64{}
	named := map[elf.SectionIndex]int64{}
	for _, s := range syms {
		if int(s.Section) >= len(f.Sections) || s.Size == 0 {
			continue
		}
		sec := f.Sections[s.Section]
		if sec.Flags&elf.SHF_ALLOC == 0 || sec.Type == elf.SHT_NOBITS {
			continue
		}
		sizes[goOwner(s.Name, modules)] += int64(s.Size)
		named[s.Section] += int64(s.Size)
	}
	for i, sec := range f.Sections {
		if sec.Flags&elf.SHF_ALLOC == 0 || sec.Type == elf.SHT_NOBITS {
			continue
		}
		if rest := int64(sec.Size) - named[elf.SectionIndex(i)]; rest > 0 {
			sizes["Go tables "+sec.Name] += rest
		}
	}
	var out []sized
	for _, k := range sortedKeys(sizes) {
		out = append(out, sized{k, sizes[k]})
	}
	return out, nil
}

// goOwner names whose a symbol of a Go program is.
func goOwner(symbol string, modules []string) string {
	name := symbol
	if i := strings.IndexByte(name, '['); i >= 0 { // type arguments
		name = name[:i]
	}
	if strings.HasPrefix(name, "type:") || strings.HasPrefix(name, "go:") || strings.HasPrefix(name, "runtime.pclntab") || strings.HasPrefix(name, "$") {
		return "Go tables"
	}
	slash := strings.LastIndexByte(name, '/') + 1
	pkg := name
	if dot := strings.IndexByte(name[slash:], '.'); dot >= 0 {
		pkg = name[:slash+dot]
	}
	pkg = strings.ReplaceAll(pkg, "%2e", ".")
	if rest, ok := strings.CutPrefix(pkg, "weft/"); ok {
		if s, ok := strings.CutPrefix(rest, "services/"); ok {
			service, _, _ := strings.Cut(s, "/")
			return "service " + service
		}
		return "program " + rest
	}
	best := ""
	for _, m := range modules {
		if (pkg == m || strings.HasPrefix(pkg, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	if best != "" {
		return "library " + best
	}
	top, _, _ := strings.Cut(pkg, "/")
	if top == "" || strings.ContainsAny(top, " :") || top == "main" {
		return "program main"
	}
	return "Go " + top
}

// Write prints the report: parts, then the owners down to a thousandth.
func (r *SizeReport) Write(w io.Writer) error {
	parts := map[string]int64{}
	for _, row := range r.Rows {
		parts[row.Part] += row.Size
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	percent := func(n int64) float64 { return 100 * float64(n) / float64(r.Total) }
	names := sortedKeys(parts)
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(parts[b], parts[a]) })
	for _, p := range names {
		fmt.Fprintf(tw, "%d\t%.1f %%\t  %s\n", parts[p], percent(parts[p]), p)
	}
	fmt.Fprintf(tw, "%d\t%.1f %%\t  %s\n\n", r.Total, 100.0, filepath.Base(r.Image))
	small, smalls := int64(0), 0
	for _, row := range r.Rows {
		if percent(row.Size) < 0.1 {
			small += row.Size
			smalls++
			continue
		}
		fmt.Fprintf(tw, "%d\t%.1f %%\t  %s: %s\n", row.Size, percent(row.Size), row.Part, row.Owner)
	}
	fmt.Fprintf(tw, "%d\t%.1f %%\t  %d more below 0.1 %% each (--json has them)\n", small, percent(small), smalls)
	return tw.Flush()
}
