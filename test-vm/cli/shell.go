package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/test-vm/bed"
)

// controlSocket is where a network that is held answers to test-vm shell of the same user.
func controlSocket() string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = os.TempDir()
	}
	return filepath.Join(dir, fmt.Sprintf("weft-lab-%d.sock", os.Getuid()))
}

// access is the answer to the name of a node: a namespace to enter, or, with Console, bytes of a console that follow.
type access struct {
	Error     string
	Namespace string
	Dir       string
	Env       []string
	Console   bool
}

// hold serves shells until ctx ends.
func (p *program) hold(ctx context.Context, b *bed.Bed) error {
	path := controlSocket()
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("another network is held already (%s): end it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		return err
	}
	old := syscall.Umask(0o077)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return fmt.Errorf("hold the network: %w", err)
	}
	fmt.Fprintf(p.stderr, "The network stays up: go run ./test-vm shell NODE gets you onto a node. Ctrl-C ends it.\n")
	var wait sync.WaitGroup
	defer wait.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wait.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			serveShell(c, b)
		})
	}
}

// serveShell answers one shell.
func serveShell(c net.Conn, b *bed.Bed) {
	r := bufio.NewReader(c)
	name, err := r.ReadString('\n')
	if err != nil {
		return
	}
	s, err := b.Shell(name[:len(name)-1])
	if err != nil {
		json.NewEncoder(c).Encode(access{Error: err.Error()})
		return
	}
	if err := json.NewEncoder(c).Encode(access{Namespace: s.Namespace, Dir: s.Dir, Env: s.Env, Console: s.Console != nil}); err != nil || s.Console == nil {
		return
	}
	s.Console.Tee(c)
	defer s.Console.Tee(nil)
	s.Console.Write([]byte("\r"))
	io.Copy(s.Console, r)
}

func (p *program) shellCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "shell NODE [COMMAND...]",
		Short: "Get a shell on a node of the network that run --hold keeps",
		Long: `Get a shell on a node of the network that run --hold keeps. In a namespace it is this machine's shell there, or the
command given; in a guest its serial console, which Ctrl-A X leaves.`,
		Example: "  go run ./test-vm shell gw1\n  go run ./test-vm shell gw1 ip route",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("shell needs the name of a node")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return p.shell(c.Context(), args[0], args[1:]) },
	}
	c.Flags().SetInterspersed(false) // the command has flags of its own
	return c
}

func (p *program) shell(ctx context.Context, node string, command []string) error {
	conn, err := net.Dial("unix", controlSocket())
	if err != nil {
		return fmt.Errorf("no network is held: start one with go run ./test-vm run --hold NAME (%w)", err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s\n", node); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadBytes('\n')
	var a access
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		return fmt.Errorf("shell on %s: %w", node, err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	if !a.Console {
		return p.enter(ctx, node, a, command)
	}
	if len(command) > 0 {
		return usageError{errors.New("a guest's console takes no command: type it there")}
	}
	return p.console(ctx, conn, r)
}

// enter runs a shell in a namespace.
func (p *program) enter(ctx context.Context, node string, a access, command []string) error {
	ns, err := os.Open(a.Namespace)
	if err != nil {
		return fmt.Errorf("enter the namespace of %s: %w", node, err)
	}
	defer ns.Close()
	if len(command) == 0 {
		command = []string{"/bin/sh"}
		if sh := os.Getenv("SHELL"); sh != "" {
			command[0] = sh
		}
	}
	// The command is started from this thread, which is not used for anything else afterwards.
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the namespace of %s: %w", node, err)
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/env", command...)
	cmd.Dir = a.Dir
	cmd.Env = append(a.Env, "TERM="+os.Getenv("TERM"), "PS1="+node+"# ")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	signal.Ignore(os.Interrupt) // the shell's affair
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitStatus(exit.ExitCode())
	}
	return err
}

// rawTerminal hands keys on as they are typed, until restore is called. Where
// the input is no terminal there is nothing to do.
func (p *program) rawTerminal() (restore func(), err error) {
	in, ok := p.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("switch the terminal to raw mode: %w", err)
	}
	return func() { term.Restore(int(in.Fd()), state) }, nil // nothing can be done about a terminal that has gone
}

// console joins the terminal and a guest's console.
func (p *program) console(ctx context.Context, conn net.Conn, from io.Reader) error {
	restore, err := p.rawTerminal()
	if err != nil {
		return err
	}
	defer restore()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := make(chan byte)
	go readKeys(ctx, p.stdin, conn, keys)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(p.stdout, from)
	}()
	for {
		select {
		case <-gone:
			return nil
		case <-ctx.Done():
			return nil
		case k := <-keys:
			if k == 'x' {
				return nil
			}
		}
	}
}
