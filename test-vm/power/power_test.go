package power

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const testSize = 64 * Sector

// newTestDisk is a disk over a base whose bytes are all 0xb0, half as long as the disk, with a log that is kept.
func newTestDisk(t *testing.T) (*Disk, *bytes.Reader, *Log, string) {
	t.Helper()
	base := bytes.NewReader(bytes.Repeat([]byte{0xb0}, testSize/2))
	dir := t.TempDir()
	l, err := CreateLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d, err := NewDisk(base, testSize, l)
	if err != nil {
		t.Fatal(err)
	}
	return d, base, l, dir
}

func content(t *testing.T, d *Disk) []byte {
	t.Helper()
	out := make([]byte, d.Size())
	if _, err := d.ReadAt(out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

// play does random things to d, in ranges of whole sectors unless bytes is set, and returns the content after each
// entry of the log.
func play(t *testing.T, d *Disk, rng *rand.Rand, n int, bytewise bool) [][]byte {
	t.Helper()
	model := content(t, d)
	states := [][]byte{bytes.Clone(model)}
	for i := range n {
		off, length := rng.Int64N(testSize-1), int64(0)
		if bytewise {
			length = rng.Int64N(testSize-off) + 1
		} else {
			off = off / Sector * Sector
			length = (rng.Int64N(min(8, (testSize-off)/Sector)) + 1) * Sector
		}
		var err error
		switch rng.IntN(6) {
		case 0:
			err = d.Flush()
		case 1:
			clear(model[off : off+length])
			err = d.zero(Trim, off, length, false)
		case 2:
			clear(model[off : off+length])
			err = d.zero(Zero, off, length, rng.IntN(4) == 0)
		default:
			p := bytes.Repeat([]byte{byte(i + 1)}, int(length))
			copy(model[off:], p)
			err = d.writeAt(p, off, rng.IntN(8) == 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, bytes.Clone(model))
	}
	return states
}

// TestDisk: reads give what was written last, whatever overlaps what, and the base is left alone.
func TestDisk(t *testing.T) {
	for seed := range uint64(50) {
		d, _, _, _ := newTestDisk(t)
		rng := rand.New(rand.NewPCG(seed, 0))
		states := play(t, d, rng, 60, true)
		if got := content(t, d); !bytes.Equal(got, states[len(states)-1]) {
			t.Fatalf("seed %d: the disk differs from a plain array of bytes", seed)
		}
		for range 20 {
			off := rng.Int64N(testSize)
			part := make([]byte, rng.Int64N(testSize-off+1))
			if _, err := d.ReadAt(part, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(part, states[len(states)-1][off:off+int64(len(part))]) {
				t.Fatalf("seed %d: %d bytes at %d differ", seed, len(part), off)
			}
		}
	}
}

func TestOutside(t *testing.T) {
	d, _, l, _ := newTestDisk(t)
	buf := make([]byte, Sector)
	for _, off := range []int64{-1, testSize, testSize - 1, 1 << 62} {
		if _, err := d.ReadAt(buf, off); err == nil {
			t.Errorf("read at %d: no error", off)
		}
		if _, err := d.WriteAt(buf, off); err == nil {
			t.Errorf("write at %d: no error", off)
		}
		if err := d.zero(Trim, off, Sector, false); err == nil {
			t.Errorf("trim at %d: no error", off)
		}
	}
	if n := len(l.Ops()); n != 0 {
		t.Errorf("%d entries of the log about what was refused", n)
	}
	if _, err := NewDisk(bytes.NewReader(nil), 100, l); err == nil {
		t.Error("a disk of 100 bytes: no error")
	}
}

// TestClean: a clean cut after any entry gives the content of that moment, from the log in memory and from its files,
// and what is written to the result is nobody else's.
func TestClean(t *testing.T) {
	d, base, l, dir := newTestDisk(t)
	states := play(t, d, rand.New(rand.NewPCG(7, 7)), 40, false)
	if err := l.Mark(3); err != nil {
		t.Fatal(err)
	}
	again, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, log := range []*Log{l, again} {
		if ops := log.Ops(); len(ops) != 41 || ops[40].Kind != Mark || ops[40].Off != 3 {
			t.Fatalf("%d entries, the last %+v", len(ops), ops[len(ops)-1])
		}
		for i, want := range states {
			cut, err := log.At(base, testSize, Cut{After: i})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(content(t, cut), want) {
				t.Errorf("the disk after entry %d is not what it was", i)
			}
			if _, err := cut.WriteAt([]byte("mine"), 100); err != nil {
				t.Fatal(err)
			}
			if got := content(t, cut); string(got[100:104]) != "mine" {
				t.Errorf("a write to the disk of a cut is not there: %q", got[100:104])
			}
			if err := cut.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(content(t, d), states[len(states)-1]) {
		t.Error("a cut has changed the recorded disk")
	}
	if _, err := l.At(base, testSize, Cut{After: 42}); err == nil {
		t.Error("a cut after the end: no error")
	}
}

// TestBarriers: whatever the seed, each sector after a cut is as it was at the last flush or as a write after it left
// it; all of these are seen; entries with FUA count as flushed, and the same seed gives the same disk.
func TestBarriers(t *testing.T) {
	for _, mode := range []Mode{Drop, Torn} {
		d, base, l, _ := newTestDisk(t)
		states := play(t, d, rand.New(rand.NewPCG(1, 2)), 60, false)
		ops := l.Ops()
		allowed := 0 // values beside the one of a clean cut
		seen := map[string]bool{}
		for after := range ops {
			flushed, last := 0, -1
			for i, o := range ops[:after] {
				if o.Kind == Flush {
					flushed = i
				}
				if o.Kind.changes() {
					last = i
				}
			}
			possible := make([]map[byte]bool, testSize/Sector)
			for s := range possible {
				v := states[flushed][s*Sector]
				possible[s] = map[byte]bool{v: true}
				for i := flushed; i < after; i++ {
					o := ops[i]
					if !o.Kind.changes() || int64(s*Sector) < o.Off || int64(s*Sector) >= o.Off+o.Len {
						continue
					}
					now := states[i+1][s*Sector]
					if o.FUA && !(mode == Torn && i == last) || mode == Torn && i != last {
						clear(possible[s])
					}
					possible[s][now] = true
				}
				allowed += len(possible[s]) - 1
			}
			for seed := range uint64(40) {
				cut := Cut{After: after, Mode: mode, Seed: seed}
				got := contentAt(t, l, base, cut)
				if !bytes.Equal(got, contentAt(t, l, base, cut)) {
					t.Fatalf("cut %s is another disk the second time", cut)
				}
				for s := range possible {
					part := got[s*Sector:][:Sector]
					if !bytes.Equal(part, bytes.Repeat(part[:1], Sector)) {
						t.Fatalf("cut %s: sector %d is torn within", cut, s)
					}
					if !possible[s][part[0]] {
						t.Fatalf("cut %s: sector %d holds %#x, which no order of the writes after the flush gives (%v)", cut, s, part[0], possible[s])
					}
					if part[0] != states[after][s*Sector] {
						seen[fmt.Sprint(after, " ", s, " ", part[0])] = true
					}
				}
			}
		}
		if len(seen) < allowed*9/10 {
			t.Errorf("%s: %d of %d possible contents were seen in 40 seeds", mode, len(seen), allowed)
		}
	}
}

func contentAt(t *testing.T, l *Log, base io.ReaderAt, cut Cut) []byte {
	t.Helper()
	d, err := l.At(base, testSize, cut)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return content(t, d)
}

// TestSave: a file holds what the disk holds, whatever the base is.
func TestSave(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base.img")
	if err := os.WriteFile(base, bytes.Repeat([]byte{0xb0}, testSize/4), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(base, testSize/2); err != nil { // a hole
		t.Fatal(err)
	}
	file, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, from := range []io.ReaderAt{bytes.NewReader(bytes.Repeat([]byte{0xb0}, testSize)), file} {
		l, err := CreateLog(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		d, err := NewDisk(from, testSize, l)
		if err != nil {
			t.Fatal(err)
		}
		states := play(t, d, rand.New(rand.NewPCG(3, 4)), 12, true)
		for after, want := range states {
			cut, err := l.At(from, testSize, Cut{After: after})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cut.WriteAt([]byte("mine"), 700); err != nil {
				t.Fatal(err)
			}
			want = bytes.Clone(want)
			copy(want[700:], "mine")
			path := filepath.Join(t.TempDir(), "disk.img")
			if err := errors.Join(cut.Save(path), cut.Close()); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("base %T, after %d: the file differs from the disk (%v)", from, after, err)
			}
		}
	}
}

func TestModes(t *testing.T) {
	for m := Clean; m <= Torn; m++ {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%s: %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("gone"); err == nil {
		t.Error("mode gone: no error")
	}
}

// serve serves d on a socket until the test ends and returns the socket's path.
func serve(t *testing.T, d *Disk) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-power-") // short: a socket's path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	path := filepath.Join(dir, "disk.sock")
	wait, err := Serve(ctx, path, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := wait(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return path
}

// TestQEMU lets QEMU's own client write, discard and flush, and compares with what it says it did.
func TestQEMU(t *testing.T) {
	qemuIO, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("qemu-io is not installed (package qemu-utils): QEMU's client is not the judge of the server")
	}
	base := bytes.NewReader(bytes.Repeat([]byte{0xb0}, 1<<20))
	l, err := CreateLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := NewDisk(base, 4<<20, l)
	if err != nil {
		t.Fatal(err)
	}
	path := serve(t, d)
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, qemuIO, append([]string{"-f", "raw", "-d", "unmap", "-t", "writeback"}, args...)...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "failed") {
			t.Fatalf("qemu-io %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	url := "nbd+unix:///?socket=" + path
	run("-c", "read -P 0xb0 0 1M", "-c", "read -P 0 1M 3M",
		"-c", "write -P 0x11 4k 64k", "-c", "write -f -P 0x22 100k 512", "-c", "flush",
		"-c", "write -z 8k 4k", "-c", "discard 16k 4k", "-c", "write -P 0x33 3M 1M", url)
	run("-c", "read -P 0x11 4k 4k", "-c", "read -P 0 8k 4k", "-c", "read -P 0x11 12k 4k", "-c", "read -P 0 16k 4k",
		"-c", "read -P 0x22 100k 512", "-c", "read -P 0xb0 102912 512", "-c", "read -P 0x33 3M 1M", url)
	var kinds []string
	for _, o := range l.Ops() {
		s := fmt.Sprint(o.Kind, " ", o.Off>>10, "k ", o.Len>>10, "k")
		if o.FUA {
			s += " fua"
		}
		kinds = append(kinds, s)
	}
	text := strings.Join(kinds, "\n")
	for _, want := range []string{"write 4k 64k", "write 100k 0k fua", "flush", "zero 8k 4k", "trim 16k 4k", "write 3072k 1024k"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %q:\n%s", want, text)
		}
	}
	if qemuImg, err := exec.LookPath("qemu-img"); err == nil {
		file := filepath.Join(t.TempDir(), "saved.img")
		if err := d.Save(file); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(qemuImg, "compare", "-f", "raw", "-F", "raw", url, file).CombinedOutput(); err != nil {
			t.Errorf("qemu-img compare: %v: %s", err, out)
		}
	}
}

// TestHandshake speaks the older form of the handshake and asks for what is not there.
func TestHandshake(t *testing.T) {
	d, _, _, _ := newTestDisk(t)
	path := serve(t, d)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	expect := func(n int) []byte {
		t.Helper()
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	send := func(b []byte) {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	option := func(opt uint32, data string) []byte {
		return append(put32(put32(put64(nil, optionMagic), opt), uint32(len(data))), data...)
	}
	if got := expect(18); !bytes.HasPrefix(got, []byte("NBDMAGICIHAVEOPT")) {
		t.Fatalf("greeting %q", got)
	}
	send(put32(nil, handshakeFixedNewstyle)) // without no-zeroes
	send(option(8, ""))                      // structured replies
	if got := expect(20); binary.BigEndian.Uint32(got[12:]) != repErrUnsup {
		t.Errorf("structured replies: %x", got)
	}
	send(option(optGo, "\x00\x00\x00\x05other\x00\x00"))
	if got := expect(20); binary.BigEndian.Uint32(got[12:]) != repErrUnknown {
		t.Errorf("an export that is not there: %x", got)
	}
	send(option(optGo, "\xff\xff\xff\xff"))
	if got := expect(20); binary.BigEndian.Uint32(got[12:]) != repErrInvalid {
		t.Errorf("a name without end: %x", got)
	}
	send(option(optList, ""))
	if got := expect(20 + 4 + 20); binary.BigEndian.Uint32(got[12:]) != repServer {
		t.Errorf("list: %x", got)
	}
	send(option(optExportName, ""))
	if got := expect(8 + 2 + 124); binary.BigEndian.Uint64(got) != testSize {
		t.Errorf("size: %x", got)
	}
	request := func(flags, kind uint16, off uint64, length uint32) uint32 {
		t.Helper()
		send(put32(put64(put64(put16(put16(put32(nil, requestMagic), flags), kind), 0xc00c1e), off), length))
		got := expect(16)
		if binary.BigEndian.Uint32(got) != replyMagic || binary.BigEndian.Uint64(got[8:]) != 0xc00c1e {
			t.Fatalf("reply %x", got)
		}
		return binary.BigEndian.Uint32(got[4:])
	}
	for _, tt := range []struct {
		flags, kind uint16
		off         uint64
		length      uint32
		want        uint32
	}{
		{0, cmdRead, testSize, 512, 22}, {0, cmdTrim, 0, testSize + 1, 22}, {0, 99, 0, 0, 22}, {0x8000, cmdFlush, 0, 0, 22},
		{0, cmdFlush, 0, 0, 0}, {cmdFlagFUA, cmdWriteZeroes, 0, 512, 0},
	} {
		if got := request(tt.flags, tt.kind, tt.off, tt.length); got != tt.want {
			t.Errorf("request %+v: error %d, want %d", tt, got, tt.want)
		}
	}
}

// stream is a client that says all it has to say at once.
type stream struct {
	*bytes.Reader
	io.Writer
}

func FuzzServe(f *testing.F) {
	hello := put32(nil, handshakeFixedNewstyle|handshakeNoZeroes)
	goOption := append(put32(put32(put64(nil, optionMagic), optGo), 6), 0, 0, 0, 0, 0, 0)
	ask := func(kind uint16, off uint64, length uint32, data string) []byte {
		return append(put32(put64(put64(put16(put16(put32(nil, requestMagic), 0), kind), 1), off), length), data...)
	}
	f.Add(bytes.Join([][]byte{hello, goOption, ask(cmdWrite, 512, 4, "abcd"), ask(cmdRead, 0, 1024, ""), ask(cmdFlush, 0, 0, ""), ask(cmdDisconnect, 0, 0, "")}, nil))
	f.Add(bytes.Join([][]byte{hello, goOption, ask(cmdTrim, 1<<63, 1<<31, "")}, nil))
	f.Add(bytes.Join([][]byte{hello, append(put32(put32(put64(nil, optionMagic), 99), 1<<31), "x"...)}, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		l, err := scratch()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		d, err := NewDisk(bytes.NewReader(nil), testSize, l)
		if err != nil {
			t.Fatal(err)
		}
		serveConn(stream{bytes.NewReader(in), io.Discard}, d) // any error will do
		for i, e := range d.written {
			if e.from >= e.to || e.from < 0 || e.to > testSize || i > 0 && d.written[i-1].to > e.from {
				t.Fatalf("extents %+v", d.written)
			}
		}
	})
}

func FuzzLog(f *testing.F) {
	rec := make([]byte, opSize)
	rec[0], rec[16] = byte(Write), 4
	f.Add(rec, int64(4))
	f.Add(rec, int64(3))
	f.Add(rec[1:], int64(0))
	f.Fuzz(func(t *testing.T, raw []byte, end int64) {
		ops, err := decodeOps(raw, end)
		if err != nil {
			return
		}
		for _, o := range ops {
			if o.Kind == Write && (o.data < 0 || o.Len < 0 || o.data+o.Len > end) {
				t.Fatalf("%+v points outside of %d bytes", o, end)
			}
		}
	})
}
