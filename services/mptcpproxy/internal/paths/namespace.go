package paths

import (
	"fmt"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// enter moves the calling thread, which must be locked, into a network
// namespace. Where it is there already, as in a process that has only one, it
// does nothing: setns(2) wants CAP_SYS_ADMIN even then.
func enter(ns netns.NsHandle) error {
	var here, there unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &here); err != nil {
		return fmt.Errorf("look at the thread's network namespace: %w", err)
	}
	if err := unix.Fstat(int(ns), &there); err != nil {
		return fmt.Errorf("look at the network namespace: %w", err)
	}
	if here.Dev == there.Dev && here.Ino == there.Ino {
		return nil
	}
	return netns.Set(ns)
}
