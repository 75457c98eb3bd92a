package mptcpnl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const procMPTCP = "/proc/sys/net/mptcp/"

// Sysctl reads net.mptcp.<name> of the calling thread's network namespace.
func Sysctl(name string) (string, error) {
	b, err := os.ReadFile(procMPTCP + name)
	if err != nil {
		return "", fmt.Errorf("read net.mptcp.%s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SetSysctl writes net.mptcp.<name> and returns what was there before. The
// error is fs.ErrNotExist for a setting that the running kernel lacks.
func SetSysctl(name, value string) (old string, err error) {
	old, err = Sysctl(name)
	if err != nil || old == value {
		return old, err
	}
	if err := os.WriteFile(procMPTCP+name, []byte(value), 0o644); err != nil {
		return old, fmt.Errorf("set net.mptcp.%s to %q: %w", name, value, err)
	}
	return old, nil
}

// Path managers, as [SetPathManager] and [PathManager] name them.
const (
	KernelPM    = "kernel"
	UserspacePM = "userspace"
)

// PathManager tells who manages the paths of new MPTCP sockets.
func PathManager() (string, error) {
	v, err := Sysctl("path_manager")
	if !errors.Is(err, fs.ErrNotExist) {
		return v, err
	}
	if v, err = Sysctl("pm_type"); err != nil {
		return "", err
	}
	if v == "1" {
		return UserspacePM, nil
	}
	return KernelPM, nil
}

// SetPathManager chooses who manages the paths of MPTCP sockets made from now
// on in this namespace: net.mptcp.path_manager since 6.15, pm_type before.
func SetPathManager(name string) (old string, err error) {
	old, err = SetSysctl("path_manager", name)
	if !errors.Is(err, fs.ErrNotExist) {
		return old, err
	}
	v := map[string]string{KernelPM: "0", UserspacePM: "1"}[name]
	if v == "" {
		return "", fmt.Errorf("set MPTCP path manager: unknown name %q, expected %s or %s", name, KernelPM, UserspacePM)
	}
	if old, err = SetSysctl("pm_type", v); err != nil {
		return "", err
	}
	if old == "1" {
		return UserspacePM, nil
	}
	return KernelPM, nil
}
