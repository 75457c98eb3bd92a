package load_test

import (
	"context"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"weft/test-vm/bench/bed"
	"weft/test-vm/bench/load"
)

// network is a bed with nothing but routing.
func network(t *testing.T) *bed.Bed {
	t.Helper()
	if err := bed.Usable(); err != nil {
		t.Skip(err)
	}
	b, err := bed.New(context.Background(), bed.Config{Paths: make([]bed.Path, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestLoads(t *testing.T) {
	b, ctx := network(t), context.Background()
	at := netip.AddrPortFrom(bed.Sink4, 6000)
	echo, err := load.StartEcho(b.Sink, at)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	if trips, err := load.PingPong(ctx, b.Client, at, 50*time.Millisecond, time.Millisecond); err != nil || len(trips) == 0 {
		t.Errorf("ping-pong: %d round trips, %v", len(trips), err)
	}
	if times, err := load.FirstAnswers(ctx, b.Client, at, 5, 0); err != nil || len(times) != 5 {
		t.Errorf("first answers: %d of 5, %v", len(times), err)
	}
	for _, reset := range []bool{true, false} {
		if c := load.Churn(ctx, b.Client, []netip.AddrPort{at}, 4, 100*time.Millisecond, reset); c.Done == 0 || c.Failed > 0 {
			t.Errorf("churn, reset %v: %d done, %d failed: %s", reset, c.Done, c.Failed, c.Why())
		}
	}
	if c := load.Churn(ctx, b.Client, []netip.AddrPort{netip.AddrPortFrom(bed.Sink4, 6001)}, 2, 20*time.Millisecond, true); c.Done > 0 || c.Failed == 0 || c.Why() == "" {
		t.Errorf("churn against a closed port: %d done, %d failed: %q", c.Done, c.Failed, c.Why())
	}
	held := load.OpenIdle(ctx, b.Client, []netip.AddrPort{at}, 100, 3)
	if alive, checked := held.Check(7); held.Open() != 100 || held.Failed != 0 || alive != checked || checked < 100/7 {
		t.Errorf("idle flows: %d open, %d failed (%s), %d of %d alive", held.Open(), held.Failed, held.Why, alive, checked)
	}
	held.Close()
}

func TestBulk(t *testing.T) {
	b := network(t)
	for i, d := range []bed.Direction{bed.Up, bed.Down} {
		bulk, err := load.StartBulk(b.Client, b.Sink, netip.AddrPortFrom(bed.Sink4, uint16(5000+i)), d, 80)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for bulk.Total() < 1<<20 && time.Since(start) < load.Patience {
			time.Sleep(5 * time.Millisecond)
		}
		// A megabyte at 80 Mbit/s takes 0.1 s; a pace cannot be beaten.
		if took := time.Since(start); bulk.Total() < 1<<20 || took < 50*time.Millisecond {
			t.Errorf("%v: %d bytes in %v at 80 Mbit/s", d, bulk.Total(), took)
		}
		if err := bulk.Err(); err != nil {
			t.Errorf("%v: %v", d, err)
		}
		if s := bulk.Series(); len(s) == 0 || s[len(s)-1].Total < 1<<20 {
			t.Errorf("%v: the samples do not tell what came", d)
		}
		if err := bulk.Stop(); err != nil {
			t.Errorf("%v: stop: %v", d, err)
		}
		if err := bulk.Err(); err != nil {
			t.Errorf("%v: after it was stopped: %v", d, err)
		}
	}
}

func TestTrain(t *testing.T) {
	b := network(t)
	for name, train := range map[string]load.Train{
		"UDP":          {Protocol: syscall.IPPROTO_UDP, Port: 7000, Size: 200, Rate: 0.5, During: 200 * time.Millisecond},
		"protocol 253": {Protocol: 253, Size: 200, Rate: 0.5, During: 200 * time.Millisecond},
	} {
		up, down, saw, err := train.Run(context.Background(), b.Client, b.Sink, bed.Client4, bed.Sink4)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, a := range []load.Arrived{up, down} {
			// 0.5 Mbit/s of 200 bytes are 312.5 packets a second.
			if a.Sent != 63 || a.Share() != 1 || a.Late != 0 || a.Duplicates != 0 || len(a.Delays) != 63 {
				t.Errorf("%s: sent %d, received %d, late %d, duplicates %d; want 63, 63, 0, 0", name, a.Sent, a.Received, a.Late, a.Duplicates)
			}
		}
		if saw.Addr() != bed.Client4 {
			t.Errorf("%s: the sink saw %v, want %v", name, saw.Addr(), bed.Client4)
		}
	}
}

func TestSniffer(t *testing.T) {
	b := network(t)
	s, err := load.Sniff(b.Sink, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(bed.Sink4, 6000)
	echo, err := load.StartEcho(b.Sink, at)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	if _, err := load.FirstAnswers(context.Background(), b.Client, at, 3, 0); err != nil {
		t.Fatal(err)
	}
	if seen, segments := s.Close(); seen != 0 || segments < 9 {
		t.Errorf("three plain TCP connections: %d of %d segments with an MPTCP option; want none of at least 9", seen, segments)
	}
}
