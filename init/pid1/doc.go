// Package pid1 is /sbin/init: what runs from the switch of the root until the
// power goes.
//
// Run mounts what stage 1 has not (the kernel may start /sbin/init directly),
// reads the unit files, starts the enabled services in parallel, answers on the
// bus as `service` and `system`, reaps every process that is left to it, runs
// the consoles of /etc/inittab, feeds the hardware watchdog, and shuts down in
// order.
//
// # Boot
//
// A native service is started if it has a start link /etc/rc.d/S??<name>, or if
// one that is started needs it. Functions of PID 1 are units as well, so that
// they have their place in the order and in the timeline: modules (listed ones and
// drivers that the network may need) and devices (all other drivers, package
// hotplug), sysctl (/etc/sysctl.d/*.conf,
// /etc/sysctl.conf), system (hostname, time zone, console log level from UCI),
// rcS (start links of other people's scripts, in order, each after the native
// services with smaller numbers) and done (the overlay is marked good).
//
// When all started services have come up the console shows, once,
//
//	weft: ready in 4.21 s
//
// counted from the start of the kernel. A service that failed is named on the
// console before; one that is marked critical keeps the line back until it is
// up. In failsafe mode no service is started, the consoles get root shells at
// once, and the line is "weft: failsafe in …".
//
// # Not dying
//
// Every goroutine started here catches its panics, logs them, and its loop goes
// on. What Go does not let a program survive (running out of memory, concurrent
// map writes) ends PID 1, and then the kernel panics and reboots by
// kernel.panic; the hardware watchdog is behind that.
//
// # Watchdog
//
// /dev/watchdog, or the descriptor in WDTFD, gets a time-out of 30 s and a ping
// every 5 s, as procd does it, but only while the supervisor's loop answers and
// no critical service that is wanted is down or unhealthy. During the first two
// minutes only the loop counts. An orderly shutdown keeps pinging until the last
// moment and leaves the watchdog armed.
//
// # Signals
//
// As procd: SIGTERM and SIGINT (ctrl-alt-del) reboot, SIGUSR1 halt, SIGUSR2 and
// SIGPWR power off.
//
// # Shutdown
//
// Stop links K* of other people's scripts (15 s each), services in reverse order
// of their start (SIGTERM, time-out, SIGKILL), all other processes (SIGTERM, 1 s,
// SIGKILL), sync, unmount, read-only, reboot(2). Whoever does not stop is named.
package pid1
