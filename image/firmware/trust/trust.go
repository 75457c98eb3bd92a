// Package trust decides whether enough of the keys that a device knows vouch
// for a firmware image.
//
// An image may bear several signature chunks (package firmware), each the ucert
// chain of one signer over everything before it. A stock LEDE/OpenWrt system
// looks at the last one alone, cut off and checked against its key folder; so
// the signer whom stock devices know signs last.
//
// A key folder is that of usign -P: one public key a file, named by its
// fingerprint; a revoked key is a link of that name to a target that begins
// with ".revoked." (openwrt/ucert).
package trust

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft/image/firmware"
	"weft/image/firmware/ucert"
	"weft/image/firmware/usign"
)

// ErrUnsigned is an image without any signature chunk, ErrTooFew one that fewer
// known keys vouch for than are required.
var (
	ErrUnsigned = errors.New("the image is not signed")
	ErrTooFew   = errors.New("too few known keys vouch for the image")
)

// Keyring is what a device trusts.
type Keyring struct {
	Keys     []*usign.PublicKey
	Revoked  map[usign.Fingerprint]bool
	Required int // how many different keys must vouch; below 1 means 1
}

// ReadKeyring reads a key folder. Files that are no key are faults, told
// together beside the keys that could be read: one bad file must not lock out
// the good keys.
func ReadKeyring(dir string, required int) (*Keyring, error) {
	k := &Keyring{Revoked: map[usign.Fingerprint]bool{}, Required: max(required, 1)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return k, fmt.Errorf("read the key folder: %w", err)
	}
	var faults []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err == nil && strings.HasPrefix(filepath.Base(target), ".revoked.") {
			f, err := usign.ParseFingerprint(e.Name())
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: a revocation must be named by the key's fingerprint", path))
				continue
			}
			k.Revoked[f] = true
			continue
		}
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		key, err := ReadPublicKey(path)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		k.Keys = append(k.Keys, key)
	}
	return k, errors.Join(faults...)
}

// ReadPublicKey reads a public key file.
func ReadPublicKey(path string) (*usign.PublicKey, error) {
	text, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	k, err := usign.ParsePublicKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// readSmall reads a file that can only be small: a fifo or a device in its
// place must not hang or fill the memory.
func readSmall(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > firmware.MaxMetadata {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("want a small regular file")}
	}
	return os.ReadFile(path)
}

// Signer is what one signature chunk of an image says.
type Signer struct {
	Chunk  int              // its number among the image's chunks
	Root   *usign.PublicKey // the known key that vouches; nil if none does
	Signed usign.Fingerprint
	Err    error // why it does not count
}

// Check looks at every signature chunk of the image. The error is nil when
// enough known keys vouch, else it wraps ErrUnsigned or ErrTooFew; the signers
// tell the details either way.
func (k *Keyring) Check(f *firmware.File, r io.ReaderAt, now time.Time) ([]Signer, error) {
	c := k.Begin(f, now)
	if _, err := io.Copy(c, io.NewSectionReader(r, 0, f.Signed())); err != nil {
		return nil, fmt.Errorf("read what was signed: %w", err)
	}
	// Signatures behind the first cover those before them.
	for _, chunk := range f.Chunks {
		if n := chunk.Offset - c.pos; n > 0 {
			if _, err := io.Copy(c, io.NewSectionReader(r, c.pos, n)); err != nil {
				return nil, fmt.Errorf("read what was signed: %w", err)
			}
		}
	}
	return c.Finish()
}

// Checker is a Check that is given the file piece by piece, from its start to its
// end: for a file that can be read once only.
type Checker struct {
	ring *Keyring
	all  []*pending
	pos  int64
}

type pending struct {
	Signer
	end   int64 // the signature covers the file up to here
	roots []*usign.PublicKey
	left  []*usign.Verifier
}

// Begin starts a Checker for a file whose trailers are known.
func (k *Keyring) Begin(f *firmware.File, now time.Time) *Checker {
	c := &Checker{ring: k}
	for i, chunk := range f.Chunks {
		if chunk.Kind != firmware.Signature {
			continue
		}
		p := &pending{Signer: Signer{Chunk: i}, end: chunk.Offset}
		chain, err := ucert.Parse(chunk.Payload)
		if err == nil {
			p.Signed = chain[len(chain)-1].Signature.Fingerprint
			p.roots, p.left, err = chain.Resolve(k.Keys, now, func(f usign.Fingerprint) bool { return k.Revoked[f] })
		}
		p.Err = err
		c.all = append(c.all, p)
	}
	return c
}

// Write takes the next piece of the file. It never fails.
func (c *Checker) Write(b []byte) (int, error) {
	for _, p := range c.all {
		if n := min(p.end-c.pos, int64(len(b))); n > 0 {
			for _, v := range p.left {
				_, _ = v.Write(b[:n])
			}
		}
	}
	c.pos += int64(len(b))
	return len(b), nil
}

// Outlook says whether the signatures could suffice, before the file was read:
// nil, or the error that Finish will give at best.
func (c *Checker) Outlook() ([]Signer, error) {
	return c.signers(), c.count(func(p *pending) []*usign.PublicKey { return p.roots })
}

func (c *Checker) signers() []Signer {
	var all []Signer
	for _, p := range c.all {
		all = append(all, p.Signer)
	}
	return all
}

// Finish gives the result as Check does, after the last piece.
func (c *Checker) Finish() ([]Signer, error) {
	for _, p := range c.all {
		if p.Err != nil {
			continue
		}
		if c.pos < p.end {
			p.Err = fmt.Errorf("the file ended at byte %d of the %d signed ones: %w", c.pos, p.end, ucert.ErrUntrusted)
			continue
		}
		for i, v := range p.left {
			if p.Err = v.Check(); p.Err == nil {
				p.Root = p.roots[i]
				break
			}
			p.Err = fmt.Errorf("%w: %w", p.Err, ucert.ErrUntrusted)
		}
	}
	return c.signers(), c.count(func(p *pending) []*usign.PublicKey {
		if p.Err != nil {
			return nil
		}
		return []*usign.PublicKey{p.Root}
	})
}

func (c *Checker) count(good func(*pending) []*usign.PublicKey) error {
	distinct := map[string]bool{}
	for _, p := range c.all {
		if p.Err == nil {
			for _, k := range good(p) {
				distinct[string(k.Key)] = true // two fingerprints of one key are one signer
			}
		}
	}
	switch need := max(c.ring.Required, 1); {
	case len(c.all) == 0:
		return ErrUnsigned
	case len(distinct) < need:
		return fmt.Errorf("%w: %d, %d must", ErrTooFew, len(distinct), need)
	}
	return nil
}
