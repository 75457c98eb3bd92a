package logd

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"weft/init/bus"
)

// object is the bus object log, as ubox's logd offers it.
func (d *daemon) object(ctx context.Context) *bus.Object {
	return &bus.Object{
		Name: "log",
		Methods: []bus.Method{
			{
				Name:   "read",
				Args:   []bus.Arg{{Name: "lines", Type: bus.TypeInt32}, {Name: "stream", Type: bus.TypeBool}, {Name: "oneshot", Type: bus.TypeBool}},
				Handle: func(_ context.Context, r *bus.Request) error { return d.read(ctx, r) },
			},
			{
				Name:   "write",
				Args:   []bus.Arg{{Name: "event", Type: bus.TypeString}},
				Handle: func(_ context.Context, r *bus.Request) error { return d.write(r) },
			},
		},
	}
}

// maxReply bounds the reply without a stream: a bus message holds at most 1 MiB.
const maxReply = 512 * 1024

// read replies with the newest lines, or with a pipe (the default, as upstream)
// that carries them as blobs, one after the other, and what comes later unless
// oneshot.
func (d *daemon) read(ctx context.Context, r *bus.Request) error {
	in := struct {
		Lines   int  `json:"lines"`
		Stream  bool `json:"stream"`
		Oneshot bool `json:"oneshot"`
	}{Stream: true}
	if err := r.Decode(&in); err != nil {
		return err
	}
	if in.Lines < 0 {
		return bus.StatusInvalidArgument
	}
	pos := d.ring.newest(in.Lines)
	if in.Lines == 0 && in.Stream && r.Args.Has("lines") {
		pos = d.ring.end() // only what comes from now on
	}
	if !in.Stream {
		list, _, _, _ := d.ring.from(pos, int(d.ring.end()-pos))
		size := 0
		first := len(list)
		for first > 0 && size+list[first-1].size()+64 < maxReply {
			first--
			size += list[first].size() + 64
		}
		out := make(bus.Array, 0, len(list)-first)
		for _, e := range list[first:] {
			out = append(out, bus.Table{
				{Name: "msg", Value: e.text},
				{Name: "id", Value: int32(e.id)},
				{Name: "priority", Value: int32(e.priority)},
				{Name: "source", Value: int32(e.source)},
				{Name: "time", Value: e.time},
				{Name: "boot", Value: e.boot},
			})
		}
		return r.Reply(bus.Table{{Name: "log", Value: out}})
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe for a reader of the log: %w", err)
	}
	if err := r.ReplyFD(pr); err != nil {
		pw.Close()
		return err
	}
	d.work.Go(func() { d.stream(ctx, pw, pos, in.Oneshot) })
	return nil
}

// stream writes entries to a reader until it goes away, or all there are.
func (d *daemon) stream(ctx context.Context, w *os.File, pos uint64, oneshot bool) {
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	defer w.Close()
	var buf []byte
	for {
		list, next, lost, changed := d.ring.from(pos, batch)
		pos = next
		buf = buf[:0]
		if lost > 0 {
			note := entry{time: time.Now().UnixMilli(), boot: sinceBoot(), priority: 5<<3 | 4, source: fromLogd, text: fmt.Sprintf("logd: %d lines left the memory before they could be read", lost)}
			buf = note.appendBlob(buf)
		}
		for i := range list {
			buf = list[i].appendBlob(buf)
		}
		if len(buf) == 0 {
			if oneshot {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			continue
		}
		if _, err := w.Write(buf); err != nil {
			return // the reader has gone
		}
	}
}

// appendBlob appends the entry as logread reads it from the pipe: a blob with id
// 0 that holds blobmsg attributes (libubox blob.h, blobmsg.h).
func (e *entry) appendBlob(b []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	attr := func(kind bus.Type, name string, data []byte) {
		at := len(b)
		b = append(b, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
		b = append(append(b, name...), 0)
		for (len(b)-at)%4 != 0 {
			b = append(b, 0)
		}
		b = append(b, data...)
		const extended = 1 << 31
		binary.BigEndian.PutUint32(b[at:], extended|uint32(kind)<<24|uint32(len(b)-at))
		for (len(b)-at)%4 != 0 {
			b = append(b, 0)
		}
	}
	u32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	u64 := func(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }
	attr(bus.TypeString, "msg", append([]byte(e.text), 0))
	attr(bus.TypeInt32, "id", u32(e.id))
	attr(bus.TypeInt32, "priority", u32(e.priority))
	attr(bus.TypeInt32, "source", u32(uint32(e.source)))
	attr(bus.TypeInt64, "time", u64(e.time))
	attr(bus.TypeInt64, "boot", u64(e.boot))
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// write puts a line of a bus client into the log.
func (d *daemon) write(r *bus.Request) error {
	var in struct {
		Event string `json:"event"`
	}
	if err := r.Decode(&in); err != nil {
		return err
	}
	if in.Event == "" {
		return bus.StatusInvalidArgument
	}
	const userInfo = 1<<3 | 6
	d.add(userInfo, fromLogd, printable(in.Event))
	return nil
}
