// Package crypt checks passwords against the hashes of crypt(3) that are found in
// /etc/shadow and /etc/config/rpcd of LEDE devices: $1$ (MD5, FreeBSD), $5$ and
// $6$ (SHA-256 and SHA-512, Ulrich Drepper, "Unix crypt using SHA-256 and
// SHA-512"). New hashes are $6$. DES, bcrypt and yescrypt are not supported.
package crypt

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"hash"
	"strconv"
	"strings"
)

// ErrPassword is a password that crypt(3) cannot hash.
var ErrPassword = errors.New("a password has at most 511 bytes and no NUL byte")

const (
	// maxPassword is crypt(3)'s limit of a password (CRYPT_MAX_PASSPHRASE_SIZE).
	maxPassword = 511
	// Rounds of SHA: the default and the bounds of Drepper's text, but far fewer
	// at the top, so that one line of a file cannot occupy the device for hours.
	defaultRounds, minRounds, maxRounds = 5000, 1000, 5_000_000
)

// Hash makes a new hash of the password: SHA-512, the usual 5000 rounds and a
// random salt of 96 bits. The error is ErrPassword.
func Hash(password string) (string, error) {
	if !possible(password) {
		return "", ErrPassword
	}
	var random [16]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	salt := make([]byte, len(random))
	for i, b := range random {
		salt[i] = digits[b&63]
	}
	return "$6$" + string(salt) + "$" + shaCrypt(sha512.New, password, string(salt), defaultRounds, order512()), nil
}

func possible(password string) bool {
	return len(password) <= maxPassword && strings.IndexByte(password, 0) < 0
}

// Verify says whether password has the given hash. A hash of a kind that is not
// known, or damaged, fits no password.
func Verify(hash, password string) bool {
	if !possible(password) {
		return false
	}
	parts := strings.SplitN(hash, "$", 4)
	if len(parts) < 4 || parts[0] != "" {
		return false
	}
	kind, rest := parts[1], parts[2:]
	var got string
	switch kind {
	case "1":
		salt := rest[0]
		if len(salt) > 8 {
			return false
		}
		got = "$1$" + salt + "$" + md5Crypt(password, salt)
	case "5", "6":
		rounds, prefix, salt := defaultRounds, "$"+kind+"$", rest[0]
		if n, ok := strings.CutPrefix(rest[0], "rounds="); ok {
			var err error
			if rounds, err = strconv.Atoi(n); err != nil || rounds < minRounds || rounds > maxRounds || n[0] == '+' {
				return false
			}
			prefix += "rounds=" + n + "$"
			salt, _, _ = strings.Cut(rest[1], "$")
		}
		if len(salt) > 16 {
			return false
		}
		got = prefix + salt + "$"
		if kind == "5" {
			got += shaCrypt(sha256.New, password, salt, rounds, order256())
		} else {
			got += shaCrypt(sha512.New, password, salt, rounds, order512())
		}
	default:
		return false
	}
	return subtle.ConstantTimeCompare([]byte(got), []byte(hash)) == 1
}

const digits = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// encode writes bytes of sum in crypt's base 64, three at a time in the given
// order (most significant first), least significant digit first. Of an
// incomplete last group the missing bytes count as 0 at the top.
func encode(sum []byte, order []int) string {
	out := make([]byte, 0, (len(order)*4+2)/3)
	for len(order) > 0 {
		n := min(3, len(order))
		v := 0
		for _, i := range order[:n] {
			v = v<<8 | int(sum[i])
		}
		for range n + 1 {
			out = append(out, digits[v&63])
			v >>= 6
		}
		order = order[n:]
	}
	return string(out)
}

var orderMD5 = []int{0, 6, 12, 1, 7, 13, 2, 8, 14, 3, 9, 15, 4, 10, 5, 11}

func md5Crypt(password, salt string) string {
	pw := []byte(password)
	h := md5.New()
	h.Write(pw)
	h.Write([]byte(salt))
	h.Write(pw)
	sum := h.Sum(nil)

	h.Reset()
	h.Write(pw)
	h.Write([]byte("$1$" + salt))
	writeRepeated(h, sum, len(pw))
	for i := len(pw); i > 0; i >>= 1 {
		if i&1 != 0 {
			h.Write([]byte{0})
		} else {
			h.Write(pw[:1])
		}
	}
	sum = h.Sum(sum[:0])
	return encode(stretch(h, sum, pw, []byte(salt), 1000), orderMD5)
}

// stretch is the loop that MD5 and SHA share.
func stretch(h hash.Hash, sum, pw, salt []byte, rounds int) []byte {
	for i := range rounds {
		h.Reset()
		if i&1 != 0 {
			h.Write(pw)
		} else {
			h.Write(sum)
		}
		if i%3 != 0 {
			h.Write(salt)
		}
		if i%7 != 0 {
			h.Write(pw)
		}
		if i&1 != 0 {
			h.Write(sum)
		} else {
			h.Write(pw)
		}
		sum = h.Sum(sum[:0])
	}
	return sum
}

// writeRepeated writes n bytes of sum, over and over.
func writeRepeated(h hash.Hash, sum []byte, n int) {
	for ; n > 0; n -= len(sum) {
		h.Write(sum[:min(n, len(sum))])
	}
}

// repeated returns n bytes of sum, over and over.
func repeated(sum []byte, n int) []byte {
	out := make([]byte, 0, n)
	for len(out) < n {
		out = append(out, sum[:min(n-len(out), len(sum))]...)
	}
	return out
}

// The order of bytes in the encoded sum: triples that rotate, as the numbered
// list of Drepper's text has them.
func order256() []int { return append(rotate(10, [3]int{0, 10, 20}, [3]int{2, 0, 1}), 31, 30) }
func order512() []int { return append(rotate(21, [3]int{0, 21, 42}, [3]int{1, 2, 0}), 63) }

// rotate lists n triples: the first is start, each next one has every element
// one higher and permuted by perm (new[i] = old[perm[i]]).
func rotate(n int, start, perm [3]int) []int {
	out := make([]int, 0, 3*n+2)
	t := start
	for range n {
		out = append(out, t[:]...)
		t = [3]int{t[perm[0]] + 1, t[perm[1]] + 1, t[perm[2]] + 1}
	}
	return out
}

func shaCrypt(newHash func() hash.Hash, password, salt string, rounds int, order []int) string {
	pw, s := []byte(password), []byte(salt)
	h := newHash()
	h.Write(pw)
	h.Write(s)
	h.Write(pw)
	b := h.Sum(nil)

	h.Reset()
	h.Write(pw)
	h.Write(s)
	writeRepeated(h, b, len(pw))
	for i := len(pw); i > 0; i >>= 1 {
		if i&1 != 0 {
			h.Write(b)
		} else {
			h.Write(pw)
		}
	}
	a := h.Sum(nil)

	h.Reset()
	for range len(pw) {
		h.Write(pw)
	}
	p := repeated(h.Sum(nil), len(pw))

	h.Reset()
	for range 16 + int(a[0]) {
		h.Write(s)
	}
	return encode(stretch(h, a, p, repeated(h.Sum(nil), len(s)), rounds), order)
}
