package status

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Source is what the socket shows.
type Source interface {
	Report() Report
	Flows() []Flow
	Reload() error
}

// Request is what a client sends.
type Request struct {
	Method string `json:"method"` // status, flows, paths, peers, events, reload
	Follow bool   `json:"follow"` // events: go on
	After  uint64 `json:"after"`  // events: only those behind this number
}

// maxRequest bounds a request; maxClients those served at once.
const (
	maxRequest = 4096
	maxClients = 32
)

// Listen opens the socket in folder dir. One left behind is replaced if nobody
// answers on it.
func Listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, Socket)
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("open the status socket %s: another mptcpproxy answers there; stop it, or give this one a --state-dir of its own", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the status socket: remove what is at %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("open the status socket: %w", err)
	}
	return l, nil
}

// Serve answers on the socket until ctx ends, then removes it.
func Serve(ctx context.Context, l net.Listener, src Source, events *Events, log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, maxClients)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil {
			log.Warn("accept on the status socket", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			answer(ctx, c, src, events)
		})
	}
}

// answer serves one client.
func answer(ctx context.Context, c net.Conn, src Source, events *Events) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReaderSize(c, maxRequest).ReadSlice('\n')
	if err != nil {
		return
	}
	var r Request
	enc := json.NewEncoder(c)
	if err := json.Unmarshal(line, &r); err != nil {
		enc.Encode(map[string]string{"error": "the request is no JSON: " + err.Error()})
		return
	}
	switch r.Method {
	case "status":
		enc.Encode(src.Report())
	case "flows":
		enc.Encode(map[string]any{"flows": src.Flows()})
	case "paths":
		enc.Encode(map[string]any{"paths": src.Report().Paths})
	case "peers":
		enc.Encode(map[string]any{"peers": src.Report().Peers})
	case "reload":
		if err := src.Reload(); err != nil {
			enc.Encode(map[string]string{"error": err.Error()})
			return
		}
		enc.Encode(map[string]bool{"ok": true})
	case "events":
		follow(ctx, c, enc, r, events)
	default:
		enc.Encode(map[string]string{"error": "there is no method " + r.Method + ": status, flows, paths, peers, events and reload are known"})
	}
}

func follow(ctx context.Context, c net.Conn, enc *json.Encoder, r Request, events *Events) {
	gone := make(chan struct{})
	if r.Follow { // a client that leaves makes the read end
		c.SetReadDeadline(time.Time{})
		go func() {
			defer close(gone)
			var b [1]byte
			c.Read(b[:])
		}()
		defer func() { c.Close(); <-gone }()
	}
	for {
		list, more := events.After(r.After)
		c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		for _, ev := range list {
			if enc.Encode(ev) != nil {
				return
			}
			r.After = ev.Seq
		}
		if !r.Follow {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-gone:
			return
		case <-more:
		}
	}
}
