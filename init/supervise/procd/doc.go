// Package procd offers the supervisor on the bus as procd does: the object
// `service`, with which /etc/init.d scripts of other people set, list and delete
// their instances, and whose triggers reload them.
//
// Compatible with procd (openwrt/procd service/service.c, instance.c,
// trigger.c) are the methods set, add, list, delete, signal, event, state,
// get_data, set_data and watchdog, the notifications instance.start, stop,
// respawn, fail and service.start, stop, and the comparison on set: an unchanged
// instance is not touched, a changed one is restarted or gets its reload_signal,
// set stops what it does not name and add does not.
//
// Of our own are: native services in list, with state, health, restarts, memory
// and more; the methods restart, reload and timeline; the notifications
// instance.ready, instance.reload, instance.health and instance.kill; reasons in
// all of them; and a back-off in place of procd's giving up (package supervise).
//
// Not supported: jails (jail, seccomp, capabilities files, bundle, extroot,
// overlaydir: ignored with a line in the log, as procd does without ujail, or
// refused if the jail is required), netns, trace, the method validate (rules are
// kept and shown by list with verbose), and in triggers the json_script commands
// beyond if, case, return, run_script and lists.
package procd
