// Package sshd is the SSH server of the device. It follows /etc/config/dropbear
// as LEDE's Dropbear does, takes over Dropbear's host keys, and offers shells,
// commands, sftp, scp and port forwarding.
//
// Three kinds of processes share the work. The service (Run) has root: it
// listens, holds the host keys, checks passwords and keys, and starts what users
// run. For each connection it starts a process without rights (Connection) that
// speaks the SSH protocol and asks the service, over a socket pair, for the few
// things that need rights. What a user runs is a process of that user.
//
// Serve is the protocol alone, for programs that need no such separation: the
// rescue system calls it with a Local backend.
//
// Not here: X11 and agent forwarding, keyboard-interactive and host based login,
// certificates.
package sshd
