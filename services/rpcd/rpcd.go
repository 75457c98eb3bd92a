// Package rpcd is the service behind web interfaces and remote managers: it
// publishes the objects session (logins and what they may do), uci (configuration
// with staging for each session, and apply with rollback), file (files and
// commands), rc (start scripts), rpc-sys (the device) and those of plugins, with
// the methods, statuses and access rules of LEDE's rpcd.
//
// A call that carries the argument ubus_rpc_session is held to that session's
// grants; one without comes from a program of root, and may do all. Programs of
// others, such as the web server, need a session that may make the call; a
// service without root may read the packages that it follows.
package rpcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/uci/pending"
	"weft/init/unit"
)

// defaultACLDir holds the files that say which login group may do what.
const defaultACLDir = "/usr/share/rpcd/acl.d"

// eventTimeout bounds the telling of one configuration change.
const eventTimeout = 2 * time.Second

// server is the state of the service.
type server struct {
	log       *slog.Logger
	configDir string
	stateDir  string // sessions, staging folders, staged changes of the pending apply
	keepDir   string // the pending apply, on what outlives a power cut
	aclDir    string
	busPath   string
	varState  string   // folder of uci's volatile state
	passwd    []string // shadow and passwd files, in the order of asking
	now       func() time.Duration
	bootID    string

	prog programs
	self string // the user this program runs as

	// call asks another object on the bus.
	call func(ctx context.Context, object, method string, args any) (bus.Table, error)
	// changed tells the services that packages were committed.
	changed func(ctx context.Context, pkgs []string)

	execs chan struct{} // places for commands that run at the same time
	login sync.Mutex    // one password check at a time: it is meant to be slow

	uciMu sync.Mutex // one change of configuration at a time; taken before mu

	mu       sync.Mutex
	ctx      context.Context
	ended    bool
	sessions map[string]*session
	pending  *pendingApply  // changed with uciMu held as well
	work     sync.WaitGroup // timers that fired
}

// Run serves until ctx ends. SIGHUP, or a change of the package rpcd, reads the
// ACL files of the anonymous session again. An argument replaces the ACL folder.
func Run(ctx context.Context, env *unit.Env) error {
	s := &server{
		log: env.Log, configDir: env.ConfigDir, stateDir: env.StateDir, aclDir: defaultACLDir, busPath: env.BusPath,
		varState: "/var/state", passwd: []string{"/etc/shadow", "/etc/passwd"}, now: bootTime, bootID: bootID(), prog: devicePrograms(),
		self: userName(),
	}
	if s.keepDir = pending.Dir; s.configDir != uci.DefaultConfDir {
		s.keepDir = filepath.Join(s.stateDir, "apply") // not the configuration of this machine
	}
	switch len(env.Args) {
	case 0:
	case 1:
		s.aclDir = env.Call.Path(env.Args[0])
	default:
		return fmt.Errorf("unexpected argument %q: at most the folder of the ACL files is taken", env.Args[1])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := bus.Connect(ctx, env.BusPath, env.Log)
	defer client.Close()
	s.call = client.Call
	s.changed = func(ctx context.Context, pkgs []string) { tellServices(ctx, client, s.log, pkgs) }
	if err := s.start(ctx); err != nil {
		return err
	}
	defer s.stop()
	for _, o := range s.objects() {
		s.guard(o)
		if _, err := client.Publish(o); err != nil {
			return err
		}
	}
	env.Health(func(ctx context.Context) error { return client.Ping(ctx) })
	select {
	case <-client.Connected():
	case <-ctx.Done():
		return nil
	}
	// Published once the broker lists it.
	if err := awaitObject(ctx, client, "uci"); err != nil {
		return err
	}
	env.Ready()
	p := pluginSet{s: s, client: client}
	p.load(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-env.Reload():
			env.Reloading()
			s.reloadACL()
			p.load(ctx)
			env.Ready()
		}
	}
}

// pluginSet are the objects of plugins on the bus.
type pluginSet struct {
	s         *server
	client    *bus.Client
	published []*bus.Published
}

// load publishes what the plugins offer now instead of what they offered before.
func (p *pluginSet) load(ctx context.Context) {
	for _, o := range p.published {
		if err := o.Close(); err != nil {
			p.s.log.Warn("plugin not taken off the bus", "error", err)
		}
	}
	p.published = nil
	for _, o := range p.s.plugins(ctx) {
		p.s.guard(o)
		pub, err := p.client.Publish(o)
		if err != nil {
			p.s.log.Error("plugin not on the bus", "plugin", o.Name, "error", err)
			continue
		}
		p.published = append(p.published, pub)
	}
}

// guard holds calls of programs that are not root's to the session they name. The
// web server is trusted with connections, not with rights.
func (s *server) guard(o *bus.Object) {
	for i, m := range o.Methods {
		o.Methods[i].Handle = func(ctx context.Context, r *bus.Request) error {
			if err := s.mayCall(r.User, o.Name, m.Name, r.Args); err != nil {
				return err
			}
			return m.Handle(ctx, r)
		}
	}
}

// serviceReads are the packages that services without root may read: the files
// belong to root, and each may know what it follows.
func serviceReads(user string) []string {
	if user == "dnsmasq" {
		return []string{"dhcp", "network"}
	}
	return nil
}

func (s *server) mayCall(user, object, method string, args bus.Table) error {
	if user == "root" || user == s.self || object == "session" && method == "access" {
		return nil // asking for a right gives none
	}
	if object == "uci" && method == "get" && !args.Has("ubus_rpc_session") && slices.Contains(serviceReads(user), args.String("config")) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.caller(args)
	if err != nil || ses == nil || !ses.allowed("ubus", object, method) {
		return bus.StatusPermissionDenied
	}
	return nil
}

// awaitObject waits until path can be found on the bus.
func awaitObject(ctx context.Context, client *bus.Client, path string) error {
	added := make(chan struct{}, 1)
	cancel, err := client.OnEvent("ubus.object.add", func(_ string, data bus.Table) {
		if data.String("path") == path {
			select {
			case added <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		return err
	}
	defer cancel()
	if _, err := client.Lookup(ctx, path); err == nil || ctx.Err() != nil {
		return nil
	}
	select {
	case <-added:
	case <-ctx.Done():
	}
	return nil
}

// start prepares the state folder and takes up what an earlier run left.
func (s *server) start(ctx context.Context) error {
	s.ctx = ctx
	s.sessions = map[string]*session{}
	s.execs = make(chan struct{}, maxExecs)
	if err := os.MkdirAll(s.stateDir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	s.mu.Lock()
	s.newAnonymous()
	s.restoreSessions()
	s.purgeStaging()
	s.mu.Unlock()
	return s.resumeApply()
}

// stop ends timers and waits for what they started.
func (s *server) stop() {
	s.mu.Lock()
	s.ended = true
	for _, ses := range s.sessions {
		ses.timer.Stop()
	}
	if s.pending != nil {
		s.pending.timer.Stop()
	}
	s.mu.Unlock()
	s.work.Wait()
}

// after runs f, unless the service has ended, when d has passed.
func (s *server) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() {
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			return
		}
		s.work.Add(1)
		s.mu.Unlock()
		defer s.work.Done()
		f()
	})
}

// tellServices sends config.change for each package through the supervisor.
func tellServices(ctx context.Context, client *bus.Client, log *slog.Logger, pkgs []string) {
	for _, p := range pkgs {
		cctx, cancel := context.WithTimeout(ctx, eventTimeout)
		_, err := client.Call(cctx, "service", "event", bus.Table{
			{Name: "type", Value: "config.change"},
			{Name: "data", Value: bus.Table{{Name: "package", Value: p}}},
		})
		cancel()
		if errors.Is(err, bus.StatusNotFound) {
			log.Debug("no supervisor on the bus to tell of a configuration change", "package", p)
		} else if err != nil {
			log.Warn("services were not told of a configuration change", "package", p, "error", err)
		}
	}
}

// bootTime is the time since boot, suspend included: unlike the time of day it
// cannot jump while an apply waits to be confirmed.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// userName is the name of the own user, as the broker tells it of others.
func userName() string {
	id := strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(b)
}

// handler is a method without the bus: arguments in, replies out.
type handler func(ctx context.Context, args bus.Table, reply func(any) error) error

func method(name string, h handler, args ...bus.Arg) bus.Method {
	return bus.Method{Name: name, Args: args, Handle: func(ctx context.Context, r *bus.Request) error {
		return h(ctx, r.Args, r.Reply)
	}}
}

func arg(name string, t bus.Type) bus.Arg { return bus.Arg{Name: name, Type: t} }

// sidArg is the argument that the HTTP side adds to each call.
const sidArg = "ubus_rpc_session"

func (s *server) objects() []*bus.Object {
	str, num, tab, arr, boo := bus.TypeString, bus.TypeInt32, bus.TypeTable, bus.TypeArray, bus.TypeBool
	sid := arg(sidArg, str)
	config, section, option, typ, match := arg("config", str), arg("section", str), arg("option", str), arg("type", str), arg("match", tab)
	return []*bus.Object{
		{Name: "session", Methods: []bus.Method{
			method("create", s.sessionCreate, arg("timeout", num)),
			method("list", s.sessionList, sid),
			method("grant", s.sessionGrant, sid, arg("scope", str), arg("objects", arr)),
			method("revoke", s.sessionRevoke, sid, arg("scope", str), arg("objects", arr)),
			method("access", s.sessionAccess, sid, arg("scope", str), arg("object", str), arg("function", str)),
			method("set", s.sessionSet, sid, arg("values", tab)),
			method("get", s.sessionGet, sid, arg("keys", arr)),
			method("unset", s.sessionUnset, sid, arg("keys", arr)),
			method("destroy", s.sessionDestroy, sid),
			method("login", s.sessionLogin, arg("username", str), arg("password", str), arg("timeout", num)),
		}},
		{Name: "uci", Methods: []bus.Method{
			method("configs", s.uciConfigs),
			method("get", s.uciGet, config, section, option, typ, match, sid),
			method("state", s.uciState, config, section, option, typ, match, sid),
			method("add", s.uciAdd, config, typ, arg("name", str), arg("values", tab), sid),
			method("set", s.uciSet, config, section, typ, match, arg("values", tab), sid),
			method("delete", s.uciDelete, config, section, typ, match, option, arg("options", arr), sid),
			method("rename", s.uciRename, config, section, option, arg("name", str), sid),
			method("order", s.uciOrder, config, arg("sections", arr), sid),
			method("changes", s.uciChanges, config, sid),
			method("revert", s.uciRevert, config, sid),
			method("commit", s.uciCommit, config, sid),
			method("apply", s.uciApply, arg("rollback", boo), arg("timeout", num), sid),
			method("confirm", s.uciConfirm, sid),
			method("rollback", s.uciRollback, sid),
			method("reload_config", s.uciReload),
		}},
		{Name: "file", Methods: []bus.Method{
			method("read", s.fileRead, arg("path", str), arg("base64", boo), sid),
			method("write", s.fileWrite, arg("path", str), arg("data", str), arg("append", boo), arg("mode", num), arg("base64", boo), sid),
			method("list", s.fileList, arg("path", str), sid),
			method("stat", s.fileStat, arg("path", str), sid),
			method("lstat", s.fileLstat, arg("path", str), sid),
			method("md5", s.fileMD5, arg("path", str), sid),
			method("remove", s.fileRemove, arg("path", str), sid),
			method("exec", s.fileExec, arg("command", str), arg("params", arr), arg("env", tab), sid),
		}},
		{Name: "rc", Methods: []bus.Method{
			method("list", s.rcList, arg("name", str)),
			method("init", s.rcInit, arg("name", str), arg("action", str)),
		}},
		{Name: "rpc-sys", Methods: []bus.Method{
			method("packagelist", s.sysPackagelist, arg("all", boo)),
			method("password_set", s.sysPasswordSet, arg("user", str), arg("password", str)),
			method("upgrade_test", s.sysUpgradeTest),
			method("upgrade_start", s.sysUpgradeStart, arg("keep", boo)),
			method("upgrade_clean", s.sysUpgradeClean),
			method("factory", s.sysFactory),
			method("reboot", s.sysReboot),
		}},
	}
}

// statusOf turns an error of package uci into the status rpcd has for it.
func statusOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, uci.ErrNotFound):
		return fmt.Errorf("%w: %w", err, bus.StatusNotFound)
	case errors.Is(err, uci.ErrInvalid), errors.Is(err, uci.ErrDuplicate):
		return fmt.Errorf("%w: %w", err, bus.StatusInvalidArgument)
	}
	return err // StatusUnknownError, with a log line
}

// str returns a string argument and whether it is there; one of another type is
// not (blobmsg_parse).
func str(args bus.Table, name string) (string, bool) {
	v, ok := args.Get(name).(string)
	return v, ok
}

func flag(args bus.Table, name string) bool {
	var v struct{ B bool }
	return bus.Table{{Name: "B", Value: args.Get(name)}}.Decode(&v) == nil && v.B
}

func (s *server) stagingDir(sid string) string { return filepath.Join(s.stateDir, "uci-"+sid) }
