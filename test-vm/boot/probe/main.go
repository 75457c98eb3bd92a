// Probe is what the boot tests do inside a guest beyond its own commands. It reaches the guest on a disk.
//
//	probe freeze PID     stop every thread of a process as a debugger does, and keep it so
//	probe eat MIB        use so much memory, then wait
//	probe listen PORT    accept one TCP connection, greet it, end
//	probe fill PATH      write until the file system is full
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: probe freeze|eat|listen|fill ARGUMENT")
		os.Exit(2)
	}
	var err error
	switch arg := os.Args[2]; os.Args[1] {
	case "freeze":
		err = freeze(arg)
	case "eat":
		err = eat(arg)
	case "listen":
		err = listen(arg)
	case "fill":
		err = fill(arg)
	default:
		err = fmt.Errorf("unknown verb %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// freeze seizes all threads of pid, new ones included, and never lets go. PTRACE_SEIZE needs no signal, so that it
// works on process 1, which signals do not stop.
func freeze(arg string) error {
	pid, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the tracer is a thread
	held := map[int]bool{}
	for fresh := true; fresh; {
		fresh = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || held[tid] {
				continue
			}
			if err := unix.PtraceSeize(tid); err != nil {
				if errors.Is(err, unix.ESRCH) {
					continue // it has just ended
				}
				return fmt.Errorf("seize thread %d: %w", tid, err)
			}
			if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("stop thread %d: %w", tid, err)
			}
			held[tid], fresh = true, true
		}
	}
	fmt.Printf("frozen: %d threads\n", len(held))
	return wait()
}

// wait keeps the process until it is told to end.
func wait() error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
	return nil
}

func eat(arg string) error {
	mib, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	// Mapped and touched page by page: the runtime's own limit must not get in the way.
	p, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for i := 0; i < len(p); i += 4096 {
		p[i] = 1
	}
	fmt.Printf("ate %d MiB\n", mib)
	return wait()
}

func listen(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, "hello from the guest"); err != nil {
		return err
	}
	return c.Close()
}

func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i)
	}
	for len(buf) > 0 {
		_, err := f.Write(buf)
		switch {
		case errors.Is(err, unix.ENOSPC):
			buf = buf[:len(buf)/2] // what is left is smaller
		case err != nil:
			return err
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return f.Close()
}
