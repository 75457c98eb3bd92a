package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// Object is what a client offers on the bus.
type Object struct {
	Name    string // the path, such as "network.interface.lan"
	Methods []Method

	// Subscribers, if set, is told when the first subscriber comes (1) and
	// when the last one goes (0). Calls come in order, not at the same time.
	Subscribers func(n int)
}

// Method is one method of an object. Handle runs in a goroutine of its own. What
// it returns becomes the status of the call: the Status in the error's chain,
// StatusUnknownError for other errors (which are logged).
type Method struct {
	Name   string
	Args   []Arg // what `ubus list -v` shows; not enforced
	Handle func(ctx context.Context, r *Request) error
}

// Arg declares an argument of a method.
type Arg struct {
	Name string
	Type Type
}

// Request is one call of a method.
type Request struct {
	Object, Method string
	Args           Table
	User, Group    string   // the caller's, as the broker vouches for
	File           *os.File // handed over by the caller, usually nil; closed after Handle unless taken (set to nil)

	l     *link
	peer  uint32
	seq   uint16
	objID uint32

	quiet bool // the caller wants no answer

	mu    sync.Mutex
	ended bool
	out   *os.File
}

// Reply sends v (anything Encode takes) to the caller. A method may reply any
// number of times before it returns.
func (r *Request) Reply(v any) error {
	t, err := Encode(v)
	if err != nil {
		return fmt.Errorf("reply of %s.%s: %w", r.Object, r.Method, err)
	}
	data, err := t.encode()
	if err != nil {
		return fmt.Errorf("reply of %s.%s: %w", r.Object, r.Method, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return fmt.Errorf("reply of %s.%s: the call has ended", r.Object, r.Method)
	}
	b := startMessage(msgData, r.seq, r.peer, 16+len(data))
	b = appendBlobUint32(b, attrObjID, r.objID)
	b = appendBlob(b, attrData, data)
	if err := r.l.write(finish(b), nil); err != nil {
		return fmt.Errorf("reply of %s.%s: %w", r.Object, r.Method, err)
	}
	return nil
}

// ReplyFD hands f to the caller together with the final status, which is where
// C clients look for it (libubus, ubus_request_set_fd). The Request owns f from
// then on and closes it.
func (r *Request) ReplyFD(f *os.File) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || r.out != nil {
		f.Close()
		return fmt.Errorf("reply of %s.%s: only one file, before the call has ended", r.Object, r.Method)
	}
	r.out = f
	return nil
}

// Decode is r.Args.Decode.
func (r *Request) Decode(v any) error { return r.Args.Decode(v) }

// End ends the call with success before Handle returns: for a method that
// takes the connection down, such as a reboot, whose caller would otherwise be
// told that the connection failed. What Handle returns does not count any more.
func (r *Request) End() { r.finish(StatusOK) }

// finish ends the call, the first time.
func (r *Request) finish(s Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	if !r.quiet {
		r.l.reply(r.peer, r.seq, r.objID, s, r.out)
	}
	if r.out != nil {
		r.out.Close()
		r.out = nil
	}
	if r.File != nil {
		r.File.Close()
		r.File = nil
	}
}

// Published is an object on the bus.
type Published struct {
	c      *Client
	object *Object
	state  serial // of Subscribers

	mu     sync.Mutex
	link   *link
	id     uint32
	active bool // somebody subscribes
}

// Publish offers o until Close. A client made by Connect that has no connection
// publishes when it has one. A path that is taken is StatusInvalidArgument.
func (c *Client) Publish(o *Object) (*Published, error) {
	if o.Name == "" {
		return nil, fmt.Errorf("publish an object without a name: %w", StatusInvalidArgument)
	}
	for i, m := range o.Methods {
		if m.Name == "" || m.Handle == nil || slices.ContainsFunc(o.Methods[:i], func(n Method) bool { return n.Name == m.Name }) {
			return nil, fmt.Errorf("publish %s: method %q needs a name of its own and a handler: %w", o.Name, m.Name, StatusInvalidArgument)
		}
	}
	p := &Published{c: c, object: o}
	c.regMu.Lock()
	defer c.regMu.Unlock()
	if err := c.registerNow(p.register); err != nil {
		return nil, fmt.Errorf("publish %s: %w", o.Name, err)
	}
	c.objects = append(c.objects, p)
	return p, nil
}

// registerNow registers something on the connection in use. If there is none,
// or it breaks, a reconnecting client will come back to it.
func (c *Client) registerNow(register func(*link) error) error {
	l := c.current()
	if l == nil {
		if c.reconnect {
			return nil
		}
		return StatusConnectionFailed
	}
	err := register(l)
	if err != nil && c.reconnect && !l.alive() {
		return nil
	}
	return err
}

// register publishes on l unless that has happened.
func (p *Published) register(l *link) error {
	p.mu.Lock()
	same := p.link == l
	p.mu.Unlock()
	if same {
		return nil
	}
	sig := make(Table, len(p.object.Methods))
	for i, m := range p.object.Methods {
		args := make(Table, len(m.Args))
		for j, a := range m.Args {
			args[j] = Attr{a.Name, int32(a.Type)}
		}
		sig[i] = Attr{m.Name, args}
	}
	s, err := sig.encode()
	if err != nil {
		return err
	}
	body := appendBlobString(nil, attrObjPath, p.object.Name)
	body = appendBlob(body, attrSignature, s)
	ctx, cancel := context.WithTimeout(l.ctx, setupTimeout)
	defer cancel()
	return l.addObject(ctx, body, p, func(id uint32) {
		p.mu.Lock()
		wasActive := p.active
		p.link, p.id, p.active = l, id, false
		p.mu.Unlock()
		if wasActive {
			p.tell(false) // the subscribers went with the old connection
		}
	})
}

// Close takes the object off the bus. Calls that run go on to their end.
func (p *Published) Close() error {
	c := p.c
	c.regMu.Lock()
	defer c.regMu.Unlock()
	i := slices.Index(c.objects, p)
	if i < 0 {
		return nil
	}
	c.objects = slices.Delete(c.objects, i, i+1)
	p.mu.Lock()
	l, id := p.link, p.id
	p.link = nil
	p.mu.Unlock()
	return c.unregister(l, id)
}

// unregister removes an object of ours if it is on the connection in use.
func (c *Client) unregister(l *link, id uint32) error {
	if l == nil || l != c.current() {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, setupTimeout)
	defer cancel()
	if err := l.removeObject(ctx, id); err != nil && l.alive() {
		return fmt.Errorf("remove object %08x from the bus: %w", id, err)
	}
	return nil
}

// Notify sends a notification to the subscribers, in order with the replies of
// this client. It waits for nobody. Without subscribers or without a connection
// it does nothing.
func (p *Published) Notify(ctx context.Context, method string, data any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	l, id, active := p.link, p.id, p.active
	p.mu.Unlock()
	if l == nil || !active {
		return nil
	}
	t, err := Encode(data)
	if err != nil {
		return fmt.Errorf("notification %s of %s: %w", method, p.object.Name, err)
	}
	d, err := t.encode()
	if err != nil {
		return fmt.Errorf("notification %s of %s: %w", method, p.object.Name, err)
	}
	l.mu.Lock()
	l.seq++ // no reply is awaited: the number may be one in use
	seq := l.seq
	l.mu.Unlock()
	b := startMessage(msgNotify, seq, id, 32+len(method)+len(d))
	b = appendBlobUint32(b, attrObjID, id)
	b = appendBlobString(b, attrMethod, method)
	b = appendBlobBool(b, attrNoReply, true)
	b = appendBlob(b, attrData, d)
	if err := l.write(finish(b), nil); err != nil && l.alive() {
		return fmt.Errorf("notification %s of %s: %w", method, p.object.Name, err)
	}
	return nil
}

func (p *Published) tell(active bool) {
	f := p.object.Subscribers
	if f == nil {
		return
	}
	n := 0
	if active {
		n = 1
	}
	p.state.push(p.c, func() { f(n) })
}

func (p *Published) receive(l *link, m *message, a *attrs) {
	switch m.typ() {
	case msgNotify:
		if !a.got(attrActive) {
			return
		}
		p.mu.Lock()
		changed := p.active != a.active
		p.active = a.active
		p.mu.Unlock()
		if changed {
			p.tell(a.active)
		}
	case msgInvoke:
		p.invoked(l, m, a)
	}
}

func (p *Published) invoked(l *link, m *message, a *attrs) {
	quiet := a.noReply || m.peer() == 0
	answer := func(s Status) {
		if !quiet {
			l.reply(m.peer(), m.seq(), a.objID, s, nil)
		}
	}
	if !a.got(attrMethod) {
		answer(StatusInvalidArgument)
		return
	}
	i := slices.IndexFunc(p.object.Methods, func(o Method) bool { return o.Name == a.method })
	if i < 0 {
		answer(StatusMethodNotFound)
		return
	}
	args, err := decodeTable(a.data)
	if err != nil {
		answer(StatusParseError)
		return
	}
	l.mu.Lock()
	full := l.handlers >= maxHandlers
	if !full {
		l.handlers++
	}
	l.mu.Unlock()
	if full {
		answer(StatusNoMemory)
		return
	}
	r := &Request{
		Object: p.object.Name, Method: a.method, Args: args, User: a.user, Group: a.group, File: m.file,
		l: l, peer: m.peer(), seq: m.seq(), objID: a.objID, quiet: quiet,
	}
	m.file = nil
	handle := p.object.Methods[i].Handle
	p.c.wg.Go(func() {
		defer func() {
			l.mu.Lock()
			l.handlers--
			l.mu.Unlock()
		}()
		status := StatusUnknownError
		p.c.guard("method", func() { status = p.c.statusOf(r, handle(l.ctx, r)) })
		r.finish(status)
	})
}

// statusOf turns what a method returned into the status of the call.
func (c *Client) statusOf(r *Request, err error) Status {
	if err == nil {
		return StatusOK
	}
	var s Status
	if errors.As(err, &s) {
		return s
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return StatusTimeout
	case errors.Is(err, os.ErrNotExist):
		return StatusNotFound
	case errors.Is(err, os.ErrPermission):
		return StatusPermissionDenied
	}
	c.log.Error("bus method failed", "object", r.Object, "method", r.Method, "error", err)
	return StatusUnknownError
}

// listener is a handler of events: an object without a path.
type listener struct {
	c       *Client
	pattern string
	f       func(id string, data Table)
	q       serial

	mu   sync.Mutex
	link *link
	id   uint32
	gone bool
}

// OnEvent calls f for each event whose id is pattern, or starts with what
// stands before a trailing "*"; not for those this client sends. cancel ends it;
// f may still run when cancel returns.
func (c *Client) OnEvent(pattern string, f func(id string, data Table)) (cancel func(), err error) {
	e := &listener{c: c, pattern: pattern, f: f}
	c.regMu.Lock()
	defer c.regMu.Unlock()
	if err := c.registerNow(e.register); err != nil {
		return nil, fmt.Errorf("listen for events %s: %w", pattern, err)
	}
	c.events = append(c.events, e)
	return sync.OnceFunc(func() {
		c.regMu.Lock()
		defer c.regMu.Unlock()
		if i := slices.Index(c.events, e); i >= 0 {
			c.events = slices.Delete(c.events, i, i+1)
		}
		e.close()
	}), nil
}

func (e *listener) register(l *link) error {
	e.mu.Lock()
	same := e.link == l
	e.mu.Unlock()
	if same {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, setupTimeout)
	defer cancel()
	var id uint32
	err := l.addObject(ctx, nil, e, func(n uint32) { id = n })
	if err != nil {
		return err
	}
	b, err := Table{{"object", int32(id)}, {"pattern", e.pattern}}.encode()
	if err != nil {
		return err
	}
	if _, err := l.invoke(ctx, objEvent, "register", b, nil); err != nil {
		l.removeObject(ctx, id)
		return err
	}
	e.mu.Lock()
	e.link, e.id = l, id
	e.mu.Unlock()
	return nil
}

// close is called with regMu held.
func (e *listener) close() {
	e.mu.Lock()
	l, id := e.link, e.id
	e.link, e.gone = nil, true
	e.mu.Unlock()
	e.c.unregister(l, id)
}

func (e *listener) receive(l *link, m *message, a *attrs) {
	if m.typ() != msgInvoke || !a.got(attrMethod) {
		return
	}
	if m.peer() != 0 && !a.noReply {
		l.reply(m.peer(), m.seq(), a.objID, StatusOK, nil)
	}
	data, err := decodeTable(a.data)
	if err != nil {
		e.c.log.Warn("event dropped", "event", a.method, "error", err)
		return
	}
	id := a.method
	lost := e.q.push(e.c, func() {
		e.mu.Lock()
		gone := e.gone
		e.mu.Unlock()
		if !gone {
			e.f(id, data)
		}
	})
	if lost {
		e.c.log.Warn("event handler too slow, an event was lost", "pattern", e.pattern)
	}
}

// subscription is a subscriber: an object without a path.
type subscription struct {
	c    *Client
	path string
	f    func(method string, data Table)
	q    serial

	mu     sync.Mutex
	link   *link
	id     uint32
	target uint32 // 0 while the object is not there
	gone   bool
}

// Subscribe calls f for each notification of the object at path. If the object
// is not there, or goes and comes back, the subscription starts when it appears.
// cancel ends it; f may still run when cancel returns.
func (c *Client) Subscribe(object string, f func(method string, data Table)) (cancel func(), err error) {
	s := &subscription{c: c, path: object, f: f}
	c.regMu.Lock()
	defer c.regMu.Unlock()
	if c.watch == nil {
		w := &listener{c: c, pattern: "ubus.object.add", f: c.appeared}
		// A client that may not listen keeps its subscriptions for as long as
		// the objects stay.
		if err := c.registerNow(w.register); err == nil {
			c.watch = w
		} else if !errors.Is(err, StatusPermissionDenied) {
			return nil, fmt.Errorf("subscribe to %s: %w", object, err)
		}
	}
	if err := c.registerNow(s.register); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", object, err)
	}
	c.subs = append(c.subs, s)
	return sync.OnceFunc(func() {
		c.regMu.Lock()
		defer c.regMu.Unlock()
		if i := slices.Index(c.subs, s); i >= 0 {
			c.subs = slices.Delete(c.subs, i, i+1)
		}
		s.mu.Lock()
		l, id := s.link, s.id
		s.link, s.gone = nil, true
		s.mu.Unlock()
		c.unregister(l, id)
	}), nil
}

// appeared handles ubus.object.add.
func (c *Client) appeared(_ string, data Table) {
	path := data.String("path")
	c.regMu.Lock()
	defer c.regMu.Unlock()
	for _, s := range c.subs {
		if s.path != path {
			continue
		}
		if l := c.current(); l != nil {
			l.forget(path)
			if err := s.register(l); err != nil && l.alive() {
				c.log.Error("cannot subscribe again", "object", path, "error", err)
			}
		}
	}
}

// register makes the subscriber on l and subscribes it, if the object is there.
func (s *subscription) register(l *link) error {
	ctx, cancel := context.WithTimeout(l.ctx, setupTimeout)
	defer cancel()
	s.mu.Lock()
	same := s.link == l
	subscribed := same && s.target != 0
	s.mu.Unlock()
	if subscribed {
		return nil
	}
	if !same {
		if err := l.addObject(ctx, nil, s, func(id uint32) {
			s.mu.Lock()
			s.link, s.id, s.target = l, id, 0
			s.mu.Unlock()
		}); err != nil {
			return err
		}
	}
	for {
		target, known, err := l.objectID(ctx, s.path)
		if errors.Is(err, StatusNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		id := s.id
		s.target = target // before the request: the object may go at any time
		s.mu.Unlock()
		body := appendBlobUint32(nil, attrObjID, id)
		body = appendBlobUint32(body, attrTarget, target)
		_, err = l.request(ctx, msgSubscribe, 0, body, nil)
		if err == nil {
			return nil
		}
		s.mu.Lock()
		s.target = 0
		s.mu.Unlock()
		if !errors.Is(err, StatusNotFound) {
			return err
		}
		l.forget(s.path)
		if !known {
			return nil // it went in between; ubus.object.add will tell
		}
	}
}

func (s *subscription) receive(l *link, m *message, a *attrs) {
	switch m.typ() {
	case msgUnsubscribe:
		s.mu.Lock()
		if a.got(attrTarget) && a.target == s.target {
			s.target = 0
		}
		s.mu.Unlock()
		l.forget(s.path)
	case msgInvoke:
		if !a.got(attrMethod) {
			return
		}
		if m.peer() != 0 && !a.noReply {
			l.reply(m.peer(), m.seq(), a.objID, StatusOK, nil)
		}
		data, err := decodeTable(a.data)
		if err != nil {
			s.c.log.Warn("notification dropped", "object", s.path, "method", a.method, "error", err)
			return
		}
		method := a.method
		lost := s.q.push(s.c, func() {
			s.mu.Lock()
			gone := s.gone
			s.mu.Unlock()
			if !gone {
				s.f(method, data)
			}
		})
		if lost {
			s.c.log.Warn("subscriber too slow, a notification was lost", "object", s.path)
		}
	}
}

// MonitorMessage is a message the broker received or sent, as a monitor sees it.
type MonitorMessage struct {
	Client uint32 // the client it came from or went to
	Peer   uint32
	Seq    uint16
	Type   uint32 // message type of ubusmsg.h
	Sent   bool   // sent by the broker
	Data   Table  // its attributes by name, as `ubus monitor` prints them
}

// Monitor calls f, from the client's reader, for each message that passes the
// broker, except those to monitors. Only root may; others get
// StatusPermissionDenied. A monitor that does not keep up misses messages.
func (c *Client) Monitor(f func(MonitorMessage)) error {
	c.regMu.Lock()
	defer c.regMu.Unlock()
	if !c.monitor.CompareAndSwap(nil, &f) {
		return fmt.Errorf("monitor the bus: this client already does: %w", StatusInvalidArgument)
	}
	if err := c.registerNow(c.startMonitor); err != nil {
		return fmt.Errorf("monitor the bus: %w", err)
	}
	return nil
}

func (c *Client) startMonitor(l *link) error {
	ctx, cancel := context.WithTimeout(l.ctx, setupTimeout)
	defer cancel()
	_, err := l.invoke(ctx, objMonitor, "add", nil, nil)
	return err
}

func parseMonitor(b []byte) (m MonitorMessage, ok bool) {
	seen := 0
	for {
		id, data, rest, more := nextBlob(b)
		if !more {
			return m, seen&0x37 == 0x37 // all but the sequence number
		}
		b = rest
		n, _ := blobUint32(data)
		switch id {
		case monitorClient:
			m.Client = n
		case monitorPeer:
			m.Peer = n
		case monitorSeq:
			m.Seq = uint16(n)
		case monitorType:
			m.Type = n
		case monitorSend:
			m.Sent = len(data) > 0 && data[0] != 0
		case monitorData:
			m.Data = describeAttrs(data)
		default:
			continue
		}
		seen |= 1 << id
	}
}

// describeAttrs names the attributes of a message.
func describeAttrs(b []byte) Table {
	a := parseAttrs(b)
	t := Table{}
	add := func(id uint8, name string, v any) {
		if a.got(id) {
			t = append(t, Attr{name, v})
		}
	}
	nested := func(id uint8, name string, b []byte) {
		if v, err := decodeTable(b); err == nil && a.got(id) {
			if v == nil {
				v = Table{}
			}
			t = append(t, Attr{name, v})
		}
	}
	add(attrStatus, "status", int32(a.status))
	add(attrObjPath, "objpath", a.objPath)
	add(attrObjID, "objid", int32(a.objID))
	add(attrMethod, "method", a.method)
	add(attrObjType, "objtype", int32(a.objType))
	nested(attrSignature, "signature", a.signature)
	nested(attrData, "data", a.data)
	add(attrActive, "active", a.active)
	add(attrNoReply, "no_reply", a.noReply)
	add(attrUser, "user", a.user)
	add(attrGroup, "group", a.group)
	return t
}
