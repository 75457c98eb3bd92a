package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// jobs is where background scripts leave their numbers, output and exit status.
func jobs() string {
	if dir := os.Getenv("LAB_DIR"); dir != "" {
		return filepath.Join(dir, "jobs")
	}
	return "/tmp/lab-jobs"
}

// start runs this program again, in a session of its own, to look after the script.
func start(script string) error {
	if err := os.MkdirAll(jobs(), 0o755); err != nil {
		return err
	}
	for n := 1; ; n++ {
		dir := filepath.Join(jobs(), strconv.Itoa(n))
		if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		out, err := os.Create(filepath.Join(dir, "output"))
		if err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe", "supervise", dir, script)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			return err
		}
		fmt.Println(n)
		return nil
	}
}

func supervise(dir, script string) error {
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	code := 0
	if err := cmd.Run(); err != nil {
		code = 127
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		} else {
			fmt.Println(err)
		}
	}
	tmp := filepath.Join(dir, "code.new") // so that a reader sees all of it or nothing
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(code)), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "code"))
}

// result prints the exit status on a line of its own, then the output; or "running".
func result(n string) error {
	dir := filepath.Join(jobs(), n)
	code, err := os.ReadFile(filepath.Join(dir, "code"))
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println("running")
		return nil
	}
	if err != nil {
		return err
	}
	out, err := os.ReadFile(filepath.Join(dir, "output"))
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s", code, out)
	return nil
}

func stop(n string) error {
	text, err := os.ReadFile(filepath.Join(jobs(), n, "pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return fmt.Errorf("job %s: process number %q", n, text)
	}
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
