package bus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxQueue bounds the bytes that wait for one client: one message of the
	// largest size and a little traffic beside it.
	maxQueue = maxMessage + 64<<10
	// maxClients bounds the connections.
	maxClients = 1024
	// maxHeld bounds what a client makes the broker remember (objects,
	// signatures, patterns, subscriptions), in bytes by the costs below.
	maxHeld          = 512 << 10
	objectCost       = 256
	patternCost      = 64
	subscriptionCost = 64
	// maxCalls bounds the unanswered calls remembered for one owner; beyond it
	// a caller finds out by its time-out, as with ubusd.
	maxCalls = 4096
)

// BrokerOptions are the settings of a Broker.
type BrokerOptions struct {
	ACLDir string       // DefaultACLDir if empty
	Log    *slog.Logger // none if nil
}

// Broker is the server of the bus.
type Broker struct {
	ln  *net.UnixListener
	log *slog.Logger
	acl string
	wg  sync.WaitGroup

	mu         sync.Mutex
	rules      []aclRule
	aclSeq     int32
	clients    map[uint32]*peer
	objects    map[uint32]*object
	paths      []*object // those with a path, sorted by it
	listeners  []*object // those with event patterns
	types      map[uint32]*objectType
	monitors   []*peer
	monitorSeq map[*peer]uint16
	eventSeq   uint16
	refused    bool // the last connection was refused: say it once
}

// peer is one connected client.
type peer struct {
	b    *Broker
	conn *net.UnixConn
	rc   syscall.RawConn
	id   uint32
	cred credentials

	// guarded by Broker.mu
	objects []*object
	held    int
	calls   map[callKey]uint32 // calls that this peer has not answered: object
	later   []message          // a long answer, sent by the reader as room comes
	leaving bool

	mu      sync.Mutex
	room    sync.Cond // queued has shrunk or the peer is dead
	queue   []message
	queued  int // bytes in queue, and of the message being written
	writing bool
	dead    bool
}

type callKey struct {
	caller uint32
	seq    uint16
}

type objectType struct {
	id      uint32
	sig     []byte
	methods [][2]int // where the attribute of each method is in sig
	names   []string
	refs    int
}

type object struct {
	id          uint32
	path        string
	typ         *objectType
	owner       *peer
	seq         uint16
	cost        int
	patterns    []pattern
	subscribers []*object
	targets     []*object
}

type pattern struct {
	text   string
	prefix bool
}

// Listen opens the socket at path and its folder. A socket left behind is
// replaced if nobody answers on it; if somebody does, that is an error.
func Listen(path string, opts BrokerOptions) (*Broker, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.ACLDir == "" {
		opts.ACLDir = DefaultACLDir
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the bus socket: %w", err)
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the bus socket: %w", err)
	}
	// Everybody may connect: what they may do is for the ACL to say.
	if err := os.Chmod(path, 0o666); err != nil {
		ln.Close()
		return nil, fmt.Errorf("open the bus socket to all users: %w", err)
	}
	b := &Broker{
		ln: ln, log: opts.Log, acl: opts.ACLDir,
		clients: map[uint32]*peer{}, objects: map[uint32]*object{}, types: map[uint32]*objectType{},
		monitorSeq: map[*peer]uint16{},
	}
	for _, id := range []uint32{objEvent, objACL, objMonitor} {
		b.objects[id] = &object{id: id}
	}
	b.ReloadACL()
	return b, nil
}

func clearSocket(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the bus socket: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("bus socket %s: there is something else of that name (%s): remove it or choose another path", path, fi.Mode().Type())
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("bus socket %s: another broker answers on it: stop it or choose another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("bus socket %s: cannot tell whether a broker uses it: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the stale bus socket: %w", err)
	}
	return nil
}

// Serve accepts clients until ctx ends, then disconnects them all, removes the
// socket and returns nil.
func (b *Broker) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { b.ln.Close() })
	defer stop()
	defer b.ln.Close()
	err := b.accept(ctx)
	b.mu.Lock()
	for _, p := range b.clients {
		p.kill()
	}
	b.mu.Unlock()
	b.wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept on the bus socket: %w", err)
}

func (b *Broker) accept(ctx context.Context) error {
	pause := firstPause
	for {
		conn, err := b.ln.AcceptUnix()
		if err == nil {
			pause = firstPause
			b.welcome(conn)
			continue
		}
		// Out of descriptors or memory: the clients there are must go on.
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ENOMEM) &&
			!errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ECONNABORTED) {
			return err
		}
		b.log.Error("cannot accept a bus client, trying again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// welcome greets a new client and starts to read from it.
func (b *Broker) welcome(conn *net.UnixConn) {
	rc, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return
	}
	p := &peer{b: b, conn: conn, rc: rc}
	p.room.L = &p.mu
	var cerr error
	if err := rc.Control(func(fd uintptr) { p.cred, cerr = peerCredentials(int(fd)) }); err != nil || cerr != nil {
		b.log.Error("bus client refused", "error", errors.Join(err, cerr))
		conn.Close()
		return
	}
	b.mu.Lock()
	if len(b.clients) >= maxClients {
		first := !b.refused
		b.refused = true
		b.mu.Unlock()
		if first {
			b.log.Error("bus client refused: too many connections", "limit", maxClients, "pid", p.cred.pid)
		}
		conn.Close()
		return
	}
	b.refused = false
	p.id = newID(b.clients)
	b.clients[p.id] = p
	p.send(message{raw: finish(startMessage(msgHello, 0, p.id, 0))})
	b.mu.Unlock()
	b.wg.Go(func() { b.read(p) })
}

// newID draws an id that is neither in use nor a system object's. Ids are
// random so that nobody can guess those of objects without a path.
func newID[T any](used map[uint32]T) uint32 {
	for {
		id := rand.Uint32()
		if _, ok := used[id]; id >= systemMax && !ok {
			return id
		}
	}
}

// read handles the messages of one client until it leaves.
func (b *Broker) read(p *peer) {
	r := newReader(p.conn)
	for {
		m, err := r.next()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
				b.log.Warn("bus client dropped", "pid", p.cred.pid, "user", p.cred.user, "error", err)
			}
			break
		}
		b.mu.Lock()
		b.handle(p, m)
		later := p.later
		p.later = nil
		b.mu.Unlock()
		for _, m := range later {
			p.awaitRoom()
			b.mu.Lock()
			p.send(m)
			b.mu.Unlock()
		}
	}
	// In this order, so that who sees the end of the connection finds
	// everything cleaned up.
	b.mu.Lock()
	b.leave(p)
	b.mu.Unlock()
	p.kill()
}

// leave removes all that a client had.
func (b *Broker) leave(p *peer) {
	p.leaving = true
	b.monitors = slices.DeleteFunc(b.monitors, func(m *peer) bool { return m == p })
	delete(b.monitorSeq, p)
	for len(p.objects) > 0 {
		b.removeObject(p.objects[len(p.objects)-1], StatusConnectionFailed)
	}
	delete(b.clients, p.id)
	for _, o := range b.clients {
		for k := range o.calls {
			if k.caller == p.id {
				delete(o.calls, k)
			}
		}
	}
}

// kill ends the connection; the reader then cleans up.
func (p *peer) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killLocked()
}

func (p *peer) killLocked() {
	if p.dead {
		return
	}
	p.dead = true
	for i := range p.queue {
		p.queue[i].closeFile()
	}
	p.queue = nil
	p.conn.Close()
	p.room.Broadcast()
}

// awaitRoom waits until the queue is at most half full. Only the client's own
// reader may call it: it makes nobody else wait.
func (p *peer) awaitRoom() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.queued > maxQueue/2 && !p.dead {
		p.room.Wait()
	}
}

// send gives a message to a client without ever waiting: what the socket does
// not take at once waits in the queue, and a client whose queue is full is
// dropped. send owns m.file.
func (p *peer) send(m message) {
	if m.typ() != msgMonitor {
		p.b.showMonitors(p, &m, true)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		m.closeFile()
		return
	}
	if !p.writing {
		n, err := p.try(&m)
		if err != nil {
			m.closeFile()
			p.killLocked()
			return
		}
		if n == len(m.raw) {
			m.closeFile()
			return
		}
		if n > 0 {
			m.closeFile() // it went with the first byte
			m.raw = m.raw[n:]
		}
	}
	if p.queued+len(m.raw) > maxQueue {
		if m.typ() == msgMonitor && p.queued > 0 {
			return // the gap in its sequence numbers tells the monitor
		}
		m.closeFile()
		p.b.log.Warn("bus client dropped: it does not read", "pid", p.cred.pid, "user", p.cred.user, "queued", p.queued)
		p.killLocked()
		return
	}
	p.queue = append(p.queue, m)
	p.queued += len(m.raw)
	if !p.writing {
		p.writing = true
		p.b.wg.Go(p.write)
	}
}

// try writes as much of m as the socket takes at once.
func (p *peer) try(m *message) (n int, err error) {
	var oob []byte
	if m.file != nil {
		// Not Fd: that would make the descriptor blocking for its other owners.
		frc, err := m.file.SyscallConn()
		if err != nil {
			return 0, err
		}
		if err := frc.Control(func(fd uintptr) { oob = syscall.UnixRights(int(fd)) }); err != nil {
			return 0, err
		}
	}
	cerr := p.rc.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), m.raw, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if cerr != nil {
		return 0, cerr
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return 0, nil
	}
	return n, err
}

// write empties the queue; it lives while there is one.
func (p *peer) write() {
	for {
		p.mu.Lock()
		if p.dead || len(p.queue) == 0 {
			p.writing, p.queue = false, nil
			p.mu.Unlock()
			return
		}
		m := p.queue[0]
		p.queue[0] = message{}
		p.queue = p.queue[1:]
		p.mu.Unlock()
		err := writeMessage(p.conn, m.raw, m.file)
		m.closeFile()
		p.mu.Lock()
		p.queued -= len(m.raw)
		if err != nil {
			p.killLocked()
		}
		p.room.Broadcast()
		p.mu.Unlock()
	}
}

// showMonitors copies a message to the monitors. b.mu is held.
func (b *Broker) showMonitors(p *peer, m *message, sent bool) {
	if len(b.monitors) == 0 {
		return
	}
	body := m.body()
	if len(body) > maxMessage-64 {
		return // does not fit into another message
	}
	for _, to := range b.monitors {
		b.monitorSeq[to]++
		out := startMessage(msgMonitor, b.monitorSeq[to], 0, 48+len(body))
		out = appendBlobUint32(out, monitorClient, p.id)
		out = appendBlobUint32(out, monitorPeer, m.peer())
		out = appendBlobUint32(out, monitorSeq, uint32(m.seq()))
		out = appendBlobUint32(out, monitorType, uint32(m.typ()))
		out = appendBlobBool(out, monitorSend, sent)
		out = appendBlob(out, monitorData, body)
		to.send(message{raw: finish(out)})
	}
}

// noReply is what a handler returns when it sent, or will send, the answer.
const noReply Status = -1

// handle deals with one message of a client. b.mu is held.
func (b *Broker) handle(p *peer, m message) {
	b.showMonitors(p, &m, false)
	a := parseAttrs(m.body())
	var s Status
	switch m.typ() {
	case msgPing:
		out := bytes.Clone(m.raw)
		out[1] = msgData
		p.send(message{raw: out})
	case msgStatus, msgData:
		s = b.response(p, &m, &a)
	case msgLookup:
		s = b.lookup(p, &m, &a)
	case msgInvoke:
		s = b.invoke(p, &m, &a)
	case msgAddObject:
		s = b.addObject(p, &m, &a)
	case msgRemoveObject:
		s = b.dropObject(p, &m, &a)
	case msgSubscribe:
		s = b.subscribe(p, &a)
	case msgUnsubscribe:
		s = b.unsubscribe(p, &a)
	case msgNotify:
		s = b.notify(p, &m, &a)
	default:
		s = StatusInvalidCommand
	}
	m.closeFile()
	if s == noReply {
		return
	}
	out := startMessage(msgStatus, m.seq(), m.peer(), 8)
	end := message{raw: finish(appendBlobUint32(out, attrStatus, uint32(s)))}
	if len(p.later) > 0 {
		p.later = append(p.later, end)
		return
	}
	p.send(end)
}

// data starts the DATA message that answers m.
func (m *message) data(size int) []byte { return startMessage(msgData, m.seq(), m.peer(), size) }

func (b *Broker) lookup(p *peer, m *message, a *attrs) Status {
	if !a.got(attrObjPath) {
		for _, o := range b.paths {
			b.sendObject(p, m, o)
		}
		return StatusOK
	}
	if a.objPath == "" {
		return StatusInvalidArgument
	}
	name, prefix := strings.CutSuffix(a.objPath, "*")
	i, exact := b.findPath(name)
	if !prefix {
		if !exact {
			return StatusNotFound
		}
		b.sendObject(p, m, b.paths[i])
		return StatusOK
	}
	found := false
	for ; i < len(b.paths) && strings.HasPrefix(b.paths[i].path, name); i++ {
		found = true
		b.sendObject(p, m, b.paths[i])
	}
	if !found {
		return StatusNotFound
	}
	return StatusOK
}

func (b *Broker) findPath(path string) (int, bool) {
	return slices.BinarySearchFunc(b.paths, path, func(o *object, s string) int { return strings.Compare(o.path, s) })
}

// sendObject describes o with those of its methods that the client may call.
// All objects together may be more than a queue holds.
func (b *Broker) sendObject(p *peer, m *message, o *object) {
	if o.typ == nil {
		return
	}
	sig := o.typ.sig
	if !p.cred.root() {
		sig = nil
		for i, at := range o.typ.methods {
			if allowed(b.rules, &p.cred, rightAccess, o.path, o.typ.names[i]) {
				sig = append(sig, o.typ.sig[at[0]:at[1]]...)
			}
		}
		if sig == nil && len(o.typ.methods) > 0 {
			return
		}
	}
	out := m.data(40 + len(o.path) + len(sig))
	out = appendBlobString(out, attrObjPath, o.path)
	out = appendBlobUint32(out, attrObjID, o.id)
	out = appendBlobUint32(out, attrObjType, o.typ.id)
	out = appendBlob(out, attrSignature, sig)
	p.later = append(p.later, message{raw: finish(out)})
}

func (b *Broker) invoke(p *peer, m *message, a *attrs) Status {
	if !a.got(attrMethod, attrObjID) {
		return StatusInvalidArgument
	}
	o := b.objects[a.objID]
	if o == nil {
		return StatusNotFound
	}
	switch o.id {
	case objEvent:
		return b.invokeEvent(p, a)
	case objACL:
		return b.invokeACL(p, m, a)
	case objMonitor:
		return b.invokeMonitor(p, a)
	}
	if o.path == "" {
		if !p.cred.root() && p.cred.uid != o.owner.cred.uid {
			return StatusPermissionDenied
		}
	} else if !allowed(b.rules, &p.cred, rightAccess, o.path, a.method) {
		return StatusPermissionDenied
	}
	if !a.noReply {
		if o.owner.calls == nil {
			o.owner.calls = map[callKey]uint32{}
		}
		if len(o.owner.calls) < maxCalls {
			o.owner.calls[callKey{p.id, m.seq()}] = o.id
		}
	}
	b.forward(p, o, m, a, a.noReply, m.takenFile())
	return noReply
}

// takenFile moves the descriptor out of m.
func (m *message) takenFile() *os.File {
	f := m.file
	m.file = nil
	return f
}

// forward sends an INVOKE to the owner of o, in the name of p.
func (b *Broker) forward(p *peer, o *object, m *message, a *attrs, quiet bool, f *os.File) {
	out := startMessage(msgInvoke, m.seq(), p.id, 64+len(a.method)+len(a.data)+len(p.cred.user)+len(p.cred.group))
	if quiet {
		out = appendBlobBool(out, attrNoReply, true)
	}
	out = appendBlobUint32(out, attrObjID, o.id)
	out = appendBlobString(out, attrMethod, a.method)
	out = appendBlobString(out, attrUser, p.cred.user)
	out = appendBlobString(out, attrGroup, p.cred.group)
	if a.got(attrData) {
		out = appendBlob(out, attrData, a.data)
	}
	o.owner.send(message{raw: finish(out), file: f})
}

// response passes the answer of an owner on to the caller.
func (b *Broker) response(p *peer, m *message, a *attrs) Status {
	if !a.got(attrObjID) || m.typ() == msgStatus && !a.got(attrStatus) || m.typ() == msgData && !a.got(attrData) {
		return noReply
	}
	o := b.objects[a.objID]
	if o == nil || o.owner != p {
		return noReply
	}
	if m.typ() == msgStatus {
		delete(p.calls, callKey{m.peer(), m.seq()})
	}
	caller := b.clients[m.peer()]
	if caller == nil {
		return noReply
	}
	m.setPeer(o.id)
	caller.send(message{raw: m.raw, file: m.takenFile()})
	return noReply
}

// hold charges the client for memory; false if it has too much already.
func (p *peer) hold(cost int) bool {
	if p.held+cost > maxHeld {
		return false
	}
	p.held += cost
	return true
}

func (b *Broker) addObject(p *peer, m *message, a *attrs) Status {
	o := &object{owner: p, path: a.objPath, cost: objectCost + len(a.objPath)}
	switch {
	case a.got(attrObjType):
		if o.typ = b.types[a.objType]; o.typ == nil {
			return StatusInvalidArgument
		}
	case a.got(attrSignature):
		o.typ = newType(a.signature)
		if o.typ == nil {
			return StatusInvalidArgument
		}
		o.cost += 2 * len(o.typ.sig)
	}
	at := 0
	if a.got(attrObjPath) {
		var taken bool
		at, taken = b.findPath(o.path)
		if taken || o.path == "" {
			return StatusInvalidArgument
		}
		if !allowed(b.rules, &p.cred, rightPublish, o.path, "") {
			return StatusPermissionDenied
		}
	}
	if !p.hold(o.cost) {
		return StatusNoMemory
	}
	o.id = newID(b.objects)
	b.objects[o.id] = o
	p.objects = append(p.objects, o)
	if o.typ != nil {
		if o.typ.refs == 0 {
			o.typ.id = newID(b.types)
			b.types[o.typ.id] = o.typ
		}
		o.typ.refs++
	}
	if o.path != "" {
		b.paths = slices.Insert(b.paths, at, o)
		b.objectEvent("ubus.object.add", o)
	}
	out := appendBlobUint32(m.data(16), attrObjID, o.id)
	if a.got(attrSignature) && o.typ != nil {
		out = appendBlobUint32(out, attrObjType, o.typ.id)
	}
	p.send(message{raw: finish(out)})
	return StatusOK
}

// newType reads a signature; nil if it is malformed.
func newType(sig []byte) *objectType {
	methods, err := parseSignature(sig)
	if err != nil {
		return nil
	}
	t := &objectType{sig: bytes.Clone(sig), methods: make([][2]int, 0, len(methods)), names: make([]string, 0, len(methods))}
	// Padding may be missing behind the last attribute; in what is sent on it
	// must not be.
	t.sig = appendPad(t.sig, 0)
	rest := t.sig
	for i := range methods {
		start := len(t.sig) - len(rest)
		_, _, rest, _ = nextBlob(rest)
		t.methods = append(t.methods, [2]int{start, len(t.sig) - len(rest)})
		t.names = append(t.names, strings.Clone(methods[i].Name))
	}
	return t
}

func (b *Broker) dropObject(p *peer, m *message, a *attrs) Status {
	if !a.got(attrObjID) {
		return StatusInvalidArgument
	}
	o := b.objects[a.objID]
	if o == nil {
		return StatusNotFound
	}
	if o.owner != p {
		return StatusPermissionDenied
	}
	out := appendBlobUint32(m.data(16), attrObjID, o.id)
	if o.typ != nil && o.typ.refs == 1 {
		out = appendBlobUint32(out, attrObjType, o.typ.id)
	}
	p.send(message{raw: finish(out)})
	b.removeObject(o, StatusConnectionFailed)
	return StatusOK
}

// removeObject forgets o and tells whoever had to do with it; callers that still
// wait for an answer get status s.
func (b *Broker) removeObject(o *object, s Status) {
	p := o.owner
	for len(o.targets) > 0 {
		b.unlink(o, o.targets[len(o.targets)-1])
	}
	for _, sub := range o.subscribers {
		sub.targets = deleteOne(sub.targets, o)
		sub.seq++
		out := startMessage(msgUnsubscribe, sub.seq, 0, 16)
		out = appendBlobUint32(out, attrObjID, sub.id)
		out = appendBlobUint32(out, attrTarget, o.id)
		sub.owner.send(message{raw: finish(out)})
		sub.owner.held -= subscriptionCost
	}
	o.subscribers = nil
	if len(o.patterns) > 0 {
		b.listeners = deleteOne(b.listeners, o)
	}
	if o.path != "" {
		b.objectEvent("ubus.object.remove", o)
		if i, ok := b.findPath(o.path); ok {
			b.paths = slices.Delete(b.paths, i, i+1)
		}
	}
	delete(b.objects, o.id)
	p.objects = deleteOne(p.objects, o)
	p.held -= o.cost
	if o.typ != nil {
		if o.typ.refs--; o.typ.refs == 0 {
			delete(b.types, o.typ.id)
		}
	}
	for k, id := range p.calls {
		if id != o.id {
			continue
		}
		delete(p.calls, k)
		if caller := b.clients[k.caller]; caller != nil {
			out := startMessage(msgStatus, k.seq, o.id, 16)
			out = appendBlobUint32(out, attrStatus, uint32(s))
			caller.send(message{raw: finish(appendBlobUint32(out, attrObjID, o.id))})
		}
	}
}

func deleteOne(list []*object, o *object) []*object {
	if i := slices.Index(list, o); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

func (b *Broker) subscribe(p *peer, a *attrs) Status {
	if !a.got(attrObjID, attrTarget) {
		return StatusInvalidArgument
	}
	o, target := b.objects[a.objID], b.objects[a.target]
	switch {
	case o == nil:
		return StatusNotFound
	case o.owner != p:
		return StatusInvalidArgument
	case target == nil || target.owner == nil:
		return StatusNotFound
	case target.owner == p:
		return StatusInvalidArgument
	case target.path == "" && !p.cred.root() && p.cred.uid != target.owner.cred.uid:
		return StatusNotFound
	case target.path != "" && !allowed(b.rules, &p.cred, rightSubscribe, target.path, ""):
		return StatusNotFound // as ubusd: what one may not see is not there
	case slices.Contains(target.subscribers, o):
		return StatusOK
	case !p.hold(subscriptionCost):
		return StatusNoMemory
	}
	target.subscribers = append(target.subscribers, o)
	o.targets = append(o.targets, target)
	if len(target.subscribers) == 1 {
		b.tellActive(target)
	}
	return StatusOK
}

func (b *Broker) unsubscribe(p *peer, a *attrs) Status {
	if !a.got(attrObjID, attrTarget) {
		return StatusInvalidArgument
	}
	o := b.objects[a.objID]
	if o == nil {
		return StatusNotFound
	}
	if o.owner != p {
		return StatusInvalidArgument
	}
	for _, t := range o.targets {
		if t.id == a.target {
			b.unlink(o, t)
			return StatusOK
		}
	}
	return StatusNotFound
}

// unlink ends the subscription of o to target.
func (b *Broker) unlink(o, target *object) {
	o.targets = deleteOne(o.targets, target)
	target.subscribers = deleteOne(target.subscribers, o)
	o.owner.held -= subscriptionCost
	if len(target.subscribers) == 0 {
		b.tellActive(target)
	}
}

// tellActive tells the owner of o whether anybody subscribes.
func (b *Broker) tellActive(o *object) {
	if o.owner.leaving {
		return
	}
	o.seq++
	out := startMessage(msgNotify, o.seq, 0, 16)
	out = appendBlobUint32(out, attrObjID, o.id)
	out = appendBlobBool(out, attrActive, len(o.subscribers) > 0)
	o.owner.send(message{raw: finish(out)})
}

func (b *Broker) notify(p *peer, m *message, a *attrs) Status {
	if !a.got(attrMethod, attrObjID) {
		return StatusInvalidArgument
	}
	o := b.objects[a.objID]
	if o == nil {
		return StatusNotFound
	}
	if o.owner != p {
		return StatusPermissionDenied
	}
	if !a.noReply {
		ids := make([]byte, 0, 8*len(o.subscribers))
		for _, s := range o.subscribers {
			ids = appendBlobUint32(ids, 0, s.id)
		}
		out := startMessage(msgStatus, m.seq(), m.peer(), 32+len(ids))
		out = appendBlobUint32(out, attrObjID, o.id)
		out = appendBlob(out, attrSubscribers, ids)
		out = appendBlobUint32(out, attrStatus, uint32(StatusOK))
		p.send(message{raw: finish(out)})
	}
	for _, s := range o.subscribers {
		b.forward(p, s, m, a, a.noReply, nil)
	}
	return noReply
}

// invokeEvent is the system object for events.
func (b *Broker) invokeEvent(p *peer, a *attrs) Status {
	switch a.method {
	case "register":
		return b.listen(p, a)
	case "send":
		return b.sendEvent(p, a)
	}
	return StatusInvalidCommand
}

func (b *Broker) listen(p *peer, a *attrs) Status {
	args, err := decodeTable(a.data)
	if err != nil {
		return StatusInvalidArgument
	}
	id, ok1 := args.Get("object").(int32)
	text, ok2 := args.Get("pattern").(string)
	if !ok1 || !ok2 || text == "" {
		return StatusInvalidArgument
	}
	o := b.objects[uint32(id)]
	switch {
	case uint32(id) < systemMax:
		return StatusPermissionDenied
	case o == nil:
		return StatusNotFound
	case o.owner != p:
		return StatusPermissionDenied
	}
	if !allowed(b.rules, &p.cred, rightListen, text, "") {
		return StatusPermissionDenied
	}
	pat := pattern{}
	pat.text, pat.prefix = strings.CutSuffix(text, "*")
	pat.text = strings.Clone(pat.text)
	cost := patternCost + len(pat.text)
	if !p.hold(cost) {
		return StatusNoMemory
	}
	o.cost += cost
	if len(o.patterns) == 0 {
		b.listeners = append(b.listeners, o)
	}
	o.patterns = append(o.patterns, pat)
	return StatusOK
}

func (b *Broker) sendEvent(p *peer, a *attrs) Status {
	// The content is passed on as the bytes it came in: only the two
	// attributes are looked for.
	var id string
	var data []byte
	ok1, ok2 := false, false
	rest := a.data
	for {
		name, typ, value, next, ok := nextField(rest)
		if !ok {
			break
		}
		rest = next
		switch {
		case name == "id" && typ == TypeString && !ok1:
			id, ok1 = blobString(value)
		case name == "data" && typ == TypeTable && !ok2:
			data, ok2 = value, true
		}
	}
	if !ok1 || !ok2 {
		return StatusInvalidArgument
	}
	if strings.HasPrefix(id, "ubus.") || !allowed(b.rules, &p.cred, rightSend, id, "") {
		return StatusPermissionDenied
	}
	b.event(p, id, data)
	return StatusOK
}

// nextField splits the first blobmsg attribute off b.
func nextField(b []byte) (name string, t Type, value, rest []byte, ok bool) {
	if len(b) < 4 || b[0]&0x80 == 0 {
		return "", 0, nil, nil, false
	}
	id, data, rest, ok := nextBlob(b)
	if !ok || len(data) < 3 {
		return "", 0, nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(data))
	if 2+n+1 > len(data) || data[2+n] != 0 {
		return "", 0, nil, nil, false
	}
	return string(data[2 : 2+n]), Type(id), data[min(pad4(2+n+1), len(data)):], rest, true
}

// event sends an event to the objects that listen for it, each once, except to
// those of the sender (nil: the broker).
func (b *Broker) event(from *peer, id string, data []byte) {
	for _, o := range b.listeners {
		if o.owner == from || !slices.ContainsFunc(o.patterns, func(p pattern) bool {
			return p.text == id || p.prefix && strings.HasPrefix(id, p.text)
		}) {
			continue
		}
		b.eventSeq++
		out := startMessage(msgInvoke, b.eventSeq, 0, 32+len(id)+len(data))
		out = appendBlobUint32(out, attrObjID, o.id)
		out = appendBlobString(out, attrMethod, id)
		out = appendBlob(out, attrData, data)
		o.owner.send(message{raw: finish(out)})
	}
}

func (b *Broker) objectEvent(id string, o *object) {
	if len(b.listeners) == 0 {
		return
	}
	data, err := Table{{"id", int32(o.id)}, {"path", o.path}}.encode()
	if err != nil {
		return // a path from the wire always fits
	}
	b.event(nil, id, data)
}

// invokeACL is the system object for ACL queries: what the files say about the
// objects of the client that asks.
func (b *Broker) invokeACL(p *peer, m *message, a *attrs) Status {
	if a.method != "query" {
		return StatusInvalidCommand
	}
	list := Array{}
	for _, o := range p.objects {
		for i := range b.rules {
			r := &b.rules[i]
			if o.path == "" || r.extra == nil || !r.matches(o.path) {
				continue
			}
			t := Table{{"obj", o.path}}
			if r.user != "" {
				t = append(t, Attr{"user", r.user})
			}
			if r.group != "" {
				t = append(t, Attr{"group", r.group})
			}
			list = append(list, append(t, Attr{"acl", r.extra}))
		}
	}
	data, err := Table{{"seq", b.aclSeq}, {"acl", list}}.encode()
	if err != nil {
		return StatusNoMemory
	}
	out := appendBlobUint32(m.data(24+len(data)), attrObjID, objACL)
	p.send(message{raw: finish(appendBlob(out, attrData, data))})
	return StatusOK
}

// invokeMonitor is the system object for monitors, which are root's alone.
func (b *Broker) invokeMonitor(p *peer, a *attrs) Status {
	if p.cred.uid != 0 || p.cred.gid != 0 {
		return StatusPermissionDenied
	}
	if a.method != "add" && a.method != "remove" {
		return StatusMethodNotFound
	}
	b.monitors = slices.DeleteFunc(b.monitors, func(m *peer) bool { return m == p })
	delete(b.monitorSeq, p)
	if a.method == "add" {
		b.monitors = append(b.monitors, p)
	}
	return StatusOK
}

// ReloadACL reads the ACL folder again and sends ubus.acl.sequence. Files with
// faults are logged and grant nothing.
func (b *Broker) ReloadACL() {
	rules, err := loadACL(b.acl)
	if err != nil {
		b.log.Error("bus ACL incomplete", "error", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = rules
	b.aclSeq++
	if data, err := (Table{{"sequence", b.aclSeq}}).encode(); err == nil {
		b.event(nil, "ubus.acl.sequence", data)
	}
}
