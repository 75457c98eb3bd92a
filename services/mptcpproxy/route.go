package mptcpproxy

import (
	"net/netip"
	"sync/atomic"

	"weft/services/mptcpproxy/internal/settings"
)

// routes tells which peer leads to a destination: longest prefix first. It is
// replaced as a whole and read without a lock.
type routes struct{ table atomic.Pointer[routeTable] }

// routeTable has a map for each length of prefix in use, longest first.
type routeTable struct{ four, six []routeLevel }

type routeLevel struct {
	bits  int
	peers map[netip.Prefix]*settings.Peer
}

// set replaces the table.
func (r *routes) set(peers []settings.Peer) {
	t := &routeTable{}
	for i := range peers {
		for _, d := range peers[i].Destinations {
			levels := &t.six
			if d.Addr().Is4() {
				levels = &t.four
			}
			at := 0
			for at < len(*levels) && (*levels)[at].bits > d.Bits() {
				at++
			}
			if at == len(*levels) || (*levels)[at].bits != d.Bits() {
				*levels = append(*levels, routeLevel{})
				copy((*levels)[at+1:], (*levels)[at:])
				(*levels)[at] = routeLevel{d.Bits(), map[netip.Prefix]*settings.Peer{}}
			}
			(*levels)[at].peers[d] = &peers[i]
		}
	}
	r.table.Store(t)
}

// find returns the peer for a destination, nil if none leads there.
func (r *routes) find(dst netip.Addr) *settings.Peer {
	t := r.table.Load()
	if t == nil {
		return nil
	}
	dst = dst.Unmap()
	levels := t.six
	if dst.Is4() {
		levels = t.four
	}
	for _, l := range levels {
		p, err := dst.Prefix(l.bits)
		if err != nil {
			return nil
		}
		if peer := l.peers[p]; peer != nil {
			return peer
		}
	}
	return nil
}
