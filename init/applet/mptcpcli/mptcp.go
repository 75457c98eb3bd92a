// Package mptcpcli is the mptcp command: it shows what the transparent MPTCP
// proxy does, and makes keys and looks over its configuration.
//
// It asks the service's status socket in --state-dir, or, where there is none,
// the bus. Tables are for people; a script reads --json.
package mptcpcli

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

const usage = `Usage: mptcp [--state-dir DIR] [--bus SOCKET] COMMAND [--json]

The transparent MPTCP proxy: what it does, and what it needs.

  status              everything in short: peers, paths, flows, rates
  paths               subflows, bytes, round trips and retransmissions by path
  peers               the other gateways and their connections
  flows [-n COUNT]    TCP connections, the busiest first (default 20)
  events [-f]         what happened to paths and peers; -f goes on
  reload              read the configuration again, and say what is wrong with it
  check               say what is wrong with the configuration that was last read
  genkey [--pair]     a shared key for option key; --pair: private and public key
  pubkey              the public key of a private key on standard input

Examples:
  mptcp status
  mptcp paths --json
  mptcp events -f
  mptcp genkey > /etc/mptcpproxy.key
`

// Exit codes: 0 done, 1 failed or faults found, 2 used wrongly, 3 the service
// does not run.
const (
	exitFailed = 1
	exitUsage  = 2
	exitAway   = 3
)

// socket is where the service answers, in its state folder.
const socket = "status.sock"

const serviceName = "mptcpproxy"

type cli struct {
	*unit.Call
	stateDir, bus string
	json          bool
}

// errAway says that no service answers.
var errAway = errors.New("the service mptcpproxy does not run")

// MPTCP is the applet mptcp.
func MPTCP(ctx context.Context, c *unit.Call) int {
	m := &cli{Call: c}
	fs := flag.NewFlagSet("mptcp", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&m.stateDir, "state-dir", filepath.Join(unit.DefaultRunDir, serviceName), "")
	fs.StringVar(&m.bus, "bus", unit.DefaultBusPath, "")
	fs.BoolVar(&m.json, "json", false, "")
	if code, done := m.parse(fs, c.Args[1:]); done {
		return code
	}
	args := fs.Args()
	if len(args) == 0 {
		return m.misused("a command is missing")
	}
	m.stateDir = c.Path(m.stateDir)
	name := args[0]
	count, follow, pair := 20, false, false
	sub := flag.NewFlagSet(name, flag.ContinueOnError)
	sub.SetOutput(io.Discard)
	sub.BoolVar(&m.json, "json", m.json, "")
	switch name {
	case "flows":
		sub.IntVar(&count, "n", count, "")
	case "events":
		sub.BoolVar(&follow, "f", false, "")
	case "genkey":
		sub.BoolVar(&pair, "pair", false, "")
	}
	if code, done := m.parse(sub, args[1:]); done {
		return code
	}
	if sub.NArg() > 0 {
		return m.misused("%q is one argument too many", sub.Arg(0))
	}
	var err error
	switch name {
	case "status":
		err = m.status(ctx)
	case "paths":
		err = m.paths(ctx)
	case "peers":
		err = m.peers(ctx)
	case "flows":
		err = m.flows(ctx, count)
	case "events":
		err = m.events(ctx, follow)
	case "reload":
		err = m.reload(ctx)
	case "check":
		return m.check(ctx)
	case "genkey":
		err = m.genkey(pair)
	case "pubkey":
		err = m.pubkey()
	case "help":
		io.WriteString(c.Stdout, usage)
	default:
		return m.misused("there is no command %q", name)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errAway):
		fmt.Fprintf(c.Stderr, "mptcp: %v\nhint: service mptcpproxy start, or name the folder of one that runs alone by --state-dir\n", err)
		return exitAway
	}
	fmt.Fprintf(c.Stderr, "mptcp: %v\n", err)
	return exitFailed
}

func (m *cli) parse(fs *flag.FlagSet, args []string) (code int, done bool) {
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		io.WriteString(m.Stdout, usage)
		return 0, true
	case err != nil:
		return m.misused("%v", err), true
	}
	return 0, false
}

func (m *cli) misused(format string, args ...any) int {
	fmt.Fprintf(m.Stderr, "mptcp: "+format+"\n\n%s", append(args, usage)...)
	return exitUsage
}

// patience bounds the wait for an answer.
const patience = 10 * time.Second

// request is what the status socket takes.
type request struct {
	Method string `json:"method"`
	Follow bool   `json:"follow,omitempty"`
	After  uint64 `json:"after,omitempty"`
}

// ask gets one answer, from the socket or else from the bus, as raw JSON.
func (m *cli) ask(ctx context.Context, method string, args any) (json.RawMessage, error) {
	conn, err := net.Dial("unix", filepath.Join(m.stateDir, socket))
	if err != nil {
		return m.askBus(ctx, method, args, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(patience))
	if err := json.NewEncoder(conn).Encode(request{Method: method}); err != nil {
		return nil, fmt.Errorf("ask the service for %s: %w", method, err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return nil, fmt.Errorf("read the service's answer to %s: %w", method, err)
	}
	if err := failure(answer); err != nil {
		return nil, err
	}
	return answer, nil
}

func (m *cli) askBus(ctx context.Context, method string, args any, why error) (json.RawMessage, error) {
	if errors.Is(why, fs.ErrPermission) {
		return nil, fmt.Errorf("reach the service: %w; this needs root", why)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := bus.Dial(ctx, m.bus)
	if err != nil {
		return nil, fmt.Errorf("%w (nobody answers at %s, and there is no bus at %s)", errAway, filepath.Join(m.stateDir, socket), m.bus)
	}
	defer client.Close()
	t, err := client.Call(ctx, serviceName, method, args)
	if errors.Is(err, bus.StatusNotFound) {
		return nil, errAway
	}
	if err != nil {
		return nil, fmt.Errorf("ask the service for %s: %w", method, err)
	}
	return t.AppendJSON(nil, false), nil
}

// failure is the error that an answer tells.
func failure(answer []byte) error {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(answer, &e) == nil && e.Error != "" {
		return errors.New(e.Error)
	}
	return nil
}

// show asks, and prints the answer as it is with --json; else it decodes it
// into v and reports that it has to be printed.
func (m *cli) show(ctx context.Context, method string, v any) (print bool, err error) {
	raw, err := m.ask(ctx, method, nil)
	if err != nil {
		return false, err
	}
	if m.json {
		return false, m.raw(raw)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("understand the service's answer to %s: %w", method, err)
	}
	return true, nil
}

// decode reads an answer.
func decode(raw json.RawMessage, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("understand the service's answer: %w", err)
	}
	return nil
}

// raw prints JSON with line breaks.
func (m *cli) raw(raw json.RawMessage) error {
	var v any
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return fmt.Errorf("understand the service's answer: %w", err)
	}
	enc := json.NewEncoder(m.Stdout)
	enc.SetIndent("", "\t")
	return enc.Encode(v)
}

func (m *cli) reload(ctx context.Context) error {
	_, err := m.ask(ctx, "reload", nil)
	return err
}

// check prints the faults of the configuration that was last read.
func (m *cli) check(ctx context.Context) int {
	raw, err := m.ask(ctx, "status", nil)
	var r report
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		fmt.Fprintf(m.Stderr, "mptcp: %v\n", err)
		if errors.Is(err, errAway) {
			return exitAway
		}
		return exitFailed
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(m.Stdout, "warning: %s\n", w)
	}
	for _, f := range r.Faults {
		fmt.Fprintf(m.Stdout, "fault: %s\n", f)
	}
	if len(r.Faults) > 0 {
		return exitFailed
	}
	fmt.Fprintln(m.Stdout, "the configuration is in force")
	return 0
}

// events prints what happened, and with follow what happens.
func (m *cli) events(ctx context.Context, follow bool) error {
	conn, err := net.Dial("unix", filepath.Join(m.stateDir, socket))
	if err != nil {
		if follow {
			return fmt.Errorf("%w (nobody answers at %s); on the bus: ubus listen mptcpproxy", errAway, filepath.Join(m.stateDir, socket))
		}
		raw, err := m.ask(ctx, "events", nil)
		if err != nil {
			return err
		}
		var list struct {
			Events []json.RawMessage `json:"events"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			return fmt.Errorf("understand the service's answer: %w", err)
		}
		for _, e := range list.Events {
			m.event(e)
		}
		return nil
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request{Method: "events", Follow: follow}); err != nil {
		return fmt.Errorf("ask the service for events: %w", err)
	}
	sc := bufio.NewScanner(conn)
	for sc.Scan() {
		if err := failure(sc.Bytes()); err != nil {
			return err
		}
		m.event(sc.Bytes())
	}
	if ctx.Err() != nil {
		return nil
	}
	return sc.Err()
}

func (m *cli) event(raw []byte) {
	if m.json {
		fmt.Fprintf(m.Stdout, "%s\n", raw)
		return
	}
	var e event
	if err := json.Unmarshal(raw, &e); err != nil {
		fmt.Fprintf(m.Stdout, "%s\n", raw)
		return
	}
	fmt.Fprintln(m.Stdout, e.line())
}

// genkey prints a shared key, or a pair.
func (m *cli) genkey(pair bool) error {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	private := base64.StdEncoding.EncodeToString(seed)
	if !pair {
		_, err := fmt.Fprintln(m.Stdout, private)
		return err
	}
	public := publicKey(seed)
	if m.json {
		return json.NewEncoder(m.Stdout).Encode(map[string]string{"private_key": private, "public_key": public})
	}
	_, err := fmt.Fprintf(m.Stdout, "private_key %s\npublic_key  %s\n", private, public)
	return err
}

func publicKey(seed []byte) string {
	return base64.StdEncoding.EncodeToString(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
}

func (m *cli) pubkey() error {
	text, err := io.ReadAll(io.LimitReader(m.Stdin, 4096))
	if err != nil {
		return fmt.Errorf("read the private key: %w", err)
	}
	seed, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return errors.New("standard input holds no private key: 32 bytes in base64 are expected, as mptcp genkey prints them")
	}
	_, err = fmt.Fprintln(m.Stdout, publicKey(seed))
	return err
}
