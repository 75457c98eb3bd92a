package pins

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// testTime is when the archives of these tests are published.
var testTime = time.Date(2026, 11, 21, 9, 15, 44, 0, time.UTC)

// newKey makes an archive key.
func newKey(t testing.TB) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Test archive", "", "archive@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA,
		Time:      func() time.Time { return testTime.Add(-time.Hour) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// file is one entry of a test package.
type file struct {
	name string
	data string
	mode int64  // 0 for 0644
	link string // symbolic link
	kind byte   // another kind of entry
}

// testDeb is a package of a test archive.
type testDeb struct {
	name, version, arch string // version 1.0, arch amd64 if empty
	source, depends     string
	ext                 string // of data.tar: .xz if empty
	files               []file
	noPool              bool // listed, but the file is not served
}

// data makes the package's file.
func (d testDeb) data(t testing.TB) []byte {
	t.Helper()
	var tarball bytes.Buffer
	w := tar.NewWriter(&tarball)
	for _, f := range d.files {
		h := &tar.Header{Name: "./" + strings.TrimPrefix(f.name, "!"), Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, Uid: 4711, Gid: 4711, ModTime: testTime}
		if strings.HasPrefix(f.name, "!") { // as it is
			h.Name = f.name[1:]
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case f.kind != 0:
			h.Typeflag, h.Linkname = f.kind, f.link
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o700
		}
		if h.Typeflag != tar.TypeReg {
			h.Size = 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(f.data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ext := d.ext
	if ext == "" {
		ext = ".xz"
	}
	return arFile(
		member{"debian-binary", []byte("2.0\n")},
		member{"control.tar.gz", compressed(t, ".gz", []byte(d.name+" "+d.version))}, // which nothing reads
		member{"data.tar" + strings.TrimSuffix(ext, ".plain"), compressed(t, ext, tarball.Bytes())},
	)
}

// packed remembers what was compressed: archives have much in common.
var packed sync.Map

func compressed(t testing.TB, ext string, data []byte) []byte {
	t.Helper()
	key := ext + sumOf(data)
	if b, ok := packed.Load(key); ok {
		return bytes.Clone(b.([]byte))
	}
	b := compress(t, ext, data)
	packed.Store(key, bytes.Clone(b))
	return b
}

func compress(t testing.TB, ext string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch ext {
	case ".gz":
		z := gzip.NewWriter(&b)
		_, err = z.Write(data)
		z.Close()
	case ".xz":
		var z *xz.Writer
		if z, err = xz.NewWriter(&b); err == nil {
			_, err = z.Write(data)
			z.Close()
		}
	case ".zst":
		var z *zstd.Encoder
		if z, err = zstd.NewWriter(&b); err == nil {
			_, err = z.Write(data)
			z.Close()
		}
	default:
		b.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type member struct {
	name string
	data []byte
}

func arFile(members ...member) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, testTime.Unix(), 0, 0, "100644", len(m.data))
		b.Write(m.data)
		if len(m.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// archive is a Debian archive that lives in the test.
type archive struct {
	t      testing.TB
	key    *openpgp.Entity
	server *httptest.Server

	mu       sync.Mutex
	files    map[string][]byte // by path from the server's root: debian/… or debian-security/…
	suites   map[string][]testDeb
	requests []*http.Request
	hook     func(w http.ResponseWriter, r *http.Request) bool
}

// newArchive makes an archive whose three suites are empty.
func newArchive(t testing.TB) *archive {
	t.Helper()
	a := &archive{t: t, key: newKey(t), files: map[string][]byte{}, suites: map[string][]testDeb{}}
	a.server = httptest.NewServer(a)
	t.Cleanup(a.server.Close)
	a.publish()
	return a
}

func (a *archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests = append(a.requests, r.Clone(r.Context()))
	hook, data, ok := a.hook, a.files[strings.TrimPrefix(r.URL.Path, "/")], false
	_, ok = a.files[strings.TrimPrefix(r.URL.Path, "/")]
	a.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", testTime, bytes.NewReader(data))
}

// answerBy lets hook answer requests; where it says false, the archive does.
func (a *archive) answerBy(hook func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hook = hook
}

// count tells how many requests there were for paths that contain part.
func (a *archive) count(part string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, r := range a.requests {
		if strings.Contains(r.URL.Path, part) {
			n++
		}
	}
	return n
}

// add puts packages into the release's main suite.
func (a *archive) add(debs ...testDeb) *archive {
	return a.addTo("trixie", debs...)
}

func (a *archive) addTo(suite string, debs ...testDeb) *archive {
	a.suites[suite] = append(a.suites[suite], debs...)
	a.publish()
	return a
}

// withdraw removes a package: from the index and from the pool.
func (a *archive) withdraw(name string) {
	for suite, debs := range a.suites {
		a.suites[suite] = slices.DeleteFunc(debs, func(d testDeb) bool { return d.name == name })
	}
	a.mu.Lock()
	for path := range a.files {
		if strings.Contains(path, "/pool/") && strings.Contains(path, "/"+name+"_") {
			delete(a.files, path)
		}
	}
	a.mu.Unlock()
	a.publish()
}

// publish writes the indexes of all suites.
func (a *archive) publish() {
	a.publishAt(testTime, testTime.Add(7*24*time.Hour))
}

func (a *archive) publishAt(date, until time.Time) {
	for _, suite := range []string{"trixie", "trixie-updates", "trixie-security"} {
		a.mu.Lock()
		base := archiveOf(suite)
		dists := base + "/dists/" + suite + "/"
		sums := map[string][]byte{}
		for _, arch := range []string{"amd64", "arm64", "armhf"} {
			var index strings.Builder
			for _, d := range a.suites[suite] {
				if d.arch == "" {
					d.arch = "amd64"
				}
				if d.arch != arch && d.arch != "all" {
					continue
				}
				if d.version == "" {
					d.version = "1.0"
				}
				if d.source == "" {
					d.source = d.name
				}
				data := d.data(a.t)
				sum := sha256.Sum256(data)
				pool := fmt.Sprintf("pool/main/%s/%s_%s_%s.deb", d.source, d.name, d.version, d.arch)
				if !d.noPool {
					a.files[base+"/"+pool] = data
				}
				fmt.Fprintf(&index, "Package: %s\nSource: %s (%s)\nVersion: %s\nArchitecture: %s\n", d.name, d.source, d.version, d.version, d.arch)
				if d.depends != "" {
					fmt.Fprintf(&index, "Depends: %s\n", d.depends)
				}
				fmt.Fprintf(&index, "Description: a package\n of this test\nFilename: %s\nSize: %d\nSHA256: %s\n\n", pool, len(data), hex.EncodeToString(sum[:]))
			}
			sums["main/binary-"+arch+"/Packages.xz"] = compressed(a.t, ".xz", []byte(index.String()))
		}
		var rel strings.Builder
		fmt.Fprintf(&rel, "Origin: Debian\nSuite: stable\nCodename: %s\nDate: %s\n", suite, date.Format("Mon, 02 Jan 2006 15:04:05 MST"))
		if suite != "trixie" {
			fmt.Fprintf(&rel, "Valid-Until: %s\n", until.Format("Mon, 02 Jan 2006 15:04:05 MST"))
		}
		rel.WriteString("Acquire-By-Hash: yes\nArchitectures: all amd64 arm64 armhf\nComponents: main\nSHA256:\n")
		for _, name := range slices.Sorted(mapKeys(sums)) {
			sum := sha256.Sum256(sums[name])
			fmt.Fprintf(&rel, " %s %8d %s\n", hex.EncodeToString(sum[:]), len(sums[name]), name)
			a.files[dists+filepath.Dir(name)+"/by-hash/SHA256/"+hex.EncodeToString(sum[:])] = sums[name]
		}
		a.files[dists+"InRelease"] = signed(a.t, rel.String(), date, a.key)
		a.mu.Unlock()
	}
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// signed clear-signs a text with keys.
func signed(t testing.TB, text string, at time.Time, keys ...*openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	var private []*packet.PrivateKey
	for _, k := range keys {
		private = append(private, k.PrivateKey)
	}
	w, err := clearsign.EncodeMulti(&b, private, &packet.Config{Time: func() time.Time { return at }})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// options are those of a store that uses the archive alone, with a new cache.
func (a *archive) options(t testing.TB) Options {
	t.Helper()
	return Options{
		CacheDir: t.TempDir(),
		Log:      slog.New(slog.DiscardHandler),
		testMirrors: map[string][]string{
			mainArchive:     {a.server.URL + "/debian"},
			securityArchive: {a.server.URL + "/debian-security"},
			snapshotArchive: {a.server.URL + "/snapshot"},
		},
		testKeys:  openpgp.EntityList{a.key},
		testNow:   func() time.Time { return testTime.Add(time.Hour) },
		testRetry: -1,
	}
}

// locked writes the request to a file, locks it against the archive and opens a
// store on it.
func (a *archive) locked(t testing.TB, o Options, request string) *Store {
	t.Helper()
	o.Lock = a.lockFile(t, o, request)
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	s.host = "amd64"
	return s
}

func (a *archive) lockFile(t testing.TB, o Options, request string) string {
	t.Helper()
	o.Lock = filepath.Join(t.TempDir(), "pins.toml")
	writeFile(t, o.Lock, "release = \"trixie\"\ncomponents = [\"main\"]\n"+request)
	// The lock is made with another cache, so that o's stays as it is.
	o.CacheDir = t.TempDir()
	o.Progress = nil
	if _, err := Update(t.Context(), UpdateOptions{Options: o, Arch: []string{"amd64"}}); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.requests = nil
	a.mu.Unlock()
	return o.Lock
}

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// elfFile is a program or library with nothing in it but what it needs.
type elfFile struct {
	arch    string // amd64 if empty
	interp  string
	soname  string
	needed  []string
	runpath string
}

func (e elfFile) String() string {
	if e.arch == "" {
		e.arch = "amd64"
	}
	m := machines[e.arch]
	wide := m.class == elf.ELFCLASS64
	word := func(b *bytes.Buffer, v uint64) {
		if wide {
			_ = binary.Write(b, binary.LittleEndian, v)
		} else {
			_ = binary.Write(b, binary.LittleEndian, uint32(v))
		}
	}
	strtab := []byte{0}
	str := func(s string) uint64 {
		at := len(strtab)
		strtab = append(append(strtab, s...), 0)
		return uint64(at)
	}
	var dynamic bytes.Buffer
	entry := func(tag elf.DynTag, v uint64) {
		word(&dynamic, uint64(tag))
		word(&dynamic, v)
	}
	for _, n := range e.needed {
		entry(elf.DT_NEEDED, str(n))
	}
	if e.soname != "" {
		entry(elf.DT_SONAME, str(e.soname))
	}
	if e.runpath != "" {
		entry(elf.DT_RUNPATH, str(e.runpath))
	}
	entry(elf.DT_NULL, 0)

	ehsize, phsize, shsize, dynsize := uint64(64), uint64(56), uint64(64), uint64(16)
	if !wide {
		ehsize, phsize, shsize, dynsize = 52, 32, 40, 8
	}
	phnum := uint64(1)
	interp := []byte(nil)
	if e.interp != "" {
		phnum, interp = 2, append([]byte(e.interp), 0)
	}
	interpAt := ehsize + phnum*phsize
	dynAt := interpAt + uint64(len(interp))
	strAt := dynAt + uint64(dynamic.Len())
	shAt := strAt + uint64(len(strtab))

	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', byte(m.class), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	half := func(v ...uint16) { _ = binary.Write(&b, binary.LittleEndian, v) }
	long := func(v ...uint32) { _ = binary.Write(&b, binary.LittleEndian, v) }
	half(uint16(elf.ET_DYN), uint16(m.elf))
	long(1)
	word(&b, 0)
	word(&b, ehsize)
	word(&b, shAt)
	long(0)
	half(uint16(ehsize), uint16(phsize), uint16(phnum), uint16(shsize), 3, 1)
	program := func(typ elf.ProgType, at, size uint64) {
		long(uint32(typ))
		if wide {
			long(4)
		}
		for _, v := range []uint64{at, at, at, size, size} {
			word(&b, v)
		}
		if !wide {
			long(4)
		}
		word(&b, 1)
	}
	if interp != nil {
		program(elf.PT_INTERP, interpAt, uint64(len(interp)))
	}
	program(elf.PT_DYNAMIC, dynAt, uint64(dynamic.Len()))
	b.Write(interp)
	b.Write(dynamic.Bytes())
	b.Write(strtab)
	section := func(typ elf.SectionType, at, size uint64, link uint32, entsize uint64) {
		long(0, uint32(typ))
		for _, v := range []uint64{0, 0, at, size} {
			word(&b, v)
		}
		long(link, 0)
		word(&b, 1)
		word(&b, entsize)
	}
	section(elf.SHT_NULL, 0, 0, 0, 0)
	section(elf.SHT_STRTAB, strAt, uint64(len(strtab)), 0, 0)
	section(elf.SHT_DYNAMIC, dynAt, uint64(dynamic.Len()), 1, dynsize)
	return b.String()
}

// libc is a C library package as Debian's: loader in usr/lib/<triplet>, libgcc
// beside it.
func libc(arch string) []testDeb {
	dir, loader := "usr/lib/x86_64-linux-gnu/", "ld-linux-x86-64.so.2"
	if arch == "arm64" {
		dir, loader = "usr/lib/aarch64-linux-gnu/", "ld-linux-aarch64.so.1"
	}
	return []testDeb{
		{name: "libc6", arch: arch, depends: "libgcc-s1", files: []file{
			{name: dir + loader, data: elfFile{arch: arch, soname: loader}.String(), mode: 0o755},
			{name: dir + "libc.so.6", data: elfFile{arch: arch, soname: "libc.so.6", needed: []string{loader}}.String(), mode: 0o755},
			{name: "usr/share/doc/libc6/copyright", data: "not machine-readable\n"},
		}},
		{name: "libgcc-s1", arch: arch, source: "gcc-14", depends: "gcc-14-base, libc6 (>= 2.35)", files: []file{
			{name: dir + "libgcc_s.so.1", data: elfFile{arch: arch, soname: "libgcc_s.so.1", needed: []string{"libc.so.6"}}.String()},
			{name: "usr/share/doc/libgcc-s1", link: "gcc-14-base"},
		}},
		{name: "gcc-14-base", arch: arch, source: "gcc-14", files: []file{
			{name: "usr/share/doc/gcc-14-base/copyright", data: "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-3+ with exception\n Text.\n"},
		}},
	}
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
