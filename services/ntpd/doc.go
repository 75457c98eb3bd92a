// Package ntpd is the NTP client and server of `config timeserver ntp` in
// /etc/config/system.
//
// The client asks all servers at once, leaves out those that the majority does
// not agree with (RFC 5905 section 11.2.1), steps the clock when it is far off
// after the start, and otherwise lets the kernel slew it (adjtimex). A server
// that sends a kiss of death is not asked again, or less often (section 7.4). The
// server answers once the clock is right, with the stratum that follows.
//
// It keeps a file in its state folder whose time of change is about now: at the
// next start of a machine without a battery stage 1 finds it there, below /etc,
// and starts from it.
package ntpd
