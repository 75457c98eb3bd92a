package synhold

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/transparent"
)

// synFor builds a SYN as a host would: with options, and for IPv6 with the
// extension headers given as (kind, bytes behind the first two).
func synFor(src, dst string, flags byte, payload string, extensions ...byte) []byte {
	a, b := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	options := []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}
	h := binary.BigEndian.AppendUint16(nil, a.Port())
	h = binary.BigEndian.AppendUint16(h, b.Port())
	h = append(h, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, byte(20+len(options))/4<<4, flags, 0xfa, 0xf0, 0, 0, 0, 0)
	h = append(append(h, options...), payload...)
	binary.BigEndian.PutUint16(h[16:], ^fold(sum(pseudoSum(a.Addr(), b.Addr(), unix.IPPROTO_TCP, len(h)), h)))
	var ext []byte
	for i := range extensions {
		next := byte(unix.IPPROTO_TCP)
		if i+1 < len(extensions) {
			next = extensions[i+1]
		}
		ext = append(ext, next, 0, 1, 4, 0, 0, 0, 0) // PadN of 4
	}
	p := ipHeader(a.Addr(), b.Addr(), unix.IPPROTO_TCP, len(ext)+len(h), 64, 0x10)
	if len(extensions) > 0 {
		p[6] = extensions[0]
	}
	return append(append(p, ext...), h...)
}

const (
	src4, dst4 = "192.168.1.2:40000", "192.168.2.2:80"
	src6, dst6 = "[fd01::2]:40000", "[fd02::2]:80"
)

func TestParse(t *testing.T) {
	fragment := func(b []byte, field uint16) []byte {
		binary.BigEndian.PutUint16(b[6:], field)
		return b
	}
	partial := func(b []byte, at int) []byte { // as a sender leaves it to its hardware
		s, d := netip.MustParseAddrPort(src4), netip.MustParseAddrPort(dst4)
		if b[0]>>4 == 6 {
			s, d = netip.MustParseAddrPort(src6), netip.MustParseAddrPort(dst6)
		}
		binary.BigEndian.PutUint16(b[at+16:], fold(pseudoSum(s.Addr(), d.Addr(), unix.IPPROTO_TCP, len(b)-at)))
		return b
	}
	wrong := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	for _, c := range []struct {
		name string
		b    []byte
		err  error
		data uint32
	}{
		{"IPv4", synFor(src4, dst4, flagSYN, ""), nil, 0},
		{"IPv4 with data", synFor(src4, dst4, flagSYN, "hello"), nil, 5},
		{"IPv4 with padding of the link", append(synFor(src4, dst4, flagSYN, ""), 0, 0, 0), nil, 0},
		{"IPv6", synFor(src6, dst6, flagSYN, ""), nil, 0},
		{"IPv6 with extension headers", synFor(src6, dst6, flagSYN, "abc", unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS), nil, 3},
		{"IPv4, checksum left to hardware", partial(synFor(src4, dst4, flagSYN, "x"), 20), nil, 1},
		{"IPv6, checksum left to hardware", partial(synFor(src6, dst6, flagSYN, ""), 40), nil, 0},
		{"wrong checksum", wrong(synFor(src4, dst4, flagSYN, "x")), errChecksum, 0},
		{"first fragment", fragment(synFor(src4, dst4, flagSYN, ""), 0x2000), errNotTCP, 0},
		{"later fragment", fragment(synFor(src4, dst4, flagSYN, ""), 0x0001), errNotTCP, 0},
		{"IPv6 fragment", synFor(src6, dst6, flagSYN, "", unix.IPPROTO_FRAGMENT), errNotTCP, 0},
		{"cut short", synFor(src4, dst4, flagSYN, "")[:39], errShort, 0},
		{"empty", nil, errShort, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := parse(c.b)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, expected %v", err, c.err)
			}
			if err != nil {
				return
			}
			want := [2]string{src4, dst4}
			if c.b[0]>>4 == 6 {
				want = [2]string{src6, dst6}
			}
			if s.src.String() != want[0] || s.dst.String() != want[1] || s.seq != 0x12345678 || s.flags != flagSYN || s.data != c.data || s.tos != 0x10 {
				t.Errorf("got %+v", s)
			}
			if fold(sum(pseudoSum(s.src.Addr(), s.dst.Addr(), unix.IPPROTO_TCP, len(s.raw)-s.tcp), s.raw[s.tcp:])) != 0xffff {
				t.Error("the checksum is not right afterwards")
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(synFor(src4, dst4, flagSYN, "hello"))
	f.Add(synFor(src6, dst6, flagSYN, "", unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := bytes.Clone(b)
		s, err := parse(b)
		if err != nil {
			if !bytes.Equal(whole, b) {
				t.Error("a refused packet was changed")
			}
			return
		}
		if len(s.raw) > len(b) || s.tcp+20 > len(s.raw) || int(s.data) > len(s.raw)-s.tcp-20 {
			t.Fatalf("impossible: %+v", s)
		}
		again, err := parse(bytes.Clone(s.raw))
		if err != nil || again.src != s.src || again.seq != s.seq {
			t.Errorf("parsed again: %+v, %v", again, err)
		}
		// Whatever is answered is itself well-formed.
		r, err := parse(resetFor(s))
		if err != nil || r.src != s.dst || r.dst != s.src {
			t.Errorf("the RST: %+v, %v", r, err)
		}
		icmpFor(s, s.dst.Addr(), 3, 1)
	})
}

// TestAnswersByTshark lets tshark check the checksums and read the fields.
func TestAnswersByTshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("needs tshark")
	}
	v4, err4 := parse(synFor(src4, dst4, flagSYN, "hello"))
	v6, err6 := parse(synFor(src6, dst6, flagSYN, "", unix.IPPROTO_DSTOPTS))
	if err4 != nil || err6 != nil {
		t.Fatal(err4, err6)
	}
	packets := [][]byte{
		resetFor(v4), icmpFor(v4, netip.MustParseAddr("10.9.9.9"), 3, 13), v4.raw,
		resetFor(v6), icmpFor(v6, netip.MustParseAddr("fd99::9"), 1, 3), v6.raw,
	}
	// pcap with raw IP packets (link type 101).
	pcap := []byte{0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 101, 0, 0, 0}
	for _, p := range packets {
		pcap = append(pcap, make([]byte, 8)...)
		pcap = binary.LittleEndian.AppendUint32(pcap, uint32(len(p)))
		pcap = binary.LittleEndian.AppendUint32(pcap, uint32(len(p)))
		pcap = append(pcap, p...)
	}
	file := filepath.Join(t.TempDir(), "a.pcap")
	if err := os.WriteFile(file, pcap, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-r", file, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-o", "tcp.relative_sequence_numbers:FALSE", "-T", "fields", "-E", "occurrence=f"}
	for _, f := range []string{"ip.checksum.status", "tcp.checksum.status", "icmp.checksum.status", "icmpv6.checksum.status",
		"tcp.flags", "tcp.ack_raw", "tcp.window_size_value", "ip.ttl", "ipv6.hlim", "icmp.type", "icmp.code", "icmpv6.type", "icmpv6.code"} {
		args = append(args, "-e", f)
	}
	out, err := exec.Command(tshark, args...).Output()
	if err != nil {
		t.Skipf("tshark does not run here: %v", err)
	}
	ack := "305419902" // 0x12345678 + SYN + 5 bytes
	want := []string{
		"1\t1\t\t\t0x0014\t" + ack + "\t0\t62\t\t\t\t\t",
		"1\t\t1\t\t\t\t\t63\t\t3\t13\t\t",
		"1\t1\t\t\t0x0002\t0\t64240\t64\t\t\t\t\t",
		"\t1\t\t\t0x0014\t305419897\t0\t\t62\t\t\t\t",
		"\t\t\t1\t\t\t\t\t63\t\t\t1\t3",
		"\t1\t\t\t0x0002\t0\t64240\t\t64\t\t\t\t",
	}
	got := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	for i := range want {
		if i >= len(got) {
			t.Fatalf("tshark read %d packets", len(got))
		}
		// What an ICMP message quotes is dissected, too: only our layer counts.
		g := strings.Split(got[i], "\t")
		for j, w := range strings.Split(want[i], "\t") {
			if w != "" && g[j] != w {
				t.Errorf("packet %d, field %d: tshark reads %q, expected %q\n%s", i, j, g[j], w, hex.Dump(packets[i]))
			}
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		e    transparent.ConnectError
		v4   bool
		want kind
		t, c uint8
	}{
		{transparent.ConnectError{Errno: unix.ECONNREFUSED}, true, reset, 0, 0},
		{transparent.ConnectError{Errno: unix.ECONNREFUSED, ICMP: true, ICMPType: 3, ICMPCode: 3}, true, icmp, 3, 3},
		{transparent.ConnectError{Errno: unix.ETIMEDOUT}, true, silence, 0, 0},
		{transparent.ConnectError{Errno: unix.EHOSTUNREACH, ICMP: true, ICMPType: 11}, true, icmp, 11, 0},
		{transparent.ConnectError{Errno: unix.EMSGSIZE, ICMP: true, ICMPType: 3, ICMPCode: 4}, true, trouble, 0, 0},
		{transparent.ConnectError{Errno: unix.ENETUNREACH}, true, icmp, 3, 0},
		{transparent.ConnectError{Errno: unix.EHOSTUNREACH}, true, icmp, 3, 1},
		{transparent.ConnectError{Errno: unix.EACCES}, true, icmp, 3, 13},
		{transparent.ConnectError{Errno: unix.ENETUNREACH}, false, icmp, 1, 0},
		{transparent.ConnectError{Errno: unix.EHOSTUNREACH}, false, icmp, 1, 3},
		{transparent.ConnectError{Errno: unix.EACCES}, false, icmp, 1, 1},
		{transparent.ConnectError{Errno: unix.EACCES, ICMP: true, ICMPType: 1, ICMPCode: 5}, false, icmp, 1, 5},
		{transparent.ConnectError{Errno: unix.EMSGSIZE, ICMP: true, ICMPType: 2}, false, trouble, 0, 0},
		{transparent.ConnectError{Errno: unix.ENOBUFS}, true, trouble, 0, 0},
	} {
		k, kt, kc := verdict(&c.e, c.v4)
		if k != c.want || kt != c.t || kc != c.c {
			t.Errorf("%v, IPv4 %v: %v %d %d, expected %v %d %d", &c.e, c.v4, k, kt, kc, c.want, c.t, c.c)
		}
	}
}
