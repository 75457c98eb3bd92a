package pins

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// big is content that does not compress.
func big(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

const helloRequest = "[data.hello]\n"

func hello() testDeb {
	return testDeb{name: "hello", files: []file{{name: "usr/share/hello", data: big(300_000)}}}
}

func TestFetchThenOffline(t *testing.T) {
	a := newArchive(t).add(hello(), testDeb{name: "all-of-it", arch: "all", files: []file{{name: "x", data: "y"}}})
	o := a.options(t)
	s := a.locked(t, o, helloRequest+"[data.all-of-it]\n")
	if err := s.Fetch(t.Context(), "hello", "hello:amd64", "all-of-it"); err != nil {
		t.Fatal(err)
	}
	if n := a.count("/hello_"); n != 1 {
		t.Errorf("hello was requested %d times, want once", n)
	}
	p, ok := s.Package("hello")
	if !ok {
		t.Fatal("no package hello")
	}
	st, err := os.Stat(s.debPath(p))
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o444 {
		t.Errorf("the package has mode %s, want read-only", st.Mode())
	}
	a.server.Close()
	again, err := Open(Options{CacheDir: o.CacheDir, Lock: s.lockName, testMirrors: o.testMirrors, testRetry: -1})
	if err != nil {
		t.Fatal(err)
	}
	again.host = "amd64"
	if err := again.Fetch(t.Context(), "hello", "all-of-it"); err != nil {
		t.Errorf("with what is in the cache: %v", err)
	}
	if dir, err := again.Unpack(t.Context(), "hello"); err != nil {
		t.Error(err)
	} else if readFile(t, filepath.Join(dir, "usr/share/hello")) != big(300_000) {
		t.Error("the unpacked file differs")
	}
	left, err := filepath.Glob(filepath.Join(o.CacheDir, "*", "*.lock"))
	if err != nil || len(left) > 0 {
		t.Errorf("lock files are left: %v %v", left, err)
	}
}

func TestFetchUnknown(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	for name, want := range map[string]string{
		"goodbye":     "ask for it in the first part",
		"hello:arm64": "--arch arm64",
	} {
		err := s.Fetch(t.Context(), name)
		if !errors.Is(err, ErrUnknown) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("Fetch(%s): got %v, want ErrUnknown with %q", name, err, want)
		}
	}
}

// cutter breaks the connection after so many bytes of the first answers.
func cutter(a *archive, part string, after, times int) {
	n := 0
	a.answerBy(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if n++; n > times {
			return false
		}
		data := a.files[strings.TrimPrefix(r.URL.Path, "/")]
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		}
		_, _ = w.Write(data[from:min(from+after, len(data))])
		if err := http.NewResponseController(w).Flush(); err != nil {
			a.t.Error(err)
		}
		panic(http.ErrAbortHandler)
	})
}

func TestFetchResumes(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	cutter(a, "/hello_", 100_000, 2)
	if err := s.Fetch(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
	var ranges []string
	for _, r := range a.requests {
		ranges = append(ranges, r.Header.Get("Range"))
	}
	if len(ranges) != 3 || ranges[0] != "" || ranges[1] != "bytes=100000-" || ranges[2] != "bytes=200000-" {
		t.Errorf("the requests had the ranges %q, want each to go on where the last broke", ranges)
	}
}

func TestFetchTruncated(t *testing.T) {
	a := newArchive(t).add(hello())
	o := a.options(t)
	s := a.locked(t, o, helloRequest)
	cutter(a, "/hello_", 50_000, 3)
	err := s.Fetch(t.Context(), "hello")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(fmt.Sprint(err), "150000 of ") {
		t.Errorf("got %v, want ErrUnreachable that tells how far it came", err)
	}
	// The next run, another store, goes on from there.
	s, err = Open(Options{CacheDir: o.CacheDir, Lock: s.lockName, testMirrors: o.testMirrors, testRetry: -1})
	if err != nil {
		t.Fatal(err)
	}
	s.host = "amd64"
	if err := s.Fetch(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
	if got := a.requests[len(a.requests)-1].Header.Get("Range"); got != "bytes=150000-" {
		t.Errorf("the next run asked for range %q, want bytes=150000-", got)
	}
}

func TestFetchWithoutRanges(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	cutter(a, "/hello_", 100_000, 1)
	cut := a.hook
	a.answerBy(func(w http.ResponseWriter, r *http.Request) bool {
		if cut(w, r) {
			return true
		}
		r.Header.Del("Range") // an old proxy: 200 and all of it
		return false
	})
	if err := s.Fetch(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
}

func TestFetchBadLeftover(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	p, _ := s.Package("hello")
	for _, leftover := range []string{"not the beginning of the package", strings.Repeat("x", int(p.Size)), strings.Repeat("x", int(p.Size)+1)} {
		if err := makeDir(filepath.Join(s.dir, "deb")); err != nil {
			t.Fatal(err)
		}
		writeFile(t, s.debPath(p)+".part", leftover)
		if err := s.Fetch(t.Context(), "hello"); err != nil {
			t.Errorf("over a leftover of %d bytes: %v", len(leftover), err)
		}
		if err := os.Remove(s.debPath(p)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFetchWrongContent(t *testing.T) {
	tests := map[string]func(data []byte) []byte{
		"other bytes": func(data []byte) []byte { data[len(data)/2] ^= 1; return data },
		"shorter":     func(data []byte) []byte { return data[:len(data)-1] },
		"longer":      func(data []byte) []byte { return append(data, 'x') },
		"a page":      func([]byte) []byte { return []byte("<html>Please log in</html>") },
	}
	for name, change := range tests {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, chunked %t", name, chunked), func(t *testing.T) {
				a := newArchive(t).add(hello())
				s := a.locked(t, a.options(t), helloRequest)
				a.answerBy(func(w http.ResponseWriter, r *http.Request) bool {
					a.mu.Lock()
					data, ok := a.files[strings.TrimPrefix(r.URL.Path, "/")]
					a.mu.Unlock()
					if !ok {
						return false
					}
					if data = change(bytes.Clone(data)); !chunked {
						w.Header().Set("Content-Length", fmt.Sprint(len(data)))
					}
					_, _ = io.Copy(w, bytes.NewReader(data))
					return true
				})
				err := s.Fetch(t.Context(), "hello")
				if name == "shorter" && chunked || name == "a page" && chunked { // it looks like a broken connection
					if err == nil {
						t.Error("a short file was accepted")
					}
				} else if !errors.Is(err, ErrHash) {
					t.Errorf("got %v, want ErrHash", err)
				}
				p, _ := s.Package("hello")
				if s.haveDeb(p) {
					t.Error("the wrong file is in the cache")
				}
				// A second mirror with the right file saves the day.
				other := newArchive(t)
				other.files = a.files
				s.mirrors = func() map[string][]string {
					return map[string][]string{mainArchive: {a.server.URL + "/debian", other.server.URL + "/debian"}}
				}
				if err := s.Fetch(t.Context(), "hello"); err != nil {
					t.Errorf("with a second mirror: %v", err)
				}
			})
		}
	}
}

func TestFetchUnreachable(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	a.server.Close()
	err := s.Fetch(t.Context(), "hello")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(fmt.Sprint(err), "WEFT_MIRROR") {
		t.Errorf("got %v, want ErrUnreachable with a way out", err)
	}
	if errors.Is(err, ErrGone) {
		t.Error("a mirror that is down was taken for one that has not got the file")
	}
}

func TestFetchServerError(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	n := 0
	a.answerBy(func(w http.ResponseWriter, _ *http.Request) bool {
		if n++; n < 3 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	if err := s.Fetch(t.Context(), "hello"); err != nil {
		t.Errorf("a mirror that is busy for a while: %v", err)
	}
}

func TestFetchSnapshot(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	p, _ := s.Package("hello")
	a.mu.Lock()
	a.files["snapshot/debian/20261122T091544Z/"+p.Pool] = a.files["debian/"+p.Pool]
	delete(a.files, "debian/"+p.Pool)
	a.mu.Unlock()
	if err := s.Fetch(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
	if d := s.Drifted(); len(d) > 0 {
		t.Errorf("the pinned file was in the snapshot archive, yet %v took its place", d)
	}
}

func TestFetchCancelled(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	ctx, cancel := context.WithCancel(t.Context())
	released := make(chan struct{})
	a.answerBy(func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		close(released)
		return true
	})
	if err := s.Fetch(ctx, "hello"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	<-released
}

func TestFetchSideBySide(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Unpack(t.Context(), "hello"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := a.count("/hello_"); n != 1 {
		t.Errorf("requested %d times, want once", n)
	}
}

// The helper below is this test binary run anew: see TestMain.
const helperEnv = "WEFT_PINS_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "unpack":
		os.Exit(helperUnpack())
	case "full":
		os.Exit(helperFull())
	case "tool":
		fmt.Println("argv0", filepath.Base(os.Args[0]), "args", os.Args[1:], "LC_ALL", os.Getenv("LC_ALL"), "SECRET", os.Getenv("SECRET"), "DATA", os.Getenv("DATA"))
		os.Exit(3)
	}
}

// helper runs this test binary as another process with a store on the archive.
func helper(t *testing.T, a *archive, s *Store, what string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+what, "LOCK="+s.lockName, "CACHE="+s.dir, "MIRROR="+a.server.URL+"/debian")
	return cmd
}

func helperUnpack() int {
	s, err := Open(Options{CacheDir: os.Getenv("CACHE"), Lock: os.Getenv("LOCK"), testMirrors: map[string][]string{mainArchive: {os.Getenv("MIRROR")}}, testRetry: -1})
	if err == nil {
		_, err = s.Unpack(context.Background(), "hello:amd64")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func TestTwoProcesses(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	// The first request is held back until the other process has started, too.
	var once sync.Once
	ready := make(chan struct{})
	a.answerBy(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { <-ready })
		return false
	})
	var out [3]bytes.Buffer
	var cmds []*exec.Cmd
	for i := range out {
		cmd := helper(t, a, s, "unpack")
		cmd.Stdout = &out[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	close(ready)
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v: %s", i, err, &out[i])
		}
	}
	if n := a.count("/hello_"); n != 1 {
		t.Errorf("three processes made %d requests, want one", n)
	}
	entries, err := filepath.Glob(filepath.Join(s.dir, "*", "*"))
	if err != nil || len(entries) != 2 {
		t.Errorf("the cache has %q (%v), want the package and its tree", entries, err)
	}
}

// helperFull runs in its own mount namespace and fetches into a file system
// that is too small.
func helperFull() int {
	dir := os.Getenv("CACHE")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		fmt.Println("mount:", err)
		return 2
	}
	return helperUnpack()
}

func TestFetchDiskFull(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	cmd := helper(t, a, s, "full")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.Is(err, fs.ErrPermission) || errors.As(err, &exit) && exit.ExitCode() == 2 {
		t.Skipf("this machine does not let us mount in a user namespace: %v %s", err, out)
	}
	if !errors.As(err, &exit) {
		t.Fatalf("fetching 300 kB into 64 kB: got %v", err)
	}
	for _, want := range []string{"no space left on device", "WEFT_CACHE"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the error does not say %q:\n%s", want, out)
		}
	}
}

func TestProgressPlain(t *testing.T) {
	a := newArchive(t).add(
		testDeb{name: "large", ext: ".plain", files: []file{{name: "f", data: big(2 << 20)}}},
		testDeb{name: "small", files: []file{{name: "f", data: "x"}}},
	)
	o := a.options(t)
	var out bytes.Buffer
	o.Progress = &out
	s := a.locked(t, o, "[data.large]\n[data.small]\n")
	if err := s.Fetch(t.Context(), "large", "small"); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	if strings.Contains(got, "\x1b") || strings.Contains(got, "\r") || strings.Count(got, "\n") != 2 ||
		!strings.HasPrefix(got, "fetched large 1.0 (amd64), 2.0 MiB in ") || !strings.Contains(got, "\nfetched 2 packages, 2.0 MiB in ") {
		t.Errorf("got\n%s\nwant a plain line for the large one and one for all", got)
	}
}
