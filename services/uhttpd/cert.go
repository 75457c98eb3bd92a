package uhttpd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxCertFile bounds a file with a certificate or key, in bytes.
const maxCertFile = 64 << 10

// keyPair reads the certificate and its key, and makes both if they are missing,
// once: the pair is kept.
func keyPair(certFile, keyFile string, c certificate, now time.Time) (pair tls.Certificate, made bool, err error) {
	pair, err = loadPair(certFile, keyFile)
	if !errors.Is(err, fs.ErrNotExist) {
		return pair, false, err
	}
	certDER, keyDER, err := c.make(now)
	if err != nil {
		return pair, false, fmt.Errorf("make a certificate: %w", err)
	}
	// The key first: a certificate without its key would count as a pair of others.
	err = writeFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)
	if err == nil {
		err = writeFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), 0o644)
	}
	if err != nil {
		return pair, false, fmt.Errorf("keep the certificate: %w", err)
	}
	pair, err = loadPair(certFile, keyFile)
	return pair, true, err
}

// loadPair reads PEM, or DER as LEDE's px5g writes it.
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readFile(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := parsePair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s and %s: %w; remove both and restart uhttpd for new ones", certFile, keyFile, err)
	}
	return pair, nil
}

func parsePair(cert, key []byte) (tls.Certificate, error) {
	if p, _ := pem.Decode(cert); p == nil {
		if c, err := x509.ParseCertificate(cert); err == nil {
			cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		}
	}
	if p, _ := pem.Decode(key); p == nil {
		key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}) // X509KeyPair tries each encoding
	}
	return tls.X509KeyPair(cert, key)
}

func readFile(name string) ([]byte, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxCertFile {
		return nil, fmt.Errorf("%s: %d bytes, at most %d were expected", name, fi.Size(), maxCertFile)
	}
	if fi.Size() == 0 {
		return nil, fmt.Errorf("%s: empty: %w", name, fs.ErrNotExist) // what a power cut leaves
	}
	return os.ReadFile(name)
}

// make makes a self-signed certificate for the names and addresses of the device.
func (c certificate) make(now time.Time) (cert, key []byte, err error) {
	var private crypto.Signer
	switch c.kind {
	case "rsa":
		private, err = rsa.GenerateKey(rand.Reader, c.bits)
	default:
		curve := elliptic.P256()
		switch strings.ToUpper(c.curve) {
		case "P-384", "SECP384R1":
			curve = elliptic.P384()
		case "P-521", "SECP521R1":
			curve = elliptic.P521()
		}
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
	}
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			Country: some(c.country), Province: some(c.state), Locality: some(c.location), Organization: some(c.organization), CommonName: c.commonName,
		},
		// A device without a clock battery may be behind.
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(0, 0, c.days),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	host, _ := os.Hostname()
	for _, n := range []string{c.commonName, host, host + ".lan"} {
		if n != "" && n[0] != '.' && !slices.Contains(t.DNSNames, n) && strings.Trim(strings.ToLower(n), "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			t.IPAddresses = append(t.IPAddresses, n.IP)
		}
	}
	if cert, err = x509.CreateCertificate(rand.Reader, t, t, private.Public(), private); err != nil {
		return nil, nil, err
	}
	key, err = x509.MarshalPKCS8PrivateKey(private)
	return cert, key, err
}

func some(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// writeFile writes a file so that after a crash there is the whole or none.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
