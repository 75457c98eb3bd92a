package unit

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
	"unicode"
)

// NewLog returns a logger that writes one line for each record to w: the
// message, then the attributes as key=value. With prefix it puts the syslog
// priority of sd-daemon(3) in front ("<4>"), for a supervisor that forwards
// the lines; without, the level in words.
func NewLog(w io.Writer, prefix bool, level slog.Leveler) *slog.Logger {
	return slog.New(&lineHandler{out: &lineWriter{w: w}, prefix: prefix, level: level})
}

type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

type lineHandler struct {
	out    *lineWriter
	prefix bool
	level  slog.Leveler
	attrs  []byte // already rendered, each with a leading blank
	group  string // "a.b." or empty
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 160)
	if h.prefix {
		b = append(b, '<', priority(r.Level), '>')
	} else {
		b = append(b, r.Level.String()...)
		b = append(b, ' ')
	}
	b = append(b, oneLine(r.Message)...)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.group, a)
		return true
	})
	b = append(b, '\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(b)
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = bytes.Clone(h.attrs)
	for _, a := range attrs {
		n.attrs = appendAttr(n.attrs, h.group, a)
	}
	return &n
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.group = h.group + name + "."
	return &n
}

// priority is the syslog severity digit (RFC 5424, table 2) of a level.
func priority(l slog.Level) byte {
	switch {
	case l >= slog.LevelError:
		return '3'
	case l >= slog.LevelWarn:
		return '4'
	case l >= slog.LevelInfo:
		return '6'
	default:
		return '7'
	}
}

func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, g := range v.Group() {
			b = appendAttr(b, group, g)
		}
		return b
	}
	b = append(b, ' ')
	b = append(b, group...)
	b = append(b, a.Key...)
	b = append(b, '=')
	var s string
	if v.Kind() == slog.KindTime {
		s = v.Time().Format(time.RFC3339)
	} else {
		s = v.String()
	}
	if needsQuote(s) {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

func needsQuote(s string) bool {
	if s == "" {
		return true
	}
	for _, r := range s {
		if r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r) {
			return true
		}
	}
	return false
}

// oneLine keeps a message with a line break in it from becoming two records.
func oneLine(s string) string {
	for _, r := range s {
		if r == '\n' || r == '\r' || r == 0 {
			q := strconv.Quote(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}
