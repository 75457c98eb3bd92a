package carrier

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Keys authenticate one pair of gateways: our own key, and the one that the
// other end must hold.
type Keys struct {
	private ed25519.PrivateKey
	peer    ed25519.PublicKey
}

// Valid says whether the keys were made by SharedKey or OwnKey.
func (k Keys) Valid() bool { return len(k.private) > 0 && len(k.peer) > 0 }

// minSecret is the shortest shared secret in bytes: one can be guessed offline
// by whoever records a handshake, because the derivation is fast.
const minSecret = 16

// SharedKey derives the keys from a secret that both gateways have in their
// settings. White space around it does not count. It should be random:
// GenerateKey makes one that fits.
func SharedKey(secret string) (Keys, error) {
	secret = strings.TrimSpace(secret)
	if len(secret) < minSecret {
		return Keys{}, fmt.Errorf("shared key of %d characters: expected %d or more, random (make one with: mptcp genkey)", len(secret), minSecret)
	}
	seed, err := hkdf.Key(sha256.New, []byte(secret), []byte("weft mptcpproxy"), "ed25519 identity 1", ed25519.SeedSize)
	if err != nil {
		return Keys{}, fmt.Errorf("derive key: %w", err)
	}
	priv := ed25519.NewKeyFromSeed(seed)
	return Keys{private: priv, peer: priv.Public().(ed25519.PublicKey)}, nil
}

// OwnKey takes a private key of our own and the public key of the other end,
// both in base64 as GenerateKey and PublicKey write them.
func OwnKey(private, peer string) (Keys, error) {
	priv, err := decodePrivate(private)
	if err != nil {
		return Keys{}, err
	}
	pub, err := decode32(peer)
	if err != nil {
		return Keys{}, fmt.Errorf("peer_key: %w; expected what `mptcp pubkey` prints on the other gateway", err)
	}
	if own := priv.Public().(ed25519.PublicKey); own.Equal(ed25519.PublicKey(pub)) {
		return Keys{}, errors.New("peer_key is the public key of our own private_key; enter the other gateway's")
	}
	return Keys{private: priv, peer: pub}, nil
}

// GenerateKey makes a private key (which also serves as a shared secret) and
// its public key, both in base64 of 44 characters.
func GenerateKey() (private, public string, err error) {
	var seed [ed25519.SeedSize]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return "", "", fmt.Errorf("generate key: %w", err)
	}
	private = base64.StdEncoding.EncodeToString(seed[:])
	public, err = PublicKey(private)
	return private, public, err
}

// PublicKey gives the public key to a private one.
func PublicKey(private string) (string, error) {
	priv, err := decodePrivate(private)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(priv.Public().(ed25519.PublicKey)), nil
}

func decodePrivate(s string) (ed25519.PrivateKey, error) {
	seed, err := decode32(s)
	if err != nil {
		return nil, fmt.Errorf("private_key: %w; make one with: mptcp genkey", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func decode32(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil {
		return nil, errors.New("not base64")
	}
	if len(b) != 32 {
		return nil, fmt.Errorf("%d bytes, expected 32", len(b))
	}
	return b, nil
}
