package cli

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// TestCountingServer: bytes of bodies are counted, ranges are served, and the index is there when it is to be.
func TestCountingServer(t *testing.T) {
	image := filepath.Join(t.TempDir(), "x.img.gz")
	for name, text := range map[string]string{image: "0123456789", image + indexSuffix: "index"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := &countingServer{image: image}
	server := httptest.NewServer(s)
	defer server.Close()
	get := func(path, byteRange string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if byteRange != "" {
			req.Header.Set("Range", byteRange)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, body := get("/x.img.gz", "bytes=2-4"); code != http.StatusPartialContent || body != "234" {
		t.Errorf("a range: %d %q", code, body)
	}
	if code, _ := get("/x.img.gz"+indexSuffix, ""); code != http.StatusNotFound {
		t.Errorf("an index that is not offered: %d", code)
	}
	if n, sent := s.requests.Load(), s.sent.Load(); n != 1 || sent != 3 {
		t.Errorf("%d requests, %d bytes; want 1 and 3", n, sent)
	}
	s.index.Store(true)
	if code, body := get("/x.img.gz"+indexSuffix, ""); code != http.StatusOK || body != "index" {
		t.Errorf("the index: %d %q", code, body)
	}
	if code, _ := get("/../x", ""); code != http.StatusNotFound {
		t.Errorf("another file: %d", code)
	}
}
