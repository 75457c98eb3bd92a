// Package procps has the applets that look at the processes and the memory of the
// device and reach processes by name: ps, top, free, uptime, pidof, killall, pgrep
// and pkill. Options and output are busybox's as LEDE ships it, with two
// differences. top and "ps -o rss" tell the memory that a process really has (RSS):
// top shows it where busybox shows VSZ, which for programs written in Go says
// nothing. And ps cuts lines at the terminal's width only, not in a pipe.
//
// Everything is read from /proc; the user of a process is its effective one.
package procps
