package lab

import (
	"context"
	"errors"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// connected is a console whose guest is the other end of a pipe.
func connected(t *testing.T) (*Console, net.Conn) {
	c := newConsole("ttyS0")
	ours, guest := net.Pipe()
	c.connect(ours)
	done := make(chan struct{})
	go func() { defer close(done); c.serve(ours) }()
	t.Cleanup(func() { guest.Close(); <-done })
	return c, guest
}

func TestWaitLine(t *testing.T) {
	for _, tt := range []struct {
		name, sent, re, want string
	}{
		{"plain", "a\r\nweft: ready in 2.5 s\r\n", `^weft: ready`, "weft: ready in 2.5 s"},
		{"escapes", "\x1b[2J\x1b[1;1Hweft: \x1b[1mready\x1b[0m in 2 s\r\n", `^weft: ready in 2 s$`, "weft: ready in 2 s"},
		{"torn by one message", "weft: rea[    3.141592] random: crng init done\r\ndy in 2.5 s\r\n", `^weft: ready in 2.5 s$`, "weft: ready in 2.5 s"},
		{"torn by two", "weft: [    3.141592] one\r\n[    3.200000] two\r\nready\r\n", `^weft: ready$`, "weft: ready"},
		{"torn twice", "we[    3.141592] one\r\nft: [    3.200000] two\r\nready\r\n", `^weft: ready$`, "weft: ready"},
		{"a stamp that belongs there", "kern.info kernel: [    3.141592] one\r\nnext\r\n", `kernel: \[.*one$`, "kern.info kernel: [    3.141592] one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newConsole("ttyS0")
			ours, guest := net.Pipe()
			defer guest.Close()
			c.connect(ours)
			c.record([]byte(tt.sent), time.Now())
			got, err := c.WaitLine(bound(t, 5*time.Second), regexp.MustCompile(tt.re))
			if err != nil || got.Text != tt.want {
				t.Errorf("got %q, %v, want %q", got.Text, err, tt.want)
			}
		})
	}
}

func TestWaitsShareACursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := connected(t)
		go func() {
			guest.Write([]byte("one\none\ntwo"))
			time.Sleep(3 * time.Second)
			guest.Write([]byte("\n"))
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i := range 2 {
			if _, err := c.WaitLine(ctx, regexp.MustCompile("^one$")); err != nil {
				t.Fatalf("line %d: %v", i+1, err)
			}
		}
		began := time.Now()
		if s, err := c.WaitText(ctx, regexp.MustCompile("t.o")); err != nil || s != "two" {
			t.Errorf("text without an end: %q, %v", s, err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("text that was there took %v", took)
		}
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.WaitLine(short, regexp.MustCompile("^one$"))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not seen in 10.0 s") || !strings.Contains(err.Error(), "two") {
			t.Errorf("a line seen before: %v", err)
		}
		guest.Close()
		if _, err := c.WaitLine(ctx, regexp.MustCompile("^three$")); !errors.Is(err, ErrConsoleClosed) {
			t.Errorf("after the machine's end: %v", err)
		}
	})
}

func TestSinceAndTail(t *testing.T) {
	c := newConsole("ttyS0")
	c.record([]byte("a\nb\n"), time.Now())
	m := c.Mark()
	c.record([]byte("c\nd\n"), time.Now())
	if got := c.Since(m); got != "c\nd\n" {
		t.Errorf("since the mark: %q", got)
	}
	if got := c.Tail(2); got != "c\nd" {
		t.Errorf("tail: %q", got)
	}
	if got := c.Tail(9); got != "a\nb\nc\nd" {
		t.Errorf("long tail: %q", got)
	}
}

func TestOutput(t *testing.T) {
	for _, tt := range []struct {
		name, raw string
		out       string
		code      int
		done      bool
	}{
		{"complete", "echo\r\n\x1eb7\x1ehi\r\n\x1ee7:3\x1e$ ", "hi\n", 3, true},
		{"of another", "\x1eb6\x1ehi\x1ee6:0\x1e", "", 0, false},
		{"running", "\x1eb7\x1ehi\r\n", "hi\n", 0, false},
		{"half an end", "\x1eb7\x1ehi\x1ee7:1", "hi", 0, false},
		{"CR of the command's own", "\x1eb7\x1ea\r\r\nb\rc\x1ee7:0\x1e", "a\r\nb\rc", 0, true},
		{"echo alone", `printf '\036b7\036'; (eval 'x'); printf '\036e7:%s\036' $?`, "", 0, false},
	} {
		out, code, done := output([]byte(tt.raw), 7)
		if out != tt.out || code != tt.code || done != tt.done {
			t.Errorf("%s: %q, %d, %v, want %q, %d, %v", tt.name, out, code, done, tt.out, tt.code, tt.done)
		}
	}
}

func TestOctal(t *testing.T) {
	text, rest := octal([]byte("a%\\'\n\x00\xff~"), 100)
	if text != `a%%\134\047\012\000\377~` || len(rest) != 0 {
		t.Errorf("%q, %q", text, rest)
	}
	text, rest = octal([]byte(strings.Repeat("\x01", 10)), 20)
	if len(text) > 20 || len(text)/4+len(rest) != 10 {
		t.Errorf("in 20 bytes: %q, %q", text, rest)
	}
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte("\x1eb7\x1ehi\r\n\x1ee7:3\x1e"))
	f.Add([]byte("\x1eb7\x1e\x1ee7:\x1e"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if out, _, done := output(raw, 7); done && len(out) >= len(raw) {
			t.Errorf("%d bytes of output from %d", len(out), len(raw))
		}
	})
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("a\r\n\x1b[1mweft: [    1.000000] x\r\ny\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := newConsole("ttyS0")
		for _, b := range raw { // byte by byte, as a slow line would bring it
			c.record([]byte{b}, time.Time{})
		}
		whole := newConsole("ttyS0")
		whole.record(raw, time.Time{})
		if c.Text() != whole.Text() {
			t.Errorf("%q in pieces, %q at once", c.Text(), whole.Text())
		}
		findLine(whole.Text(), func(s string) bool {
			if strings.ContainsAny(s, "\n\r\x1b") {
				t.Errorf("line %q", s)
			}
			return false
		})
	})
}
