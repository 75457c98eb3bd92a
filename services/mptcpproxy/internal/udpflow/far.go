package udpflow

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/datagram/mmsg"
)

// fromNear takes what clients behind a peer send.
func (f *Flows) fromNear(s *datagram.Session, payloads [][]byte) {
	now := f.now()
	f.farMu.Lock()
	defer f.farMu.Unlock()
	var at *flow
	reply := false
	for _, b := range payloads {
		m, err := parseMessage(b)
		if err != nil {
			continue
		}
		n := number{peer: s.Peer(), id: m.flow}
		switch m.kind {
		case msgEnd:
			if fl := f.far.numbers[n]; fl != nil {
				if fl == at {
					f.flushFar(at)
					at = nil
				}
				f.far.remove(fl)
			}
			continue
		case msgUp, msgUpAddrs:
		default:
			continue
		}
		fl := f.far.numbers[n]
		if fl != nil && m.kind == msgUpAddrs && fl.tuple != (tuple{m.client, m.dst}) {
			// The near side began anew and uses the number for another flow.
			f.flushFar(at)
			at = nil
			f.far.remove(fl)
			fl = nil
		}
		if fl == nil {
			if m.kind != msgUpAddrs {
				u := message{kind: msgUnknown, flow: m.flow}
				if s.Queue(lane(m.flow), datagram.ClassUDP, u.appendHead(nil)) == nil {
					reply = true
				}
				continue
			}
			f.flushFar(at)
			at = nil
			var told bool
			fl, told = f.openFar(now, s, n, tuple{m.client, m.dst})
			reply = reply || told
			if fl == nil {
				continue
			}
		}
		fl.session = s
		f.far.touch(now, fl, false)
		ttl := int(m.ttl) - 1
		if ttl <= 0 {
			a, ok := f.own[fl.dst.Addr()]
			if !ok {
				a = f.ownAddress(fl.dst.Addr())
				f.own[fl.dst.Addr()] = a
			}
			e := icmpError{typ: icmpTimeExceeded4, offender: a}
			if fl.dst.Addr().Is6() {
				e.typ = icmpTimeExceeded6
			}
			reply = f.report(fl, e) || reply
			continue
		}
		if fl != at || f.farOut.Full() || fl.tos != int(m.tos) || fl.ttl != ttl {
			f.flushFar(at)
			at = fl
			f.setFar(fl, int(m.tos), ttl)
		}
		f.farOut.Add(m.data, netip.AddrPort{}, fl.dst.Addr().Is6())
		f.counts.up.Add(1)
		f.counts.upBytes.Add(uint64(len(m.data)))
	}
	f.flushFar(at)
	if reply {
		s.Flush()
	}
}

// flushFar sends what was collected for fl.
func (f *Flows) flushFar(fl *flow) {
	if fl == nil || f.farOut.Len() == 0 {
		return
	}
	tried := -1
	f.farOut.Send(fl.fd, func(i int, err error) bool {
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			// As full as a network can be.
		case tried != i:
			// The error may be that of an earlier packet, which the error queue
			// tells in full.
			tried = i
			return true
		default:
			f.counts.errs.Add(1)
		}
		return false
	})
}

// setFar gives fl's socket DSCP and hop limit.
func (f *Flows) setFar(fl *flow, tos, ttl int) {
	v6 := fl.dst.Addr().Is6()
	set := func(now *int, want, level4, opt4, opt6 int) {
		if *now == want {
			return
		}
		level, opt := level4, opt4
		if v6 {
			level, opt = unix.SOL_IPV6, opt6
		}
		if unix.SetsockoptInt(fl.fd, level, opt, want) == nil {
			*now = want
		}
	}
	set(&fl.tos, tos, unix.SOL_IP, unix.IP_TOS, unix.IPV6_TCLASS)
	set(&fl.ttl, ttl, unix.SOL_IP, unix.IP_TTL, unix.IPV6_UNICAST_HOPS)
}

// openFar makes a far flow. told is true if a message for the near side was
// queued. f.farMu is held.
func (f *Flows) openFar(now time.Duration, s *datagram.Session, n number, tu tuple) (fl *flow, told bool) {
	if fl := f.far.tuples[tu]; fl != nil {
		// The same flow by another number: the near side began anew.
		f.far.renumber(fl, n)
		return fl, false
	}
	if tu.client.Addr().Is4() != tu.dst.Addr().Is4() || tu.client.Port() == 0 || tu.dst.Port() == 0 ||
		f.far.max == 0 || f.policy.Load().allow(s.Peer(), tu.client, tu.dst) != nil {
		f.counts.refused.Add(1)
		return nil, false
	}
	fl = f.far.add(now, tu, n)
	if fl == nil {
		return nil, false
	}
	fl.session = s
	fd, err := f.connect(tu)
	if err == nil {
		fl.fd = fd
		f.byFD[int32(fd)] = fl
		err = f.watchFar(fd)
	}
	if err != nil {
		f.counts.errs.Add(1)
		f.log.Debug("UDP flow to a sink", "error", err)
		// Without a route a router would say so.
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
			e := icmpError{typ: icmpUnreachable4, code: codeNet4, offender: f.ownAddress(tu.client.Addr())}
			if tu.dst.Addr().Is6() {
				e.typ, e.code = icmpUnreachable6, codeNet6
			}
			told = f.report(fl, e)
		}
		f.far.remove(fl)
		return nil, told
	}
	return fl, false
}

// connect makes the socket that speaks as the client to the sink.
func (f *Flows) connect(tu tuple) (fd int, err error) {
	if fd, err = f.foreign(tu.client, true); err != nil {
		return -1, err
	}
	v6 := tu.dst.Addr().Is6()
	if err = wantControl(fd, v6); err == nil {
		// Errors with all that ICMP said. Path MTU discovery as a host does it by
		// default: the client hears of packets that are too big.
		if v6 {
			err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		} else {
			err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
			_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT)
		}
	}
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, farBuffer)
		_ = unix.SetsockoptInt(fd, mmsg.SolUDP, mmsg.UDPGRO, 1)
		err = unix.Connect(fd, mmsg.Sockaddr(tu.dst, v6))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (f *Flows) watchFar(fd int) error {
	err := error(unix.EBADF)
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if cerr := f.epoll.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, fd, &ev) }); cerr != nil {
		return cerr
	}
	return err
}

// farClosed closes a far flow's socket; f.farMu is held.
func (f *Flows) farClosed(fl *flow) {
	if fl.fd >= 0 {
		delete(f.byFD, int32(fl.fd))
		unix.Close(fl.fd)
		fl.fd = -1
	}
}

// report tells the near side of an ICMP error and whether that was queued.
func (f *Flows) report(fl *flow, e icmpError) bool {
	if !e.offender.IsValid() || e.offender.Is4() != fl.dst.Addr().Is4() {
		return false
	}
	m := message{kind: msgError, flow: fl.id, icmp: e}
	s := f.back(fl)
	if s == nil || s.Queue(lane(fl.id), datagram.ClassUDP, m.appendHead(nil)) != nil {
		return false
	}
	f.counts.icmp.Add(1)
	return true
}

// back is the session by which answers of fl go: the one it came by, or what
// has replaced that.
func (f *Flows) back(fl *flow) *datagram.Session {
	if fl.session == nil || !fl.session.Alive() {
		if s := f.e.Session(fl.number.peer, false); s != nil {
			fl.session = s
		}
	}
	return fl.session
}

// readSinks takes answers of sinks until the epoll instance is closed.
func (f *Flows) readSinks() {
	r := mmsg.NewReader(batchSize, messageSize)
	events := make([]unix.EpollEvent, 64)
	used := map[*datagram.Session]bool{}
	for {
		n := 0
		err := f.epoll.raw.Read(func(ep uintptr) bool {
			var werr error
			n, werr = unix.EpollWait(int(ep), events, 0)
			return n > 0 || werr != nil && werr != unix.EINTR
		})
		if err != nil {
			return
		}
		for i := range max(0, n) {
			f.fromSink(&events[i], r, used)
		}
		for s := range used {
			s.Flush()
		}
		clear(used)
	}
}

// fromSink reads what one socket has, and its error queue.
func (f *Flows) fromSink(ev *unix.EpollEvent, r *mmsg.Reader, used map[*datagram.Session]bool) {
	f.farMu.Lock()
	defer f.farMu.Unlock()
	fl := f.byFD[ev.Fd]
	if fl == nil {
		return
	}
	if ev.Events&unix.EPOLLERR != 0 {
		f.readErrors(fl, used)
	}
	if ev.Events&unix.EPOLLIN == 0 {
		return
	}
	n, err := r.Read(fl.fd)
	if err != nil {
		return // EPOLLERR tells the rest
	}
	now := f.now()
	s := f.back(fl)
	if s == nil {
		return
	}
	f.far.touch(now, fl, true)
	var buf [headUp]byte
	for i := range n {
		m := r.Message(i)
		ttl := m.TTL - 1
		if m.TTL < 0 {
			ttl = 64
		}
		if ttl <= 0 || m.Truncated {
			continue
		}
		msg := message{kind: msgDown, flow: fl.id, tos: uint8(max(0, m.TOS)), ttl: uint8(ttl)}
		head := msg.appendHead(buf[:0])
		datagrams(&m, func(b []byte) {
			if len(head)+len(b) > 65535 || s.Queue(lane(fl.id), datagram.ClassUDP, head, b) != nil {
				f.counts.unroutable.Add(1)
				return
			}
			f.counts.down.Add(1)
			f.counts.downBytes.Add(uint64(len(b)))
		})
	}
	used[s] = true
}

// readErrors passes on what the error queue of fl's socket holds.
func (f *Flows) readErrors(fl *flow, used map[*datagram.Session]bool) {
	var oob [512]byte
	var b [1]byte
	for range 16 {
		_, n, _, _, err := unix.Recvmsg(fl.fd, b[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		e := mmsg.ParseControl(oob[:n]).Err
		if e == nil || e.Origin != unix.SO_EE_ORIGIN_ICMP && e.Origin != unix.SO_EE_ORIGIN_ICMP6 {
			continue
		}
		if f.report(fl, icmpError{typ: e.Type, code: e.Code, info: e.Info, offender: e.Offender}) {
			used[fl.session] = true
		}
	}
	// The error that the queue has explained would else be that of the next call.
	_, _ = unix.GetsockoptInt(fl.fd, unix.SOL_SOCKET, unix.SO_ERROR)
}
