// Package ucert reads, writes and checks OpenWrt's certificate chains, which
// are the payload of a firmware image's signature trailer.
//
// A chain is a row of libubox blobs, one an element: an outer attribute of id 0
// that holds attribute 0, the text of a usign signature, and, in all elements
// but the last, attribute 1, the payload that it signs: a blobmsg table "ucert"
// with certtype (i32: 1 authority, 2 revocation), validfrom and expiresat (i64,
// seconds since 1970) and pubkey (text of a usign public key) or, in a
// revocation, fingerprint. The first element is signed by a key of the device's
// key folder, each further one by the pubkey of the one before; the last
// element signs the message itself. (openwrt/ucert ucert.c, libubox blob.h.)
package ucert

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"weft/image/firmware/usign"
)

// ErrFormat is what is no chain of certificates. ErrUntrusted is one that is,
// and that no key at hand vouches for.
var (
	ErrFormat    = errors.New("not a ucert chain")
	ErrUntrusted = errors.New("not trusted")
)

// Type is what a certificate says.
type Type int32

// The types of ucert.c.
const (
	Authority  Type = 1 // Key may sign
	Revocation Type = 2 // the key of Fingerprint may sign no longer
)

// maxDepth bounds a chain; fwtool's 1 KiB has room for three elements.
const maxDepth = 16

// Certificate is the payload of an element.
type Certificate struct {
	Type        Type
	ValidFrom   time.Time
	ExpiresAt   time.Time
	Key         *usign.PublicKey  // of an Authority
	Fingerprint usign.Fingerprint // of a Revocation
}

// Element is a signature and what it signs: a certificate, or, where
// Certificate is nil, the message.
type Element struct {
	Signature   *usign.Signature
	Certificate *Certificate

	signed []byte // the payload's bytes
}

// Chain leads from a trusted key to the signature of a message.
type Chain []Element

// Issue makes the certificate by which signer lets key sign between from and until.
func Issue(signer *usign.SecretKey, key *usign.PublicKey, from, until time.Time) Element {
	payload := appendTable(nil, "ucert", func(b []byte) []byte {
		b = appendInt32(b, "certtype", int32(Authority))
		b = appendInt64(b, "validfrom", from.Unix())
		b = appendInt64(b, "expiresat", until.Unix())
		return appendString(b, "pubkey", key.Text())
	})
	return Element{Signature: signer.Sign(payload), signed: payload,
		Certificate: &Certificate{Type: Authority, ValidFrom: from.Truncate(time.Second), ExpiresAt: until.Truncate(time.Second), Key: key}}
}

// Encode returns the bytes of the chain.
func (c Chain) Encode() []byte {
	var out []byte
	for _, e := range c {
		out = appendAttr(out, 0, func(b []byte) []byte {
			b = appendAttr(b, 0, func(b []byte) []byte { return append(b, e.Signature.Text()...) })
			if e.signed != nil {
				b = appendAttr(b, 1, func(b []byte) []byte { return append(b, e.signed...) })
			}
			return b
		})
	}
	return out
}

// Parse reads a chain.
func Parse(data []byte) (Chain, error) {
	var c Chain
	for off := 0; len(data) > 0; {
		a, rest, err := next(data, "element")
		if err != nil {
			return nil, fmt.Errorf("byte %d: %w", off, err)
		}
		if a.id != 0 || a.extended {
			return nil, fmt.Errorf("byte %d: attribute %d, want 0: %w", off, a.id, ErrFormat)
		}
		e, err := parseElement(a.data)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", len(c)+1, err)
		}
		if len(c) > 0 && c[len(c)-1].Certificate == nil {
			return nil, fmt.Errorf("element %d stands behind the signature of the image: %w", len(c)+1, ErrFormat)
		}
		if c = append(c, e); len(c) > maxDepth {
			return nil, fmt.Errorf("more than %d elements: %w", maxDepth, ErrFormat)
		}
		off += len(data) - len(rest)
		data = rest
	}
	if len(c) == 0 {
		return nil, fmt.Errorf("empty: %w", ErrFormat)
	}
	return c, nil
}

func parseElement(data []byte) (Element, error) {
	var e Element
	for len(data) > 0 {
		a, rest, err := next(data, "attribute")
		if err != nil {
			return e, err
		}
		data = rest
		switch {
		case a.id == 0 && e.Signature == nil:
			if e.Signature, err = usign.ParseSignature(trimNUL(a.data)); err != nil {
				return e, fmt.Errorf("%w: %w", err, ErrFormat)
			}
		case a.id == 1 && e.Certificate == nil:
			if e.Certificate, err = parseCertificate(a.data); err != nil {
				return e, err
			}
			e.signed = a.data
		default:
			return e, fmt.Errorf("attribute %d unknown or twice: %w", a.id, ErrFormat)
		}
	}
	if e.Signature == nil {
		return e, fmt.Errorf("no signature: %w", ErrFormat)
	}
	return e, nil
}

func parseCertificate(data []byte) (*Certificate, error) {
	t, rest, err := nextMessage(data)
	if err != nil {
		return nil, err
	}
	if t.id != typeTable || t.name != "ucert" || len(rest) > 0 {
		return nil, fmt.Errorf("certificate: want one table \"ucert\": %w", ErrFormat)
	}
	c := &Certificate{}
	seen := map[string]bool{}
	for data = t.data; len(data) > 0; {
		m, rest, err := nextMessage(data)
		if err != nil {
			return nil, err
		}
		data = rest
		if seen[m.name] {
			return nil, fmt.Errorf("certificate: %s twice: %w", m.name, ErrFormat)
		}
		seen[m.name] = true
		wrong := false
		switch m.name {
		case "certtype":
			if wrong = m.id != typeInt32 || len(m.data) != 4; !wrong {
				c.Type = Type(binary.BigEndian.Uint32(m.data))
			}
		case "validfrom", "expiresat":
			if wrong = m.id != typeInt64 || len(m.data) != 8; !wrong {
				at := time.Unix(int64(binary.BigEndian.Uint64(m.data)), 0)
				if m.name == "validfrom" {
					c.ValidFrom = at
				} else {
					c.ExpiresAt = at
				}
			}
		case "pubkey":
			if wrong = m.id != typeString; !wrong {
				if c.Key, err = usign.ParsePublicKey(trimNUL(m.data)); err != nil {
					return nil, fmt.Errorf("certificate: %w: %w", err, ErrFormat)
				}
			}
		case "fingerprint":
			if wrong = m.id != typeString || len(trimNUL(m.data)) != 16; !wrong {
				if _, err := hex.Decode(c.Fingerprint[:], trimNUL(m.data)); err != nil {
					return nil, fmt.Errorf("certificate: fingerprint: %w: %w", err, ErrFormat)
				}
			}
		}
		if wrong {
			return nil, fmt.Errorf("certificate: %s has a wrong type: %w", m.name, ErrFormat)
		}
	}
	switch {
	case c.Type == Authority && (c.Key == nil || !seen["validfrom"] || !seen["expiresat"]):
		return nil, fmt.Errorf("certificate: pubkey, validfrom or expiresat is missing: %w", ErrFormat)
	case c.Type == Revocation && !seen["fingerprint"]:
		return nil, fmt.Errorf("certificate: a revocation without fingerprint: %w", ErrFormat)
	case c.Type != Authority && c.Type != Revocation:
		return nil, fmt.Errorf("certificate: certtype %d, want 1 or 2: %w", c.Type, ErrFormat)
	}
	return c, nil
}

// Verify checks that the chain leads from one of the keys to a signature of the
// message at the time now. message is called for a reader of the message, from
// its start, once it is worth reading. It returns the trusted key at its start and the key
// that signed the message. revoked says which keys may sign no longer; nil
// means none. The error wraps ErrUntrusted.
func (c Chain) Verify(message func() io.Reader, keys []*usign.PublicKey, now time.Time, revoked func(usign.Fingerprint) bool) (root, signer *usign.PublicKey, err error) {
	return c.verify(keys, now, revoked, func(k *usign.PublicKey) error {
		return k.VerifyReader(message(), c[len(c)-1].Signature)
	})
}

// Resolve is Verify without the message: it checks the certificates alone and
// returns what is left to do, a verifier of the message for each key that the
// chain may start from.
func (c Chain) Resolve(keys []*usign.PublicKey, now time.Time, revoked func(usign.Fingerprint) bool) (roots []*usign.PublicKey, left []*usign.Verifier, err error) {
	var problem error
	for _, k := range keys {
		var v *usign.Verifier
		_, _, err := c.verify([]*usign.PublicKey{k}, now, revoked, func(signer *usign.PublicKey) (err error) {
			v, err = signer.Verifier(c[len(c)-1].Signature)
			return err
		})
		switch {
		case err == nil:
			roots, left = append(roots, k), append(left, v)
		case len(c) > 0 && k.Fingerprint == c[0].Signature.Fingerprint:
			problem = err
		}
	}
	if len(roots) > 0 {
		return roots, left, nil
	}
	if problem == nil {
		_, _, problem = c.verify(nil, now, revoked, nil)
	}
	return nil, nil, problem
}

func (c Chain) verify(keys []*usign.PublicKey, now time.Time, revoked func(usign.Fingerprint) bool, message func(*usign.PublicKey) error) (root, signer *usign.PublicKey, err error) {
	if len(c) == 0 || c[len(c)-1].Certificate != nil {
		return nil, nil, fmt.Errorf("the chain does not end in a signature of the image: %w", ErrUntrusted)
	}
	var problem error
	for _, k := range keys {
		if k.Fingerprint != c[0].Signature.Fingerprint {
			continue
		}
		signer, err := c.follow(k, now, revoked, message)
		if err == nil {
			return k, signer, nil
		}
		problem = err
	}
	if problem == nil {
		problem = fmt.Errorf("key %s is not in the key folder", c[0].Signature.Fingerprint)
	}
	return nil, nil, fmt.Errorf("%w: %w", problem, ErrUntrusted)
}

func (c Chain) follow(k *usign.PublicKey, now time.Time, revoked func(usign.Fingerprint) bool, message func(*usign.PublicKey) error) (*usign.PublicKey, error) {
	for _, e := range c {
		if revoked != nil && revoked(k.Fingerprint) {
			return nil, fmt.Errorf("key %s was revoked", k.Fingerprint)
		}
		if e.Certificate == nil {
			return k, message(k)
		}
		if err := k.Verify(e.signed, e.Signature); err != nil {
			return nil, err
		}
		switch cert := e.Certificate; {
		case cert.Type != Authority:
			return nil, errors.New("a revocation stands where a certificate must")
		case now.Before(cert.ValidFrom):
			return nil, fmt.Errorf("the certificate of key %s is valid from %s on, and the clock says %s",
				cert.Key.Fingerprint, cert.ValidFrom.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		case now.After(cert.ExpiresAt):
			return nil, fmt.Errorf("the certificate of key %s ended at %s", cert.Key.Fingerprint, cert.ExpiresAt.UTC().Format(time.RFC3339))
		}
		k = e.Certificate.Key
	}
	return nil, errors.New("the chain signs nothing")
}
