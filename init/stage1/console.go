package stage1

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// consoles are the terminals that the kernel writes to. All of them get every
// line; /dev/console would be the last one alone.
type consoles struct {
	mu  sync.Mutex
	all []*console
}

type console struct {
	path string
	f    *os.File
}

// openConsoles opens the terminals in sysfs's list of active consoles. One that
// cannot be opened (a VGA console without a card) is left out.
func openConsoles(active, dev string) *consoles {
	c := &consoles{}
	text, err := os.ReadFile(active)
	if err != nil {
		return c
	}
	for _, name := range strings.Fields(string(text)) {
		path := dev + "/" + name
		if f, err := openTerminal(path); err == nil {
			c.all = append(c.all, &console{path, f})
		}
	}
	return c
}

// openTerminal opens with O_NONBLOCK: that must not wait for a modem's carrier,
// and reads and writes must end at a deadline.
func openTerminal(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
}

// reopen opens a console anew that the end of a session on it has hung up.
func (c *consoles) reopen(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, con := range c.all {
		if con.path != path {
			continue
		}
		if f, err := openTerminal(path); err == nil {
			con.f.Close()
			con.f = f
		}
	}
}

// writeLimit bounds a write to a console that somebody stopped with Ctrl-S.
const writeLimit = 200 * time.Millisecond

// print writes a line to every console.
func (c *consoles) print(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, con := range c.all {
		con.f.SetWriteDeadline(time.Now().Add(writeLimit))
		io.WriteString(con.f, line+"\n")
	}
}

func (c *consoles) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, con := range c.all {
		con.f.Close()
	}
	c.all = nil
}

// key is a line that somebody typed on a console.
type key struct {
	console *console
	line    string
}

// listen reads lines from all consoles until ctx ends; the channel is closed
// when the last reader has gone.
func (c *consoles) listen(ctx context.Context) <-chan key {
	keys := make(chan key)
	var readers sync.WaitGroup
	c.mu.Lock()
	for _, con := range c.all {
		readers.Go(func() { con.read(ctx, keys) })
	}
	c.mu.Unlock()
	go func() {
		readers.Wait()
		close(keys)
	}()
	return keys
}

func (con *console) read(ctx context.Context, keys chan<- key) {
	if con.f.SetReadDeadline(time.Time{}) != nil {
		return // not a terminal that can be interrupted: do not listen
	}
	stop := context.AfterFunc(ctx, func() { con.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// A terminal hands over whole lines, in its canonical mode.
	r := bufio.NewReaderSize(con.f, 256)
	for ctx.Err() == nil {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		select {
		case keys <- key{con, strings.Trim(line, " \t\r\n")}:
		case <-ctx.Done():
			return
		}
	}
}

// failsafeListener waits for the f key.
type failsafeListener struct {
	cancel context.CancelFunc
	result chan string // the console's path, "" if nobody pressed it
	since  time.Time
}

// Prompt is LEDE's, behind the prefix of all lines here.
const failsafePrompt = "Press the [f] key and hit [enter] to enter failsafe mode"

// listenForFailsafe listens from now on.
func (c *consoles) listenForFailsafe(ctx context.Context) *failsafeListener {
	ctx, cancel := context.WithCancel(ctx)
	l := &failsafeListener{cancel: cancel, result: make(chan string, 1), since: time.Now()}
	keys := c.listen(ctx)
	go func() {
		pressed := ""
		for k := range keys {
			if pressed == "" && strings.EqualFold(k.line, "f") {
				pressed = k.console.path
				l.result <- pressed
			}
		}
		if pressed == "" {
			l.result <- ""
		}
	}()
	return l
}

// decide waits until the key is pressed or wait has passed since the prompt,
// and stops listening. It returns the reason for failsafe mode, "" for none.
func (l *failsafeListener) decide(wait time.Duration) string {
	timer := time.NewTimer(max(wait-time.Since(l.since), 0))
	defer timer.Stop()
	defer l.cancel()
	select {
	case path := <-l.result:
		return keyReason(path)
	case <-timer.C:
	}
	l.cancel()
	return keyReason(<-l.result)
}

func keyReason(path string) string {
	if path == "" {
		return ""
	}
	return fmt.Sprintf("the f key on %s", path)
}
