package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node is one machine of the bed: a network namespace with a thread of this process in it.
type Node struct {
	Name string // client, near, far, sink, mid
	NS   string // name of the namespace, as `ip netns` lists it

	fd    int
	calls chan func()
	ended chan struct{}
}

func newNode(name, ns string) (*Node, error) {
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w: %s", ns, err, bytes.TrimSpace(out))
	}
	n := &Node{Name: name, NS: ns, calls: make(chan func()), ended: make(chan struct{})}
	var err error
	if n.fd, err = unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		close(n.ended)
		close(n.calls)
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w", ns, err), deleteNS(ns))
	}
	ready := make(chan error, 1)
	go func() {
		defer close(n.ended)
		// Never unlocked: a thread in a foreign namespace must end with this goroutine and not be used again.
		runtime.LockOSThread()
		err := unix.Setns(n.fd, unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, errors.Join(fmt.Errorf("enter network namespace %s: %w", ns, err), n.close())
	}
	return n, nil
}

func (n *Node) close() error {
	close(n.calls)
	<-n.ended
	return errors.Join(unix.Close(n.fd), deleteNS(n.NS))
}

func deleteNS(ns string) error {
	if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
		return fmt.Errorf("remove network namespace %s: %w: %s", ns, err, bytes.TrimSpace(out))
	}
	return nil
}

// Do runs f on the node's own thread, one call at a time; f must be short: sockets that it opens belong to the node.
func (n *Node) Do(f func() error) error {
	result := make(chan error, 1)
	n.calls <- func() { result <- f() }
	return <-result
}

// Thread runs f on a thread of its own in the node's namespace. It returns at once; done is closed after f.
func (n *Node) Thread(f func()) (done <-chan struct{}) {
	c := make(chan struct{})
	go func() {
		defer close(c)
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("BUG: enter network namespace %s a second time: %v", n.NS, err))
		}
		f()
	}()
	return c
}

// Call runs f on a thread of its own in the node's namespace and waits for it.
func (n *Node) Call(f func() error) error {
	var err error
	<-n.Thread(func() { err = f() })
	return err
}

// Command is a program to be run in the node by Start or Output. The kernel kills it when this process dies.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.NS, name}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = 2 * time.Second
	return c
}

// Start starts a command of Command. It must be started here: the signal of a parent's death follows the parent's
// thread, and only the node's thread lives as long as the node.
func (n *Node) Start(c *exec.Cmd) error {
	return n.Do(c.Start)
}

// Output runs a program in the node and returns what it printed.
func (n *Node) Output(ctx context.Context, name string, args ...string) (string, error) {
	c := n.Command(ctx, name, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := n.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s on %s: %w: %s", strings.Join(append([]string{name}, args...), " "), n.Name, err, lastLines(errs.String(), 3))
	}
	return out.String(), nil
}

// Input runs a program in the node with text on its standard input.
func (n *Node) Input(ctx context.Context, text, name string, args ...string) error {
	c := n.Command(ctx, name, args...)
	var out bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(text), &out, &out
	err := n.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s on %s: %w: %s", strings.Join(append([]string{name}, args...), " "), n.Name, err, lastLines(out.String(), 3))
	}
	return nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// ReadFile reads a file below /proc as the node sees it; /proc/net is the node's.
func (n *Node) ReadFile(path string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "/proc/net/"); ok {
		path = "/proc/thread-self/net/" + rest
	}
	var b []byte
	err := n.Do(func() error {
		var err error
		b, err = os.ReadFile(path)
		return err
	})
	return string(b), err
}

// Sysctl sets a value below /proc/sys, with dots or slashes in the name.
func (n *Node) Sysctl(name, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	if err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) }); err != nil {
		return fmt.Errorf("set %s on %s: %w", name, n.Name, err)
	}
	return nil
}

// Counter reads one counter of /proc/net/netstat or /proc/net/snmp, for example MPTcpExt MPCurrEstab; one that the
// kernel does not have is 0.
func (n *Node) Counter(group, name string) (int64, error) {
	for _, file := range []string{"/proc/net/netstat", "/proc/net/snmp"} {
		text, err := n.ReadFile(file)
		if err != nil {
			return 0, fmt.Errorf("read counters of %s: %w", n.Name, err)
		}
		if v, ok := counter(text, group, name); ok {
			return v, nil
		}
	}
	return 0, nil
}

// counter finds a counter in the kernel's format: a line of names and a line of values, both starting with the group.
func counter(text, group, name string) (int64, bool) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, f := range names {
			if f == name && i < len(fields) {
				v, err := strconv.ParseInt(fields[i], 10, 64)
				return v, err == nil
			}
		}
		return 0, false
	}
	return 0, false
}

// DeviceBytes reads the bytes that a device of the node has sent and received.
func (n *Node) DeviceBytes(device string) (sent, received int64, err error) {
	text, err := n.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, 0, fmt.Errorf("read device counters of %s: %w", n.Name, err)
	}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(rest)
		if !ok || name != device || len(f) < 9 {
			continue
		}
		if received, err = strconv.ParseInt(f[0], 10, 64); err == nil {
			sent, err = strconv.ParseInt(f[8], 10, 64)
		}
		return sent, received, err
	}
	return 0, 0, fmt.Errorf("%s has no device %s", n.Name, device)
}
