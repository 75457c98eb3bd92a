package boards

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Parse reads a board.toml. The file name is used in errors only. All faults
// are reported together, joined, in the order of the lines they stand on; a
// file that is no TOML has but one.
func Parse(name, file string, text []byte) (*Board, error) {
	b := &Board{Name: name}
	md, err := toml.Decode(string(text), b)
	if err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, fmt.Errorf("%s:%d: %s", file, pe.Position.Line, pe.Message)
		}
		if m := decodeError.FindStringSubmatch(err.Error()); m != nil { // a value of the wrong type
			return nil, fmt.Errorf("%s:%s: %s: %s", file, m[1], m[2], m[3])
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c := &checker{file: file, lines: keyLines(string(text)), text: strings.Split(string(text), "\n")}
	for _, key := range md.Undecoded() {
		c.fault(key.String(), "unknown key %q; the keys are listed in boards/README.md", key)
	}
	b.check(c)
	return b, c.err()
}

// decodeError takes apart what the toml package says about a type mismatch.
var decodeError = regexp.MustCompile(`^toml: line ([0-9]+) \(last key "(.*)"\): (.*)$`)

// word is what names may consist of: they end up in file names and in shell
// variables of other people's scripts.
var (
	word   = regexp.MustCompile(`^[a-z0-9]+([-_.,][a-z0-9]+)*$`)
	module = regexp.MustCompile(`^[A-Za-z0-9_]+$`)
	goEnv  = regexp.MustCompile(`^GO(ARCH|AMD64|ARM|ARM64|MIPS|MIPS64|386|PPC64|RISCV64)$`)
	compat = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)
)

func (b *Board) check(c *checker) {
	if !word.MatchString(b.Name) {
		c.fault("", "board folder %q: want lowercase words joined by -", b.Name)
	}
	c.filled("title", b.Title)
	if target, sub, ok := strings.Cut(b.Target, "/"); !ok || !word.MatchString(target) || !word.MatchString(sub) {
		c.fault("target", "target %q: want target/subtarget, as x86/64", b.Target)
	}
	c.matches("profile", b.Profile, word, "lowercase words joined by - or _")
	c.matches("compat_version", b.CompatVersion, compat, "major.minor, as 1.0")
	if len(b.Titles) == 0 {
		c.fault("titles", "no titles: profiles.json needs at least one {vendor, model}")
	}
	for i, t := range b.Titles {
		if (t.Title == "") == (t.Model == "") {
			c.fault("titles", "titles[%d]: want either title, or model with vendor", i)
		}
	}
	if len(b.SupportedDevices) == 0 {
		c.fault("supported_devices", "no supported_devices: name at least the profile")
	}
	c.words("supported_devices", b.SupportedDevices, word)

	c.filled("arch.debian", b.Arch.Debian)
	c.filled("arch.lede", b.Arch.LEDE)
	if b.Arch.Go["GOARCH"] == "" {
		c.fault("arch.go", "arch.go has no GOARCH")
	}
	for k := range b.Arch.Go {
		if !goEnv.MatchString(k) {
			c.fault("arch.go", "arch.go: %s does not choose a processor; GOARCH, GOAMD64, GOARM, GOMIPS and the like do", k)
		}
	}

	c.filled("kernel.pin", b.Kernel.Pin)
	c.filled("kernel.image", b.Kernel.Image)
	if _, err := path.Match(b.Kernel.Image, ""); err != nil {
		c.fault("kernel.image", "kernel.image %q: %v", b.Kernel.Image, err)
	}
	if strings.ContainsAny(b.Kernel.Cmdline, "\n'\"\\$") {
		c.fault("kernel.cmdline", "kernel.cmdline: quotes, $ and \\ do not survive the boot loader")
	}

	p := b.Partitions
	if p.AlignKiB <= 0 || p.AlignKiB&(p.AlignKiB-1) != 0 || p.AlignKiB > 32<<10 {
		c.fault("partitions.align_kib", "partitions.align_kib %d: want a power of two up to 32768", p.AlignKiB)
	}
	c.between("partitions.boot", p.Boot, 40, 1024)
	c.between("partitions.rootfs", p.Rootfs, 16, 32<<10)
	c.between("partitions.data", p.Data, 16, 1<<20)
	c.between("grub.timeout", b.GRUB.Timeout, 0, 30)
	c.between("grub.serial_unit", b.GRUB.SerialUnit, 0, 3)
	c.between("grub.serial_speed", b.GRUB.SerialSpeed, 1200, 4000000)

	b.checkLoaders(c)
	c.words("packages.default", b.Packages.Default, regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`))

	c.words("modules.initramfs", b.Modules.Initramfs, module)
	c.words("modules.rootfs", b.Modules.Rootfs, module)
	for _, m := range b.Modules.Rootfs {
		if slices.Contains(b.Modules.Initramfs, m) {
			c.fault("modules.rootfs", "modules.rootfs: %s stands in modules.initramfs already, which the rootfs contains", m)
		}
	}
	for _, m := range b.Modules.Optional {
		if !slices.Contains(b.Modules.Initramfs, m) && !slices.Contains(b.Modules.Rootfs, m) {
			c.fault("modules.optional", "modules.optional: %s is in neither of the lists above", m)
		}
	}
}

func (b *Board) checkLoaders(c *checker) {
	if len(b.Images) == 0 {
		c.fault("images", "no [[images]]: nothing would be built")
	}
	seen := map[string]bool{}
	for i, l := range b.Loaders {
		at := fmt.Sprintf("loaders[%d]", i)
		if l.Name == "" || seen[l.Name] {
			c.fault(at+".name", "%s: name %q is empty or taken", at, l.Name)
		}
		seen[l.Name] = true
		c.filled(at+".package", l.Package)
		c.filled(at+".platform", l.Platform)
		switch l.Kind {
		case GRUBPC:
			if l.File != "" {
				c.fault(at+".file", "%s: a %s loader is no file in the boot partition", at, l.Kind)
			}
		case GRUBEFI:
			if l.File == "" || path.IsAbs(l.File) || path.Clean(l.File) != l.File || strings.HasPrefix(l.File, "..") {
				c.fault(at+".file", "%s: file %q: want a path in the boot partition, as efi/boot/bootx64.efi", at, l.File)
			}
		default:
			c.fault(at+".kind", "%s: kind %q: want %s or %s", at, l.Kind, GRUBPC, GRUBEFI)
		}
		if len(l.Modules) == 0 {
			c.fault(at+".modules", "%s: no modules", at)
		}
		c.words(at+".modules", l.Modules, module)
	}
	types := map[string]bool{}
	for i, im := range b.Images {
		at := fmt.Sprintf("images[%d]", i)
		if !word.MatchString(im.Type) || types[im.Type] {
			c.fault(at+".type", "%s: type %q is no lowercase word or taken", at, im.Type)
		}
		types[im.Type] = true
		if im.Table != MBR && im.Table != GPT {
			c.fault(at+".table", "%s: table %q: want mbr or gpt", at, im.Table)
		}
		if len(im.Loaders) == 0 {
			c.fault(at+".loaders", "%s: no loaders: the image could not start", at)
		}
		for _, l := range im.Loaders {
			if !seen[l] {
				c.fault(at+".loaders", "%s: loader %q is not among [[loaders]]", at, l)
			}
		}
	}
}

// A fault is one thing wrong with a board file.
type fault struct {
	line int
	msg  string
}

type checker struct {
	file   string
	lines  map[string]int // dotted key -> line, 1-based
	text   []string
	faults []fault
}

// fault notes what is wrong at a dotted key; a key that is absent is placed at
// the nearest table around it.
func (c *checker) fault(key, format string, args ...any) {
	c.faults = append(c.faults, fault{c.line(key), fmt.Sprintf(format, args...)})
}

func (c *checker) line(key string) int {
	for key != "" {
		if n, ok := c.lines[key]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 1
}

func (c *checker) filled(key, value string) {
	if value == "" {
		c.fault(key, "%s is missing", key)
	}
}

func (c *checker) matches(key, value string, re *regexp.Regexp, want string) {
	if !re.MatchString(value) {
		c.fault(key, "%s %q: want %s", key, value, want)
	}
}

func (c *checker) between(key string, v, lo, hi int) {
	if v < lo || v > hi {
		c.fault(key, "%s %d: want %d to %d", key, v, lo, hi)
	}
}

// words checks the entries of a list: well formed, none twice. The line is
// that of the entry, not of the list's start.
func (c *checker) words(key string, list []string, re *regexp.Regexp) {
	seen := map[string]bool{}
	for _, w := range list {
		msg := ""
		switch {
		case !re.MatchString(w):
			msg = fmt.Sprintf("%s: %q is not a valid name", key, w)
		case seen[w]:
			msg = fmt.Sprintf("%s: %q stands there twice", key, w)
		}
		seen[w] = true
		if msg == "" {
			continue
		}
		n := c.line(key)
		for i := n - 1; i < len(c.text); i++ {
			if strings.Contains(c.text[i], `"`+w+`"`) {
				n = i + 1
				break
			}
		}
		c.faults = append(c.faults, fault{n, msg})
	}
}

func (c *checker) err() error {
	slices.SortStableFunc(c.faults, func(a, b fault) int { return a.line - b.line })
	var errs []error
	for _, f := range c.faults {
		errs = append(errs, fmt.Errorf("%s:%d: %s", c.file, f.line, f.msg))
	}
	return errors.Join(errs...)
}

var (
	tableLine = regexp.MustCompile(`^\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]`)
	keyLine   = regexp.MustCompile(`^\s*([A-Za-z0-9_-]+)\s*=`)
)

// keyLines maps each dotted key of a TOML text to its line; entries of arrays
// of tables are written loaders[0].name. The toml package keeps no positions
// for keys that parse, hence this scan, which knows just what boards use: bare
// keys, one a line.
func keyLines(text string) map[string]int {
	lines := map[string]int{}
	count := map[string]int{}
	table := ""
	for i, l := range strings.Split(text, "\n") {
		if m := tableLine.FindStringSubmatch(l); m != nil {
			table = m[2]
			if m[1] == "[[" {
				table = fmt.Sprintf("%s[%d]", m[2], count[m[2]])
				count[m[2]]++
			}
			lines[table] = i + 1
			if _, ok := lines[m[2]]; !ok {
				lines[m[2]] = i + 1
			}
			continue
		}
		if m := keyLine.FindStringSubmatch(l); m != nil {
			key := m[1]
			if table != "" {
				key = table + "." + key
			}
			lines[key] = i + 1
			// Undecoded keys of arrays of tables come without an index.
			if plain := regexpIndex.ReplaceAllString(key, ""); lines[plain] == 0 {
				lines[plain] = i + 1
			}
		}
	}
	return lines
}

var regexpIndex = regexp.MustCompile(`\[[0-9]+\]`)
