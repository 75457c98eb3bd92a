package rpcd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/crypt"
	"weft/init/uci"
	"weft/init/uci/pending"
)

const (
	// anonymous is the session of callers that have not logged in.
	anonymous = "00000000000000000000000000000000"
	// defaultTimeout of a session without use, in seconds.
	defaultTimeout = 300
	maxSessions    = 512
	// maxOfUser bounds the sessions of one login: the one used longest ago makes
	// place for a new one, so that whoever has a password cannot lock others out.
	maxOfUser = 32
	// maxData bounds what set may keep in one session, in bytes of JSON.
	maxData = 64 << 10
)

// grant lets a session use a function of an object; both are patterns.
type grant struct{ Object, Function string }

type session struct {
	id      string
	timeout int // seconds, 0: for ever
	grants  map[string][]grant
	data    map[string]any
	expires time.Time
	used    time.Time
	timer   *time.Timer
}

// saved is a session on disk.
type saved struct {
	Timeout int
	Grants  map[string][]grant
	Data    bus.Table
}

// allowed says whether the session may use function of object in scope.
func (ses *session) allowed(scope, object, function string) bool {
	return slices.ContainsFunc(ses.grants[scope], func(g grant) bool {
		return match(g.Object, object) && match(g.Function, function)
	})
}

func (ses *session) grant(scope, object, function string) {
	g := grant{object, function}
	if !slices.Contains(ses.grants[scope], g) {
		ses.grants[scope] = append(ses.grants[scope], g)
	}
}

// acls is the form of the grants in replies: scope, object, functions.
func (ses *session) acls() bus.Table {
	t := bus.Table{}
	for _, scope := range slices.Sorted(maps.Keys(ses.grants)) {
		byObject := map[string]bus.Array{}
		for _, g := range ses.grants[scope] {
			byObject[g.Object] = append(byObject[g.Object], g.Function)
		}
		objects := bus.Table{}
		for _, o := range slices.Sorted(maps.Keys(byObject)) {
			objects = append(objects, bus.Attr{Name: o, Value: byObject[o]})
		}
		t = append(t, bus.Attr{Name: scope, Value: objects})
	}
	return t
}

// values is the form of the data in replies; all of it without keys.
func (ses *session) values(keys []string) bus.Table {
	if keys == nil {
		keys = slices.Sorted(maps.Keys(ses.data))
	}
	t := bus.Table{}
	for _, k := range keys {
		if v, ok := ses.data[k]; ok {
			t = append(t, bus.Attr{Name: k, Value: v})
		}
	}
	return t
}

func (ses *session) dump() bus.Table {
	left := 0
	if ses.timeout > 0 {
		left = max(0, int((time.Until(ses.expires)+time.Second-1)/time.Second)) // begun seconds count
	}
	return bus.Table{
		{Name: sidArg, Value: ses.id}, {Name: "timeout", Value: ses.timeout}, {Name: "expires", Value: left},
		{Name: "acls", Value: ses.acls()}, {Name: "data", Value: ses.values(nil)},
	}
}

// find returns a live session and re-arms its timer. s.mu is held.
func (s *server) find(sid string) *session {
	ses := s.sessions[sid]
	if ses != nil && ses.timeout > 0 {
		d := time.Duration(ses.timeout) * time.Second
		ses.used = time.Now()
		ses.expires = ses.used.Add(d)
		ses.timer.Reset(d)
	}
	return ses
}

// sessionOf returns the session that a session method speaks of.
func (s *server) sessionOf(args bus.Table) (*session, error) {
	sid, ok := str(args, sidArg)
	if !ok {
		return nil, bus.StatusInvalidArgument
	}
	ses := s.find(sid)
	if ses == nil {
		return nil, bus.StatusNotFound
	}
	return ses, nil
}

// caller returns the session in whose name a call is made, nil for a call
// without one. A session that is not there is StatusPermissionDenied.
func (s *server) caller(args bus.Table) (*session, error) {
	if !args.Has(sidArg) {
		return nil, nil
	}
	sid, _ := str(args, sidArg)
	ses := s.find(sid)
	if ses == nil {
		return nil, bus.StatusPermissionDenied
	}
	return ses, nil
}

// may says whether the caller has a grant; without a session it may do all.
func may(ses *session, scope, object, function string) bool {
	return ses == nil || ses.allowed(scope, object, function)
}

func (s *server) newSession(id string, timeout int) *session {
	ses := &session{id: id, timeout: timeout, grants: map[string][]grant{}, data: map[string]any{}}
	ses.timer = s.after(time.Hour, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		// It may have been used, or be another, since the timer fired.
		if s.sessions[id] == ses && !time.Now().Before(ses.expires) {
			s.drop(ses)
		}
	})
	if timeout <= 0 {
		ses.timer.Stop()
	}
	s.sessions[id] = ses
	return s.find(id)
}

func (s *server) createSession(timeout int) (*session, error) {
	if len(s.sessions) >= maxSessions {
		return nil, fmt.Errorf("create a session: there are %d already: %w", len(s.sessions), bus.StatusNoMemory)
	}
	if timeout < 0 || timeout > 1<<30 {
		return nil, fmt.Errorf("create a session: timeout of %d seconds: %w", timeout, bus.StatusInvalidArgument)
	}
	var id [16]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	return s.newSession(hex.EncodeToString(id[:]), timeout), nil
}

// drop ends a session and its staged changes.
func (s *server) drop(ses *session) {
	ses.timer.Stop()
	delete(s.sessions, ses.id)
	for _, p := range []string{s.stagingDir(ses.id), s.sessionFile(ses.id)} {
		if err := os.RemoveAll(p); err != nil {
			s.log.Error("cannot clean up after a session", "error", err)
		}
	}
}

func (s *server) sessionFile(sid string) string { return filepath.Join(s.stateDir, "sessions", sid) }

// keep writes a session to disk, so that a crash does not log everybody out.
func (s *server) keep(ses *session) {
	if ses.id == anonymous {
		return
	}
	b, err := json.Marshal(saved{ses.timeout, ses.grants, ses.values(nil)})
	if err == nil {
		err = os.MkdirAll(filepath.Join(s.stateDir, "sessions"), 0o700)
	}
	if err == nil {
		err = pending.ReplaceFile(s.sessionFile(ses.id), b, 0o600)
	}
	if err != nil {
		s.log.Error("session will not outlive a restart", "error", err)
	}
}

// restoreSessions takes up the sessions of an earlier run, their time full.
func (s *server) restoreSessions() {
	entries, _ := os.ReadDir(filepath.Join(s.stateDir, "sessions"))
	for _, e := range entries {
		if !validSID(e.Name()) || e.Name() == anonymous {
			os.Remove(s.sessionFile(e.Name()))
			continue
		}
		var v saved
		b, err := os.ReadFile(s.sessionFile(e.Name()))
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		if err != nil {
			s.log.Warn("session of an earlier run not taken up", "error", err)
			os.Remove(s.sessionFile(e.Name()))
			continue
		}
		ses := s.newSession(e.Name(), v.Timeout)
		maps.Copy(ses.grants, v.Grants)
		for _, a := range v.Data {
			ses.data[a.Name] = a.Value
		}
	}
}

// validSID says whether id can be a session's: it names files.
func validSID(id string) bool {
	return len(id) == len(anonymous) && strings.Trim(id, "0123456789abcdef") == ""
}

func (s *server) newAnonymous() { s.grantGroups(s.newSession(anonymous, 0), nil) }

// reloadACL reads the grants of the anonymous session again; others keep theirs
// until they log in again.
func (s *server) reloadACL() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions[anonymous].grants)
	s.grantGroups(s.sessions[anonymous], nil)
}

// grantGroups gives a session what the ACL files grant to the groups of login,
// or to the group "unauthenticated" without one.
func (s *server) grantGroups(ses *session, login *uci.Section) {
	files, err := filepath.Glob(filepath.Join(s.aclDir, "*.json"))
	if err != nil {
		s.log.Error("cannot list ACL files", "folder", s.aclDir, "error", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		var t bus.Table
		if err == nil {
			t, err = bus.ParseJSON(string(b))
		}
		if err != nil {
			s.log.Error("ACL file grants nothing", "file", name, "error", err)
			continue
		}
		grantFile(ses, login, t)
	}
}

// grantFile handles one file: {group: {read|write: {scope: …}}}, where a scope
// is {object: [functions]}, or [objects] with "read" or "write" as function.
func grantFile(ses *session, login *uci.Section, t bus.Table) {
	for _, group := range t {
		perms, _ := group.Value.(bus.Table)
		for _, perm := range perms {
			scopes, ok := perm.Value.(bus.Table)
			if !ok || perm.Name != "read" && perm.Name != "write" || !inGroup(login, perm.Name, group.Name) {
				continue
			}
			for _, scope := range scopes {
				switch v := scope.Value.(type) {
				case bus.Table:
					for _, object := range v {
						functions, _ := object.Value.(bus.Array)
						for _, f := range functions {
							if f, ok := f.(string); ok {
								ses.grant(scope.Name, object.Name, f)
							}
						}
					}
				case bus.Array:
					for _, object := range v {
						if o, ok := object.(string); ok {
							ses.grant(scope.Name, o, perm.Name)
						}
					}
				}
				// So that clients can ask for a whole group.
				ses.grant("access-group", group.Name, perm.Name)
			}
		}
	}
}

// inGroup says whether a login has a permission of a group: its list read or
// write has a pattern for the group and none that starts with "!". Write
// includes read.
func inGroup(login *uci.Section, perm, group string) bool {
	if login == nil {
		return group == "unauthenticated"
	}
	if o := login.Option(perm); o != nil && o.IsList {
		granted := false
		for _, p := range o.Values {
			if not, ok := strings.CutPrefix(p, "!"); ok {
				if match(strings.TrimSpace(not), group) {
					return false
				}
			} else if match(p, group) {
				granted = true
			}
		}
		if granted {
			return true
		}
	}
	return perm == "read" && inGroup(login, "write", group)
}

func (s *server) sessionCreate(_ context.Context, args bus.Table, reply func(any) error) error {
	a := struct {
		Timeout int `json:"timeout"`
	}{defaultTimeout}
	if err := args.Decode(&a); err != nil {
		return err
	}
	s.mu.Lock()
	ses, err := s.createSession(a.Timeout)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	s.keep(ses)
	out := ses.dump()
	s.mu.Unlock()
	return reply(out)
}

func (s *server) sessionList(_ context.Context, args bus.Table, reply func(any) error) error {
	var out []bus.Table
	s.mu.Lock()
	if _, ok := str(args, sidArg); ok {
		ses, err := s.sessionOf(args)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		out = append(out, ses.dump())
	} else {
		for _, id := range slices.Sorted(maps.Keys(s.sessions)) {
			out = append(out, s.sessions[id].dump())
		}
	}
	s.mu.Unlock()
	for _, t := range out {
		if err := reply(t); err != nil {
			return err
		}
	}
	return nil
}

// pairs reads [[object, function], …].
func pairs(args bus.Table) (list []grant, given bool) {
	objects, given := args.Get("objects").(bus.Array)
	for _, v := range objects {
		pair, _ := v.(bus.Array)
		var texts []string
		for _, p := range pair {
			if p, ok := p.(string); ok {
				texts = append(texts, p)
			}
		}
		if len(texts) >= 2 {
			list = append(list, grant{texts[0], texts[1]})
		}
	}
	return list, given
}

func scopeOf(args bus.Table) string {
	if scope, ok := str(args, "scope"); ok {
		return scope
	}
	return "ubus"
}

func (s *server) sessionGrant(_ context.Context, args bus.Table, _ func(any) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.sessionOf(args)
	if err != nil {
		return err
	}
	list, given := pairs(args)
	if !given {
		return bus.StatusInvalidArgument
	}
	for _, g := range list {
		ses.grant(scopeOf(args), g.Object, g.Function)
	}
	s.keep(ses)
	return nil
}

func (s *server) sessionRevoke(_ context.Context, args bus.Table, _ func(any) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.sessionOf(args)
	if err != nil {
		return err
	}
	scope := scopeOf(args)
	list, given := pairs(args)
	left := slices.DeleteFunc(ses.grants[scope], func(g grant) bool { return !given || slices.Contains(list, g) })
	if len(left) == 0 {
		delete(ses.grants, scope)
	} else {
		ses.grants[scope] = left
	}
	s.keep(ses)
	return nil
}

func (s *server) sessionAccess(_ context.Context, args bus.Table, reply func(any) error) error {
	s.mu.Lock()
	ses, err := s.sessionOf(args)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	var out bus.Table
	object, ok1 := str(args, "object")
	function, ok2 := str(args, "function")
	if ok1 && ok2 {
		out = bus.Table{{Name: "access", Value: ses.allowed(scopeOf(args), object, function)}}
	} else {
		out = ses.acls()
	}
	s.mu.Unlock()
	return reply(out)
}

func (s *server) sessionSet(_ context.Context, args bus.Table, _ func(any) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.sessionOf(args)
	if err != nil {
		return err
	}
	values, ok := args.Get("values").(bus.Table)
	if !ok {
		return bus.StatusInvalidArgument
	}
	data := maps.Clone(ses.data)
	for _, a := range values {
		if a.Name != "" {
			data[a.Name] = a.Value
		}
	}
	old := ses.data
	ses.data = data
	if n := len(ses.values(nil).AppendJSON(nil, false)); n > maxData {
		ses.data = old
		return fmt.Errorf("set data of a session: %d bytes, at most %d: %w", n, maxData, bus.StatusNoMemory)
	}
	s.keep(ses)
	return nil
}

// keysOf reads the argument keys, nil if there is none.
func keysOf(args bus.Table) []string {
	list, ok := args.Get("keys").(bus.Array)
	if !ok {
		return nil
	}
	keys := make([]string, 0, len(list))
	for _, k := range list {
		if k, ok := k.(string); ok {
			keys = append(keys, k)
		}
	}
	return keys
}

func (s *server) sessionGet(_ context.Context, args bus.Table, reply func(any) error) error {
	s.mu.Lock()
	ses, err := s.sessionOf(args)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	out := ses.values(keysOf(args))
	s.mu.Unlock()
	return reply(bus.Table{{Name: "values", Value: out}})
}

func (s *server) sessionUnset(_ context.Context, args bus.Table, _ func(any) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.sessionOf(args)
	if err != nil {
		return err
	}
	if keys := keysOf(args); keys != nil {
		for _, k := range keys {
			delete(ses.data, k)
		}
	} else {
		clear(ses.data)
	}
	s.keep(ses)
	return nil
}

func (s *server) sessionDestroy(_ context.Context, args bus.Table, _ func(any) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sid, _ := str(args, sidArg); sid == anonymous {
		return bus.StatusPermissionDenied
	}
	ses, err := s.sessionOf(args)
	if err != nil {
		return err
	}
	s.drop(ses)
	return nil
}

// sessionLogin checks a password and makes a session with what the login's
// groups grant. If the user has an apply to confirm, it is that session again.
func (s *server) sessionLogin(_ context.Context, args bus.Table, reply func(any) error) error {
	a := struct {
		Username *string `json:"username"`
		Password *string `json:"password"`
		Timeout  int     `json:"timeout"`
		From     *string `json:"from"` // the client's address, from the web server
	}{Timeout: defaultTimeout}
	if err := args.Decode(&a); err != nil {
		return err
	}
	if a.Username == nil || a.Password == nil {
		return bus.StatusInvalidArgument
	}
	login, err := s.checkLogin(*a.Username, *a.Password, a.From == nil || private(*a.From))
	if err != nil {
		return err
	}
	if login == nil {
		s.log.Warn("login failed", "user", *a.Username)
		return bus.StatusPermissionDenied
	}
	s.mu.Lock()
	ses := s.pendingSession(*a.Username)
	if ses == nil {
		s.makePlace(*a.Username)
		if ses, err = s.createSession(a.Timeout); err != nil {
			s.mu.Unlock()
			return err
		}
		s.grantGroups(ses, login)
		ses.data["username"] = *a.Username
		s.keep(ses)
	}
	out := ses.dump()
	s.mu.Unlock()
	s.log.Info("login", "user", *a.Username)
	return reply(out)
}

// makePlace drops the oldest session of a user that has as many as it may.
func (s *server) makePlace(user string) {
	var oldest *session
	n := 0
	for _, ses := range s.sessions {
		if ses.data["username"] != user || ses.timeout == 0 {
			continue
		}
		n++
		if s.pending != nil && s.pending.SID == ses.id {
			continue
		}
		if oldest == nil || ses.used.Before(oldest.used) {
			oldest = ses
		}
	}
	if n >= maxOfUser && oldest != nil {
		s.log.Info("too many sessions of a user, the one used longest ago ends", "user", user)
		s.drop(oldest)
	}
}

// pendingSession is the session of user that has an apply to confirm.
func (s *server) pendingSession(user string) *session {
	if s.pending == nil {
		return nil
	}
	if ses := s.sessions[s.pending.SID]; ses != nil && ses.data["username"] == user {
		return s.find(ses.id)
	}
	return nil
}

// private says whether an address is one of local networks (RFC 1918, 4193, 3927,
// 4291): there a device without a password is open, as LEDE's is, to the internet
// never.
func private(addr string) bool {
	a, err := netip.ParseAddr(addr)
	a = a.Unmap()
	return err == nil && (a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast())
}

// checkLogin returns the login section that takes name and password, nil if
// none does. Accounts without a password take part if blank.
func (s *server) checkLogin(name, password string, blank bool) (*uci.Section, error) {
	s.login.Lock()
	defer s.login.Unlock()
	p, err := s.tree(nil).Load("rpcd")
	if err != nil {
		return nil, fmt.Errorf("look for logins: %w", err)
	}
	for _, sec := range p.SectionsOfType("login") {
		if u := sec.Option("username"); u == nil || u.IsList || sec.String("username", "") != name {
			continue
		}
		if o := sec.Option("password"); o == nil || o.IsList {
			continue
		}
		if s.passwordFits(sec.String("password", ""), password, blank) {
			return sec, nil
		}
	}
	return nil, nil
}

// passwordFits checks against a crypt hash, or "$p$user" for that user's. An
// account whose hash is empty takes any password if blank, a locked one none.
func (s *server) passwordFits(hash, password string, blank bool) bool {
	if user, ok := strings.CutPrefix(hash, "$p$"); ok {
		if hash, ok = s.accountHash(user); !ok {
			return false
		}
		if hash == "" {
			return blank
		}
	}
	return crypt.Verify(hash, password)
}

// accountHash looks a user's hash up in the shadow and passwd files.
func (s *server) accountHash(user string) (string, bool) {
	for _, file := range s.passwd {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
			if len(f) == 3 && f[0] == user {
				return f[1], true
			}
		}
	}
	return "", false
}
