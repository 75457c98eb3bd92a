package pins

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal gives both ends of a new pseudo-terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100})
	}
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	return master, slave
}

func TestProgressBars(t *testing.T) {
	t.Setenv("CI", "")
	a := newArchive(t).add(hello())
	o := a.options(t)
	o.Lock = a.lockFile(t, o, helloRequest)
	master, slave := openTerminal(t)
	o.Progress = slave
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}

	// The second half is sent when the bar of the first is on the screen.
	seen, read := make(chan struct{}), make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		shown := false
		for {
			n, err := master.Read(buf)
			all.Write(buf[:n])
			if !shown && strings.Contains(all.String(), "hello") && strings.Contains(all.String(), "=>") {
				shown = true
				close(seen)
			}
			if err != nil { // the other end is closed
				read <- all.String()
				return
			}
		}
	}()
	a.answerBy(func(w http.ResponseWriter, r *http.Request) bool {
		a.mu.Lock()
		data := a.files[strings.TrimPrefix(r.URL.Path, "/")]
		a.mu.Unlock()
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = io.Copy(w, bytes.NewReader(data[:len(data)/2]))
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-seen:
		case <-r.Context().Done():
		}
		_, _ = io.Copy(w, bytes.NewReader(data[len(data)/2:]))
		return true
	})
	err = s.Fetch(t.Context(), "hello:amd64")
	slave.Close()
	out := <-read
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "fetched 1 package, 0.3 MiB in ") {
		t.Errorf("the display does not end with a line that stays: %q", out)
	}
}
