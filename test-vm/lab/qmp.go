package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Event is what QEMU reports on its own: SHUTDOWN, RESET, WATCHDOG, DEVICE_DELETED and the like.
// Source: QEMU's docs/interop/qmp-spec.
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *QMPError) Error() string { return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class) }

// qmpClient speaks the QEMU machine protocol on one connection; commands run one at a time.
type qmpClient struct {
	conn net.Conn
	call sync.Mutex // held over one command and its reply

	mu      sync.Mutex
	events  []Event
	reply   chan qmpMessage // where the reader puts replies
	changed chan struct{}
	err     error // why the reader ended
}

type qmpMessage struct {
	Greeting  json.RawMessage `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *QMPError       `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	ID        int             `json:"id"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

func newQMP(conn net.Conn) *qmpClient {
	return &qmpClient{conn: conn, reply: make(chan qmpMessage, 8), changed: make(chan struct{})}
}

// serve reads until the connection ends, and calls on with each event before anyone else sees it.
func (q *qmpClient) serve(on func(Event)) {
	err := readQMP(q.conn, func(m qmpMessage) {
		if m.Event == "" {
			select {
			case q.reply <- m:
			default: // a reply that nobody waits for any more
			}
			return
		}
		e := Event{m.Event, m.Data, time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)}
		on(e)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.events = append(q.events, e)
		q.wake()
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	q.wake()
}

func (q *qmpClient) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// readQMP hands every message of r to f until r ends. Lines that are not messages are an error: the other end is not
// QEMU then.
func readQMP(r io.Reader, f func(qmpMessage)) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), 16<<20)
	for s.Scan() {
		var m qmpMessage
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			return fmt.Errorf("read qmp message %q: %w", s.Bytes()[:min(len(s.Bytes()), 200)], err)
		}
		f(m)
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read qmp: %w", err)
	}
	return io.EOF
}

// run executes one command and decodes its answer into out unless that is nil.
func (q *qmpClient) run(ctx context.Context, command string, args, out any) error {
	q.call.Lock()
	defer q.call.Unlock()
	for { // drop answers of calls that were given up
		select {
		case <-q.reply:
			continue
		default:
		}
		break
	}
	request := map[string]any{"execute": command, "id": qmpID}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	deadline, _ := ctx.Deadline() // none = the zero time, which takes away that of an earlier call
	q.conn.SetWriteDeadline(deadline)
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	for {
		q.mu.Lock()
		changed, ended := q.changed, q.err
		q.mu.Unlock()
		var m qmpMessage
		select {
		case m = <-q.reply: // first of all: a last answer may stand before the end
		default:
			if ended != nil {
				return fmt.Errorf("qmp %s: %w", command, errors.Join(ErrConsoleClosed, ended))
			}
			select {
			case m = <-q.reply:
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("qmp %s: no answer: %w", command, context.Cause(ctx))
			}
		}
		switch {
		case m.ID != qmpID: // nothing yet, or the greeting
		case m.Error != nil:
			m.Error.Command = command
			return m.Error
		case out == nil:
			return nil
		default:
			if err := json.Unmarshal(m.Return, out); err != nil {
				return fmt.Errorf("qmp %s: decode %s: %w", command, m.Return, err)
			}
			return nil
		}
	}
}

// qmpID marks our answers: the greeting has none.
const qmpID = 1

// wait blocks until an event after the first from ones is accepted by f.
func (q *qmpClient) wait(ctx context.Context, name string, from int, f func(Event) bool) (Event, error) {
	for {
		q.mu.Lock()
		events, changed, ended := q.events, q.changed, q.err
		q.mu.Unlock()
		for ; from < len(events); from++ {
			if events[from].Name == name && (f == nil || f(events[from])) {
				return events[from], nil
			}
		}
		if ended != nil {
			return Event{}, fmt.Errorf("wait for qmp event %s: %w", name, ErrConsoleClosed)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("wait for qmp event %s: %w", name, context.Cause(ctx))
		}
	}
}

func (q *qmpClient) seen() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]Event(nil), q.events...)
}
