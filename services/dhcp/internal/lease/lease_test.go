package lease

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var now = time.Unix(1_800_000_000, 0)

func v4(addr, mac, name string) *V4 {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	return &V4{Addr: netip.MustParseAddr(addr), MAC: hw, Name: name, Expires: now.Add(time.Hour)}
}

// flushed makes all changes reach the file.
func flushed(t *testing.T, s *Store) error {
	t.Helper()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { s.Run(stop); close(done) }()
	result := make(chan error, 1)
	s.Commit(func(err error) { result <- err })
	err := <-result
	close(stop)
	<-done
	s.closed = false
	return err
}

// TestFile holds the file against dnsmasq's format and reads it back.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dhcp.leases")
	s, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	l := v4("192.168.1.100", "00:11:22:33:44:55", "laptop")
	l.ClientID = []byte{1, 0, 0x11, 0x22, 0x33, 0x44, 0x55}
	s.Put4(l)
	forever := v4("192.168.1.20", "00:11:22:33:44:66", "")
	forever.Expires = time.Time{}
	s.Put4(forever)
	s.SetServerDUID([]byte{0, 3, 0, 1})
	duid := []byte{0, 1, 0, 1, 0xaa}
	s.Put6(&V6{DUID: duid, IAID: 7, Part: 0x123, Name: "laptop", Expires: now.Add(time.Minute), Addrs: []netip.Prefix{netip.MustParsePrefix("fd00::123/128"), netip.MustParsePrefix("2001:db8::123/128")}})
	s.Put6(&V6{DUID: duid, IAID: 8, PD: true, Part: 4, Length: 62, Expires: now.Add(time.Minute), Addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8:0:4::/62")}})
	if err := flushed(t, s); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := `0 00:11:22:33:44:66 192.168.1.20 * *
1800003600 00:11:22:33:44:55 192.168.1.100 laptop 01:00:11:22:33:44:55
duid 00:03:00:01
1800000060 7 fd00::123 laptop 00:01:00:01:aa
1800000060 7 2001:db8::123 laptop 00:01:00:01:aa
1800000060 8 2001:db8:0:4::/62 * 00:01:00:01:aa
`
	if string(b) != want {
		t.Errorf("file:\n%swant:\n%s", b, want)
	}
	again, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	again.SetServerDUID([]byte{0, 3, 0, 1})
	if got := string(again.text()); got != want {
		t.Errorf("read back:\n%s", got)
	}
	if g := again.Get6(duid, 7, false); g == nil || g.Part != 0x123 || len(g.Addrs) != 2 {
		t.Errorf("address lease: %+v", g)
	}
	if g := again.Get6(duid, 8, true); g == nil || g.Part != 4 || g.Length != 62 {
		t.Errorf("prefix lease: %+v", g)
	}
	// A later start does not know what has run out.
	late, err := Open(path, now.Add(2*time.Hour))
	if err != nil || late.Len4() != 1 || late.Len6() != 0 {
		t.Errorf("%d and %d leases later, %v", late.Len4(), late.Len6(), err)
	}
}

func TestBadLines(t *testing.T) {
	text := "1800003600 00:11:22:33:44:55 192.168.1.100 laptop *\n" +
		"\n# comment\nhalf a li\n" +
		"x 00:11:22:33:44:55 192.168.1.101 a *\n" +
		"1800003600 00:11:22:33:44 192.168.1.102 a *\n" +
		"1800003600 00:11:22:33:44:77 192.168.1.103 b zz\n" +
		"1800003600 00:11:22:33:44:88 192.168.1.104 good 01:02\n"
	a, b, err := Parse(strings.NewReader(text))
	if len(a) != 2 || len(b) != 0 {
		t.Errorf("%d and %d leases", len(a), len(b))
	}
	if err == nil || !strings.Contains(err.Error(), "4 lines left out, the first is line 4") {
		t.Errorf("error %v", err)
	}
}

// TestClients: who has which lease, and that one address and one client have
// one each.
func TestClients(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "x"), now)
	if err != nil {
		t.Fatal(err)
	}
	a := v4("10.0.0.5", "02:00:00:00:00:01", "a")
	s.Put4(a)
	if s.Client4(nil, a.MAC) != a || s.Client4([]byte{0, 1}, a.MAC) != a {
		t.Error("a lease without an id belongs to the MAC address")
	}
	b := v4("10.0.0.6", "02:00:00:00:00:01", "b")
	b.ClientID = []byte{9, 9}
	s.Put4(b)
	if s.Client4([]byte{9, 9}, nil) != b || s.Client4([]byte{8}, b.MAC) != nil {
		t.Error("a lease with an id belongs to the id")
	}
	c := v4("10.0.0.6", "02:00:00:00:00:03", "c")
	s.Put4(c)
	if s.Addr4(b.Addr) != c || s.Client4([]byte{9, 9}, nil) != nil || s.Len4() != 2 {
		t.Error("an address has two holders")
	}
	s.Drop4(b) // long gone: must not touch c
	if s.Addr4(c.Addr) != c {
		t.Error("the drop of an old lease took a new one away")
	}
	gone, _ := s.Prune(now.Add(2 * time.Hour))
	if len(gone) != 2 || s.Len4() != 0 {
		t.Errorf("%d leases ran out, %d are left", len(gone), s.Len4())
	}
}

// TestUnwritable: the error is told, and the next commit tries again.
func TestUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	s, err := Open(filepath.Join(dir, "leases"), now)
	if err != nil {
		t.Fatal(err)
	}
	s.Put4(v4("10.0.0.5", "02:00:00:00:00:01", "a"))
	if err := flushed(t, s); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := flushed(t, s); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "leases")); err != nil || !strings.Contains(string(b), "10.0.0.5") {
		t.Errorf("%q, %v", b, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestWhole reads the file while it is written over and over: it is never half.
func TestWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	s, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { s.Run(stop); close(done) }()
	const count = 200
	var wg sync.WaitGroup
	for i := range count {
		s.Put4(v4(fmt.Sprintf("10.0.0.%d", i+1), fmt.Sprintf("02:00:00:00:00:%02x", i), ""))
		wg.Add(1)
		s.Commit(func(err error) {
			defer wg.Done()
			if err != nil {
				t.Error(err)
			}
		})
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, _, perr := Parse(bytes.NewReader(b)); err != nil || perr != nil || len(b) > 0 && b[len(b)-1] != '\n' {
			t.Fatalf("half a file: %v, %v\n%s", err, perr, b)
		}
	}
	wg.Wait()
	close(stop)
	<-done
	b, err := os.ReadFile(path)
	if err != nil || bytes.Count(b, []byte("\n")) != count {
		t.Errorf("%d lines, %v", bytes.Count(b, []byte("\n")), err)
	}
}

// TestCommitOrder: who commits while a write is under way is called after it.
func TestCommitOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	s, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { s.Run(stop); close(done) }()
	for i := range 300 {
		s.Put4(v4("10.0.0.1", "02:00:00:00:00:01", fmt.Sprintf("n%d", i)))
		first, second := make(chan struct{}), make(chan struct{})
		s.Commit(func(error) { close(first) })
		s.Commit(func(error) {
			select {
			case <-first:
			default:
				t.Error("the second was called before the first")
			}
			if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), fmt.Sprintf(" n%d ", i)) {
				t.Errorf("called before the file was written: %q, %v", b, err)
			}
			close(second)
		})
		<-second
	}
	close(stop)
	<-done
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("1800003600 00:11:22:33:44:55 192.168.1.100 laptop 01:00\nduid 00:03\n1800000060 7 fd00::123 * 00:01:00:01:aa\n0 8 2001:db8::/62 x 00\n"))
	f.Add([]byte("1 T5 ::1 * ff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v4, v6, _ := Parse(bytes.NewReader(b))
		s := &Store{v4: map[netip.Addr]*V4{}, byMAC: map[string]*V4{}, byID: map[string]*V4{}, v6: map[string]*V6{}}
		for _, l := range v4 {
			s.put4(l)
		}
		for _, l := range v6 {
			s.v6[key6(l.DUID, l.IAID, l.PD)] = l
		}
		// What is written can be read, and says the same.
		text := s.text()
		a, c, err := Parse(bytes.NewReader(text))
		if err != nil || len(a) != len(s.v4) || len(c) != len(s.v6) {
			t.Errorf("%q is written as %q, of which %d and %d leases are read: %v", b, text, len(a), len(c), err)
		}
	})
}
