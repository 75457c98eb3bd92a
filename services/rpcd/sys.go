package rpcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"weft/init/bus"
)

// maxPassword bounds what password_set takes, in bytes (crypt(3)).
const maxPassword = 511

// programs are what the object rpc-sys runs; in tests they are others.
type programs struct {
	passwd, sysupgrade, factoryReset, reboot string
	firmware                                 string // where a manager has put an image
	release                                  string // /etc/openwrt_release
	initDir, rcDir                           string // start scripts, links
	plugins                                  string
}

func devicePrograms() programs {
	return programs{
		passwd: "/usr/bin/passwd", sysupgrade: "/sbin/sysupgrade", factoryReset: "/sbin/factoryreset", reboot: "/sbin/reboot",
		firmware: "/tmp/firmware.bin", release: "/etc/openwrt_release", initDir: "/etc/init.d", rcDir: "/etc/rc.d",
		plugins: "/usr/libexec/rpcd",
	}
}

// sysPackagelist names what is installed: Weft is one package.
func (s *server) sysPackagelist(_ context.Context, _ bus.Table, reply func(any) error) error {
	b, err := os.ReadFile(s.prog.release)
	if err != nil {
		return fileStatus(err)
	}
	var release, revision string
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch value = strings.Trim(value, `"'`); name {
		case "DISTRIB_RELEASE":
			release = value
		case "DISTRIB_REVISION":
			revision = value
		}
	}
	if revision != "" {
		release += "-" + revision
	}
	return reply(bus.Table{{Name: "packages", Value: bus.Table{{Name: "weft", Value: release}}}})
}

// sysPasswordSet sets a user's password as passwd(1) does.
func (s *server) sysPasswordSet(ctx context.Context, args bus.Table, _ func(any) error) error {
	user, ok1 := str(args, "user")
	password, ok2 := str(args, "password")
	if !ok1 || !ok2 || user == "" || strings.HasPrefix(user, "-") || strings.ContainsAny(user, ":\n") ||
		len(password) > maxPassword || strings.ContainsAny(password, "\n\r") {
		return bus.StatusInvalidArgument
	}
	cmd := exec.Command(s.prog.passwd, user)
	cmd.Stdin = strings.NewReader(password + "\n" + password + "\n")
	code, _, stderr, err := s.run(ctx, cmd)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("set the password of %q: %s: %w", user, strings.TrimSpace(string(stderr)), bus.StatusUnknownError)
	}
	s.log.Info("password set", "user", user)
	return nil
}

// sysUpgradeTest checks the image that a manager has put on the device.
func (s *server) sysUpgradeTest(ctx context.Context, _ bus.Table, reply func(any) error) error {
	code, stdout, stderr, err := s.run(ctx, exec.Command(s.prog.sysupgrade, "--test", s.prog.firmware))
	if err != nil {
		return err
	}
	return reply(execReply(code, stdout, stderr))
}

// sysUpgradeStart begins to install the image. It does not wait: the device
// starts anew.
func (s *server) sysUpgradeStart(_ context.Context, args bus.Table, _ func(any) error) error {
	if _, err := os.Stat(s.prog.firmware); err != nil {
		return fileStatus(err)
	}
	var options []string
	if args.Has("keep") && !flag(args, "keep") {
		options = append(options, "-n")
	}
	return s.detach(s.prog.sysupgrade, append(options, s.prog.firmware)...)
}

func (s *server) sysUpgradeClean(context.Context, bus.Table, func(any) error) error {
	if err := os.Remove(s.prog.firmware); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileStatus(err)
	}
	return nil
}

// sysFactory resets the device to its defaults and starts it anew.
func (s *server) sysFactory(context.Context, bus.Table, func(any) error) error {
	return s.detach(s.prog.factoryReset, "-y", "-r")
}

func (s *server) sysReboot(context.Context, bus.Table, func(any) error) error {
	return s.detach(s.prog.reboot)
}

// detach starts a program that outlives its caller.
func (s *server) detach(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // the log
	if err := cmd.Start(); err != nil {
		return fileStatus(err)
	}
	s.log.Info("started", "program", program, "arguments", args)
	go func() { // ends with the program
		if err := cmd.Wait(); err != nil {
			s.log.Error("program failed", "program", program, "error", err)
		}
	}()
	return nil
}
