package ucert

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"weft/image/firmware/usign"
)

var now = time.Unix(1_700_000_000, 0)

func key(t testing.TB) *usign.SecretKey {
	t.Helper()
	k, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func reader(b []byte) func() io.Reader { return func() io.Reader { return bytes.NewReader(b) } }

// TestBytes holds the encoding of a certificate against bytes put together by
// hand from libubox's blob.h and ucert.c.
func TestBytes(t *testing.T) {
	got := appendTable(nil, "ucert", func(b []byte) []byte {
		b = appendInt32(b, "certtype", 1)
		b = appendInt64(b, "validfrom", 1_700_000_000)
		return appendString(b, "pubkey", "xy")
	})
	want := strings.ReplaceAll("8200004c 0005 7563657274 00"+ // table "ucert", 76 bytes
		"85000014 0008 6365727474797065 0000 00000001"+ // i32 certtype
		"84000018 0009 76616c696466726f6d 00 000000006553f100"+ // i64 validfrom
		"83000013 0006 7075626b6579 00000000 787900 00", " ", "") // string pubkey, padded
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

func TestChain(t *testing.T) {
	root, mid := key(t), key(t)
	message := []byte("image and metadata")
	cert := Issue(root, mid.Public(), now.Add(-time.Hour), now.Add(time.Hour))
	chain := Chain{cert, {Signature: mid.Sign(message)}}
	if n := len(chain.Encode()); n > 1024 {
		t.Errorf("a chain of two takes %d bytes, fwtool has room for 1024", n)
	}
	parsed, err := Parse(chain.Encode())
	if err != nil || len(parsed) != 2 || !bytes.Equal(parsed.Encode(), chain.Encode()) {
		t.Fatalf("parsed %+v, %v", parsed, err)
	}
	keys := []*usign.PublicKey{key(t).Public(), root.Public()}
	gotRoot, signer, err := parsed.Verify(reader(message), keys, now, nil)
	if err != nil || gotRoot.Fingerprint != root.Fingerprint || signer.Fingerprint != mid.Fingerprint {
		t.Fatalf("root %v, signer %v, %v", gotRoot, signer, err)
	}
	direct := Chain{{Signature: root.Sign(message)}}
	if _, _, err := direct.Verify(reader(message), keys, now, nil); err != nil {
		t.Errorf("signed by the root itself: %v", err)
	}
	swapped := Chain{Issue(mid, mid.Public(), now.Add(-time.Hour), now.Add(time.Hour)), {Signature: mid.Sign(message)}}
	for name, tc := range map[string]struct {
		chain   Chain
		message string
		at      time.Time
		revoked usign.Fingerprint
		keys    []*usign.PublicKey
		want    string
	}{
		"changed image":    {chain: parsed, message: "Image and metadata", at: now, keys: keys, want: "does not fit"},
		"too early":        {chain: parsed, message: string(message), at: now.Add(-2 * time.Hour), keys: keys, want: "valid from"},
		"too late":         {chain: parsed, message: string(message), at: now.Add(2 * time.Hour), keys: keys, want: "ended at"},
		"revoked signer":   {chain: parsed, message: string(message), at: now, keys: keys, revoked: mid.Fingerprint, want: "revoked"},
		"revoked root":     {chain: parsed, message: string(message), at: now, keys: keys, revoked: root.Fingerprint, want: "revoked"},
		"unknown root":     {chain: parsed, message: string(message), at: now, keys: keys[:1], want: "not in the key folder"},
		"signed by itself": {chain: swapped, message: string(message), at: now, keys: keys, want: "not in the key folder"},
		"no signature":     {chain: parsed[:1], message: string(message), at: now, keys: keys, want: "does not end"},
		"empty":            {chain: nil, message: string(message), at: now, keys: keys, want: "does not end"},
	} {
		_, _, err := tc.chain.Verify(reader([]byte(tc.message)), tc.keys, tc.at, func(f usign.Fingerprint) bool { return f == tc.revoked })
		if !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	// Every single changed byte is refused, or leaves what was signed as it was (comments, padding).
	enc := chain.Encode()
	for i := range enc {
		bad := bytes.Clone(enc)
		bad[i] ^= 1
		c, err := Parse(bad)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("byte %d: untyped error %v", i, err)
			}
			continue
		}
		if _, s, err := c.Verify(reader(message), keys, now, nil); err == nil && s.Fingerprint != mid.Fingerprint {
			t.Errorf("byte %d changed: signed by %v", i, s)
		}
	}
	for i := range enc {
		if c, err := Parse(enc[:i]); err == nil && (len(c) == 2) {
			t.Errorf("cut to %d bytes it is still whole", i)
		}
	}
}

func FuzzParse(f *testing.F) {
	root, mid := key(f), key(f)
	f.Add(Chain{Issue(root, mid.Public(), now, now), {Signature: mid.Sign(nil)}}.Encode())
	f.Add(Chain{{Signature: mid.Sign(nil)}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		if again, err := Parse(c.Encode()); err != nil || len(again) != len(c) {
			t.Errorf("did not come back: %v", err)
		}
		_, _, _ = c.Verify(reader(b), []*usign.PublicKey{root.Public()}, now, nil)
	})
}
