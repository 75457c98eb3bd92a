package mptcpnl

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
)

// EventKind says what an [Event] is about (enum mptcp_event_type).
type EventKind uint8

// Kinds of events. EventLost is our own: events were dropped.
const (
	EventLost            EventKind = 0
	EventCreated         EventKind = 1  // the first handshake is done or has begun
	EventEstablished     EventKind = 2  // subflows may be created now
	EventClosed          EventKind = 3  // the connection has ended
	EventAnnounced       EventKind = 6  // the other end announced an address
	EventRemoved         EventKind = 7  // the other end withdrew an address
	EventSubEstablished  EventKind = 10 // a subflow has joined
	EventSubClosed       EventKind = 11 // a subflow has ended
	EventSubPriority     EventKind = 13 // a subflow became backup, or no longer is
	EventListenerCreated EventKind = 15
	EventListenerClosed  EventKind = 16
)

var eventNames = map[EventKind]string{
	EventLost: "lost", EventCreated: "created", EventEstablished: "established", EventClosed: "closed",
	EventAnnounced: "announced", EventRemoved: "removed", EventSubEstablished: "sub-established",
	EventSubClosed: "sub-closed", EventSubPriority: "sub-priority",
	EventListenerCreated: "listener-created", EventListenerClosed: "listener-closed",
}

// String is the kernel's name of the kind in lower case.
func (k EventKind) String() string {
	if s, ok := eventNames[k]; ok {
		return s
	}
	return fmt.Sprintf("event-%d", uint8(k))
}

// Event is one report of the path manager. What a kind does not carry is zero.
type Event struct {
	Kind          EventKind
	Token         uint32
	LocID, RemID  uint8
	Local, Remote netip.AddrPort
	Backup        bool  // the other end asks not to use the subflow while another works
	Error         uint8 // errno of a subflow that ended
	Flags         uint16
	Timeout       time.Duration
	IfIndex       int
	ResetReason   uint32 // RFC 8684, 3.6
	ResetFlags    uint32
	ServerSide    bool
}

// Attributes of events (enum mptcp_event_attr).
const (
	evToken       = 1
	evLocID       = 3
	evRemID       = 4
	evSaddr4      = 5
	evSaddr6      = 6
	evDaddr4      = 7
	evDaddr6      = 8
	evSport       = 9
	evDport       = 10
	evBackup      = 11
	evError       = 12
	evFlags       = 13
	evTimeout     = 14
	evIfIdx       = 15
	evResetReason = 16
	evResetFlags  = 17
	evServerSide  = 18

	flagServerSide = 0x2 // in evFlags, from 6.18 on (MPTCP_PM_EV_FLAG_SERVER_SIDE)
)

// parseEvent reads the attributes of one event.
func parseEvent(cmd uint8, b []byte) (Event, error) {
	ev := Event{Kind: EventKind(cmd)}
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return ev, fmt.Errorf("read MPTCP event %s: %w", ev.Kind, err)
	}
	var saddr, daddr netip.Addr
	var sport, dport uint16
	for d.Next() {
		switch d.Type() {
		case evToken:
			ev.Token = d.Uint32()
		case evLocID:
			ev.LocID = d.Uint8()
		case evRemID:
			ev.RemID = d.Uint8()
		case evSaddr4, evSaddr6:
			saddr = addrFrom(d.Bytes(), saddr)
		case evDaddr4, evDaddr6:
			daddr = addrFrom(d.Bytes(), daddr)
		case evSport:
			sport = be16(d.Bytes())
		case evDport:
			dport = be16(d.Bytes())
		case evBackup:
			ev.Backup = d.Uint8() != 0
		case evError:
			ev.Error = d.Uint8()
		case evFlags:
			ev.Flags = d.Uint16()
			ev.ServerSide = ev.ServerSide || ev.Flags&flagServerSide != 0
		case evTimeout:
			ev.Timeout = time.Duration(d.Uint32()) * time.Millisecond
		case evIfIdx:
			ev.IfIndex = int(d.Int32())
		case evResetReason:
			ev.ResetReason = d.Uint32()
		case evResetFlags:
			ev.ResetFlags = d.Uint32()
		case evServerSide:
			ev.ServerSide = ev.ServerSide || d.Uint8() != 0
		}
	}
	if err := d.Err(); err != nil {
		return ev, fmt.Errorf("read MPTCP event %s: %w", ev.Kind, err)
	}
	if saddr.IsValid() {
		ev.Local = netip.AddrPortFrom(saddr, sport)
	}
	if daddr.IsValid() {
		ev.Remote = netip.AddrPortFrom(daddr, dport)
	}
	return ev, nil
}
