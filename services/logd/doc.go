// Package logd is the device's log: it takes lines from /dev/log and the kernel,
// keeps the newest in memory, offers them on the bus as object log, and sends
// them on to a file or to another host if asked to. See README.md.
package logd
