// Package bus speaks ubus: the message bus of LEDE and OpenWrt, as broker and
// as client, in the real wire protocol, so that unmodified C programs (netifd,
// hostapd, rpcd, the ubus command) can sit on either end.
//
// # The wire
//
// A message on the stream socket is an 8-byte header (version 0, type, sequence
// number, peer; big endian) and one blob, whose attributes depend on the type.
// Arguments and replies are blobmsg: named, typed, ordered attributes, here a
// Table. The source for every number is openwrt/ubus ubusmsg.h and
// openwrt/libubox blob.h and blobmsg.h.
//
// # Client
//
// Dial makes one connection and fails at once if nobody answers; it is for
// commands. Connect keeps one up for as long as its context lives, and after
// the broker came back publishes and subscribes again everything that was; it
// is for services. Each method call of a published object runs in its own
// goroutine. Notifications and events reach their function one at a time, in
// the order in which they were sent.
//
// # Broker
//
// Listen opens the socket, Serve runs it. Clients are told apart by the
// kernel's peer credentials; root may do all, others what the files of the ACL
// folder grant. A client that does not read what it is sent is dropped once its
// queue is full; it cannot make anybody wait.
//
// The broker is stricter than ubusd in a few points, each to keep one client
// from hurting another: an unprivileged client needs a listen grant for the
// pattern "*" as for any other, may call an object without a path only if its
// owner is the same user, and holds a bounded amount of the broker's memory. A
// caller whose callee dies gets StatusConnectionFailed at once rather than a
// time-out.
//
// What it does not do: a notification of our own that waits for the subscribers'
// verdicts. Published.Notify never waits; C programs on this broker may.
package bus
