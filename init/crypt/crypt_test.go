package crypt

import (
	"errors"
	"strings"
	"testing"
)

// The hashes were made by libxcrypt's crypt(3); the first ones also stand in
// Drepper's text.
var vectors = []struct{ password, hash string }{
	{"Hello world!", "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"},
	{"Hello world!", "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"},
	{"Hello world!", "$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA"},
	{"This is just a test", "$5$rounds=5000$toolongsaltstrin$Un/5jzAHMgOGZ5.mWJpuVolil07guHPvOW8mGRcvxa5"},
	{"we have a short salt string but not a short password", "$6$rounds=77777$short$WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0"},
	{"", "$1$abcdefgh$M55TzYaaccxVGbptZWaxX/"},
	{"password", "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/"},
	{"ein längeres Wort mit Umlaut, über sechzehn", "$1$x$uxAjQa4XMM5Um6l0RyY4f0"},
	{"", "$6$zz$W1l2kcyVZyUpO2IrHasZE3jt1QRO8n.Ko013qyFC/YLE/qPebUvlW7eW/MZ1AdvsWlTrJamrgH4faukSYenZX1"},
	{strings.Repeat("a", 100), "$5$s$F78J5eTZ.Nj/cmegGD2tFhqWI0bCt8A7vXbxE4kMpb3"},
}

func TestVerify(t *testing.T) {
	for _, v := range vectors {
		if !Verify(v.hash, v.password) {
			t.Errorf("%.20q does not fit %s", v.password, v.hash)
		}
		if Verify(v.hash, v.password+"x") || Verify(v.hash[:len(v.hash)-1]+"!", v.password) {
			t.Errorf("%s fits what it must not", v.hash)
		}
	}
	for _, hash := range []string{
		"", "x", "!", "*", "password", "$1$", "$1$salt", "$1$salt$", "$2b$10$abc", "$y$j9T$a$b", "$1$toolongsalt$x", "$5$rounds=5000$",
		"$5$rounds=999$s$x", "$5$rounds=99999999999$s$x", "$5$rounds=-1$s$x", "$6$rounds=$s$x", "$6$toolongsaltstring$x",
	} {
		if Verify(hash, "") || Verify(hash, "password") {
			t.Errorf("%q fits", hash)
		}
	}
	if Verify("$1$abcdefgh$M55TzYaaccxVGbptZWaxX/", strings.Repeat("x", 1000)) {
		t.Error("overlong password fits")
	}
}

func TestHash(t *testing.T) {
	for _, password := range []string{"", "geheim", strings.Repeat("ü", 255)} {
		a, err := Hash(password)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Hash(password)
		if err != nil {
			t.Fatal(err)
		}
		if a == b {
			t.Errorf("twice the same salt: %s", a)
		}
		if !strings.HasPrefix(a, "$6$") || len(a) != 3+16+1+86 || !Verify(a, password) || Verify(a, password+"x") {
			t.Errorf("%.20q gives %s", password, a)
		}
	}
	for _, password := range []string{"a\x00b", strings.Repeat("x", 512)} {
		if h, err := Hash(password); !errors.Is(err, ErrPassword) {
			t.Errorf("%.20q gives %q, %v", password, h, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, v := range vectors {
		f.Add(v.hash, v.password)
	}
	f.Fuzz(func(t *testing.T, hash, password string) {
		if strings.Contains(hash, "rounds=") {
			return // only costs time
		}
		Verify(hash, password)
	})
}
