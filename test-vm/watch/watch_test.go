package watch

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// segment is an Ethernet frame with an IPv4 TCP segment of n bytes of payload, with MPTCP's option or without.
func segment(n int, mptcp bool) (frame []byte, length int) {
	f := make([]byte, 14+20+24)
	f[12] = 8
	f[14] = 0x45
	f[23] = 6
	binary.BigEndian.PutUint16(f[16:], uint16(20+24+n))
	f[14+20+12] = 6 << 4
	copy(f[54:], []byte{1, 1, 1, 1})
	if mptcp {
		copy(f[54:], []byte{30, 4, 0, 0})
	}
	return f, len(f) + n
}

func TestLink(t *testing.T) {
	start := time.Unix(1000, 0)
	l := New("path1", start)
	rec := l.Record(0, start)
	send := func(at time.Duration, dir, payload int, mptcp bool) {
		f, n := segment(payload, mptcp)
		l.Frame(dir, start.Add(at), n, f)
	}
	send(0, 0, 37, false) // a word of the control connection
	for i := range 100 {  // 1000 bytes each 10 ms
		at := time.Second + time.Duration(i)*10*time.Millisecond
		if i >= 50 {
			at += 400 * time.Millisecond
		}
		send(at, 0, 1000, true)
		send(at, 1, 0, true)
	}
	select {
	case <-rec.First():
	default:
		t.Fatal("the recording has not begun")
	}
	rec.Stop()
	send(3*time.Second, 0, 1000, true) // does not count any more
	if got := rec.Began().Sub(start); got != time.Second {
		t.Errorf("began after %s", got)
	}
	if stall, at := rec.Stall(start.Add(2400 * time.Millisecond)); stall != 410*time.Millisecond || at.Sub(start) != 1490*time.Millisecond {
		t.Errorf("stall of %s from %s", stall, at.Sub(start))
	}
	if stall, _ := rec.Stall(start.Add(4 * time.Second)); stall != 4*time.Second-2390*time.Millisecond {
		t.Errorf("silence at the end counts: %s", stall)
	}
	// 800 kbit/s again 0.4 s after the stall began.
	if d, ok := rec.Reached(start.Add(1500*time.Millisecond), 790e3); !ok || d != 400*time.Millisecond {
		t.Errorf("reached %v after %s", ok, d)
	}
	if _, ok := rec.Reached(start, 900e3); ok {
		t.Error("a rate was reached that never was")
	}
	if got := rec.Rate(start.Add(time.Second), start.Add(1500*time.Millisecond)); got != 800e3 {
		t.Errorf("rate %g", got)
	}
	yes, no := true, false
	if a, b, c := l.Count(6, &yes), l.Count(6, &no), l.Count(0, nil); a != 201 || b != 1 || c != 202 {
		t.Errorf("counted %d with MPTCP, %d without, %d in all", a, b, c)
	}
	if s := l.Series(); s[0][20] != 5*1058 || s[1][20] != 5*58 {
		t.Errorf("series %v", s)
	}
}

func TestPcap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l.pcap")
	l := New("l", time.Unix(0, 0))
	if err := l.Pcap(path); err != nil {
		t.Fatal(err)
	}
	f, n := segment(10, false)
	l.Frame(0, time.Unix(7, 8), n, f)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u := binary.LittleEndian.Uint32
	if len(b) != 24+16+len(f) || u(b) != 0xa1b23c4d || u(b[20:]) != 1 || u(b[24:]) != 7 || u(b[28:]) != 8 || u(b[32:]) != uint32(len(f)) || u(b[36:]) != uint32(n) {
		t.Errorf("file %x", b)
	}
}
