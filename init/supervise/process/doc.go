// Package process runs what the supervisor decides: it forks and executes,
// confines, reaps, and forwards output to the log.
//
// One Reaper owns every wait of the program. It collects all children,
// including the orphans that PID 1 inherits, so nothing else in the same
// process may wait: no os/exec, no os.Process.Wait.
//
// Confinement needs no helper program. Capabilities, no_new_privs and the nice
// value belong to a thread in Linux, and a child inherits those of the thread
// that forks it; so a goroutine takes a thread for itself, gives up what the
// service must not have, forks, and lets the thread die (the Go runtime never
// uses a thread again, nor clones one, that a goroutine locked and left).
// Resource limits belong to the whole process and cannot be done that way: a
// unit with limits is executed behind Confine, an applet of the same binary
// that waits until its limits were set from outside with prlimit(2).
//
// A service lives in a control group of its own (cgroup v2,
// Documentation/admin-guide/cgroup-v2.rst), entered by clone3(2) itself, so
// that no process of it is ever outside. Memory and pids are limited there, the
// kernel's memory killer takes the whole group (memory.oom.group), and a stop
// reaches every process (cgroup.kill).
package process
