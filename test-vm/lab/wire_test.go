package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// fakeQEMU answers each command of a client with the next of answers.
func fakeQEMU(t *testing.T, answers ...string) *qmpClient {
	ours, theirs := net.Pipe()
	q := newQMP(ours)
	go q.serve(func(Event) {})
	go func() {
		fmt.Fprintln(theirs, `{"QMP":{"version":{}}}`)
		r := bufio.NewScanner(theirs)
		for _, a := range answers {
			if !r.Scan() {
				return
			}
			fmt.Fprintln(theirs, a)
		}
		theirs.Close()
	}()
	t.Cleanup(func() { ours.Close() })
	return q
}

func TestQMP(t *testing.T) {
	q := fakeQEMU(t, `{"return":{"status":"running"},"id":1}`,
		`{"event":"RESET","data":{"guest":true},"timestamp":{"seconds":7,"microseconds":5}}`+"\n"+`{"error":{"class":"DeviceNotFound","desc":"Device 'x' not found"},"id":1}`)
	ctx := bound(t, 10*time.Second)
	var status struct{ Status string }
	if err := q.run(ctx, "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("%+v, %v", status, err)
	}
	var refused *QMPError
	if err := q.run(ctx, "device_del", map[string]string{"id": "x"}, nil); !errors.As(err, &refused) || refused.Class != "DeviceNotFound" || !strings.Contains(err.Error(), "device_del") {
		t.Errorf("refusal: %v", err)
	}
	if e, err := q.wait(ctx, "RESET", 0, nil); err != nil || e.At.Unix() != 7 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := q.wait(ctx, "SHUTDOWN", 0, nil); !errors.Is(err, ErrConsoleClosed) {
		t.Errorf("event of a QEMU that has ended: %v", err)
	}
	if err := q.run(ctx, "quit", nil, nil); err == nil {
		t.Error("a command to a QEMU that has ended")
	}
}

func TestQMPTimesOut(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	q := newQMP(ours)
	go q.serve(func(Event) {})
	defer ours.Close()
	go bufio.NewReader(theirs).ReadString('\n') // takes the command and keeps quiet
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := q.run(ctx, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func FuzzReadQMP(f *testing.F) {
	f.Add([]byte(`{"QMP":{}}` + "\n" + `{"return":{},"id":1}` + "\n"))
	f.Add([]byte("{\n[]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := readQMP(bytes.NewReader(data), func(qmpMessage) {}); err == nil {
			t.Error("ended without an error")
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05hello"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		readFrames(bytes.NewReader(data), func(p []byte) {
			if int(binary.BigEndian.Uint32(p)) != len(p)-4 {
				t.Errorf("frame of %d bytes says %d", len(p)-4, binary.BigEndian.Uint32(p))
			}
			total += len(p)
		})
		if total > len(data) {
			t.Errorf("%d bytes of frames from %d", total, len(data))
		}
	})
}

func TestDecodePPM(t *testing.T) {
	img, err := decodePPM([]byte("P6\n2 1\n255\n\x01\x02\x03\x04\x05\x06"))
	if err != nil {
		t.Fatal(err)
	}
	if r, g, b, _ := img.At(1, 0).RGBA(); r>>8 != 4 || g>>8 != 5 || b>>8 != 6 {
		t.Errorf("pixel: %d %d %d", r>>8, g>>8, b>>8)
	}
}

func FuzzDecodePPM(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\n\x01\x02\x03\x04\x05\x06"))
	f.Add([]byte("P6\n-2 1\n255\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if img, err := decodePPM(data); err == nil && 3*img.Bounds().Dx()*img.Bounds().Dy() > len(data) {
			t.Errorf("%v from %d bytes", img.Bounds(), len(data))
		}
	})
}
