package rescue

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// SSH serves the protocol with the accounts of etc (passwd, shadow, group), host
// keys and authorized keys at the given paths; host keys that cannot be read are
// made for this boot. Where blank is true, an account without a password gets in
// from a private address. It is given by main: this package knows no service.
type SSH func(ctx context.Context, ln net.Listener, s SSHSettings) error

// SSHSettings are what SSH serves with.
type SSHSettings struct {
	Etc            string
	HostKeys       []string
	AuthorizedKeys []string
	Shell          string
	Blank          bool
	Banner         string
	Log            *slog.Logger
}

// Places of the rescue system.
const (
	// Program is where the archive has this program, and Modules where its
	// folder lib/modules lies; Busy is the file that tells stage 1 to wait.
	Program = "/rescue/rescue"
	Modules = "/rescue"
	Busy    = "/tmp/run/weft/rescue.busy"

	ownEtc = "/etc"
	shell  = "/bin/ash"
)

// system is the running rescue system.
type system struct {
	out  io.Writer
	dev  *device
	jobs sync.WaitGroup
	web  *page

	mu   sync.Mutex
	said map[string]bool
}

// say prints one line; stage 1 puts it on every console.
func (r *system) say(format string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", a...)
}

// sayOnce says something the first time.
func (r *system) sayOnce(key, format string, a ...any) {
	r.mu.Lock()
	again := r.said[key]
	r.said[key] = true
	r.mu.Unlock()
	if !again {
		r.say(format, a...)
	}
}

// Run is the program "rescue": --why TEXT says why no slot is started. own are the
// paths at which the program is to be found for a shell; the other commands are
// those of the initramfs.
func Run(ctx context.Context, c *unit.Call, serveSSH SSH, own []string) int {
	flags := flag.NewFlagSet("rescue", flag.ContinueOnError)
	flags.SetOutput(c.Stderr)
	why := flags.String("why", "the rescue system was started", "what is said to be wrong")
	if err := flags.Parse(c.Args[1:]); err != nil || flags.NArg() > 0 {
		return 2
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &system{out: c.Stdout, said: map[string]bool{}}
	r.dev = look(*why)
	for _, n := range r.dev.notes {
		r.say("%s", n)
	}
	if err := userland(own); err != nil {
		r.say("%v", err)
	}
	hash, err := accounts(ownEtc, r.dev.etc)
	if err != nil {
		r.say("%v", err)
	}
	r.network(ctx)
	log := slog.New(slog.NewTextHandler(lineWriter{r}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	r.web = newPage(r.dev, hash, r.say)
	r.serve(ctx, "SSH", 22, func(ln net.Listener) error {
		s := SSHSettings{Etc: ownEtc, Shell: shell, Blank: true, Banner: banner(r.dev.notes), Log: log}
		if r.dev.etc != "" {
			s.AuthorizedKeys = []string{filepath.Join(r.dev.etc, "dropbear/authorized_keys")}
			for _, k := range []string{"dropbear_ed25519_host_key", "dropbear_rsa_host_key", "dropbear_ecdsa_host_key"} {
				s.HostKeys = append(s.HostKeys, filepath.Join(r.dev.etc, "dropbear", k))
			}
		}
		return serveSSH(ctx, ln, s)
	})
	server := &http.Server{Handler: r.web, ReadHeaderTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	r.serve(ctx, "the upload page", 80, server.Serve)
	r.jobs.Wait()
	return 1
}

func banner(notes []string) string {
	return "Weft rescue system: no slot is running.\n" + strings.Join(notes, "\n") + "\nAn image is taken by the page at http://<this address>/\n"
}

// lineWriter is say as a Writer.
type lineWriter struct{ r *system }

func (w lineWriter) Write(b []byte) (int, error) {
	w.r.say("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}

// serve runs a server on a port of every address until ctx ends.
func (r *system) serve(ctx context.Context, what string, port int, f func(net.Listener) error) {
	r.jobs.Go(func() {
		for ctx.Err() == nil {
			ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
			if err == nil {
				r.sayOnce("listens "+what, "%s is at TCP port %d", what, port)
				err = f(ln)
				ln.Close()
			}
			if ctx.Err() == nil {
				r.say("%s: %v", what, err)
				sleep(ctx, 5*time.Second)
			}
		}
	})
}

// initramfs is the program of stage 1, which has the everyday commands.
const initramfs = "/init"

// userland makes the names of the commands in the initramfs: own are this
// program's, the rest is asked of the program of stage 1.
func userland(own []string) error {
	var errs []error
	link := func(target, path string) {
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.Symlink(target, path)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
		}
	}
	for _, path := range own {
		link(Program, path)
	}
	link(initramfs, shell)
	// Called as "weft" without an argument it lists what it is.
	cmd := &exec.Cmd{Path: initramfs, Args: []string{"weft"}}
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		errs = append(errs, fmt.Errorf("ask for the commands of the initramfs: %w", err))
	}
	for _, name := range commandNames(out.String()) {
		link(initramfs, filepath.Join("/bin", name))
	}
	return errors.Join(errs...)
}

// commandNames reads the list that the device program prints.
func commandNames(text string) []string {
	for line := range strings.Lines(text) {
		if list, ok := strings.CutPrefix(line, "applets: "); ok {
			return strings.Fields(list)
		}
	}
	return nil
}

// accounts writes passwd, shadow, group and shells with root alone and with the
// password that root has in the settings of the device, and returns that.
func accounts(own, etc string) (hash string, err error) {
	if etc != "" {
		f, ferr := os.Open(filepath.Join(etc, "shadow"))
		switch {
		case ferr == nil:
			hash, _ = rootHash(f)
			f.Close()
		case !errors.Is(ferr, fs.ErrNotExist):
			err = fmt.Errorf("root's password is not known, none is asked for: %w", ferr)
		}
	}
	err = errors.Join(err, os.MkdirAll(own, 0o755), os.MkdirAll("/root", 0o700))
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:" + shell + "\n",
		"group":  "root:x:0:\n",
		"shells": shell + "\n/bin/sh\n",
		"shadow": "root:" + hash + ":0:0:99999:7:::\n",
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(own, name), []byte(text), 0o600))
	}
	return hash, errors.Join(err, os.Chmod(filepath.Join(own, "passwd"), 0o644), os.Chmod(filepath.Join(own, "group"), 0o644))
}

// reboot restarts the machine.
func reboot() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// Reboot is the applet "reboot".
func Reboot(_ context.Context, c *unit.Call) int {
	if err := reboot(); err != nil {
		fmt.Fprintf(c.Stderr, "reboot: %v\n", err)
		return 1
	}
	return 0
}
