package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// answerWithin bounds the wait for the kernel's answer to a batch. It answers
// before the call that sends returns; the bound is for an answer lost to a full
// socket buffer.
const answerWithin = 3 * time.Second

// firewall is the nftables side. Its netlink socket owns the table.
type firewall struct {
	c    *nftables.Conn
	sock *netlink.Conn // c's socket
	made int           // flags of the table that we have made; -1: not yet
}

func openFirewall() (*firewall, error) {
	f := &firewall{made: -1}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
		f.sock = s
		// A whole table is some hundred messages, each with an acknowledgement; the
		// default buffer is too small where net.core.rmem_default is.
		if err := s.SetReadBuffer(1 << 20); err != nil {
			return err
		}
		return s.SetWriteBuffer(1 << 20)
	}))
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	f.c = c
	return f, nil
}

func (f *firewall) close() { f.c.CloseLasting() }

// flush sends what has been collected as one transaction.
func (f *firewall) flush() error {
	if err := f.wait(); err != nil {
		return err
	}
	err := f.c.Flush()
	if err != nil {
		f.drain()
	}
	return err
}

// wait bounds the next exchange.
func (f *firewall) wait() error { return f.sock.SetReadDeadline(time.Now().Add(answerWithin)) }

// drain throws answers away that belong to a failed batch.
func (f *firewall) drain() {
	for {
		if f.sock.SetReadDeadline(time.Now().Add(10*time.Millisecond)) != nil {
			return
		}
		if _, err := f.sock.Receive(); errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// set makes the kernel hold what o says.
func (f *firewall) set(o Options, peersUp bool) error {
	if o.usesSets() {
		if err := f.setSets(o); err != nil {
			return err
		}
	}
	flags := ownerFlag
	if o.Fail == FailClosed {
		flags = 0
	}
	if f.made != flags {
		// Replace what is there, ours of the other kind or a predecessor's, without
		// a moment in which there is none: the next one does the work meanwhile.
		if err := f.clear(nextTable); err != nil {
			return err
		}
		if err := f.write(nextTable, flags, o, peersUp); err != nil {
			return errors.Join(err, f.clear(nextTable))
		}
		if err := f.clear(Table); err != nil {
			return err
		}
		f.made = -1
		if err := f.write(Table, flags, o, peersUp); err != nil {
			return err
		}
		f.made = flags
		if err := f.clear(nextTable); err != nil {
			return err
		}
	} else if err := f.fill(Table, o, peersUp); err != nil {
		return err
	}
	if !o.usesSets() {
		if err := f.clear(SetsTable); err != nil {
			return err
		}
	}
	return nil
}

// write makes a table and fills it.
func (f *firewall) write(name string, flags int, o Options, peersUp bool) error {
	if err := f.create(name, flags); err != nil {
		return err
	}
	return f.fill(name, o, peersUp)
}

func (f *firewall) fill(name string, o Options, peersUp bool) error {
	return f.transaction(name, func(b *builder) { b.fill(o, peersUp) })
}

// setSets makes or updates the table of the user's sets and keeps their content.
func (f *firewall) setSets(o Options) error {
	if err := f.create(SetsTable, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return f.transaction(SetsTable, func(b *builder) { b.fillSets(o) })
}

// transaction writes a table in one batch. What is wrong with the options shows
// in a dry run, because a connection cannot forget what it has collected.
func (f *firewall) transaction(table string, fill func(*builder)) error {
	dry, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	for _, c := range []*nftables.Conn{dry, f.c} {
		b := &builder{c: c, t: &nftables.Table{Name: table, Family: nftables.TableFamilyINet}}
		fill(b)
		if b.err != nil {
			return fmt.Errorf("making the rules of table `inet %s`: %w", table, b.err)
		}
	}
	if err := f.flush(); err != nil {
		return fmt.Errorf("writing nftables table `inet %s`: %w", table, err)
	}
	return nil
}

// create makes an empty table with flags, which the library cannot. EEXIST if
// there is one.
func (f *firewall) create(name string, flags int) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, uint32(flags))},
	})
	if err != nil {
		return err
	}
	const sys = unix.NFNL_SUBSYS_NFTABLES
	msgs := []netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: []byte{0, 0, 0, sys}},
		{
			Header: netlink.Header{Type: sys<<8 | unix.NFT_MSG_NEWTABLE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
			Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: []byte{0, 0, 0, sys}},
	}
	if err := f.wait(); err != nil {
		return err
	}
	if _, err = f.sock.SendMessages(msgs); err == nil {
		_, err = f.sock.Receive()
	}
	if err != nil {
		f.drain()
		return fmt.Errorf("making nftables table `inet %s` (flags %#x): %w", name, flags, err)
	}
	return nil
}

// clear deletes a table, if it is there.
func (f *firewall) clear(name string) error {
	tables, err := f.tables()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }) {
		return nil
	}
	f.c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	if err := f.flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting nftables table `inet %s`: %w", name, err)
	}
	return nil
}

// remove deletes all our tables.
func (f *firewall) remove() error {
	f.made = -1
	return errors.Join(f.clear(Table), f.clear(nextTable), f.clear(SetsTable))
}

// known adds and deletes destinations.
func (f *firewall) known(add, del []netip.AddrPort, timeout time.Duration) error {
	var errs error
	for _, v4 := range []bool{true, false} {
		s := &nftables.Set{
			Table: &nftables.Table{Name: Table, Family: nftables.TableFamilyINet},
			Name:  "known6", HasTimeout: true,
		}
		if v4 {
			s.Name = "known4"
		}
		var elems []nftables.SetElement
		for _, dst := range add {
			if dst.Addr().Is4() == v4 {
				elems = append(elems, nftables.SetElement{Key: knownKey(dst), Timeout: timeout})
			}
		}
		for len(elems) > 0 {
			n := min(chunk, len(elems))
			err := f.c.SetAddElements(s, elems[:n])
			if err == nil {
				err = f.flush()
			}
			errs = errors.Join(errs, err)
			elems = elems[n:]
		}
		for _, dst := range del {
			if dst.Addr().Is4() != v4 {
				continue
			}
			// One by one: an element that has expired meanwhile fails its batch.
			err := f.c.SetDeleteElements(s, []nftables.SetElement{{Key: knownKey(dst)}})
			if err == nil {
				err = f.flush()
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				errs = errors.Join(errs, err)
			}
		}
	}
	return errs
}

// knownKey is address and port as the kernel concatenates them: each padded to
// four bytes.
func knownKey(dst netip.AddrPort) []byte {
	return append(append(dst.Addr().AsSlice(), big16(dst.Port())...), 0, 0)
}

// ownerFlag is NFT_TABLE_F_OWNER, linux/netfilter/nf_tables.h.
const ownerFlag = 0x2

// owned tells whether a table belongs to the netlink socket of a process. The
// library reads the flags, which are big-endian, in the machine's byte order;
// only the lowest three bits have a meaning, so both are looked at.
func owned(t *nftables.Table) bool {
	return (t.Flags|bits.ReverseBytes32(t.Flags))&ownerFlag != 0
}

var errElsewhere = errors.New("another process intercepts in this network namespace (it owns the table `inet mptcpproxy`); stop it first")

// free fails if the tables belong to a living process.
func (f *firewall) free() error {
	tables, err := f.tables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if owned(t) && (t.Name == Table || t.Name == nextTable) {
			return errElsewhere
		}
	}
	return nil
}

func (f *firewall) tables() ([]*nftables.Table, error) {
	if err := f.wait(); err != nil {
		return nil, err
	}
	tables, err := f.c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("listing nftables tables (is nf_tables there, with CAP_NET_ADMIN?): %w", err)
	}
	return slices.DeleteFunc(tables, func(t *nftables.Table) bool { return t.Family != unix.NFPROTO_INET }), nil
}
