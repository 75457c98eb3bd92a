package pid1

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"weft/init/bus"
	"weft/init/sysupgrade"
)

// validator judges an image in a process of its own, so that no image, whatever
// is wrong with it, can hurt process 1.
const validator = "/usr/libexec/validate_firmware_image"

// upgradeUnit is the service that carries an upgrade out.
const upgradeUnit = "sysupgrade"

// upgradeMethods are the methods of `system` for upgrades (openwrt/procd
// system.c; compatibility facts, section 5); upgrade_status is ours.
func (p *pid1) upgradeMethods() []bus.Method {
	arg := func(name string, t bus.Type) bus.Arg { return bus.Arg{Name: name, Type: t} }
	return []bus.Method{
		{Name: "validate_firmware_image", Args: []bus.Arg{arg("path", bus.TypeString)}, Handle: p.validateImage},
		{Name: "sysupgrade", Args: []bus.Arg{
			arg("path", bus.TypeString), arg("force", bus.TypeBool), arg("backup", bus.TypeString), arg("prefix", bus.TypeString),
			arg("command", bus.TypeString), arg("options", bus.TypeTable), arg("ignore_minor", bus.TypeBool), arg("no_reboot", bus.TypeBool), arg("delete", bus.TypeBool),
		}, Handle: p.sysupgrade},
		{Name: "upgrade_status", Handle: func(ctx context.Context, r *bus.Request) error {
			text, err := p.ask(ctx, "/sbin/sysupgrade", "--status", "--json")
			if err != nil {
				p.log.Warn("the state of the slots cannot be read", "error", err)
				return bus.StatusUnknownError
			}
			t, err := bus.ParseJSON(string(text))
			if err != nil {
				return bus.StatusUnknownError
			}
			return r.Reply(t)
		}},
	}
}

func (p *pid1) validateImage(ctx context.Context, r *bus.Request) error {
	var req struct {
		Path string `json:"path"`
	}
	if err := r.Decode(&req); err != nil {
		return err
	}
	if !sysupgrade.IsURL(req.Path) && !filepath.IsAbs(req.Path) {
		return bus.StatusInvalidArgument
	}
	text, err := p.judge(ctx, req.Path)
	if err != nil {
		p.log.Warn("an image could not be judged", "path", req.Path, "error", err)
		return bus.StatusUnknownError
	}
	t, err := bus.ParseJSON(string(text))
	if err != nil {
		return bus.StatusUnknownError
	}
	return r.Reply(t)
}

// judge runs the validator and returns what it printed.
func (p *pid1) judge(ctx context.Context, args ...string) ([]byte, error) {
	text, err := p.ask(ctx, validator, args...)
	if err == nil && len(text) == 0 {
		err = errors.New("there is no answer: the image cannot be read")
	}
	return text, err
}

// ask runs a program and returns what it printed, without the last line break.
func (p *pid1) ask(ctx context.Context, program string, args ...string) ([]byte, error) {
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	defer null.Close()
	ended := make(chan struct{})
	pid, err := p.reaper.Start(program, append([]string{program}, args...), &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin"}, Files: []uintptr{null.Fd(), w.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	}, nil, func(int, syscall.WaitStatus) { close(ended) })
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", program, err)
	}
	stop := context.AfterFunc(ctx, func() { p.reaper.Signal(pid, syscall.SIGKILL) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(out, 1<<20))
	<-ended
	if err != nil {
		return nil, err
	}
	return bytes.TrimSpace(text), nil
}

// sysupgrade judges the image once more, whatever the caller says it found, and
// hands it to the service. A refusal is a reply {"error":{"message":…}}, as
// stock's.
func (p *pid1) sysupgrade(ctx context.Context, r *bus.Request) error {
	var req sysupgrade.Request
	if err := r.Decode(&req); err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return r.Reply(bus.Table{{Name: "error", Value: bus.Table{{Name: "message", Value: fmt.Sprintf(format, args...)}}}})
	}
	if !sysupgrade.IsURL(req.Path) && !filepath.IsAbs(req.Path) {
		return refuse("an image must be given as an absolute path or a URL")
	}
	if req.Backup != "" && !filepath.IsAbs(req.Backup) {
		return refuse("the settings must be given as an absolute path")
	}
	args := []string{req.Path}
	if req.Backup == "" {
		args = append([]string{"-n"}, args...)
	}
	if req.IgnoreMinor {
		args = append([]string{"--ignore-minor-compat-version"}, args...)
	}
	text, err := p.judge(ctx, args...)
	if err != nil {
		return refuse("the image cannot be judged: %v", err)
	}
	var report sysupgrade.Report
	if err := json.Unmarshal(text, &report); err != nil {
		return refuse("the image cannot be judged: %v", err)
	}
	switch {
	case report.Valid:
	case !report.Forceable:
		return refuse("Firmware image is broken and cannot be installed: %s", strings.Join(report.Reasons, "; "))
	case !req.Force:
		return refuse("Firmware image is invalid: %s", strings.Join(report.Reasons, "; "))
	}
	if req.Backup != "" && !report.AllowBackup {
		return refuse("Firmware image doesn't allow preserving a backup")
	}
	unlock, err := sysupgrade.Lock(sysupgrade.RunDir)
	if err != nil {
		return refuse("%v", err)
	}
	err = sysupgrade.Submit(sysupgrade.RunDir, &req)
	unlock()
	if err != nil {
		return refuse("%v", err)
	}
	if err := p.mgr.Start(ctx, upgradeUnit); err != nil {
		return refuse("start the service %s: %v", upgradeUnit, err)
	}
	return r.Reply(bus.Table{})
}
