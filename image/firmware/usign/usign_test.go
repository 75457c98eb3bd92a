package usign

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func pair(t *testing.T) *SecretKey {
	t.Helper()
	k, err := Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestFormats(t *testing.T) {
	k := pair(t)
	secret, err := ParseSecretKey([]byte(k.Text()))
	if err != nil || !secret.Key.Equal(k.Key) || secret.Fingerprint != k.Fingerprint || secret.Salt != k.Salt || secret.Comment != k.Comment {
		t.Errorf("secret key: %+v, %v", secret, err)
	}
	public, err := ParsePublicKey([]byte(k.Public().Text()))
	if err != nil || !public.Key.Equal(k.Key.Public()) || public.Fingerprint != k.Fingerprint {
		t.Errorf("public key: %+v, %v", public, err)
	}
	message := []byte("what is signed")
	s, err := ParseSignature([]byte(k.Sign(message).Text()))
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(public.Key, message, s.Bytes[:]) {
		t.Error("the standard library refuses our signature")
	}
	for name, verify := range map[string]func(m []byte, s *Signature) error{
		"Verify":       public.Verify,
		"VerifyReader": func(m []byte, s *Signature) error { return public.VerifyReader(bytes.NewReader(m), s) },
	} {
		if err := verify(message, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := verify(message[1:], s); !errors.Is(err, ErrSignature) {
			t.Errorf("%s of another message: %v", name, err)
		}
		for i := range s.Bytes {
			bad := *s
			bad.Bytes[i] ^= 0x40
			if err := verify(message, &bad); !errors.Is(err, ErrSignature) {
				t.Errorf("%s with byte %d changed: %v", name, i, err)
			}
		}
		other := *s
		other.Fingerprint[0]++
		if err := verify(message, &other); !errors.Is(err, ErrOtherKey) {
			t.Errorf("%s by another key: %v", name, err)
		}
	}
}

// TestOpenSSL lets an independent Ed25519 check a signature.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	k, dir, message := pair(t), t.TempDir(), []byte("firmware")
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	// SubjectPublicKeyInfo of Ed25519: a fixed head (RFC 8410, section 4) and the key.
	der := append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}, k.Public().Key...)
	sig := k.Sign(message).Bytes
	out, err := exec.Command(openssl, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", write("pub", der), "-rawin", "-in", write("m", message), "-sigfile", write("s", sig[:])).CombinedOutput()
	if err != nil {
		t.Errorf("openssl: %v: %s", err, out)
	}
}

func TestRefusals(t *testing.T) {
	k := pair(t)
	text := k.Text()
	change := func(i int) string { // in the base64, which starts in the second line
		b := []byte(text)
		at := strings.IndexByte(text, '\n') + 1 + i
		b[at] = map[bool]byte{true: 'B', false: 'A'}[b[at] == 'A']
		return string(b)
	}
	for name, tc := range map[string]struct {
		text string
		want error
	}{
		"empty":           {"", ErrFormat},
		"no comment":      {"key\nRWQ=\n", ErrFormat},
		"no base64":       {"untrusted comment: x\n!!\n", ErrFormat},
		"a public key":    {k.Public().Text(), ErrFormat},
		"algorithm":       {change(0), ErrFormat},
		"encrypted":       {change(9), ErrEncrypted},
		"checksum":        {change(36), ErrFormat},
		"seed":            {change(60), ErrFormat},
		"public half":     {change(120), ErrFormat},
		"far too long":    {text + strings.Repeat("x", 5000), ErrFormat},
		"one line only":   {"untrusted comment: x", ErrFormat},
		"trailing spaces": {strings.TrimSpace(text) + "  \r\n", nil},
	} {
		if _, err := ParseSecretKey([]byte(tc.text)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if _, err := Generate("two\nlines"); err == nil {
		t.Error("a comment of two lines was taken")
	}
	if _, err := ParseFingerprint("12"); !errors.Is(err, ErrFormat) {
		t.Error("a short fingerprint was taken")
	}
	if f, err := ParseFingerprint(k.Fingerprint.String()); err != nil || f != k.Fingerprint {
		t.Errorf("fingerprint: %v, %v", f, err)
	}
}

func FuzzParse(f *testing.F) {
	k, err := Generate("")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(k.Text()))
	f.Add([]byte(k.Public().Text()))
	f.Add([]byte(k.Sign(nil).Text()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParsePublicKey(b); err == nil {
			if again, err := ParsePublicKey([]byte(k.Text())); err != nil || again.Fingerprint != k.Fingerprint {
				t.Errorf("public key did not come back: %v", err)
			}
			_ = k.VerifyReader(bytes.NewReader(b), &Signature{Fingerprint: k.Fingerprint})
		}
		if s, err := ParseSignature(b); err == nil {
			if again, err := ParseSignature([]byte(s.Text())); err != nil || again.Bytes != s.Bytes {
				t.Errorf("signature did not come back: %v", err)
			}
		}
		if s, err := ParseSecretKey(b); err == nil {
			if again, err := ParseSecretKey([]byte(s.Text())); err != nil || !again.Key.Equal(s.Key) {
				t.Errorf("secret key did not come back: %v", err)
			}
		}
	})
}
