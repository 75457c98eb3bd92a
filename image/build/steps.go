package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"weft/boards"
	"weft/image/boot"
	"weft/image/disk"
	"weft/image/pins"
	"weft/image/rootfs"
	"weft/image/rootfs/kmod"
	"weft/image/sbom"
	"weft/image/squash"
)

// Names of the steps, and of files in their outputs.
const (
	stepDevice    = "device"
	stepModules   = "modules"
	stepForeign   = "foreign"
	stepSBOM      = "sbom"
	stepRootfs    = "rootfs"
	stepInitramfs = "initramfs"
	stepRescue    = "rescue system"

	stepRescueProgram = "rescue program"
	stepRootImage     = "rootfs image"

	setFile       = "set.json"
	kernelFile    = "vmlinuz"
	foreignFile   = "foreign.json"
	sbomFile      = "sbom.cdx.json"
	squashFile    = "root.squashfs"
	initramfsFile = "initramfs.cpio.zst"
	rescueFile    = "rescue.cpio"
	fatFile       = "boot.fat"
	rootImageFile = "rootfs.img.gz"
	diskFile      = "disk.img.gz"
)

// steps returns the graph, each step behind those that it needs.
func (b *Builder) steps() []*step {
	list := []*step{
		{
			name:   stepDevice,
			inputs: func() (map[string]string, error) { return b.deviceInputs(false) },
			run:    func(ctx context.Context, out string) error { return b.deviceProgram(ctx, out, false) },
		},
		{name: stepModules, inputs: b.modulesInputs, run: b.runModules},
		{name: stepForeign, inputs: b.foreignInputs, run: b.runForeign},
		{name: stepSBOM, needs: []string{stepDevice, stepModules, stepForeign}, inputs: b.sbomInputs, run: b.runSBOM},
		{name: stepInitramfs, needs: []string{stepDevice, stepModules}, inputs: b.initramfsInputs, run: b.runInitramfs},
		{name: stepRescueProgram, inputs: b.rescueProgramInputs, run: b.runRescueProgram},
		{name: stepRescue, needs: []string{stepRescueProgram, stepModules}, inputs: b.rescueInputs, run: b.runRescue},
		{name: stepRootfs, needs: []string{stepDevice, stepModules, stepForeign, stepSBOM}, inputs: b.rootfsInputs, run: b.runRootfs},
		{name: stepRootImage, needs: []string{stepRootfs}, inputs: b.rootImageInputs, run: b.runRootImage},
	}
	for _, im := range b.board.Images {
		list = append(list, b.imageSteps(im)...)
	}
	return list
}

// inputs starts a step's inputs with the source of the packages that it uses.
func (b *Builder) inputs(code ...string) map[string]string {
	in := map[string]string{"builder": b.code["build"], "go": goVersion}
	for _, c := range code {
		in["builder's "+c] = b.code[c]
	}
	for k, v := range b.code {
		if strings.HasPrefix(k, "library ") {
			in[k] = v
		}
	}
	return in
}

// pin adds pinned packages to a step's inputs.
func (b *Builder) pin(in map[string]string, ids ...string) error {
	for _, id := range ids {
		p, ok := b.store.Package(id)
		if !ok {
			return fmt.Errorf("package %s is not in image/pins/pins.toml: add it there, then run `go run ./image pins update`", id)
		}
		in["package "+p.ID()] = p.SHA256
	}
	return nil
}

// pinTool adds a tool and all that it consists of to a step's inputs.
func (b *Builder) pinTool(in map[string]string, name string) error {
	ids, err := b.store.Closure("tool."+name, "")
	if err != nil {
		return err
	}
	return b.pin(in, ids...)
}

// value adds a setting to a step's inputs.
func value(in map[string]string, name string, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic("BUG: setting " + name + ": " + err.Error())
	}
	in[name] = string(text)
}

func (b *Builder) kernelID() string { return b.board.Kernel.Pin + ":" + b.board.Arch.Debian }

// loaderPackages lists the pinned packages of the loaders that images use.
func (b *Builder) loaderPackages() []string {
	var ids []string
	for _, im := range b.board.Images {
		for _, name := range im.Loaders {
			l, _ := b.board.Loader(name)
			ids = append(ids, l.Package+":"+b.board.Arch.Debian)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// imagePins lists the lock's [image.…] entries that the features want.
func (b *Builder) imagePins() []string {
	var names []string
	for _, f := range b.features {
		names = append(names, f.Pins...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// packages lists every pinned package that this build may need.
func (b *Builder) packages() ([]string, error) {
	ids := append([]string{b.kernelID()}, b.loaderPackages()...)
	for _, t := range []string{"xz", "mksquashfs", "mtools", "grub-mkimage"} {
		c, err := b.store.Closure("tool."+t, "")
		if err != nil {
			return nil, err
		}
		ids = append(ids, c...)
	}
	for _, p := range b.imagePins() {
		c, err := b.store.Closure("image."+p, b.board.Arch.Debian)
		if err != nil {
			return nil, err
		}
		ids = append(ids, c...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// --- kernel and modules

// moduleNames are all modules that the image has by name.
func (b *Builder) moduleNames() []string {
	names := slices.Concat(b.board.Modules.Initramfs, b.board.Modules.Rootfs, b.role.Modules)
	for _, f := range b.features {
		names = append(names, f.Modules...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (b *Builder) modulesInputs() (map[string]string, error) {
	in := b.inputs("kmod")
	value(in, "modules", b.moduleNames())
	value(in, "optional modules", b.board.Modules.Optional)
	value(in, "kernel image", b.board.Kernel.Image)
	if err := b.pinTool(in, "xz"); err != nil {
		return nil, err
	}
	return in, b.pin(in, b.kernelID())
}

func (b *Builder) runModules(ctx context.Context, out string) error {
	tree, err := b.store.Unpack(ctx, b.kernelID())
	if err != nil {
		return err
	}
	release, dir, err := kmod.Release(tree)
	if err != nil {
		return err
	}
	xz, err := b.store.Tool(ctx, "xz")
	if err != nil {
		return err
	}
	set, err := kmod.Select(ctx, xz, release, dir, b.moduleNames(), b.board.Modules.Optional, filepath.Join(out, "modules"))
	if err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(tree, filepath.FromSlash(b.board.Kernel.Image)))
	if err != nil {
		return err
	}
	if len(images) != 1 {
		return fmt.Errorf("the kernel package has %d files %s, want one: correct kernel.image in the board", len(images), b.board.Kernel.Image)
	}
	if err := copyFile(images[0], filepath.Join(out, kernelFile)); err != nil {
		return err
	}
	return writeJSON(filepath.Join(out, setFile), set)
}

// moduleSet reads the modules step's output.
func (b *Builder) moduleSet() (set *kmod.Set, dir string, err error) {
	out := b.engine.out(stepModules)
	set = &kmod.Set{}
	return set, filepath.Join(out, "modules"), readJSON(filepath.Join(out, setFile), set)
}

// --- foreign files

func (b *Builder) foreignInputs() (map[string]string, error) {
	in := b.inputs()
	value(in, "feature sets", b.features)
	for _, p := range b.imagePins() {
		ids, err := b.store.Closure("image."+p, b.board.Arch.Debian)
		if err != nil {
			return nil, err
		}
		if err := b.pin(in, ids...); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// runForeign copies the files of foreign programs out of the pins' cache, so
// that the step's output stands by itself.
func (b *Builder) runForeign(ctx context.Context, out string) error {
	var want []pins.Want
	for _, p := range b.imagePins() {
		want = append(want, pins.Want{Package: p})
	}
	var list []rootfs.Foreign
	if len(want) > 0 {
		files, err := b.store.Files(ctx, b.board.Arch.Debian, want)
		if err != nil {
			return err
		}
		for i, f := range files {
			name, _, _ := strings.Cut(f.Package, ":")
			e := rootfs.Foreign{Path: f.Path, Link: f.Link, Exec: f.Mode&0o100 != 0, Package: name}
			if f.Link == "" {
				e.Source = fmt.Sprintf("%d", i)
				if err := copyFile(f.Source, filepath.Join(out, e.Source)); err != nil {
					return err
				}
			}
			list = append(list, e)
		}
	}
	return writeJSON(filepath.Join(out, foreignFile), list)
}

// foreignFiles reads the foreign step's output.
func (b *Builder) foreignFiles() ([]rootfs.Foreign, error) {
	out := b.engine.out(stepForeign)
	var list []rootfs.Foreign
	if err := readJSON(filepath.Join(out, foreignFile), &list); err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Link == "" {
			list[i].Source = filepath.Join(out, list[i].Source)
		}
	}
	return list, nil
}

// --- SBOM

func (b *Builder) sbomInputs() (map[string]string, error) {
	in := b.inputs("sbom")
	b.identity(in)
	if err := b.pinTool(in, "grub-mkimage"); err != nil {
		return nil, err
	}
	return in, b.pin(in, append(b.loaderPackages(), b.kernelID())...)
}

// identity adds what the image says of itself to a step's inputs.
func (b *Builder) identity(in map[string]string) {
	in["version"] = Version
	in["revision"] = b.revision
	in["SOURCE_DATE_EPOCH"] = fmt.Sprint(b.epoch)
	value(in, "board", struct {
		Name, Target, Profile, LEDE string
		Titles                      []boards.Title
	}{b.board.Name, b.board.Target, b.board.Profile, b.board.Arch.LEDE, b.board.Titles})
	in["role"] = b.role.Name
}

func (b *Builder) runSBOM(_ context.Context, out string) error {
	set, _, err := b.moduleSet()
	if err != nil {
		return err
	}
	foreign, err := b.foreignFiles()
	if err != nil {
		return err
	}
	files := map[string][]string{}
	for _, f := range foreign {
		files[f.Package] = append(files[f.Package], f.Path)
	}
	in := sbom.Input{Dist: Dist, Version: Version, Revision: b.revision, Board: b.board.Name, Role: b.role.Name, Epoch: b.epoch,
		Program: filepath.Join(b.engine.out(stepDevice), deviceName)}
	add := func(id, role string, files []string) {
		p, ok := b.store.Package(id)
		if !ok {
			return
		}
		in.Packages = append(in.Packages, sbom.Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Source: p.Source, SHA256: p.SHA256, Licence: p.Licence, Suite: p.Suite, Files: files, Role: role})
	}
	for _, name := range sortedKeys(files) {
		add(name+":"+b.board.Arch.Debian, "files", files[name])
	}
	add(b.kernelID(), "kernel", nil)
	for _, id := range b.loaderPackages() {
		add(id, "boot loader", nil)
	}
	for _, m := range set.Modules {
		in.Modules = append(in.Modules, sbom.Module{Name: m.Name, License: m.License})
	}
	text, err := sbom.Write(in)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, sbomFile), text, 0o644)
}

// --- initramfs

func (b *Builder) initramfsInputs() (map[string]string, error) {
	in := b.inputs("boot", "kmod")
	value(in, "modules", b.board.Modules.Initramfs)
	return in, nil
}

func (b *Builder) runInitramfs(_ context.Context, out string) error {
	set, dir, err := b.moduleSet()
	if err != nil {
		return err
	}
	i := boot.Initramfs{Init: filepath.Join(b.engine.out(stepDevice), stage1Name), Modules: set.Subset(b.board.Modules.Initramfs), Dir: dir, Load: set.Order(b.board.Modules.Initramfs)}
	return writeTo(filepath.Join(out, initramfsFile), i.Write)
}

// --- rescue system

func (b *Builder) rescueInputs() (map[string]string, error) {
	in := b.inputs("boot", "kmod", "squash")
	value(in, "modules", b.board.Modules.Rootfs)
	in["SOURCE_DATE_EPOCH"] = fmt.Sprint(b.epoch)
	in["architecture"] = b.board.Arch.Debian
	return in, b.pinTool(in, "mksquashfs")
}

func (b *Builder) runRescue(ctx context.Context, out string) error {
	set, dir, err := b.moduleSet()
	if err != nil {
		return err
	}
	var ports []string
	for _, m := range set.Subset(b.board.Modules.Rootfs).Modules {
		if boot.IsNetwork(m) {
			ports = append(ports, m.Name)
		}
	}
	r := boot.Rescue{Program: filepath.Join(b.engine.out(stepRescueProgram), rescueName), Modules: set.Subset(ports), Dir: dir}
	mk, err := b.store.Tool(ctx, "mksquashfs")
	if err != nil {
		return err
	}
	bcj := ""
	if a := b.board.Arch.Debian; a == "amd64" || a == "i386" {
		bcj = "x86"
	}
	file := filepath.Join(out, boot.RescueSquashfs)
	if err := squash.WriteSmall(ctx, mk, file, b.epoch, bcj, r.WriteTar); err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := writeTo(filepath.Join(out, rescueFile), func(w io.Writer) error { return boot.WrapRescue(w, data) }); err != nil {
		return err
	}
	return os.Remove(file)
}

// --- root file system

func (b *Builder) rootfsInputs() (map[string]string, error) {
	in := b.inputs("rootfs", "kmod", "squash")
	b.identity(in)
	value(in, "role settings", b.role)
	value(in, "feature sets", b.features)
	value(in, "DISABLED_SERVICES", b.cfg.DisabledServices)
	if err := b.stat.tree(in, filepath.Join(b.cfg.Source, overlayDir), overlayDir, false); err != nil {
		return nil, err
	}
	role := path.Join(rolesDir, b.role.Name, "rootfs")
	if err := b.stat.tree(in, filepath.Join(b.cfg.Source, role), role, false); err != nil {
		return nil, err
	}
	if b.cfg.Files != "" {
		if err := b.stat.tree(in, b.cfg.Files, "FILES", true); err != nil {
			return nil, err
		}
	}
	h, err := b.stat.hash(filepath.Join(b.cfg.Source, appletList))
	if err != nil {
		return nil, err
	}
	in[appletList] = h
	return in, b.pinTool(in, "mksquashfs")
}

// tree puts the root file system together out of the outputs of other steps.
func (b *Builder) tree() (*rootfs.Tree, error) {
	set, modulesDir, err := b.moduleSet()
	if err != nil {
		return nil, err
	}
	foreign, err := b.foreignFiles()
	if err != nil {
		return nil, err
	}
	bom, err := os.ReadFile(filepath.Join(b.engine.out(stepSBOM), sbomFile))
	if err != nil {
		return nil, err
	}
	title := b.board.Titles[0]
	product := title.Model
	if product == "" {
		product = title.Title
	}
	return rootfs.Build(rootfs.Spec{
		Overlay: filepath.Join(b.cfg.Source, overlayDir), Role: b.role, Files: b.cfg.Files,
		Init: filepath.Join(b.engine.out(stepDevice), deviceName), Applets: filepath.Join(b.cfg.Source, appletList),
		Modules: set, ModulesDir: modulesDir, Foreign: foreign, Features: b.features,
		DisabledServices: b.cfg.DisabledServices, SBOM: bom,
		Release: rootfs.Release{Dist: Dist, Version: Version, Revision: b.revision, Target: b.board.Target, Arch: b.board.Arch.LEDE,
			Vendor: title.Vendor, Product: product, Epoch: b.epoch},
	})
}

func (b *Builder) runRootfs(ctx context.Context, out string) error {
	tree, err := b.tree()
	if err != nil {
		return err
	}
	mk, err := b.store.Tool(ctx, "mksquashfs")
	if err != nil {
		return err
	}
	file := filepath.Join(out, squashFile)
	if err := squash.Write(ctx, mk, file, b.epoch, func(w io.Writer) error { return tree.WriteTar(w, b.epoch) }); err != nil {
		return err
	}
	if st, err := os.Stat(file); err != nil {
		return err
	} else if room := int64(b.board.Partitions.Rootfs) << 20; st.Size() > room {
		return fmt.Errorf("the root file system of %d bytes %w into its partition of %d MiB: raise ROOTFS_PARTSIZE or leave out packages", st.Size(), disk.ErrTooLarge, b.board.Partitions.Rootfs)
	}
	return nil
}

func (b *Builder) rootImageInputs() (map[string]string, error) {
	in := b.inputs()
	b.identity(in)
	value(in, "supported devices", b.board.SupportedDevices)
	in["compat version"] = b.board.CompatVersion
	return in, nil
}

func (b *Builder) runRootImage(_ context.Context, out string) error {
	return b.compress(filepath.Join(out, rootImageFile), func(w io.Writer) error {
		f, err := os.Open(filepath.Join(b.engine.out(stepRootfs), squashFile))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

// --- disk images

// imageSteps are the steps of one disk image: its boot loaders, its boot
// partition, the whole.
func (b *Builder) imageSteps(im boards.Image) []*step {
	loader, fat, whole := "loader "+im.Type, "boot "+im.Type, "image "+im.Type
	return []*step{
		{
			name: loader,
			inputs: func() (map[string]string, error) {
				in := b.inputs("boot")
				in["table"] = string(im.Table)
				for _, name := range im.Loaders {
					l, _ := b.board.Loader(name)
					value(in, "loader "+name, l)
					if err := b.pin(in, l.Package+":"+b.board.Arch.Debian); err != nil {
						return nil, err
					}
				}
				return in, b.pinTool(in, "grub-mkimage")
			},
			run: func(ctx context.Context, out string) error { return b.runLoader(ctx, im, out) },
		},
		{
			name: fat, needs: []string{loader, stepInitramfs, stepRescue, stepModules},
			inputs: func() (map[string]string, error) {
				in := b.inputs("boot", "disk")
				in["table"] = string(im.Table)
				in["SOURCE_DATE_EPOCH"] = fmt.Sprint(b.epoch)
				in["command line"] = b.board.Kernel.Cmdline
				value(in, "menu", b.board.GRUB)
				value(in, "partitions", b.board.Partitions)
				if err := b.pin(in, b.kernelID()); err != nil {
					return nil, err
				}
				return in, b.pinTool(in, "mtools")
			},
			run: func(ctx context.Context, out string) error { return b.runBoot(ctx, im, b.engine.out(loader), out) },
		},
		{
			name: whole, needs: []string{loader, fat, stepRootfs},
			inputs: func() (map[string]string, error) {
				in := b.inputs("disk")
				b.identity(in)
				in["table"] = string(im.Table)
				value(in, "partitions", b.board.Partitions)
				value(in, "supported devices", b.board.SupportedDevices)
				in["compat version"] = b.board.CompatVersion
				return in, b.pin(in, b.kernelID())
			},
			run: func(_ context.Context, out string) error {
				return b.runDisk(im, b.engine.out(loader), b.engine.out(fat), out)
			},
		},
	}
}

// vermagic identifies the kernel build; LEDE's is a hash as well.
func (b *Builder) vermagic() string {
	p, ok := b.store.Package(b.kernelID())
	if !ok {
		return ""
	}
	return p.SHA256[:32]
}

func (b *Builder) ids() disk.IDs { return disk.DeriveIDs(b.epoch, b.vermagic()) }

func (b *Builder) runLoader(ctx context.Context, im boards.Image, out string) error {
	mkimage, err := b.store.Tool(ctx, "grub-mkimage")
	if err != nil {
		return err
	}
	for _, name := range im.Loaders {
		l, _ := b.board.Loader(name)
		tree, err := b.store.Unpack(ctx, l.Package+":"+b.board.Arch.Debian)
		if err != nil {
			return err
		}
		lib := filepath.Join(tree, "usr/lib/grub")
		if err := boot.MakeGRUB(ctx, mkimage, lib, l, im.Table, filepath.Join(out, name)); err != nil {
			return err
		}
		if l.Kind == boards.GRUBPC {
			code, err := boot.BootImg(lib, l)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(out, name+".boot"), code, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *Builder) runBoot(ctx context.Context, im boards.Image, loaders, out string) error {
	layout := disk.NewLayout(im.Table, b.board.Partitions)
	ids := b.ids()
	menu := boot.Menu{Title: Dist, PartUUID: ids.PartUUID(im.Table, disk.Rootfs), Cmdline: b.board.Kernel.Cmdline, GRUB: b.board.GRUB}
	env := boot.FreshEnv()
	tmp, err := os.MkdirTemp(filepath.Dir(out), "files-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	files := map[string]string{
		boot.KernelFile:    filepath.Join(b.engine.out(stepModules), kernelFile),
		boot.InitramfsFile: filepath.Join(b.engine.out(stepInitramfs), initramfsFile),
		boot.RescueFile:    filepath.Join(b.engine.out(stepRescue), rescueFile),
	}
	for name, data := range map[string][]byte{boot.ConfigFile: menu.Config(), boot.EnvFile: env, boot.EnvCopyFile: env} {
		f := filepath.Join(tmp, path.Base(name))
		if err := os.WriteFile(f, data, 0o644); err != nil {
			return err
		}
		files[name] = f
	}
	for _, name := range im.Loaders {
		l, _ := b.board.Loader(name)
		switch l.Kind {
		case boards.GRUBPC:
			files[boot.CoreImgFile] = filepath.Join(loaders, name)
			files[boot.BootImgFile] = filepath.Join(loaders, name+".boot")
		case boards.GRUBEFI:
			files[boot.LoaderFile(l)] = filepath.Join(loaders, name)
		}
	}
	fat := &disk.FAT{Sectors: layout.Partition(disk.Boot).Sectors, Label: "kernel", Serial: ids.Signature, Files: files, Folders: []string{boot.SlotBFolder}, Epoch: max(b.epoch, fatStart)}
	for name, tool := range map[string]*disk.Commander{"mformat": &fat.Mformat, "mmd": &fat.Mmd, "mcopy": &fat.Mcopy} {
		t, err := b.store.Tool(ctx, name)
		if err != nil {
			return err
		}
		*tool = t
	}
	return fat.Write(ctx, filepath.Join(out, fatFile))
}

// fatStart is the first time that FAT can express: 1980-01-01.
const fatStart = 315532800

func (b *Builder) runDisk(im boards.Image, loaders, fat, out string) error {
	d := disk.Image{Layout: disk.NewLayout(im.Table, b.board.Partitions), IDs: b.ids(), Files: map[int]string{
		disk.Boot:   filepath.Join(fat, fatFile),
		disk.Rootfs: filepath.Join(b.engine.out(stepRootfs), squashFile),
	}}
	for _, name := range im.Loaders {
		l, _ := b.board.Loader(name)
		if l.Kind != boards.GRUBPC {
			continue
		}
		var err error
		if d.BootCode, err = os.ReadFile(filepath.Join(loaders, name+".boot")); err != nil {
			return err
		}
		if d.Core, err = os.ReadFile(filepath.Join(loaders, name)); err != nil {
			return err
		}
	}
	return b.compress(filepath.Join(out, diskFile), func(w io.Writer) error {
		_, err := d.WriteTo(w)
		return err
	})
}

// writeTo makes a file by a function that writes to it.
func writeTo(file string, write func(io.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return writeTo(to, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		if err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		return nil
	})
}
