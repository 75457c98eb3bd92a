// Package usign reads and writes the Ed25519 keys and signatures of OpenWrt's
// usign, which signs packages and firmware images there: two lines of text, a
// comment and base64. Signatures are plain Ed25519 (RFC 8032), so a foreign
// Ed25519 accepts them.
//
// What lies in the base64, by usign's main.c, all without padding:
//
//	public key  "Ed", 8 bytes fingerprint, 32 bytes key                      = 42
//	signature   "Ed", 8 bytes fingerprint, 64 bytes signature                = 74
//	secret key  "Ed", "BK", u32 rounds, 16 bytes salt, 8 bytes checksum,
//	            8 bytes fingerprint, 32 bytes seed, 32 bytes public key      = 104
//
// The checksum is the head of SHA-512 over seed and public key; rounds is 0,
// since usign never encrypts a key. The fingerprint is random and names the
// key's file in a key folder.
package usign

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"filippo.io/edwards25519"
)

// Errors that callers tell apart.
var (
	// ErrFormat is text that is no key or signature of usign.
	ErrFormat = errors.New("not in usign's format")
	// ErrEncrypted is a secret key under a passphrase (signify makes such ones).
	ErrEncrypted = errors.New("the secret key is encrypted: usign's keys have no passphrase")
	// ErrOtherKey is a signature made by a key of another fingerprint.
	ErrOtherKey = errors.New("signed by another key")
	// ErrSignature is a signature that does not fit the message.
	ErrSignature = errors.New("the signature does not fit: the data was changed after it was signed, or another key of the same fingerprint signed it")
)

const (
	publicSize    = 2 + 8 + ed25519.PublicKeySize
	signatureSize = 2 + 8 + ed25519.SignatureSize
	secretSize    = 2 + 2 + 4 + 16 + 8 + 8 + ed25519.PrivateKeySize
	// maxText bounds what is looked at: a comment and 140 bytes of base64.
	maxText = 4 << 10
)

// Fingerprint names a key.
type Fingerprint [8]byte

// String is the fingerprint as usign -F prints it: 16 hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// ParseFingerprint reads 16 hexadecimal digits.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	if len(s) != 2*len(f) {
		return f, fmt.Errorf("fingerprint %q: want 16 hexadecimal digits: %w", s, ErrFormat)
	}
	if _, err := hex.Decode(f[:], []byte(s)); err != nil {
		return f, fmt.Errorf("fingerprint %q: %w: %w", s, err, ErrFormat)
	}
	return f, nil
}

// PublicKey checks signatures.
type PublicKey struct {
	Comment     string
	Fingerprint Fingerprint
	Key         ed25519.PublicKey
}

// SecretKey makes signatures.
type SecretKey struct {
	Comment     string
	Fingerprint Fingerprint
	Salt        [16]byte
	Key         ed25519.PrivateKey
}

// Signature is a detached signature of some bytes.
type Signature struct {
	Comment     string
	Fingerprint Fingerprint
	Bytes       [ed25519.SignatureSize]byte
}

// Generate makes a key pair. The comment is one line; an empty one becomes
// usign's own wording.
func Generate(comment string) (*SecretKey, error) {
	if strings.ContainsAny(comment, "\r\n") {
		return nil, fmt.Errorf("make a key: the comment %q must be one line", comment)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	k := &SecretKey{Comment: comment, Key: key}
	if _, err := rand.Read(k.Fingerprint[:]); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if _, err := rand.Read(k.Salt[:]); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if k.Comment == "" {
		k.Comment = "private key " + k.Fingerprint.String()
	}
	return k, nil
}

// Public returns the key that checks what k signs.
func (k *SecretKey) Public() *PublicKey {
	comment := k.Comment
	if comment == "private key "+k.Fingerprint.String() {
		comment = "public key " + k.Fingerprint.String()
	}
	return &PublicKey{Comment: comment, Fingerprint: k.Fingerprint, Key: k.Key.Public().(ed25519.PublicKey)}
}

// Sign signs the message.
func (k *SecretKey) Sign(message []byte) *Signature {
	s := &Signature{Comment: "signed by key " + k.Fingerprint.String(), Fingerprint: k.Fingerprint}
	copy(s.Bytes[:], ed25519.Sign(k.Key, message))
	return s
}

// Verify checks a signature of the message; its error wraps ErrOtherKey or
// ErrSignature.
func (k *PublicKey) Verify(message []byte, s *Signature) error {
	if s.Fingerprint != k.Fingerprint {
		return fmt.Errorf("key %s: %w, %s", k.Fingerprint, ErrOtherKey, s.Fingerprint)
	}
	if !ed25519.Verify(k.Key, message, s.Bytes[:]) {
		return fmt.Errorf("key %s: %w", k.Fingerprint, ErrSignature)
	}
	return nil
}

// VerifyReader is Verify of a message too large to hold in memory, read to its
// end.
func (k *PublicKey) VerifyReader(message io.Reader, s *Signature) error {
	v, err := k.Verifier(s)
	if err != nil {
		return err
	}
	if _, err := io.Copy(v, message); err != nil {
		return fmt.Errorf("key %s: read what was signed: %w", k.Fingerprint, err)
	}
	return v.Check()
}

// Verifier is a Verify that is given the message piece by piece.
type Verifier struct {
	key  *PublicKey
	sig  *Signature
	hash hash.Hash
}

// Verifier returns one for the signature; its error wraps ErrOtherKey.
func (k *PublicKey) Verifier(s *Signature) (*Verifier, error) {
	if s.Fingerprint != k.Fingerprint {
		return nil, fmt.Errorf("key %s: %w, %s", k.Fingerprint, ErrOtherKey, s.Fingerprint)
	}
	v := &Verifier{key: k, sig: s, hash: sha512.New()}
	v.hash.Write(s.Bytes[:32])
	v.hash.Write(k.Key)
	return v, nil
}

// Write takes the next piece of the message. It never fails.
func (v *Verifier) Write(p []byte) (int, error) { return v.hash.Write(p) }

// Check says whether the signature fits what was written; its error wraps
// ErrSignature. It accepts what crypto/ed25519 accepts (RFC 8032, 5.1.7, without
// the factor 8).
func (v *Verifier) Check() error {
	k, s := v.key, v.sig
	minusA, err := new(edwards25519.Point).SetBytes(k.Key)
	if err != nil {
		return fmt.Errorf("key %s is no point of the curve: %w", k.Fingerprint, ErrSignature)
	}
	minusA.Negate(minusA)
	h, err := new(edwards25519.Scalar).SetUniformBytes(v.hash.Sum(nil))
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Fingerprint, err)
	}
	S, err := new(edwards25519.Scalar).SetCanonicalBytes(s.Bytes[32:])
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Fingerprint, ErrSignature)
	}
	R := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(h, minusA, S)
	if !bytes.Equal(R.Bytes(), s.Bytes[:32]) {
		return fmt.Errorf("key %s: %w", k.Fingerprint, ErrSignature)
	}
	return nil
}

// Text is the key as a file.
func (k *PublicKey) Text() string {
	b := append([]byte("Ed"), k.Fingerprint[:]...)
	return text(k.Comment, append(b, k.Key...))
}

// Text is the key as a file; keep it readable by its owner alone.
func (k *SecretKey) Text() string {
	b := append([]byte("EdBK"), 0, 0, 0, 0)
	b = append(b, k.Salt[:]...)
	b = append(b, checksum(k.Key)...)
	b = append(b, k.Fingerprint[:]...)
	return text(k.Comment, append(b, k.Key...))
}

// Text is the signature as a file.
func (s *Signature) Text() string {
	b := append([]byte("Ed"), s.Fingerprint[:]...)
	return text(s.Comment, append(b, s.Bytes[:]...))
}

func text(comment string, b []byte) string {
	return "untrusted comment: " + comment + "\n" + base64.StdEncoding.EncodeToString(b) + "\n"
}

func checksum(key []byte) []byte {
	sum := sha512.Sum512(key)
	return sum[:8]
}

// ParsePublicKey reads a public key file.
func ParsePublicKey(file []byte) (*PublicKey, error) {
	comment, b, err := parse(file, "public key", publicSize)
	if err != nil {
		return nil, err
	}
	k := &PublicKey{Comment: comment, Key: bytes.Clone(b[10:])}
	copy(k.Fingerprint[:], b[2:])
	return k, nil
}

// ParseSignature reads a signature file.
func ParseSignature(file []byte) (*Signature, error) {
	comment, b, err := parse(file, "signature", signatureSize)
	if err != nil {
		return nil, err
	}
	s := &Signature{Comment: comment}
	copy(s.Fingerprint[:], b[2:])
	copy(s.Bytes[:], b[10:])
	return s, nil
}

// ParseSecretKey reads a secret key file and checks that its two halves belong
// together.
func ParseSecretKey(file []byte) (*SecretKey, error) {
	comment, b, err := parse(file, "secret key", secretSize)
	if err != nil {
		return nil, err
	}
	if string(b[2:4]) != "BK" {
		return nil, fmt.Errorf("secret key: key derivation %q, want \"BK\": %w", b[2:4], ErrFormat)
	}
	if binary.BigEndian.Uint32(b[4:]) != 0 {
		return nil, ErrEncrypted
	}
	k := &SecretKey{Comment: comment, Key: bytes.Clone(b[40:])}
	copy(k.Salt[:], b[8:])
	copy(k.Fingerprint[:], b[32:])
	if !bytes.Equal(checksum(k.Key), b[24:32]) {
		return nil, fmt.Errorf("secret key: the checksum does not fit, the file is damaged: %w", ErrFormat)
	}
	if !bytes.Equal(ed25519.NewKeyFromSeed(k.Key[:ed25519.SeedSize]), k.Key) {
		return nil, fmt.Errorf("secret key: its public half belongs to another key: %w", ErrFormat)
	}
	return k, nil
}

func parse(file []byte, what string, size int) (comment string, b []byte, err error) {
	if len(file) > maxText {
		return "", nil, fmt.Errorf("%s: %d bytes, want two short lines: %w", what, len(file), ErrFormat)
	}
	first, rest, ok := strings.Cut(string(file), "\n")
	comment, isComment := strings.CutPrefix(strings.TrimSuffix(first, "\r"), "untrusted comment: ")
	if !ok || !isComment {
		return "", nil, fmt.Errorf("%s: the first line must start with \"untrusted comment: \": %w", what, ErrFormat)
	}
	second, _, _ := strings.Cut(rest, "\n")
	b, err = base64.StdEncoding.DecodeString(strings.TrimSpace(second))
	if err != nil {
		return "", nil, fmt.Errorf("%s: second line: %w: %w", what, err, ErrFormat)
	}
	if len(b) != size {
		return "", nil, fmt.Errorf("%s: %d bytes in base64, want %d: %w", what, len(b), size, ErrFormat)
	}
	if string(b[:2]) != "Ed" {
		return "", nil, fmt.Errorf("%s: algorithm %q, want \"Ed\" (Ed25519): %w", what, b[:2], ErrFormat)
	}
	return comment, b, nil
}
