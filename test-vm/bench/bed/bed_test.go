package bed

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func TestCounter(t *testing.T) {
	const text = "TcpExt: A B\nTcpExt: 1 2\nMPTcpExt: MPCapableSYNRX MPCurrEstab\nMPTcpExt: 7 9\n"
	for _, c := range []struct {
		group, name string
		want        int64
		ok          bool
	}{
		{"TcpExt", "B", 2, true}, {"MPTcpExt", "MPCurrEstab", 9, true}, {"MPTcpExt", "B", 0, false}, {"Tcp", "A", 0, false},
	} {
		if got, ok := counter(text, c.group, c.name); got != c.want || ok != c.ok {
			t.Errorf("%s %s: %d, %v; want %d, %v", c.group, c.name, got, ok, c.want, c.ok)
		}
	}
}

// build makes a bed for the duration of a test.
func build(t *testing.T, c Config) *Bed {
	t.Helper()
	if err := Usable(); err != nil {
		t.Skip(err)
	}
	b, err := New(context.Background(), c)
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

// exchange opens a connection from client to sink, sends a byte each way and returns what the connection took in round
// trips of the bed and the address that the sink saw.
func exchange(t *testing.T, b *Bed, sink string) (saw string, took time.Duration) {
	t.Helper()
	var l net.Listener
	err := b.Sink.Do(func() (err error) { l, err = net.Listen("tcp", sink); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	remote := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			remote <- err.Error()
			return
		}
		defer c.Close()
		remote <- c.RemoteAddr().String()
		c.Write([]byte{1})
		c.Read(make([]byte, 1))
	}()
	err = b.Client.Call(func() error {
		start := time.Now()
		c, err := net.DialTimeout("tcp", sink, 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		took = time.Since(start)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return <-remote, took
}

func TestRoutes(t *testing.T) {
	b := build(t, Config{Paths: []Path{{Rate: 10}, {Rate: 10}}})
	for sink, client := range map[string]string{"192.168.2.2:5000": "192.168.1.2:", "[fd02::2]:5000": "[fd01::2]:"} {
		if saw, _ := exchange(t, b, sink); !strings.HasPrefix(saw, client) {
			t.Errorf("the sink %s saw %s, want %s…", sink, saw, client)
		}
	}
}

func TestWires(t *testing.T) {
	b := build(t, Config{Paths: []Path{{Rate: 10, Delay: 30 * time.Millisecond}, {}}})
	// Connecting and the first byte from the sink take a round trip of twice the delay; slower is the machine's affair.
	if _, took := exchange(t, b, "192.168.2.2:5000"); took < 60*time.Millisecond {
		t.Errorf("delay 30 ms one way: first byte after %v", took)
	}
	if err := b.Cut(context.Background(), 0, true); err != nil {
		t.Fatal(err)
	}
	carrier, err := b.Near.Output(context.Background(), "cat", "/sys/class/net/p1/carrier")
	if err != nil || strings.TrimSpace(carrier) != "0" {
		t.Errorf("carrier of a cut path: %q, %v; want 0", carrier, err)
	}
	if err := b.Cut(context.Background(), 0, false); err != nil {
		t.Fatal(err)
	}
	if _, took := exchange(t, b, "192.168.2.2:5000"); took < 60*time.Millisecond {
		t.Errorf("after the path came back: first byte after %v", took)
	}
	if err := b.Black(0, Both, true); err != nil {
		t.Fatal(err)
	}
	err = b.Client.Call(func() error {
		c, err := net.DialTimeout("tcp", "192.168.2.2:5000", 300*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		t.Errorf("connection over a black path: %v, want a timeout", err)
	}
}
