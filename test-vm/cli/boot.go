package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/test-vm/lab"
)

func (p *program) bootCommand() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "boot",
		Short: "Boot an image with its serial console in this terminal",
		Long: `Boot an image with its serial console in this terminal. Leave with Ctrl-A X.

The disk is a copy: what the guest writes is gone afterwards, unless --keep-disk names a file for it.
eth0 (lan) is a network of its own with the guest as 192.168.1.1; eth1 (wan) reaches the outside through QEMU.`,
		Example: `  go run ./test-vm boot
  go run ./test-vm boot --uefi --memory 512
  go run ./test-vm boot --keep-disk /tmp/router.img --disk-size 4G
  go run ./test-vm boot --forward 8080:80      # then http://127.0.0.1:8080 is port 80 of the guest`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.boot(c.Context(), &o) },
	}
	o.add(c)
	return c
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

func (p *program) boot(ctx context.Context, o *options) error {
	cfg, err := o.config(ctx, "boot")
	if err != nil {
		return err
	}
	m, err := lab.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer m.Close()
	fmt.Fprintf(p.stdout, "Leave with Ctrl-A X; Ctrl-A H lists the other keys.\n")
	p.describe(m, cfg)

	// The terminal is restored before anything else is printed.
	keys := make(chan byte)
	restore, err := p.rawTerminal()
	if err != nil {
		return err
	}
	defer restore()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	console := m.Serial()
	out := &lockedWriter{w: p.stdout}
	console.Tee(out)
	off := make(chan error, 1)
	start := func() error {
		if err := m.Start(ctx); err != nil {
			return err
		}
		go func() { off <- m.Wait(ctx) }()
		return nil
	}
	if err := start(); err != nil {
		return err
	}
	go readKeys(ctx, p.stdin, console, keys)
	go func() { // GRUB has cleared the screen: say again how to leave
		if r, err := m.WaitReady(ctx); err == nil {
			fmt.Fprintf(out, "test-vm: ready %.1f s after power-on. Ctrl-A X leaves.\r\n", r.Wall.Seconds())
		}
	}()
	crashes := 0
	for {
		select {
		case err := <-off:
			if err != nil && ctx.Err() == nil && crashes < 3 && !strings.Contains(console.Text(), "weft: starting on Linux") {
				crashes++ // see lab.Machine.StartTo
				fmt.Fprintf(out, "\r\ntest-vm: %v\r\ntest-vm: starting again\r\n", err)
				if err = start(); err == nil {
					continue
				}
			}
			console.Tee(nil)
			restore()
			if ctx.Err() != nil { // the person has ended this program
				return nil
			}
			if err == nil {
				fmt.Fprintf(out, "\nThe machine has switched itself off.\n")
			}
			return p.keep(m, o, err)
		case k := <-keys:
			switch k {
			case 'x':
				console.Tee(nil)
				m.Kill()
				restore()
				fmt.Fprintf(out, "\nThe machine's power has been cut.\n")
				return p.keep(m, o, nil)
			case 'r':
				if err := m.Reset(ctx); err != nil {
					fmt.Fprintf(out, "\r\ntest-vm: %v\r\n", err)
				}
			case 's':
				p.screenshot(ctx, out, m)
			default:
				fmt.Fprint(out, "\r\nCtrl-A X  cut the power and leave\r\nCtrl-A R  press the reset button\r\n"+
					"Ctrl-A S  save a picture of the screen\r\nCtrl-A A  send Ctrl-A itself\r\n")
			}
		}
	}
}

// keep copies the captures out of the machine's folder, if there are any.
func (p *program) keep(m *lab.Machine, o *options, err error) error {
	if o.capture || err != nil {
		p.save(m)
	}
	return err
}

// describe says what is about to run.
func (p *program) describe(m *lab.Machine, cfg lab.Config) {
	how := "emulated"
	if m.Accel() != "tcg" {
		how = "with " + m.Accel()
	}
	fmt.Fprintf(p.stdout, "QEMU %s (%s), %s, %s, %d MiB, %d processors.\n", m.QEMU().Version, m.QEMU().Source, how, cfg.Firmware, cfg.Memory, cfg.CPUs)
	for _, f := range m.Forwards() {
		fmt.Fprintf(p.stdout, "127.0.0.1:%d leads to port %d of the guest.\n", f.Host, f.Guest)
	}
}

func (p *program) screenshot(ctx context.Context, out io.Writer, m *lab.Machine) {
	dir, err := lab.OutDir(m.Name())
	if err == nil {
		path := dir + "/" + time.Now().Format("screen-150405.png")
		if err = m.Screenshot(ctx, path); err == nil {
			fmt.Fprintf(out, "\r\ntest-vm: the screen is in %s\r\n", path)
			return
		}
	}
	fmt.Fprintf(out, "\r\ntest-vm: %v\r\n", err)
}

// lockedWriter lets the guest and this program write to one terminal.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// readKeys sends what is typed to the console and the letters after Ctrl-A to keys, until in or ctx ends. A terminal is
// polled, so that the goroutine ends with ctx and takes no key from whoever reads the terminal next.
func readKeys(ctx context.Context, in io.Reader, console io.Writer, keys chan<- byte) {
	buf := make([]byte, 256)
	prefix := false
	f, _ := in.(*os.File)
	for ctx.Err() == nil {
		if f != nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, 200)
			if n == 0 || errors.Is(err, unix.EINTR) {
				continue
			}
		}
		n, err := in.Read(buf)
		var out []byte
		for _, b := range buf[:n] {
			switch {
			case prefix && (b == 'a' || b == 1):
				out, prefix = append(out, 1), false
			case prefix:
				prefix = false
				select {
				case keys <- strings.ToLower(string(rune(b)))[0]:
				case <-ctx.Done():
					return
				}
			case b == 1: // Ctrl-A
				prefix = true
			default:
				out = append(out, b)
			}
		}
		if len(out) > 0 {
			console.Write(out) // keys for a machine that is off go nowhere
		}
		if err != nil {
			return
		}
	}
}
