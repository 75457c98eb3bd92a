package pins

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"pault.ag/go/debian/version"
)

func TestArchiveKeys(t *testing.T) {
	keys, err := archiveKeys()
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != len(archiveFingerprints) {
		t.Errorf("%d keys, want %d", len(keys), len(archiveFingerprints))
	}
	for _, k := range keys {
		if k.PrimaryKey == nil || k.PrivateKey != nil {
			t.Errorf("key %s is not a public key", hex.EncodeToString(k.PrimaryKey.Fingerprint))
		}
	}
}

func TestVerifyInRelease(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	text := "Origin: Debian\nCodename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nAcquire-By-Hash: yes\nArchitectures: all amd64\nSHA256:\n" +
		" " + strings.Repeat("a", 64) + "      12 main/binary-amd64/Packages.xz\n"
	good := signed(t, text, testTime, key)
	keys := openpgp.EntityList{key}
	now := testTime.Add(time.Hour)

	for name, in := range map[string][]byte{
		"one key":                 good,
		"a stranger's key first":  signed(t, text, testTime, stranger, key),
		"a stranger's key second": signed(t, text, testTime, key, stranger),
	} {
		rel, err := verifyInRelease(in, keys, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := (fileSum{strings.Repeat("a", 64), 12}); rel.codename != "trixie" || !rel.date.Equal(testTime) || !rel.byHash || rel.sums["main/binary-amd64/Packages.xz"] != want {
			t.Errorf("%s: got %+v", name, rel)
		}
	}

	for name, in := range map[string][]byte{
		"empty":               nil,
		"not signed":          []byte(text),
		"a page":              []byte("<html>Please log in</html>"),
		"only a stranger":     signed(t, text, testTime, stranger),
		"one byte changed":    bytes.Replace(good, []byte("trixie"), []byte("trixia"), 1),
		"text before":         append([]byte("Codename: evil\n\n"), good...),
		"text after":          append(bytes.Clone(good), "\nCodename: evil\n"...),
		"signature cut off":   good[:bytes.Index(good, []byte("-----BEGIN PGP SIGNATURE"))],
		"signature of a text": bytes.Replace(good, []byte("Origin: Debian\n"), nil, 1),
		"too long":            append(bytes.Clone(good), make([]byte, maxInRelease)...),
	} {
		if _, err := verifyInRelease(in, keys, now); err == nil {
			t.Errorf("%s: accepted", name)
		} else if name != "too long" && !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}

	for name, text := range map[string]string{
		"no codename":    "Date: Sat, 21 Nov 2026 09:15:44 UTC\n",
		"no date":        "Codename: trixie\n",
		"bad sum":        "Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nSHA256:\n 123 4 main/x\n",
		"path leads out": "Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nSHA256:\n " + strings.Repeat("a", 64) + " 4 ../x\n",
		"bad size":       "Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nSHA256:\n " + strings.Repeat("a", 64) + " -4 x\n",
		"two paragraphs": "Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\n\nCodename: sid\nDate: Sat, 21 Nov 2026 09:15:44 UTC\n",
	} {
		if _, err := verifyInRelease(signed(t, text, testTime, key), keys, now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestIndexDates(t *testing.T) {
	tests := []struct {
		name        string
		date, until time.Duration // against the clock
		locked      string
		want        error
	}{
		{"current", -time.Hour, 24 * time.Hour, "", nil},
		{"the same as locked", -time.Hour, 24 * time.Hour, testTime.Add(-time.Hour).Format(time.RFC3339), nil},
		{"expired", -9 * 24 * time.Hour, -2 * 24 * time.Hour, "", ErrStale},
		{"from the future", 25 * time.Hour, 48 * time.Hour, "", ErrStale},
		{"older than locked", -2 * time.Hour, 24 * time.Hour, testTime.Add(-time.Hour).Format(time.RFC3339), ErrStale},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &release{date: testTime.Add(tt.date), until: testTime.Add(tt.until)}
			if err := r.checkDate(testTime, tt.locked); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestUpdateRefusesBadIndex(t *testing.T) {
	request := "release = \"trixie\"\ncomponents = [\"main\"]\n" + helloRequest
	tests := []struct {
		name string
		do   func(a *archive)
		want error
		text string
	}{
		{"another key", func(a *archive) { a.key = newKey(t); a.publish() }, ErrSignature, "keyring"},
		{"expired", func(a *archive) { a.publishAt(testTime.Add(-9*24*time.Hour), testTime.Add(-2*24*time.Hour)) }, ErrStale, "clock"},
		{"another suite's", func(a *archive) {
			a.files["debian/dists/trixie/InRelease"] = a.files["debian/dists/trixie-updates/InRelease"]
		}, nil, "it is that of suite trixie-updates"},
		{"Packages changed", func(a *archive) {
			for name, data := range a.files {
				if strings.Contains(name, "by-hash") || strings.HasSuffix(name, "Packages.xz") {
					data[len(data)-1] ^= 1
				}
			}
		}, nil, "by-hash"},
		{"no index", func(a *archive) { delete(a.files, "debian-security/dists/trixie-security/InRelease") }, nil, "404"},
		{"a portal", func(a *archive) {
			a.answerBy(func(w http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprint(w, "<html>Please log in</html>")
				return true
			})
		}, ErrSignature, "portal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newArchive(t).add(hello())
			o := a.options(t)
			o.Lock = t.TempDir() + "/pins.toml"
			writeFile(t, o.Lock, request)
			tt.do(a)
			_, err := Update(t.Context(), UpdateOptions{Options: o, Arch: []string{"amd64"}})
			if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			if got := readFile(t, o.Lock); got != request {
				t.Errorf("the file was changed:\n%s", got)
			}
		})
	}
}

func TestUpdateRefusesRollback(t *testing.T) {
	a := newArchive(t).add(hello())
	o := a.options(t)
	o.Lock = a.lockFile(t, o, helloRequest)
	a.publishAt(testTime.Add(-time.Hour), testTime.Add(24*time.Hour))
	if _, err := Update(t.Context(), UpdateOptions{Options: o}); !errors.Is(err, ErrStale) {
		t.Errorf("an index older than the lock's: got %v, want ErrStale", err)
	}
}

func TestReadPackages(t *testing.T) {
	sum := strings.Repeat("0", 64)
	entryText := func(version, arch string) string {
		return "Package: libfoo1\nSource: foo (1.2)\nVersion: " + version + "\nArchitecture: " + arch +
			"\nPre-Depends: libc6\nDepends: bar (>= 1),\n baz | qux:any\nFilename: pool/main/f/foo/libfoo1.deb\nSize: 12\nSHA256: " + sum + "\n\n"
	}
	x := &index{arch: "amd64", packages: map[string]entry{}}
	for i, text := range []string{
		entryText("1.2-1", "amd64") + entryText("1.2-3", "arm64"),
		entryText("1.2-2", "amd64"),
		entryText("1.2-2", "amd64") + entryText("1.2-2~deb13u1", "amd64"),
	} {
		if err := x.readPackages(strings.NewReader(text), fmt.Sprintf("suite%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	e := x.packages["libfoo1"]
	if e.Version != "1.2-2" || e.Suite != "suite1" || e.Source != "foo" || e.Size != 12 {
		t.Errorf("got %+v, want the newest, of the first suite that has it", e.Package)
	}
	if got := dependsOn(e.depends); fmt.Sprint(got) != "[libc6 bar baz qux]" {
		t.Errorf("depends on %q", got)
	}
	for name, text := range map[string]string{
		"no size":       strings.Replace(entryText("1", "amd64"), "Size: 12", "Size: many", 1),
		"bad name":      strings.Replace(entryText("1", "amd64"), "libfoo1\n", "../x\n", 1),
		"bad pool path": strings.Replace(entryText("1", "amd64"), "pool/main", "pool/../..", 1),
		"bad sum":       strings.Replace(entryText("1", "amd64"), sum, "12", 1),
		"bad version":   entryText("x y", "amd64"),
	} {
		x := &index{arch: "amd64", packages: map[string]entry{}}
		if err := x.readPackages(strings.NewReader(text), "s"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestVersionOrder holds the version comparison, which decides what is the
// newest, to Debian Policy 5.6.12.
func TestVersionOrder(t *testing.T) {
	order := []string{"1.0~rc1-1", "1.0~rc2-1", "1.0-1~deb13u1", "1.0-1", "1.0-1+b1", "1.0-1+deb13u1", "1.0-2", "1.0+dfsg-1", "1.2-1", "1.10-1", "1:0.1-1", "2:0.1"}
	for i := range order {
		for j := range order {
			a, errA := version.Parse(order[i])
			b, errB := version.Parse(order[j])
			if errA != nil || errB != nil {
				t.Fatal(errA, errB)
			}
			got := version.Compare(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("Compare(%s, %s) = %d", order[i], order[j], got)
			}
		}
	}
}

func TestPackagesFromAnotherMirror(t *testing.T) {
	a := newArchive(t).add(hello())
	behind := newArchive(t) // its InRelease is ahead of its Packages
	for name, data := range a.files {
		if strings.HasSuffix(name, "InRelease") {
			behind.files[name] = data
		}
	}
	o := a.options(t)
	o.testMirrors = map[string][]string{
		mainArchive:     {behind.server.URL + "/debian", a.server.URL + "/debian"},
		securityArchive: {a.server.URL + "/debian-security"},
	}
	s := a.locked(t, o, helloRequest)
	if _, ok := s.Package("hello"); !ok {
		t.Error("hello is not in the lock")
	}
	if n := behind.count("/by-hash/"); n == 0 {
		t.Error("the first mirror was not asked")
	}
}
