package uhttpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weft/init/bus"
)

const (
	// maxBody bounds a request to the bus, in bytes (uhttpd, ubus.c).
	maxBody = 64 << 10
	// maxDrained bounds what is read and dropped of a larger one.
	maxDrained = 1 << 20
	// anonymous is the session of who has not logged in.
	anonymous = "00000000000000000000000000000000"
	sidArg    = "ubus_rpc_session"
	// fromArg tells rpcd where a login comes from: an account without a password
	// is open to local networks alone.
	fromArg = "from"
)

// rpcError is an error of JSON-RPC itself.
type rpcError struct {
	code int
	text string
}

func (e *rpcError) Error() string { return e.text }

// The errors of uhttpd's ubus.c.
func errParse() *rpcError   { return &rpcError{-32700, "Parse error"} }
func errMethod() *rpcError  { return &rpcError{-32601, "Method not found"} }
func errParams() *rpcError  { return &rpcError{-32602, "Invalid parameters"} }
func errObject() *rpcError  { return &rpcError{-32000, "Object not found"} }
func errAccess() *rpcError  { return &rpcError{-32002, "Access denied"} }
func errTimeout() *rpcError { return &rpcError{-32003, "ubus request timed out"} }

// rpc answers requests to the bus.
type rpc struct {
	s *server
	i *instance
}

// ServeHTTP handles everything below the prefix.
func (h *rpc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, h.i.prefix), "/")
	h.cors(w, r)
	if r.Method == http.MethodOptions {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		return
	}
	kind, path, _ := strings.Cut(rest, "/")
	switch {
	case r.Method == http.MethodPost && rest == "":
		h.post(w, r, "")
	case r.Method == http.MethodPost && kind == "call" && path != "":
		h.post(w, r, path)
	case r.Method == http.MethodGet && kind == "list":
		h.getList(w, r, path)
	case r.Method == http.MethodGet && kind == "subscribe" && path != "":
		h.subscribe(w, r, path)
	case r.Method == http.MethodPost || r.Method == http.MethodGet:
		http.Error(w, "Bad Request", http.StatusBadRequest)
	default:
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	}
}

// cors lets pages of other origins call, with option ubus_cors.
func (h *rpc) cors(w http.ResponseWriter, r *http.Request) {
	origin := r.Header.Get("Origin")
	if !h.i.cors || origin == "" {
		return
	}
	d := w.Header()
	d.Set("Access-Control-Allow-Origin", origin)
	d.Set("Vary", "Origin")
	if m := r.Header.Get("Access-Control-Request-Method"); m != "" {
		d.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
	}
	if m := r.Header.Get("Access-Control-Request-Headers"); m != "" {
		d.Set("Access-Control-Allow-Headers", "Content-Type, Authorization")
	}
	d.Set("Access-Control-Allow-Credentials", "true")
}

// bearer is the session that the header Authorization names.
func bearer(r *http.Request) string {
	if sid, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && sid != "" {
		return sid
	}
	return anonymous
}

// post answers a request, or several in an array. object is that of the newer
// form, where the URL names it.
func (h *rpc) post(w http.ResponseWriter, r *http.Request, object string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return // the client is gone, or too slow
	}
	if len(body) > maxBody {
		// Some of the rest is read, so that the client gets to see why.
		_, _ = io.CopyN(io.Discard, r.Body, maxDrained) // it may end before
		w.Header().Set("Connection", "close")
		http.Error(w, "Request Entity Too Large", http.StatusRequestEntityTooLarge)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.i.script)
	defer cancel()
	c := &call{rpc: h, from: h.s.client(r), header: w.Header()}
	var out []byte
	v, ok := parseBody(body)
	switch v := v.(type) {
	case bus.Array:
		if !ok {
			break
		}
		out = append(out, '[')
		for n, e := range v {
			if n > 0 {
				out = append(out, ',')
			}
			out = append(out, c.answer(ctx, e, object, bearer(r))...)
		}
		out = append(out, ']')
	default:
		out = c.answer(ctx, v, object, bearer(r))
	}
	h.json(w, r, out)
}

// parseBody reads a JSON value as json-c does.
func parseBody(body []byte) (any, bool) {
	t, err := bus.ParseJSON(`{"v":` + string(body) + "\n}")
	if err != nil || len(t) != 1 {
		return nil, false
	}
	return t[0].Value, true
}

// json sends a reply in chunks, as uhttpd does.
func (h *rpc) json(w http.ResponseWriter, r *http.Request, b []byte) {
	d := w.Header()
	d.Set("Content-Type", "application/json")
	d.Set("Cache-Control", "no-store")
	if h.i.keepAlive > 0 && r.ProtoAtLeast(1, 1) && !r.Close {
		d.Set("Connection", "Keep-Alive")
		d.Set("Keep-Alive", "timeout="+strconv.Itoa(int(h.i.keepAlive/time.Second)))
	}
	if r.ProtoAtLeast(1, 1) {
		d.Set("Transfer-Encoding", "chunked")
	}
	w.Write(b)
}

// call is what the requests of one POST have in common.
type call struct {
	*rpc
	from   netip.Addr
	header http.Header
}

// answer handles one request and returns the text of the reply.
func (c *call) answer(ctx context.Context, v any, object, sid string) []byte {
	req, _ := v.(bus.Table)
	id := req.Get("id")
	result, err := c.request(ctx, req, object, sid)
	out := bus.Table{{Name: "jsonrpc", Value: "2.0"}, {Name: "id", Value: id}}
	if err != nil {
		out = append(out, bus.Attr{Name: "error", Value: bus.Table{{Name: "code", Value: err.code}, {Name: "message", Value: err.text}}})
	} else {
		out = append(out, bus.Attr{Name: "result", Value: result})
	}
	return out.AppendJSON(nil, false)
}

func (c *call) request(ctx context.Context, req bus.Table, object, sid string) (any, *rpcError) {
	method, ok := req.Get("method").(string)
	if req.String("jsonrpc") != "2.0" || !ok {
		return nil, errParse()
	}
	if object != "" {
		args, ok := req.Get("params").(bus.Table)
		if !ok && req.Get("params") != nil {
			return nil, errParse()
		}
		data, status, err := c.invoke(ctx, sid, object, method, args)
		switch {
		case err != nil:
			return nil, err
		case status != bus.StatusOK:
			return nil, &rpcError{int(status), status.Error()}
		}
		if data == nil {
			data = bus.Table{}
		}
		return data, nil
	}
	params, ok := req.Get("params").(bus.Array)
	switch method {
	case "list":
		if !ok && req.Get("params") != nil {
			return nil, errParse()
		}
		return c.list(ctx, params)
	case "call":
		if !ok || len(params) != 4 {
			return nil, errParse()
		}
		sid, ok1 := params[0].(string)
		object, ok2 := params[1].(string)
		method, ok3 := params[2].(string)
		args, ok4 := params[3].(bus.Table)
		if !ok1 || !ok2 || !ok3 || !ok4 {
			return nil, errParse()
		}
		data, status, err := c.invoke(ctx, sid, object, method, args)
		if err != nil {
			return nil, err
		}
		result := bus.Array{int(status)}
		if data != nil {
			result = append(result, data)
		}
		return result, nil
	}
	return nil, errMethod()
}

// list answers the method list: names, or methods of what the patterns name.
func (c *rpc) list(ctx context.Context, patterns bus.Array) (any, *rpcError) {
	if len(patterns) == 0 {
		all, err := c.s.bus.Lookup(ctx, "")
		if err != nil && !errors.Is(err, bus.StatusNotFound) {
			return nil, failure(err)
		}
		names := make(bus.Array, 0, len(all))
		for _, o := range all {
			names = append(names, o.Path)
		}
		return names, nil
	}
	out := bus.Table{}
	for _, p := range patterns {
		pattern, ok := p.(string)
		if !ok || pattern == "" {
			return nil, errParse()
		}
		all, err := c.s.bus.Lookup(ctx, pattern)
		if errors.Is(err, bus.StatusNotFound) {
			continue
		}
		if err != nil {
			return nil, failure(err)
		}
		for _, o := range all {
			if !out.Has(o.Path) {
				out = append(out, bus.Attr{Name: o.Path, Value: methods(o)})
			}
		}
	}
	return out, nil
}

// methods describes an object: its methods, their arguments, the types of these.
func methods(o bus.ObjectInfo) bus.Table {
	t := bus.Table{}
	for _, m := range o.Methods {
		args := bus.Table{}
		for _, a := range m.Args {
			args = append(args, bus.Attr{Name: a.Name, Value: typeName(a.Type)})
		}
		t = append(t, bus.Attr{Name: m.Name, Value: args})
	}
	return t
}

func typeName(t bus.Type) string {
	switch t {
	case bus.TypeBool:
		return "boolean"
	case bus.TypeInt16, bus.TypeInt32, bus.TypeInt64, bus.TypeDouble:
		return "number"
	case bus.TypeString:
		return "string"
	case bus.TypeArray:
		return "array"
	case bus.TypeTable:
		return "object"
	}
	return "unknown"
}

// failure is the error of JSON-RPC for one of the bus that is no answer of the
// object's.
func failure(err error) *rpcError {
	if errors.Is(err, bus.StatusTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return errTimeout()
	}
	return &rpcError{-32603, "Internal error"}
}

// invoke makes one call in the name of a session.
func (c *call) invoke(ctx context.Context, sid, object, method string, args bus.Table) (bus.Table, bus.Status, *rpcError) {
	if strings.HasSuffix(object, "*") || object == "" {
		return nil, 0, errObject()
	}
	if _, err := c.s.bus.Lookup(ctx, object); errors.Is(err, bus.StatusNotFound) {
		return nil, 0, errObject()
	} else if err != nil {
		return nil, 0, failure(err)
	}
	if args.Has(sidArg) {
		return nil, 0, errParams()
	}
	if ok, err := c.allowed(ctx, sid, object, method); err != nil {
		return nil, 0, err
	} else if !ok {
		return nil, 0, errAccess()
	}
	login := object == "session" && method == "login"
	if login {
		if wait := c.s.failures.Wait(c.from, time.Now()); wait > 0 {
			// Not even looked at: the right password would not help either.
			c.header.Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
			return nil, bus.StatusPermissionDenied, nil
		}
	}
	full := make(bus.Table, 0, len(args)+2)
	full = append(full, bus.Attr{Name: sidArg, Value: sid})
	for _, a := range args {
		if !login || a.Name != fromArg {
			full = append(full, a)
		}
	}
	if login {
		full = append(full, bus.Attr{Name: fromArg, Value: c.from.String()})
	}
	data, err := c.s.bus.Call(ctx, object, method, full)
	if err == nil {
		if login {
			c.s.failures.Good(c.from)
		}
		return data, bus.StatusOK, nil
	}
	var status bus.Status
	if ctx.Err() != nil || !errors.As(err, &status) {
		return nil, 0, failure(err)
	}
	if login && status == bus.StatusPermissionDenied {
		if wait := c.s.failures.Fail(c.from, time.Now()); wait > 0 {
			c.s.log.Warn("too many failed logins, they are refused", "from", c.from, "for", wait)
		}
	}
	return data, status, nil
}

// allowed asks whether a session may use a function of an object on the bus.
func (c *rpc) allowed(ctx context.Context, sid, object, function string) (bool, *rpcError) {
	t, err := c.s.bus.Call(ctx, "session", "access", bus.Table{
		{Name: sidArg, Value: sid}, {Name: "object", Value: object}, {Name: "function", Value: function},
	})
	switch {
	case err == nil:
		ok, _ := t.Get("access").(bool)
		return ok, nil
	case ctx.Err() != nil:
		return false, errTimeout()
	}
	return false, nil // no such session, or nobody who knows them
}

// getList answers GET /ubus/list[/PATH]: objects with their methods, or the
// methods of one.
func (h *rpc) getList(w http.ResponseWriter, r *http.Request, path string) {
	ctx, cancel := context.WithTimeout(r.Context(), h.i.script)
	defer cancel()
	all, err := h.s.bus.Lookup(ctx, path)
	switch {
	case errors.Is(err, bus.StatusNotFound) && path != "":
		http.Error(w, "Not Found", http.StatusNotFound)
		return
	case err != nil && !errors.Is(err, bus.StatusNotFound):
		http.Error(w, "Bus Not Available", http.StatusServiceUnavailable)
		return
	}
	out := bus.Table{}
	for _, o := range all {
		if path != "" && !strings.HasSuffix(path, "*") {
			out = append(out, methods(o)...)
			continue
		}
		out = append(out, bus.Attr{Name: o.Path, Value: methods(o)})
	}
	h.json(w, r, out.AppendJSON(nil, false))
}

const (
	// maxStreams bounds the event streams, maxQueued the events that wait in one.
	maxStreams, maxQueued = 16, 64
	// heartbeat keeps a stream from looking dead, and finds out if it is.
	heartbeat = 20 * time.Second
)

// subscribe answers GET /ubus/subscribe/PATH with the notifications of an object
// as server-sent events.
func (h *rpc) subscribe(w http.ResponseWriter, r *http.Request, path string) {
	ctx, cancel := context.WithTimeout(r.Context(), h.i.script)
	defer cancel()
	if _, err := h.s.bus.Lookup(ctx, path); err != nil || strings.HasSuffix(path, "*") {
		http.Error(w, "Not Found", http.StatusNotFound)
		return
	}
	if ok, err := h.allowed(ctx, bearer(r), path, ":subscribe"); err != nil || !ok {
		http.Error(w, "Forbidden", http.StatusForbidden)
		return
	}
	select {
	case h.s.streams <- struct{}{}:
		defer func() { <-h.s.streams }()
	default:
		http.Error(w, "Too Many Event Streams", http.StatusServiceUnavailable)
		return
	}
	events := make(chan string, maxQueued)
	slow := make(chan struct{}, 1)
	stop, err := h.s.bus.Subscribe(path, func(method string, data bus.Table) {
		select {
		case events <- fmt.Sprintf("event: %s\ndata: %s\n\n", oneLine(method), data.AppendJSON(nil, false)):
		default:
			select {
			case slow <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		http.Error(w, "Bus Not Available", http.StatusServiceUnavailable)
		return
	}
	defer stop()
	d := w.Header()
	d.Set("Content-Type", "text/event-stream")
	d.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return
	}
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		var text string
		select {
		case <-r.Context().Done():
			return
		case <-h.s.ctx.Done():
			return
		case <-slow: // a gap must not go unseen: the client starts anew
			return
		case text = <-events:
		case <-tick.C:
			text = ":\n\n"
		}
		if _, err := io.WriteString(w, text); err != nil || out.Flush() != nil {
			return
		}
	}
}

// oneLine keeps a name from beginning a field of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return ' '
		}
		return r
	}, s)
}
