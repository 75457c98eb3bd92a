package sshd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

const (
	// maxKey bounds a file with a host key, in bytes.
	maxKey = 16 << 10
	// rsaBits is the length of new RSA keys, as LEDE makes them.
	rsaBits = 2048
	// minRSA and maxRSA bound what is read: Go refuses less, more would let each
	// login cost seconds.
	minRSA, maxRSA = 1024, 8192
)

// The names of keys (RFC 4253, 5656, 8709).
const (
	algoRSA     = "ssh-rsa"
	algoEd25519 = "ssh-ed25519"
	algoP256    = "ecdsa-sha2-nistp256"
	algoP384    = "ecdsa-sha2-nistp384"
	algoP521    = "ecdsa-sha2-nistp521"
)

// ParseHostKey reads a private key in Dropbear's format (signkey.c: the public
// key as on the wire, then the secret numbers) or OpenSSH's.
func ParseHostKey(b []byte) (ssh.Signer, error) {
	if len(b) > maxKey {
		return nil, fmt.Errorf("host key: %d bytes, at most %d were expected", len(b), maxKey)
	}
	if len(b) > 10 && string(b[:10]) == "-----BEGIN" {
		s, err := ssh.ParsePrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("host key: %w", err)
		}
		return s, nil
	}
	key, err := parseDropbear(b)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	return ssh.NewSignerFromKey(key)
}

func parseDropbear(b []byte) (crypto.Signer, error) {
	var head struct {
		Name string
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(b, &head); err != nil {
		return nil, errors.New("neither Dropbear's format nor OpenSSH's")
	}
	switch head.Name {
	case algoRSA:
		return parseRSA(head.Rest)
	case algoEd25519:
		var m struct {
			Private []byte
			Rest    []byte `ssh:"rest"`
		}
		if err := ssh.Unmarshal(head.Rest, &m); err != nil || len(m.Private) != ed25519.PrivateKeySize || len(m.Rest) > 0 {
			return nil, fmt.Errorf("%s: a seed and a public key of 32 bytes each were expected", head.Name)
		}
		key := ed25519.NewKeyFromSeed(m.Private[:ed25519.SeedSize])
		if !key.Equal(ed25519.PrivateKey(m.Private)) {
			return nil, fmt.Errorf("%s: the public half does not belong to the private one", head.Name)
		}
		return key, nil
	case algoP256:
		return parseECDSA(head.Name, head.Rest, elliptic.P256())
	case algoP384:
		return parseECDSA(head.Name, head.Rest, elliptic.P384())
	case algoP521:
		return parseECDSA(head.Name, head.Rest, elliptic.P521())
	}
	return nil, fmt.Errorf("keys of type %q are not supported", head.Name)
}

func parseRSA(b []byte) (crypto.Signer, error) {
	var m struct {
		E, N, D *big.Int
		Rest    []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", algoRSA, err)
	}
	if n := m.N.BitLen(); n < minRSA || n > maxRSA || !m.E.IsInt64() || m.E.Int64() < 3 || m.E.Int64() >= 1<<31 || m.D.Sign() <= 0 || m.D.BitLen() > n {
		return nil, fmt.Errorf("%s: a modulus of %d to %d bits with its exponents was expected", algoRSA, minRSA, maxRSA)
	}
	var primes struct{ P, Q *big.Int }
	if err := ssh.Unmarshal(m.Rest, &primes); err != nil {
		return nil, fmt.Errorf("%s: the primes are missing: a key made by Dropbear 0.33 or newer was expected", algoRSA)
	}
	if primes.P.Sign() <= 0 || primes.Q.Sign() <= 0 || primes.P.BitLen() > m.N.BitLen() || primes.Q.BitLen() > m.N.BitLen() {
		return nil, fmt.Errorf("%s: the primes do not fit the modulus", algoRSA)
	}
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: m.N, E: int(m.E.Int64())}, D: m.D, Primes: []*big.Int{primes.P, primes.Q}}
	if err := key.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", algoRSA, err)
	}
	key.Precompute()
	return key, nil
}

func parseECDSA(name string, b []byte, curve elliptic.Curve) (crypto.Signer, error) {
	var m struct {
		Curve  string
		Point  []byte
		Secret *big.Int
	}
	if err := ssh.Unmarshal(b, &m); err != nil || m.Secret.Sign() <= 0 || m.Secret.BitLen() > curve.Params().BitSize {
		return nil, fmt.Errorf("%s: curve, point and secret were expected", name)
	}
	secret := m.Secret.FillBytes(make([]byte, (curve.Params().BitSize+7)/8))
	key, err := ecdsa.ParseRawPrivateKey(curve, secret)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil || string(point) != string(m.Point) {
		return nil, fmt.Errorf("%s: the public half does not belong to the private one", name)
	}
	return key, nil
}

// formatDropbear writes a key as Dropbear reads it.
func formatDropbear(key crypto.Signer) ([]byte, error) {
	switch k := key.(type) {
	case ed25519.PrivateKey:
		return ssh.Marshal(struct {
			Name    string
			Private []byte
		}{algoEd25519, k}), nil
	case *rsa.PrivateKey:
		return ssh.Marshal(struct {
			Name          string
			E, N, D, P, Q *big.Int
		}{algoRSA, big.NewInt(int64(k.E)), k.N, k.D, k.Primes[0], k.Primes[1]}), nil
	}
	return nil, fmt.Errorf("keys of type %T are not written", key)
}

// NewHostKey makes a host key of kind "ed25519" or "rsa" and writes it to path,
// so that after a crash there is the whole key or none. "" does not write.
func NewHostKey(path, kind string) (ssh.Signer, error) {
	var key crypto.Signer
	var err error
	switch kind {
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, rsaBits)
	default:
		err = errors.New("ed25519 or rsa was expected")
	}
	if err != nil {
		return nil, fmt.Errorf("make a host key of kind %q: %w", kind, err)
	}
	if path != "" {
		b, err := formatDropbear(key)
		if err == nil {
			err = writeKey(path, b)
		}
		if err != nil {
			return nil, fmt.Errorf("keep the host key: %w", err)
		}
	}
	return ssh.NewSignerFromKey(key)
}

// writeKey writes a file for root alone: temporary file, fsync, rename, fsync of
// the folder.
func writeKey(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// loadHostKey reads one key file.
func loadHostKey(path string) (ssh.Signer, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxKey {
		return nil, fmt.Errorf("%s: %d bytes, at most %d were expected", path, fi.Size(), maxKey)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := ParseHostKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// LoadHostKeys reads the host keys in the files named. Of each type the first
// counts. A file that cannot be used is logged and left out, one that is not
// there is left out.
func LoadHostKeys(log *slog.Logger, paths ...string) []ssh.Signer {
	var keys []ssh.Signer
	seen := map[string]bool{}
	for _, p := range paths {
		k, err := loadHostKey(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			log.Error("host key not used: remove the file and restart dropbear for a new one", "error", err)
			continue
		}
		if t := k.PublicKey().Type(); !seen[t] {
			seen[t] = true
			keys = append(keys, k)
		}
	}
	return keys
}
