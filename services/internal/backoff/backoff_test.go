package backoff

import (
	"net/netip"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b Table
	a, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff")
	other := netip.MustParseAddr("192.0.2.1")
	now := time.Unix(1000, 0)
	for range free {
		if w := b.Fail(a, now); w != 0 {
			t.Fatalf("refused for %v within the free attempts", w)
		}
	}
	for _, want := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		if w := b.Fail(neighbour, now); w != want*time.Second {
			t.Errorf("refused for %v, want %v", w, want*time.Second)
		}
	}
	if w := b.Wait(a, now.Add(time.Minute)); w != 4*time.Minute {
		t.Errorf("Wait = %v, want 4m", w)
	}
	if w := b.Wait(other, now); w != 0 {
		t.Errorf("another address waits %v", w)
	}
	if w := b.Wait(a, now.Add(forget)); w != 0 {
		t.Errorf("not forgotten: %v", w)
	}
	for range free + 3 {
		b.Fail(other, now)
	}
	// Mapped addresses are the same client.
	b.Good(netip.MustParseAddr("::ffff:192.0.2.1"))
	if w := b.Wait(other, now); w != 0 {
		t.Errorf("refused after a login: %v", w)
	}
}

func TestBounded(t *testing.T) {
	var b Table
	now := time.Unix(1000, 0)
	guesser := netip.MustParseAddr("198.51.100.1")
	for i := range 4 * maxEntries {
		b.Fail(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now.Add(time.Duration(i)*time.Millisecond))
		b.Fail(guesser, now.Add(time.Duration(i)*time.Millisecond))
	}
	if n := len(b.entries); n > maxEntries {
		t.Errorf("%d entries, at most %d", n, maxEntries)
	}
	if b.Wait(guesser, now.Add(time.Second)) == 0 {
		t.Error("a flood of other addresses made the guesser free again")
	}
}
