// Package supervise decides when processes start, stop and start again.
//
// The decisions are a Machine: events and the time go in, actions come out. It
// makes no system call, starts no goroutine and reads no clock, so every rule
// below is tested with invented time. Supervisor is the machine's driver: it
// owns a machine, runs its actions through a Runner (init/supervise/process on
// the device) and hands its notices to whoever asked.
//
// # Units
//
// A unit is one process that is looked after: a native service of this
// firmware (ID "network") or one instance of a service that somebody set over
// the bus as with procd (ID "dropbear.instance1").
//
// States: inactive (not wanted), waiting (for what it needs), starting, running
// (ready), stopping, backoff (crashed, will be started again), failed (will
// not, until somebody starts it), done (a oneshot that has ended well).
//
// # Order
//
// Needs are conditions: a unit starts when all units it needs are running or
// done, and Start starts those too. A needed unit that does not exist, or a
// cycle, is an error of this unit alone: it fails with that reason and is
// looked at again when definitions change. After is order without condition: it
// waits until each named unit that is wanted has come to a first result, good
// or bad. Everything else starts in parallel.
//
// Dependants of a unit that crashes, is restarted or is stopped keep running:
// the programs of this firmware reconnect to the bus and tolerate its absence,
// and restarting the house because one brick moved makes matters worse. Needs
// and After together, turned round, are the order of a shutdown.
//
// # Ready and health
//
// A unit is ready when it says so (ReadyNotify), once its program is executed
// (ReadyExec), or when it has ended with code 0 (ReadyExit, for oneshots). One
// that is not ready within ReadyTimeout is stopped and counts as crashed. A
// unit with a Watchdog interval must ping before it passes; when it does not, it
// is unhealthy, gets SIGABRT (a Go program then logs its stacks), after
// TermTimeout SIGKILL, and counts as crashed.
//
// # Starting again
//
// The rule is procd's (service/instance.c) until procd would give up: a unit
// that ran for less than Threshold counts one crash, a longer run sets the
// count to zero; up to Retry crashes it is started again after Delay (Retry 0:
// without end). Past Retry procd stops for good, and a router on a roof is then
// without its service until somebody climbs up. Here the delay doubles with
// each further crash up to Ceiling, and the notice instance.fail is sent once on
// the way, so that those who wait for procd's notice get it.
//
// # Stopping
//
// SIGTERM to the process, after TermTimeout SIGKILL to the process and, unless
// Spec.KeepChildren is set, to all that it left behind. What survives SIGKILL
// for killGrace (a process in uninterruptible sleep) is reported and, in a
// shutdown, no longer waited for.
package supervise
