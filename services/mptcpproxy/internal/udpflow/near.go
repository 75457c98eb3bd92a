package udpflow

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/datagram/mmsg"
)

// readClients takes what TPROXY hands us until s is closed.
func (f *Flows) readClients(s *socket) {
	r := mmsg.NewReader(batchSize, messageSize)
	var used []*datagram.Session
	var head []byte
	for {
		n := 0
		var rerr error
		err := s.raw.Read(func(fd uintptr) bool {
			n, rerr = r.Read(int(fd))
			return rerr != unix.EAGAIN
		})
		if err != nil || rerr == unix.EBADF {
			return
		}
		if rerr != nil {
			continue // an error of something that was sent
		}
		for i := range n {
			m := r.Message(i)
			used, head = f.fromClient(&m, used, head)
		}
		for i, s := range used {
			s.Flush()
			used[i] = nil
		}
		used = used[:0]
	}
}

// fromClient sends one message of a client to the far side; used collects the
// sessions to flush.
func (f *Flows) fromClient(m *mmsg.Message, used []*datagram.Session, head []byte) ([]*datagram.Session, []byte) {
	tu := tuple{client: m.From, dst: m.Original}
	if !tu.client.IsValid() || !tu.dst.IsValid() || tu.dst.Port() == 0 || tu.client.Port() == 0 || m.Truncated {
		f.counts.unroutable.Add(1)
		return used, head
	}
	ttl := m.TTL - 1 // we are a router
	if m.TTL < 0 {
		ttl = 64
	}
	if ttl <= 0 {
		f.tell(tu, f.exceeded(tu.client.Addr()), len(m.Data))
		return used, head
	}
	now := f.now()
	f.mu.Lock()
	fl := f.near.tuples[tu]
	if fl == nil {
		if fl = f.open(tu); fl == nil {
			f.mu.Unlock()
			return used, head
		}
	} else {
		f.near.touch(now, fl, false)
	}
	s := f.e.Session(fl.to, true)
	id := fl.id
	named := fl.packets < nameFirst || fl.nameNext || now-fl.named >= nameAgain
	if s != nil {
		fl.packets++
		if named {
			fl.named, fl.nameNext = now, false
		}
	}
	f.mu.Unlock()
	if s == nil {
		f.counts.unroutable.Add(1)
		return used, head
	}
	msg := message{kind: msgUp, flow: id, tos: uint8(max(0, m.TOS)), ttl: uint8(ttl)}
	if named {
		msg.kind, msg.client, msg.dst = msgUpAddrs, tu.client, tu.dst
	}
	head = msg.appendHead(head[:0])
	datagrams(m, func(b []byte) {
		if len(head)+len(b) > 65535 {
			f.counts.unroutable.Add(1)
			return
		}
		if err := s.Queue(lane(id), datagram.ClassUDP, head, b); err != nil {
			f.counts.unroutable.Add(1)
			return
		}
		f.counts.up.Add(1)
		f.counts.upBytes.Add(uint64(len(b)))
	})
	for _, u := range used {
		if u == s {
			return used, head
		}
	}
	return append(used, s), head
}

// open makes a near flow; f.mu is held.
func (f *Flows) open(tu tuple) *flow {
	peer, ok := f.policy.Load().peer(tu.dst.Addr())
	if !ok || f.closed {
		f.counts.unroutable.Add(1)
		return nil
	}
	for {
		f.nextID++
		if f.near.numbers[number{id: f.nextID}] == nil {
			break
		}
	}
	fl := f.near.add(f.now(), tu, number{id: f.nextID})
	if fl != nil {
		fl.to = peer
	}
	return fl
}

// nearClosed tells the far side that a flow has ended; f.mu is held.
func (f *Flows) nearClosed(fl *flow) {
	if f.closed {
		return
	}
	if s := f.e.Session(fl.to, true); s != nil && s.Alive() {
		m := message{kind: msgEnd, flow: fl.id}
		// It is for the far side's memory only: its own time-out does without.
		_ = s.Queue(lane(fl.id), datagram.ClassUDP, m.appendHead(nil))
	}
}

// fromFar takes answers and errors.
func (f *Flows) fromFar(s *datagram.Session, payloads [][]byte) {
	now := f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	var at *answer
	for _, b := range payloads {
		m, err := parseMessage(b)
		if err != nil {
			continue
		}
		fl := f.near.numbers[number{id: m.flow}]
		if fl == nil || fl.to != s.Peer() {
			continue
		}
		switch m.kind {
		case msgUnknown:
			fl.nameNext = true
		case msgError:
			if m.icmp.offender.Is4() == fl.client.Addr().Is4() {
				f.tell(fl.tuple, m.icmp, 0)
			}
		case msgDown:
			f.near.touch(now, fl, true)
			ttl := int(m.ttl) - 1
			if ttl <= 0 {
				continue
			}
			a := f.answer(fl.dst)
			if a == nil {
				f.counts.errs.Add(1)
				continue
			}
			if a != at || f.nearOut.Full() {
				f.flushAnswers(at)
				at = a
			}
			f.nearOut.Add(m.data, fl.client, a.v6)
			setHop(f.nearOut, a.v6, int(m.tos), ttl)
			f.counts.down.Add(1)
			f.counts.downBytes.Add(uint64(len(m.data)))
		}
	}
	f.flushAnswers(at)
}

// setHop gives the last message of w its DSCP and hop limit.
func setHop(w *mmsg.Writer, v6 bool, tos, ttl int) {
	if v6 {
		w.SetInt(unix.SOL_IPV6, unix.IPV6_HOPLIMIT, ttl)
		w.SetInt(unix.SOL_IPV6, unix.IPV6_TCLASS, tos)
		return
	}
	w.SetInt(unix.SOL_IP, unix.IP_TTL, ttl)
	w.SetInt(unix.SOL_IP, unix.IP_TOS, tos)
}

func (f *Flows) flushAnswers(a *answer) {
	if a == nil || f.nearOut.Len() == 0 {
		return
	}
	f.nearOut.Send(a.fd, func(i int, err error) bool {
		f.counts.errs.Add(1)
		return false
	})
}

// answer is the socket that speaks as addr; f.mu is held.
func (f *Flows) answer(addr netip.AddrPort) *answer {
	if a := f.answers[addr]; a != nil {
		if f.recent.head != &a.link {
			a.link.remove()
			f.recent.push(&a.link)
		}
		return a
	}
	fd, err := f.foreign(addr, false)
	if err != nil {
		f.log.Debug("UDP answer socket", "error", err)
		return nil
	}
	if len(f.answers) >= answersMax {
		old := f.recent.tail
		old.remove()
		for k, a := range f.answers {
			if &a.link == old {
				unix.Close(a.fd)
				delete(f.answers, k)
				break
			}
		}
	}
	a := &answer{addr: addr, fd: fd, v6: addr.Addr().Is6()}
	f.answers[addr] = a
	f.recent.push(&a.link)
	return a
}

// foreign makes a UDP socket that speaks as addr, which need not be ours.
func (f *Flows) foreign(addr netip.AddrPort, marked bool) (fd int, err error) {
	v6 := addr.Addr().Is6()
	domain, level, opt := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if v6 {
		domain, level, opt = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if fd, err = f.socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err != nil {
		return -1, fmt.Errorf("make a UDP socket to speak as %v: %w", addr, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	if err = unix.SetsockoptInt(fd, level, opt, 1); err != nil {
		return fd, fmt.Errorf("make the socket of %v transparent (needs CAP_NET_ADMIN): %w", addr, err)
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fd, fmt.Errorf("set SO_REUSEADDR of the socket of %v: %w", addr, err)
	}
	if v6 {
		if err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fd, fmt.Errorf("set IPV6_V6ONLY of the socket of %v: %w", addr, err)
		}
	}
	if marked && f.mark != 0 {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, f.mark); err != nil {
			return fd, fmt.Errorf("mark the socket of %v: %w", addr, err)
		}
	}
	if err = unix.Bind(fd, mmsg.Sockaddr(addr, v6)); err != nil {
		return fd, fmt.Errorf("bind a socket to %v: %w", addr, err)
	}
	return fd, nil
}

// tell sends the client of tu an ICMP error.
func (f *Flows) tell(tu tuple, e icmpError, size int) {
	if !e.offender.IsValid() || f.raw == nil {
		return
	}
	var b [128]byte
	if f.raw.send(appendICMP(b[:0], tu, e, size), tu.client.Addr()) == nil {
		f.counts.icmp.Add(1)
	} else {
		f.counts.errs.Add(1)
	}
}

// exceeded is the error for a packet whose hop limit is used up here, on its
// way from a.
func (f *Flows) exceeded(a netip.Addr) icmpError {
	e := icmpError{typ: icmpTimeExceeded4, offender: f.ownAddress(a)}
	if a.Is6() {
		e.typ = icmpTimeExceeded6
	}
	return e
}

// ownAddress is the address by which this machine speaks to a, invalid if it
// has no route.
func (f *Flows) ownAddress(a netip.Addr) netip.Addr {
	v6 := a.Is6()
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	fd, err := f.socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}
	}
	defer unix.Close(fd)
	if unix.Connect(fd, mmsg.Sockaddr(netip.AddrPortFrom(a, 9), v6)) != nil {
		return netip.Addr{}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}
