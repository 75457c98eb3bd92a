package mptcpproxy

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/init/bus"
)

// TestBus runs the service without peers on a bus, and asks it there.
func TestBus(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	b := &bed{T: t, dir: t.TempDir()}
	g := b.gateway(b.space("alone"), "config mptcpproxy 'main'\n")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	broker, err := bus.Listen(filepath.Join(g.dir, "bus"), bus.BrokerOptions{ACLDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	b.must("bus", err)
	var wg sync.WaitGroup
	defer wg.Wait()
	serving, stop := context.WithCancel(context.Background())
	defer stop()
	wg.Go(func() {
		if err := broker.Serve(serving); err != nil {
			t.Errorf("bus: %v", err)
		}
	})
	client := bus.Connect(serving, filepath.Join(g.dir, "bus"), slog.New(slog.DiscardHandler))
	defer client.Close()
	heard := make(chan bus.Table, 16)
	_, err = client.OnEvent(objectName, func(_ string, data bus.Table) {
		select {
		case heard <- data:
		default:
		}
	})
	b.must("listen", err)
	g.start()
	b.until("the object is on the bus", func() bool { _, err := client.Lookup(ctx, objectName); return err == nil })

	reply, err := client.Call(ctx, objectName, "status", nil)
	b.must("status", err)
	if reply.String("state") != "off" {
		t.Errorf("status: %v", reply)
	}
	for _, method := range []string{"paths", "peers", "flows", "events"} {
		reply, err := client.Call(ctx, objectName, method, nil)
		b.must(method, err)
		if !reply.Has(method) {
			t.Errorf("%s replies %v", method, reply)
		}
	}
	if _, err := client.Call(ctx, objectName, "flows", map[string]int{"limit": 0}); !errors.Is(err, bus.StatusInvalidArgument) {
		t.Errorf("flows with a limit of 0: %v", err)
	}
	b.must("reload", func() error { _, err := client.Call(ctx, objectName, "reload", nil); return err }())
	g.config("config mptcpproxy 'main'\n\toption enabled 'maybe'\n")
	if _, err := client.Call(ctx, objectName, "reload", nil); !errors.Is(err, bus.StatusInvalidArgument) {
		t.Errorf("reload of a broken configuration: %v", err)
	}
	for {
		select {
		case ev := <-heard:
			if ev.String("event") == "fault" {
				g.signal(syscall.SIGTERM)
				return
			}
		case <-time.After(patience):
			t.Fatal("no event tells of the fault")
		}
	}
}
