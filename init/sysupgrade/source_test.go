package sysupgrade

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// quick makes new tries come at once.
var quick = Retry{Idle: time.Minute, Pause: time.Millisecond, Tries: 5}

// serve is a web server with one file that breaks off after some bytes of each
// answer, until it has done so breaks times.
func serve(t *testing.T, data func() []byte, after int64, breaks int32) (url string, requests *atomic.Int32) {
	t.Helper()
	requests = &atomic.Int32{}
	var broken atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if strings.HasPrefix(r.URL.Path, "/whole") {
			w.Write(data())
			return
		}
		if r.URL.Path != "/image" {
			http.NotFound(w, r)
			return
		}
		out := w
		if !strings.HasPrefix(r.Header.Get("Range"), "bytes=-") && broken.Add(1) <= breaks {
			out = &cutter{ResponseWriter: w, left: after}
		}
		http.ServeContent(out, r, "", time.Unix(1767225600, 0), bytes.NewReader(data()))
	}))
	t.Cleanup(s.Close)
	return s.URL, requests
}

type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(b []byte) (int, error) {
	if int64(len(b)) > c.left {
		c.ResponseWriter.Write(b[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler) // the connection ends within the answer
	}
	c.left -= int64(len(b))
	return c.ResponseWriter.Write(b)
}

// TestResume: a download whose connection breaks three times gives every byte
// once, and fetches no byte twice.
func TestResume(t *testing.T) {
	data := noise(3, 2<<20)
	url, requests := serve(t, func() []byte { return data }, 500<<10, 3)
	p := &Progress{}
	src, err := OpenURL(t.Context(), http.DefaultClient, url+"/image", quick, p)
	if err != nil {
		t.Fatal(err)
	}
	in := src.Stream(t.Context())
	defer in.Close()
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%v, %d bytes", err, len(got))
	}
	if n := requests.Load(); n != 5 { // the end, then four pieces
		t.Errorf("%d requests, want 5", n)
	}
	if s := p.Status(); s.Fetched != int64(len(data))+tailSize || s.Total != int64(len(data)) {
		t.Errorf("%+v", s)
	}
	// The trailers come from what is here already.
	b := make([]byte, 16)
	if _, err := src.ReadAt(b, src.Size()-16); err != nil || !bytes.Equal(b, data[len(data)-16:]) || requests.Load() != 5 {
		t.Errorf("%v, %d requests", err, requests.Load())
	}
}

func TestServerTrouble(t *testing.T) {
	data := noise(3, 600<<10)
	current := data
	url, _ := serve(t, func() []byte { return current }, 1000, 1000)
	if _, err := OpenURL(t.Context(), http.DefaultClient, url+"/whole", quick, nil); !errors.Is(err, ErrNoRanges) {
		t.Errorf("no ranges: %v", err)
	}
	if _, err := OpenURL(t.Context(), http.DefaultClient, url+"/other", quick, nil); !errors.Is(err, ErrNotThere) {
		t.Errorf("no file: %v", err)
	}
	src, err := OpenURL(t.Context(), http.DefaultClient, url+"/image", quick, nil)
	if err != nil {
		t.Fatal(err)
	}
	current = append(bytes.Clone(data), 'x')
	if _, err := io.ReadAll(src.Stream(t.Context())); !errors.Is(err, errChanged) {
		t.Errorf("another file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := io.ReadAll(src.Stream(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	if _, err := OpenURL(t.Context(), http.DefaultClient, dead.URL, quick, nil); err == nil {
		t.Error("a server that is not there")
	}
	for _, bad := range []string{"", "bytes 5-4/10", "bytes 0-10/10", "bytes */10", "bytes 0-9/*", "bytes -1-3/10"} {
		if _, _, _, err := contentRange(bad); err == nil {
			t.Errorf("range %q was taken", bad)
		}
	}
}

// TestUpgradeFromServer: straight from a server with a bad connection into the
// slot.
func TestUpgradeFromServer(t *testing.T) {
	key := newKey(t)
	image := made{info: testInfo()}.signed(t, key)
	url, _ := serve(t, func() []byte { return image }, 100<<10, 2)
	src, err := OpenURL(t.Context(), http.DefaultClient, url+"/image", quick, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t)
	b.dev.Keys, b.dev.Signers = ring(1, key), 1
	r, err := Upgrade(t.Context(), src, b.dev, b.target, Options{}, nil)
	if err != nil || len(r.Signers) != 1 {
		t.Fatalf("%v, %+v", err, r)
	}
	if st := b.slots(); st.Trial != "b" {
		t.Errorf("%+v", st)
	}
}

func TestSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "upgrade")
	f, err := Spool(t.Context(), strings.NewReader("image"), dir, nil)
	if err != nil {
		t.Skipf("no room for a spooled image here: %v", err)
	}
	got, err := io.ReadAll(f.Stream(t.Context()))
	if err != nil || string(got) != "image" || f.Size() != 5 {
		t.Errorf("%q, %v", got, err)
	}
	f.Close()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Spool(t.Context(), io.MultiReader(strings.NewReader("x"), badReader{}), dir, nil); err == nil {
		t.Error("a broken input was taken")
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type badReader struct{}

func (badReader) Read([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("a second upgrade: %v", err)
	}
	unlock()
	if unlock, err = Lock(dir); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := Submit(dir, &Request{Path: "/tmp/x", Options: map[string]any{"save_partitions": 0}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := ReadStatus(dir); ok {
		t.Error("a status before anything was done")
	}
}

func TestRequestOptions(t *testing.T) {
	for _, v := range []any{float64(0), int32(0), int64(0), false} {
		r := Request{Options: map[string]any{"save_partitions": v, "use_curr_part": v}}
		if r.SavePartitions() || r.CurrentSlot() {
			t.Errorf("%T", v)
		}
	}
	if r := (Request{}); !r.SavePartitions() || r.CurrentSlot() {
		t.Error("defaults")
	}
}
