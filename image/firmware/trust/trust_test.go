package trust

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/image/firmware"
	"weft/image/firmware/ucert"
	"weft/image/firmware/usign"
)

func key(t *testing.T) *usign.SecretKey {
	t.Helper()
	k, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signed is a small image with metadata, signed by each key in turn.
func signed(t *testing.T, keys ...*usign.SecretKey) []byte {
	t.Helper()
	var b bytes.Buffer
	w := firmware.NewWriter(&b)
	if _, err := w.Write([]byte("an image")); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(firmware.Metadata, []byte(`{"metadata_version":"1.1"}`)); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if err := w.Append(firmware.Signature, ucert.Chain{{Signature: k.Sign(bytes.Clone(b.Bytes()))}}.Encode()); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func check(t *testing.T, k *Keyring, b []byte) ([]Signer, error) {
	t.Helper()
	f, err := firmware.Scan(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return k.Check(f, bytes.NewReader(b), time.Unix(1_700_000_000, 0))
}

func TestCheck(t *testing.T) {
	a, b, stranger := key(t), key(t), key(t)
	dir := t.TempDir()
	for _, k := range []*usign.SecretKey{a, b} {
		if err := os.WriteFile(filepath.Join(dir, k.Fingerprint.String()), []byte(k.Public().Text()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(n int) *Keyring {
		k, err := ReadKeyring(dir, n)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for name, tc := range map[string]struct {
		required int
		keys     []*usign.SecretKey
		want     error
	}{
		"one of one":                {1, []*usign.SecretKey{a}, nil},
		"two of two":                {2, []*usign.SecretKey{a, b}, nil},
		"one of two":                {2, []*usign.SecretKey{a}, ErrTooFew},
		"the same twice":            {2, []*usign.SecretKey{a, a}, ErrTooFew},
		"a stranger beside":         {1, []*usign.SecretKey{stranger, b}, nil},
		"a stranger does not count": {2, []*usign.SecretKey{stranger, b}, ErrTooFew},
		"a stranger alone":          {1, []*usign.SecretKey{stranger}, ErrTooFew},
		"nobody":                    {0, nil, ErrUnsigned},
	} {
		signers, err := check(t, read(tc.required), signed(t, tc.keys...))
		if !errors.Is(err, tc.want) || len(signers) != len(tc.keys) {
			t.Errorf("%s: %d signers, %v, want %v", name, len(signers), err, tc.want)
		}
	}
	// A changed byte anywhere before the signature makes it void.
	image := signed(t, a)
	f, err := firmware.Scan(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.Signed() {
		bad := bytes.Clone(image)
		bad[i] ^= 1
		fb, err := firmware.Scan(bytes.NewReader(bad), int64(len(bad)))
		if err != nil {
			continue
		}
		if _, err := read(1).Check(fb, bytes.NewReader(bad), time.Unix(1_700_000_000, 0)); err == nil {
			t.Errorf("byte %d changed and still trusted", i)
		}
	}
	// Revocation, as ucert marks it.
	name := filepath.Join(dir, a.Fingerprint.String())
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(".revoked."+a.Fingerprint.String(), name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "copy"), []byte(a.Public().Text()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := check(t, read(1), signed(t, a)); !errors.Is(err, ErrTooFew) {
		t.Errorf("a revoked key: %v", err)
	}
	// A bad file does not lock out the good keys.
	if err := os.WriteFile(filepath.Join(dir, "junk"), []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := ReadKeyring(dir, 1)
	if err == nil || !strings.Contains(err.Error(), "junk") {
		t.Errorf("a file that is no key: %v", err)
	}
	if _, err := check(t, k, signed(t, b)); err != nil {
		t.Errorf("beside a file that is no key: %v", err)
	}
	if _, err := ReadKeyring(filepath.Join(dir, "none"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing folder: %v", err)
	}
}
