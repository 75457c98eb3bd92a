package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var epoch = time.Unix(1000, 0)

// TestShaper: what happens to frames, by the clock that it is told.
func TestShaper(t *testing.T) {
	t.Run("rate and queue", func(t *testing.T) {
		s := NewShaper(Figures{Rate: 8e6, Queue: 5 * time.Millisecond, Delay: 10 * time.Millisecond}, 1)
		var arrivals []time.Duration
		full := 0
		for range 10 { // 1000 bytes are 1 ms
			at, v := s.Frame(epoch, 1000)
			if v == Full {
				full++
				continue
			}
			arrivals = append(arrivals, at.Sub(epoch))
		}
		// One that waits exactly as long as the queue holds is let in.
		if len(arrivals) != 6 || full != 4 || arrivals[0] != 11*time.Millisecond || arrivals[5] != 16*time.Millisecond {
			t.Errorf("arrivals %v, %d dropped", arrivals, full)
		}
		if at, v := s.Frame(epoch.Add(time.Second), 1000); v != Pass || at.Sub(epoch) != time.Second+11*time.Millisecond {
			t.Errorf("after a pause: %v %v", at.Sub(epoch), v)
		}
	})
	t.Run("loss", func(t *testing.T) {
		s, same, other := NewShaper(Figures{Loss: 0.1}, 7), NewShaper(Figures{Loss: 0.1}, 7), NewShaper(Figures{Loss: 0.1}, 8)
		differs := false
		for range 20000 {
			_, a := s.Frame(epoch, 100)
			_, b := same.Frame(epoch, 100)
			_, c := other.Frame(epoch, 100)
			if a != b {
				t.Fatal("the same seed gives other losses")
			}
			differs = differs || a != c
		}
		if n := s.Counts().Lost; n < 1800 || n > 2200 || !differs {
			t.Errorf("%d of 20000 lost at 10 %%, another seed differs: %v", n, differs)
		}
	})
	t.Run("jitter keeps the order", func(t *testing.T) {
		s := NewShaper(Figures{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond}, 1)
		last, least, most := epoch, time.Hour, time.Duration(0)
		for i := range 5000 {
			// In turn so close that they would overtake each other, and far apart.
			now := epoch.Add(time.Duration(i/2)*50*time.Millisecond + time.Duration(i%2)*time.Microsecond)
			at, _ := s.Frame(now, 100)
			if at.Before(last) {
				t.Fatal("a frame overtakes another one")
			}
			last = at
			least, most = min(least, at.Sub(now)), max(most, at.Sub(now))
		}
		if least < 10*time.Millisecond || most > 30*time.Millisecond || least > 15*time.Millisecond || most < 25*time.Millisecond {
			t.Errorf("delays of %s to %s", least, most)
		}
	})
	t.Run("black", func(t *testing.T) {
		s := NewShaper(Figures{Black: true}, 1)
		if _, v := s.Frame(epoch, 100); v != Silence {
			t.Errorf("verdict %v", v)
		}
		s.Set(Figures{})
		if _, v := s.Frame(epoch, 100); v != Pass || s.Counts() != (Counts{Silenced: 1, Passed: 1, Bytes: 100}) {
			t.Errorf("verdict %v, counts %+v", v, s.Counts())
		}
	})
}

// memoryEnd is an end of a wire in memory.
type memoryEnd struct {
	in     chan []byte
	mu     sync.Mutex
	got    [][]byte
	times  []time.Time
	closed chan struct{}
}

func newMemoryEnd() *memoryEnd {
	return &memoryEnd{in: make(chan []byte, 64), closed: make(chan struct{})}
}

func (m *memoryEnd) Read(p []byte) (int, error) {
	select {
	case f := <-m.in:
		return copy(p, f), nil
	case <-m.closed:
		return 0, os.ErrClosed
	}
}

func (m *memoryEnd) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.got, m.times = append(m.got, bytes.Clone(p)), append(m.times, time.Now())
	return len(p), nil
}

// arrived is what the wire has written so far, and when.
func (m *memoryEnd) arrived() ([][]byte, []time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got), slices.Clone(m.times)
}

func (m *memoryEnd) Close() error { close(m.closed); return nil }

// TestWire: frames arrive unchanged, in order and when they are due; both ends are closed at the end.
func TestWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newMemoryEnd(), newMemoryEnd()
		var mu sync.Mutex
		var watched []int
		w := New(a, b, [2]Figures{{Delay: 30 * time.Millisecond}, {Delay: 50 * time.Millisecond}}, 1, func(dir int, _ time.Time, frame []byte) {
			mu.Lock()
			defer mu.Unlock()
			watched = append(watched, dir)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		start := time.Now()
		for i := range 3 {
			a.in <- []byte{byte(i), 1, 2}
		}
		synctest.Wait()
		if got, _ := b.arrived(); len(got) != 0 {
			t.Error("frames arrive without delay")
		}
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		if got, times := b.arrived(); len(got) != 3 || got[2][0] != 2 || times[2].Sub(start) != 30*time.Millisecond {
			t.Errorf("arrived: %v at %v", got, times)
		}
		w.Set(0, Figures{Black: true})
		a.in <- []byte{9}
		b.in <- []byte{8}
		time.Sleep(time.Second)
		synctest.Wait()
		there, _ := b.arrived()
		back, _ := a.arrived()
		mu.Lock()
		if len(there) != 3 || len(back) != 1 || len(watched) != 4 || watched[3] != 1 {
			t.Errorf("on a wire that is black one way: %v, back %v, watched %v", there, back, watched)
		}
		mu.Unlock()
		if c := w.Counts(0); c.Passed != 3 || c.Silenced != 1 {
			t.Errorf("counts %+v", c)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// synFrame is a SYN with MP_CAPABLE of a Linux host, IPv4, checksums right: MSS, SACK permitted, timestamps, NOP, window scale, MPTCP.
func synFrame(t testing.TB) []byte {
	t.Helper()
	text := `52540077000152540077000208004500004000004000400600000a0100010a010002 9c4018600000000100000000b002faf000000000
		020405b40402080a00000001000000000103030701 1e0401 01`
	frame, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	frame = append(frame[:14+20+20], 2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7, 30, 4, 1, 1)
	binary.BigEndian.PutUint16(frame[16:], uint16(len(frame)-14))
	binary.BigEndian.PutUint16(frame[14+20+16:], 0)
	binary.BigEndian.PutUint16(frame[14+20+16:], checksum(frame[14:]))
	return frame
}

// checksum is TCP's over a whole IPv4 packet, from scratch.
func checksum(ip []byte) uint16 {
	tcp := ip[20:]
	sum := uint32(6) + uint32(len(tcp))
	for i := 12; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for i := 0; i+1 < len(tcp); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(tcp[i:]))
	}
	if len(tcp)%2 == 1 {
		sum += uint32(tcp[len(tcp)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestStripMPTCP(t *testing.T) {
	frame := synFrame(t)
	frame[14+20+12] = 11 << 4
	binary.BigEndian.PutUint16(frame[14+20+16:], 0)
	binary.BigEndian.PutUint16(frame[14+20+16:], checksum(frame[14:]))
	seg, ok := ParseTCP(frame)
	if !ok || !seg.SYN || !MPTCP(seg.Options) || seg.Payload != 0 {
		t.Fatalf("segment %+v %v", seg, ok)
	}
	if !StripMPTCP(frame) {
		t.Fatal("nothing was stripped")
	}
	seg, _ = ParseTCP(frame)
	if MPTCP(seg.Options) {
		t.Error("the option is still there")
	}
	if !bytes.Equal(seg.Options[20:], []byte{1, 1, 1, 1}) || seg.Options[0] != 2 {
		t.Errorf("options %x", seg.Options)
	}
	sum := binary.BigEndian.Uint16(frame[14+20+16:])
	binary.BigEndian.PutUint16(frame[14+20+16:], 0)
	if want := checksum(frame[14:]); sum != want {
		t.Errorf("checksum %04x, want %04x", sum, want)
	}
	if StripMPTCP(frame) {
		t.Error("stripped twice")
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(synFrame(f))
	f.Add(synFrame(f)[:40])
	f.Fuzz(func(t *testing.T, frame []byte) {
		seg, ok := ParseTCP(frame)
		before, had := bytes.Clone(frame), ok && MPTCP(seg.Options)
		stripped := StripMPTCP(frame)
		if stripped != had {
			t.Errorf("stripped: %v, was there: %v", stripped, had)
		}
		if !stripped && !bytes.Equal(before, frame) {
			t.Error("a frame without MPTCP was changed")
		}
		if stripped {
			if s, ok := ParseTCP(frame); !ok || MPTCP(s.Options) {
				t.Error("an option was left, or the frame is broken")
			}
		}
	})
}
