package ra

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/netif"
)

var now = time.Unix(1_800_000_000, 0)

func settings() *Settings {
	return &Settings{
		Pool:     &config.Pool{RA: config.ServerMode, Managed: true, SLAAC: true, RAMax: 600, RAMin: 200, RALifetime: -1, RADNS: true, MaxPreferred: 45 * time.Minute, MaxValid: 90 * time.Minute, RAPreference: 1},
		MAC:      []byte{2, 0, 0, 0, 0, 1},
		MTU:      1500,
		Source:   netip.MustParseAddr("fe80::1"),
		Prefixes: []netif.Prefix{{Prefix: netip.MustParsePrefix("2001:db8::/60"), Preferred: now.Add(100 * time.Second), Valid: now.Add(200 * time.Second)}},
		DNS:      []netip.Addr{netip.MustParseAddr("2001:db8::1")},
		Search:   []string{"lan", "bad name"},
		Default6: true,
	}
}

// TestMessage holds a whole message against its bytes.
func TestMessage(t *testing.T) {
	want := strings.Join([]string{
		"86000000" + "00" + "88" + "0708" + "00000000" + "00000000", // M, high preference, 1800 s
		"0101" + "020000000001",
		"0501" + "0000" + "000005dc",
		"0304" + "40" + "c0" + "000000c8" + "00000064" + "00000000" + "20010db8000000000000000000000000",
		"0304" + "40" + "c0" + "00000000" + "00000000" + "00000000" + "20010db8000900000000000000000000", // the one that is given up
		"1802" + "3c" + "08" + "000000c8" + "20010db800000000",
		"1903" + "0000" + "00000708" + "20010db8000000000000000000000001",
		"1f02" + "0000" + "00000708" + "036c616e00000000",
	}, "")
	got := hex.EncodeToString(settings().Message(now, []netip.Prefix{netip.MustParsePrefix("2001:db8:9::/64")}, false))
	if got != want {
		t.Errorf("message\n%s, want\n%s", got, want)
	}
	if _, ok := ParseSolicit(settings().Message(now, nil, false), netip.MustParseAddr("fe80::2")); ok {
		t.Error("an advertisement was taken for a solicitation")
	}
}

func TestLifetime(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(s *Settings)
		want int
	}{
		{"default route and public prefix", func(*Settings) {}, 1800},
		{"no default route", func(s *Settings) { s.Default6 = false }, 0},
		{"only a local prefix", func(s *Settings) { s.Prefixes[0].Prefix = netip.MustParsePrefix("fd00::/60") }, 0},
		{"only a local prefix, ra_default 1", func(s *Settings) { s.Prefixes = nil; s.Pool.RADefault = 1 }, 1800},
		{"nothing, ra_default 2", func(s *Settings) { s.Prefixes = nil; s.Default6 = false; s.Pool.RADefault = 2 }, 1800},
		{"deprecated prefix", func(s *Settings) { s.Prefixes[0].Preferred = now }, 0},
		{"configured", func(s *Settings) { s.Pool.RALifetime = 90 }, 90},
	} {
		s := settings()
		tc.edit(s)
		m := s.Message(now, nil, false)
		if got := int(m[6])<<8 | int(m[7]); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
		if m := s.Message(now, nil, true); m[6] != 0 || m[7] != 0 {
			t.Errorf("%s: a farewell with a lifetime", tc.name)
		}
	}
}

func TestEqual(t *testing.T) {
	a, b := settings(), settings()
	b.Prefixes[0].Valid = b.Prefixes[0].Valid.Add(time.Second)
	if !a.Equal(b) {
		t.Error("a second of difference is a change")
	}
	for i, edit := range []func(s *Settings){
		func(s *Settings) { s.Default6 = false }, func(s *Settings) { s.Prefixes = nil }, func(s *Settings) { s.MTU = 1492 }, func(s *Settings) { s.Pool.Managed = false },
		func(s *Settings) { s.DNS = nil }, func(s *Settings) { s.Prefixes[0].Valid = now.Add(time.Hour) },
	} {
		b := settings()
		edit(b)
		if a.Equal(b) {
			t.Errorf("change %d is not seen", i)
		}
	}
}

func FuzzParseSolicit(f *testing.F) {
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0}, true)
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1}, true)
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 0}, false)
	f.Fuzz(func(t *testing.T, b []byte, link bool) {
		from := netip.IPv6Unspecified()
		if link {
			from = netip.MustParseAddr("fe80::1")
		}
		if hw, ok := ParseSolicit(b, from); ok && (!link && hw != nil || len(b) < 8) {
			t.Errorf("% x: %x", b, hw)
		}
	})
}
