package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultTimeout bounds a call whose context has no deadline, as the ubus
	// command does.
	defaultTimeout = 30 * time.Second
	// writeTimeout ends a connection whose broker has stopped reading.
	writeTimeout = 10 * time.Second
	// setupTimeout bounds one publication or subscription.
	setupTimeout = 10 * time.Second
	// Pauses between attempts to reach the broker.
	firstPause, lastPause = 50 * time.Millisecond, 2 * time.Second
	// maxHandlers bounds the calls a client answers at the same time; more get
	// StatusNoMemory.
	maxHandlers = 256
	// maxBacklog bounds the events and notifications that wait for one
	// function; beyond it the oldest is lost, with a log line.
	maxBacklog = 1024
	// maxKnown bounds the cache of object ids.
	maxKnown = 256
)

// Client is a client of the bus. Its methods may be called from several
// goroutines. Close and the end of the context that made it stop everything it
// started; they must not be waited for inside one of its own callbacks.
type Client struct {
	path      string
	log       *slog.Logger
	reconnect bool
	cancel    context.CancelFunc
	ctx       context.Context
	wg        sync.WaitGroup

	mu   sync.Mutex
	link *link         // nil while there is no connection
	up   chan struct{} // closed while link is set

	regMu   sync.Mutex // one registration at a time, none during a reconnect
	objects []*Published
	events  []*listener
	subs    []*subscription
	watch   *listener // ubus.object.add, made with the first subscription
	monitor atomic.Pointer[func(MonitorMessage)]
}

// Dial connects to the broker at path and fails at once if that is not
// possible. When the connection is lost the client stays dead: calls return
// StatusConnectionFailed and Done is closed. ctx bounds the connecting alone.
func Dial(ctx context.Context, path string) (*Client, error) {
	c := newClient(context.Background(), path, slog.New(slog.DiscardHandler))
	l, err := dialLink(ctx, c)
	if err != nil {
		c.cancel()
		return nil, err
	}
	c.once(l)
	return c, nil
}

// once uses l until it ends.
func (c *Client) once(l *link) {
	c.attach(l)
	c.wg.Go(func() {
		select {
		case <-l.done:
		case <-c.ctx.Done():
		}
		c.detach(l)
	})
}

// Connect returns a client that keeps a connection to the broker at path until
// ctx ends, and that publishes, listens and subscribes again after each loss.
// It returns at once. While there is no connection, Call and Lookup wait for
// one within their context, Publish, OnEvent and Subscribe are remembered,
// Notify does nothing and SendEvent returns StatusConnectionFailed. log gets a
// line when the connection comes or goes.
func Connect(ctx context.Context, path string, log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := newClient(ctx, path, log)
	c.reconnect = true
	c.wg.Go(c.keepConnected)
	return c
}

func newClient(ctx context.Context, path string, log *slog.Logger) *Client {
	if path == "" {
		path = DefaultSocket
	}
	c := &Client{path: path, log: log, up: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

func (c *Client) keepConnected() {
	pause := firstPause
	said := false
	for c.ctx.Err() == nil {
		l, err := dialLink(c.ctx, c)
		if err != nil {
			if !said && c.ctx.Err() == nil {
				said = true
				c.log.Info("bus not reachable, trying again", "error", err)
			}
			select {
			case <-c.ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, lastPause)
			continue
		}
		if said {
			c.log.Info("bus connected", "socket", c.path)
		}
		c.attach(l)
		c.restore(l)
		select {
		case <-l.done:
			c.log.Warn("bus connection lost, trying again", "socket", c.path)
		case <-c.ctx.Done():
		}
		c.detach(l)
		said, pause = true, firstPause
	}
}

// attach makes l the connection in use.
func (c *Client) attach(l *link) {
	c.wg.Go(l.run)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = l
	close(c.up)
}

// detach ends the use of l and waits for its reader.
func (c *Client) detach(l *link) {
	c.mu.Lock()
	if c.link == l {
		c.link = nil
		c.up = make(chan struct{})
	}
	c.mu.Unlock()
	l.conn.Close()
	<-l.done
}

// restore registers on a new connection whatever the caller registered before.
func (c *Client) restore(l *link) {
	c.regMu.Lock()
	defer c.regMu.Unlock()
	fail := func(what, name string, err error) {
		if err != nil && l.alive() {
			c.log.Error("cannot restore on the bus", "what", what, "name", name, "error", err)
		}
	}
	for _, p := range c.objects {
		fail("object", p.object.Name, p.register(l))
	}
	for _, e := range c.events {
		fail("event handler", e.pattern, e.register(l))
	}
	if c.watch != nil {
		fail("event handler", c.watch.pattern, c.watch.register(l))
	}
	for _, s := range c.subs {
		fail("subscription", s.path, s.register(l))
	}
	if c.monitor.Load() != nil {
		fail("monitor", "", c.startMonitor(l))
	}
}

// Close ends the connection and waits until everything the client started has
// returned.
func (c *Client) Close() error {
	c.cancel()
	c.wg.Wait()
	return nil
}

// Connected is closed once the client has a connection; while there is none it
// is open. Each call may return another channel.
func (c *Client) Connected() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

// Done is closed when the connection in use has ended. Without a connection it
// is closed already.
func (c *Client) Done() <-chan struct{} {
	if l := c.current(); l != nil {
		return l.done
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}

// current returns the connection in use, nil if there is none.
func (c *Client) current() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link
}

// wait returns the connection in use; a client made by Connect waits for one.
func (c *Client) wait(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, up := c.link, c.up
		c.mu.Unlock()
		if l != nil {
			return l, nil
		}
		if !c.reconnect {
			return nil, StatusConnectionFailed
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, ctxStatus(ctx)
		case <-c.ctx.Done():
			return nil, StatusConnectionFailed
		}
	}
}

// ctxStatus is the error of a request whose context ended.
func ctxStatus(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return StatusTimeout
	}
	return ctx.Err()
}

func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// Call invokes a method of the object published at path object. args is
// anything Encode takes. A method may reply several times; the attributes of
// all its replies are returned in their order. The error is a Status, or
// context.Canceled. A context without a deadline gets one of 30 s.
func (c *Client) Call(ctx context.Context, object, method string, args any) (Table, error) {
	var all Table
	f, err := c.call(ctx, object, method, args, func(t Table) {
		if all == nil {
			all = t
		} else {
			all = append(all, t...)
		}
	})
	if f != nil {
		f.Close()
	}
	return all, err
}

// CallEach is Call, giving each reply to f as it arrives. f runs in the client's
// reader and must not use the client.
func (c *Client) CallEach(ctx context.Context, object, method string, args any, f func(Table)) error {
	file, err := c.call(ctx, object, method, args, func(t Table) { c.guard("reply", func() { f(t) }) })
	if file != nil {
		file.Close()
	}
	return err
}

// CallFD is Call for methods that hand over a file descriptor (such as
// log.read with stream). The file is nil if there came none; the caller closes
// it.
func (c *Client) CallFD(ctx context.Context, object, method string, args any) (Table, *os.File, error) {
	var all Table
	f, err := c.call(ctx, object, method, args, func(t Table) { all = append(all, t...) })
	return all, f, err
}

func (c *Client) call(ctx context.Context, object, method string, args any, onData func(Table)) (*os.File, error) {
	t, err := Encode(args)
	if err != nil {
		return nil, fmt.Errorf("arguments of %s.%s: %w: %w", object, method, err, StatusInvalidArgument)
	}
	data, err := t.encode()
	if err != nil {
		return nil, fmt.Errorf("arguments of %s.%s: %w: %w", object, method, err, StatusInvalidArgument)
	}
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	l, err := c.wait(ctx)
	if err != nil {
		return nil, err
	}
	id, known, err := l.objectID(ctx, object)
	if err != nil {
		return nil, err
	}
	f, err := l.invoke(ctx, id, method, data, onData)
	if known && errors.Is(err, StatusNotFound) {
		// Either the method said so, or the object was published anew since
		// its id was looked up: then the call reached nobody.
		l.forget(object)
		again, _, lerr := l.objectID(ctx, object)
		if lerr == nil && again != id {
			f, err = l.invoke(ctx, again, method, data, onData)
		}
	}
	return f, err
}

// SendEvent sends an event to all who listen for id, except this client itself.
// Ids that start with "ubus." belong to the broker.
func (c *Client) SendEvent(ctx context.Context, id string, data any) error {
	t, err := Encode(data)
	if err != nil {
		return fmt.Errorf("event %s: %w: %w", id, err, StatusInvalidArgument)
	}
	if t == nil {
		t = Table{}
	}
	b, err := Table{{"id", id}, {"data", t}}.encode()
	if err != nil {
		return fmt.Errorf("event %s: %w: %w", id, err, StatusInvalidArgument)
	}
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	l := c.current()
	if l == nil {
		return StatusConnectionFailed
	}
	_, err = l.invoke(ctx, objEvent, "send", b, nil)
	return err
}

// ObjectInfo describes an object of the bus.
type ObjectInfo struct {
	Path    string
	ID      uint32
	Type    uint32
	Methods []Method // without Handle
}

// Lookup lists the objects whose path is pattern, or starts with what stands
// before a trailing "*"; "" lists all. They come sorted by path. No match is
// StatusNotFound, except for "".
func (c *Client) Lookup(ctx context.Context, pattern string) ([]ObjectInfo, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	l, err := c.wait(ctx)
	if err != nil {
		return nil, err
	}
	var body []byte
	if pattern != "" {
		body = appendBlobString(nil, attrObjPath, pattern)
	}
	var list []ObjectInfo
	_, err = l.request(ctx, msgLookup, 0, body, func(a *attrs) {
		if !a.got(attrObjID, attrObjPath, attrObjType) {
			return
		}
		info := ObjectInfo{Path: a.objPath, ID: a.objID, Type: a.objType}
		info.Methods, _ = parseSignature(a.signature)
		list = append(list, info)
	})
	return list, err
}

// parseSignature reads the methods of an object: tables of argument types.
func parseSignature(b []byte) ([]Method, error) {
	t, err := decodeTable(b)
	if err != nil {
		return nil, err
	}
	methods := make([]Method, 0, len(t))
	for _, a := range t {
		args, ok := a.Value.(Table)
		if a.Name == "" || !ok {
			return nil, fmt.Errorf("%w: method %q is not a table", errBlob, a.Name)
		}
		m := Method{Name: a.Name}
		for _, arg := range args {
			if n, ok := arg.Value.(int32); ok && n >= 0 && n < 256 {
				m.Args = append(m.Args, Arg{arg.Name, Type(n)})
			}
		}
		methods = append(methods, m)
	}
	return methods, nil
}

// Ping asks the broker for a sign of life.
func (c *Client) Ping(ctx context.Context) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	l, err := c.wait(ctx)
	if err != nil {
		return err
	}
	_, err = l.request(ctx, msgPing, 0, nil, nil)
	return err
}

// ID is the number the broker knows this connection by, 0 without one.
func (c *Client) ID() uint32 {
	if l := c.current(); l != nil {
		return l.id
	}
	return 0
}

// endpoint is something of ours that the broker sends messages to.
type endpoint interface {
	// receive runs in the reader's goroutine and must not block.
	receive(l *link, m *message, a *attrs)
}

// link is one connection to a broker.
type link struct {
	c    *Client
	conn *net.UnixConn
	r    *reader
	id   uint32
	done chan struct{} // closed when the reader has ended

	// ctx ends with the connection.
	ctx    context.Context
	cancel context.CancelFunc

	wmu sync.Mutex // one writer at a time

	mu       sync.Mutex
	seq      uint16
	pending  map[uint16]*request
	own      map[uint32]endpoint
	known    map[string]uint32
	handlers int
}

// request waits for its STATUS.
type request struct {
	peer   uint32
	result chan result // holds one

	mu     sync.Mutex
	onData func(*attrs) // runs in the reader's goroutine
	ended  bool
}

type result struct {
	status Status
	file   *os.File
}

func dialLink(ctx context.Context, c *Client) (*link, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, fmt.Errorf("connect to the bus: %w; is ubusd running?", err)
	}
	return newLink(ctx, c, nc.(*net.UnixConn))
}

// newLink reads the greeting on a new connection. It owns conn.
func newLink(ctx context.Context, c *Client, conn *net.UnixConn) (*link, error) {
	l := &link{
		c: c, conn: conn, r: newReader(conn), done: make(chan struct{}),
		pending: map[uint16]*request{}, own: map[uint32]endpoint{}, known: map[string]uint32{},
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	conn.SetReadDeadline(time.Now().Add(setupTimeout))
	m, err := l.r.next()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	m.closeFile()
	if err == nil && (m.typ() != msgHello || m.peer() == 0) {
		err = errors.New("expected HELLO")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to the bus: greeting from %s: %w", c.path, err)
	}
	conn.SetReadDeadline(time.Time{})
	l.id = m.peer()
	l.ctx, l.cancel = context.WithCancel(c.ctx)
	return l, nil
}

func (l *link) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// run reads until the connection ends.
func (l *link) run() {
	for {
		m, err := l.r.next()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				l.c.log.Warn("bus connection broken", "error", err)
			}
			break
		}
		l.handle(&m)
		m.closeFile()
	}
	l.conn.Close()
	l.cancel()
	l.mu.Lock()
	for _, r := range l.pending {
		r.result <- result{status: StatusConnectionFailed}
	}
	l.pending = nil
	l.mu.Unlock()
	close(l.done)
}

func (l *link) handle(m *message) {
	a := parseAttrs(m.body())
	switch m.typ() {
	case msgStatus, msgData:
		l.mu.Lock()
		r := l.pending[m.seq()]
		if r == nil || r.peer != m.peer() {
			l.mu.Unlock()
			return
		}
		if m.typ() == msgData {
			l.mu.Unlock()
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.onData != nil && !r.ended {
				r.onData(&a)
			}
			return
		}
		delete(l.pending, m.seq())
		l.mu.Unlock()
		res := result{status: StatusInvalidArgument, file: m.file}
		if a.got(attrStatus) {
			res.status = Status(int32(a.status))
		}
		m.file = nil
		r.result <- res
	case msgInvoke, msgNotify, msgUnsubscribe:
		if !a.got(attrObjID) {
			return
		}
		l.mu.Lock()
		e := l.own[a.objID]
		l.mu.Unlock()
		if e != nil {
			e.receive(l, m, &a)
		} else if m.typ() == msgInvoke && m.peer() != 0 && !a.noReply {
			l.reply(m.peer(), m.seq(), a.objID, StatusNotFound, nil)
		}
	case msgMonitor:
		if f := l.c.monitor.Load(); f != nil {
			if mm, ok := parseMonitor(m.body()); ok {
				l.c.guard("monitor", func() { (*f)(mm) })
			}
		}
	}
}

// write sends one message.
func (l *link) write(b []byte, f *os.File) error {
	if len(b)-8 > maxMessage {
		return errSize
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := writeMessage(l.conn, b, f); err != nil {
		l.conn.Close() // a torn message cannot be mended
		return StatusConnectionFailed
	}
	return nil
}

// request sends a message and waits for its STATUS; onData gets each DATA.
func (l *link) request(ctx context.Context, typ uint8, peer uint32, body []byte, onData func(*attrs)) (*os.File, error) {
	r := &request{peer: peer, onData: onData, result: make(chan result, 1)}
	l.mu.Lock()
	if l.pending == nil {
		l.mu.Unlock()
		return nil, StatusConnectionFailed
	}
	if len(l.pending) >= 1<<15 {
		l.mu.Unlock()
		return nil, StatusNoMemory
	}
	for {
		l.seq++
		if l.pending[l.seq] == nil {
			break
		}
	}
	seq := l.seq
	l.pending[seq] = r
	l.mu.Unlock()
	b := finish(append(startMessage(typ, seq, peer, len(body)), body...))
	if err := l.write(b, nil); err != nil {
		l.drop(seq, r)
		return nil, err
	}
	select {
	case res := <-r.result:
		return finished(res)
	case <-ctx.Done():
		if l.drop(seq, r) {
			return nil, ctxStatus(ctx)
		}
		return finished(<-r.result) // it came at the same moment
	}
}

func finished(res result) (*os.File, error) {
	if res.status != StatusOK {
		if res.file != nil {
			res.file.Close()
		}
		return nil, res.status
	}
	return res.file, nil
}

// drop forgets a request; false if its result is already on the way.
func (l *link) drop(seq uint16, r *request) bool {
	l.mu.Lock()
	if l.pending[seq] != r {
		l.mu.Unlock()
		return false
	}
	delete(l.pending, seq)
	l.mu.Unlock()
	r.mu.Lock() // a reply may be on its way to onData
	defer r.mu.Unlock()
	r.ended = true
	return true
}

// invoke calls a method of an object.
func (l *link) invoke(ctx context.Context, id uint32, method string, data []byte, onData func(Table)) (*os.File, error) {
	body := make([]byte, 0, 24+len(method)+len(data))
	body = appendBlobUint32(body, attrObjID, id)
	body = appendBlobString(body, attrMethod, method)
	body = appendBlob(body, attrData, data)
	var bad error
	f, err := l.request(ctx, msgInvoke, id, body, func(a *attrs) {
		if onData == nil || !a.got(attrData) || bad != nil {
			return
		}
		t, err := decodeTable(a.data)
		if err != nil {
			bad = fmt.Errorf("reply of %s: %w: %w", method, err, StatusParseError)
			return
		}
		onData(t)
	})
	if err == nil && bad != nil {
		if f != nil {
			f.Close()
		}
		return nil, bad
	}
	return f, err
}

// objectID finds the id of the object at path; known says that it came from the
// cache.
func (l *link) objectID(ctx context.Context, path string) (id uint32, known bool, err error) {
	l.mu.Lock()
	id, known = l.known[path]
	l.mu.Unlock()
	if known {
		return id, true, nil
	}
	if path == "" || path[len(path)-1] == '*' {
		return 0, false, StatusInvalidArgument
	}
	_, err = l.request(ctx, msgLookup, 0, appendBlobString(nil, attrObjPath, path), func(a *attrs) {
		if a.got(attrObjID) {
			id = a.objID
		}
	})
	if err == nil && id == 0 {
		err = StatusNotFound // there, but none of its methods is for us
	}
	if err != nil {
		return 0, false, err
	}
	l.mu.Lock()
	if len(l.known) >= maxKnown {
		clear(l.known)
	}
	l.known[path] = id
	l.mu.Unlock()
	return id, false, nil
}

func (l *link) forget(path string) {
	l.mu.Lock()
	delete(l.known, path)
	l.mu.Unlock()
}

// reply sends the STATUS that ends an invocation, with an optional descriptor.
func (l *link) reply(peer uint32, seq uint16, objID uint32, s Status, f *os.File) error {
	b := startMessage(msgStatus, seq, peer, 16)
	b = appendBlobUint32(b, attrStatus, uint32(s))
	b = appendBlobUint32(b, attrObjID, objID)
	return l.write(finish(b), f)
}

// addObject creates an object of ours and routes its messages to e.
func (l *link) addObject(ctx context.Context, body []byte, e endpoint, onID func(uint32)) error {
	got := false
	_, err := l.request(ctx, msgAddObject, 0, body, func(a *attrs) {
		if !a.got(attrObjID) {
			return
		}
		got = true
		// In the reader's goroutine, so that it is in place before the first
		// message for the object is read.
		onID(a.objID)
		l.mu.Lock()
		l.own[a.objID] = e
		l.mu.Unlock()
	})
	if err == nil && !got {
		err = StatusNoData
	}
	return err
}

func (l *link) removeObject(ctx context.Context, id uint32) error {
	_, err := l.request(ctx, msgRemoveObject, 0, appendBlobUint32(nil, attrObjID, id), nil)
	l.mu.Lock()
	delete(l.own, id)
	l.mu.Unlock()
	return err
}

// serial runs functions one after the other, in a goroutine that lives while
// there are some.
type serial struct {
	mu      sync.Mutex
	queue   []func()
	running bool
}

// push queues f. lost says that the oldest waiting function was given up.
func (s *serial) push(c *Client, f func()) (lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) >= maxBacklog {
		s.queue[0] = nil
		s.queue = s.queue[1:]
		lost = true
	}
	s.queue = append(s.queue, f)
	if !s.running {
		s.running = true
		c.wg.Go(func() { s.run(c) })
	}
	return lost
}

func (s *serial) run(c *Client) {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.queue, s.running = nil, false
			s.mu.Unlock()
			return
		}
		f := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.mu.Unlock()
		c.guard("callback", f)
	}
}

// guard keeps a panic in a caller's function from ending the process.
func (c *Client) guard(what string, f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("panic in a bus "+what, "panic", r, "stack", string(debug.Stack()))
			ok = false
		}
	}()
	f()
	return true
}
