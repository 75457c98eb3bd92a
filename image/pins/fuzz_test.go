package pins

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
)

func FuzzParagraphs(f *testing.F) {
	f.Add("Package: foo\nDescription: x\n y\n\nPackage: bar\n")
	f.Add(" x")
	f.Add("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: MIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		for p, err := range paragraphs(strings.NewReader(text), nil) {
			if err != nil {
				break
			}
			if len(p) == 0 {
				t.Error("an empty paragraph")
			}
			for k := range p {
				if k != strings.ToLower(k) || strings.ContainsAny(k, ": \t\n") || k == "" {
					t.Errorf("field %q", k)
				}
			}
		}
		licences(strings.NewReader(text))
		for _, s := range append(parseSources822(strings.NewReader(text)), parseSourcesList(strings.NewReader(text))...) {
			if _, ok := mirrorURL(s.base); !ok {
				t.Errorf("mirror %q", s.base)
			}
		}
		x := &index{arch: "amd64", packages: map[string]entry{}}
		_ = x.readPackages(strings.NewReader(text), "trixie")
		for name, e := range x.packages {
			if name != e.Name || e.check() != nil {
				t.Errorf("package %q: %v", name, e.check())
			}
		}
	})
}

func FuzzAptConf(f *testing.F) {
	f.Add(`Acquire { http { Proxy "x"; }; }; /* c */ A::B "y"; # z`)
	f.Add(`"";{};}`)
	f.Fuzz(func(t *testing.T, text string) {
		parseAptConf(text, func(key, value string) {
			if strings.Contains(value, `"`) {
				t.Errorf("%s = %s", key, value)
			}
		})
	})
}

func FuzzInRelease(f *testing.F) {
	key := newKey(f)
	text := "Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nSHA256:\n " + strings.Repeat("a", 64) + " 1 main/x\n"
	good := signed(f, text, testTime, key)
	f.Add(good)
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nx\n-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := verifyInRelease(in, openpgp.EntityList{key}, testTime)
		if err == nil && (r.codename != "trixie" || len(r.sums) != 1) {
			t.Errorf("a forged file was accepted: %+v", r)
		}
	})
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte("Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nValid-Until: Sat, 28 Nov 2026 09:15:44 UTC\nSHA256:\n " + strings.Repeat("a", 64) + " 1 main/x\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := parseRelease(in)
		if err != nil {
			return
		}
		for name, sum := range r.sums {
			if !localPath(name) || sum.size < 0 || len(sum.sha256) != 64 {
				t.Errorf("%q: %+v", name, sum)
			}
		}
	})
}

func FuzzLock(f *testing.F) {
	f.Add(embedded)
	f.Add([]byte("release = \"trixie\"\ncomponents = [\"main\"]\n[tool.x]\npackage = \"foo\"\nprogram = \"x\"\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		l, err := parseLock("pins.toml", in)
		if err != nil {
			return
		}
		for _, p := range l.Lock.Packages {
			if strings.Contains(p.Pool, "..") && !localPath(p.Pool) {
				t.Errorf("pool %q", p.Pool)
			}
		}
		out := l.render()
		if len(out) > maxLock {
			return
		}
		again, err := parseLock("pins.toml", out)
		if err != nil {
			t.Fatalf("what it writes it does not read: %v\n%s", err, out)
		}
		if twice := again.render(); !bytes.Equal(twice, out) {
			t.Errorf("written twice it differs:\n%s\n%s", out, twice)
		}
	})
}

func FuzzDeb(f *testing.F) {
	f.Add(testDeb{name: "x", ext: ".plain", files: []file{{name: "usr/bin/x", data: "x", mode: 0o755}, {name: "l", link: "usr"}}}.data(f))
	f.Add(testDeb{name: "x", ext: ".gz", files: []file{{name: "f", data: "x"}}}.data(f))
	f.Add(testDeb{name: "x", ext: ".xz", files: []file{{name: "f", data: "x"}}}.data(f))
	for _, files := range evilDebs("/nonexistent") {
		f.Add(testDeb{name: "x", ext: ".plain", files: files}.data(f))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		name, data, err := debData(bytes.NewReader(in), int64(len(in)))
		if err != nil || filepath.Ext(name) != ".tar" { // how it is packed is others' to fuzz
			return
		}
		dir := t.TempDir()
		tree := filepath.Join(dir, "tree")
		if err := os.Mkdir(tree, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = unpackTar(t.Context(), io.LimitReader(data, 1<<20), tree)
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("beside the tree there is %v %v", entries, err)
		}
	})
}

func FuzzELF(f *testing.F) {
	f.Add([]byte(elfFile{interp: "/lib64/ld.so", needed: []string{"libc.so.6"}, soname: "x", runpath: "$ORIGIN"}.String()))
	f.Add([]byte(elfFile{arch: "armhf", needed: []string{"libc.so.6"}}.String()))
	f.Fuzz(func(t *testing.T, in []byte) {
		facts, err := readELF(bytes.NewReader(in))
		if err != nil {
			return
		}
		for _, n := range facts.needed {
			if strings.Contains(n, "/") {
				t.Errorf("needs %q", n)
			}
		}
	})
}
