// Package lease keeps what was given to whom, in memory and in a file of
// dnsmasq's format, which is where LuCI and scripts look.
//
// The file is replaced as a whole (new file, fsync, rename), so that whatever
// happens it is the old or the new one. Commit is the promise a server needs:
// it calls back once everything changed so far is in the file, and many calls
// share one write.
package lease

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// V4 is a lease of an IPv4 address. It is not changed once it is stored.
type V4 struct {
	Addr     netip.Addr
	MAC      net.HardwareAddr
	ClientID []byte    // option 61; nil if none was sent
	Name     string    // without the domain; "" if none
	Expires  time.Time // zero: for ever
	Device   string    // where the client is; "" after a restart, until it comes back
}

// V6 is a lease of addresses (NA) or a prefix (PD). It names the part that the
// server chose, since prefixes come and go.
type V6 struct {
	DUID    []byte
	IAID    uint32
	PD      bool
	Part    uint64 // NA: the lower half of the addresses; PD: the number of the /64 (lower 32 bits of the upper half)
	Length  int    // of PD
	Name    string
	Expires time.Time
	Device  string
	Addrs   []netip.Prefix // as last given out
}

// Store holds all leases. Its methods may be called from several goroutines.
type Store struct {
	path string

	mu     sync.Mutex
	v4     map[netip.Addr]*V4
	byMAC  map[string]*V4
	byID   map[string]*V4
	v6     map[string]*V6
	duid   []byte // of the server, only for the file
	dirty  bool
	wait   []func(error)
	wake   chan struct{}
	busy   bool // a write is under way
	closed bool
	gen    uint64

	pruned4, pruned6 uint64
}

func key6(duid []byte, iaid uint32, pd bool) string {
	return fmt.Sprintf("%x/%d/%t", duid, iaid, pd)
}

// maxFile bounds what is read of a lease file, in bytes; 65535 leases fit.
const maxFile = 16 << 20

// Open reads the file at path; a missing one is empty. What cannot be
// understood is left out and told in the error, beside the store that holds
// the rest.
func Open(path string, now time.Time) (*Store, error) {
	s := &Store{
		path: path, v4: map[netip.Addr]*V4{}, byMAC: map[string]*V4{}, byID: map[string]*V4{}, v6: map[string]*V6{},
		wake: make(chan struct{}, 1),
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the leases: %w", err)
	}
	defer f.Close()
	v4, v6, err := Parse(io.LimitReader(f, maxFile))
	for _, l := range v4 {
		if l.Expires.IsZero() || l.Expires.After(now) {
			s.put4(l)
		}
	}
	for _, l := range v6 {
		if l.Expires.IsZero() || l.Expires.After(now) {
			s.v6[key6(l.DUID, l.IAID, l.PD)] = l
		}
	}
	if err != nil {
		err = fmt.Errorf("read the leases in %s: %w", path, err)
	}
	return s, err
}

// Parse reads the format. Lines that are at fault are counted in the error and
// left out.
func Parse(r io.Reader) (v4 []*V4, v6 []*V6, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 64<<10)
	bad, first, n := 0, "", 0
	for sc.Scan() {
		n++
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "duid ") || strings.HasPrefix(line, "#") {
			continue
		}
		a, b, perr := parseLine(line)
		switch {
		case perr != nil:
			if bad++; bad == 1 {
				first = fmt.Sprintf("line %d: %v", n, perr)
			}
		case a != nil:
			v4 = append(v4, a)
		default:
			v6 = mergeV6(v6, b)
		}
	}
	if serr := sc.Err(); serr != nil {
		return v4, v6, fmt.Errorf("line %d: %w", n+1, serr)
	}
	if bad > 0 {
		return v4, v6, fmt.Errorf("%d lines left out, the first is %s", bad, first)
	}
	return v4, v6, nil
}

// mergeV6 joins the lines of one lease with several addresses.
func mergeV6(all []*V6, l *V6) []*V6 {
	if n := len(all); n > 0 {
		p := all[n-1]
		if p.IAID == l.IAID && p.PD == l.PD && bytes.Equal(p.DUID, l.DUID) && p.Part == l.Part {
			p.Addrs = append(p.Addrs, l.Addrs...)
			return all
		}
	}
	return append(all, l)
}

func parseLine(line string) (*V4, *V6, error) {
	f := strings.Fields(line)
	if len(f) != 5 {
		return nil, nil, fmt.Errorf("%d fields, expected time, MAC address or IAID, address, name, client id", len(f))
	}
	sec, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil || sec < 0 || sec > 1<<40 {
		return nil, nil, fmt.Errorf("%q is no time", f[0])
	}
	var until time.Time
	if sec != 0 {
		until = time.Unix(sec, 0)
	}
	name := f[3]
	if name == "*" {
		name = ""
	}
	id, err := parseHex(f[4])
	if err != nil {
		return nil, nil, err
	}
	text, length, isPrefix := strings.Cut(f[2], "/")
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return nil, nil, fmt.Errorf("%q is no address", f[2])
	}
	if addr.Is4() {
		hw, err := net.ParseMAC(strings.TrimPrefix(f[1], "06-"))
		if err != nil || len(hw) != 6 || isPrefix {
			return nil, nil, fmt.Errorf("%q is no MAC address of Ethernet", f[1])
		}
		return &V4{Addr: addr, MAC: hw, ClientID: id, Name: name, Expires: until}, nil, nil
	}
	iaid, err := strconv.ParseUint(strings.TrimPrefix(f[1], "T"), 10, 32)
	if err != nil || len(id) == 0 || addr.Is4In6() {
		return nil, nil, fmt.Errorf("%q is no IAID, or the DUID is missing", f[1])
	}
	bits := 128
	if isPrefix {
		if bits, err = strconv.Atoi(length); err != nil || bits < 1 || bits > 64 {
			return nil, nil, fmt.Errorf("%q is no prefix", f[2])
		}
	}
	l := &V6{DUID: id, IAID: uint32(iaid), PD: isPrefix, Name: name, Expires: until, Addrs: []netip.Prefix{netip.PrefixFrom(addr, bits)}}
	b := addr.As16()
	if isPrefix {
		l.Length = bits
		l.Part = uint64(beUint32(b[4:8]))
	} else {
		l.Part = uint64(beUint32(b[8:12]))<<32 | uint64(beUint32(b[12:16]))
	}
	return nil, l, nil
}

func beUint32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func parseHex(s string) ([]byte, error) {
	if s == "*" {
		return nil, nil
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(b) > 255 {
		return nil, fmt.Errorf("%q is no client id", s)
	}
	return b, nil
}

func hexColons(b []byte) string {
	if len(b) == 0 {
		return "*"
	}
	out := make([]byte, 0, len(b)*3)
	for i, c := range b {
		if i > 0 {
			out = append(out, ':')
		}
		out = hex.AppendEncode(out, []byte{c})
	}
	return string(out)
}

func starred(s string) string {
	if s == "" {
		return "*"
	}
	return s
}

func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// text is the file, with s.mu held.
func (s *Store) text() []byte {
	var b bytes.Buffer
	for _, l := range s.sorted4() {
		fmt.Fprintf(&b, "%d %s %s %s %s\n", stamp(l.Expires), l.MAC, l.Addr, starred(l.Name), hexColons(l.ClientID))
	}
	if len(s.v6) > 0 {
		fmt.Fprintf(&b, "duid %s\n", hexColons(s.duid))
		for _, l := range s.sorted6() {
			for _, a := range l.Addrs {
				text := a.Addr().String()
				if l.PD {
					text = a.String()
				}
				fmt.Fprintf(&b, "%d %d %s %s %s\n", stamp(l.Expires), l.IAID, text, starred(l.Name), hexColons(l.DUID))
			}
		}
	}
	return b.Bytes()
}

func (s *Store) sorted4() []*V4 {
	out := make([]*V4, 0, len(s.v4))
	for _, l := range s.v4 {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *V4) int { return a.Addr.Compare(b.Addr) })
	return out
}

func (s *Store) sorted6() []*V6 {
	out := make([]*V6, 0, len(s.v6))
	for _, l := range s.v6 {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *V6) int { return strings.Compare(key6(a.DUID, a.IAID, a.PD), key6(b.DUID, b.IAID, b.PD)) })
	return out
}

// SetServerDUID is what the file says about this server.
func (s *Store) SetServerDUID(d []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.duid = slices.Clone(d)
}

func (s *Store) put4(l *V4) {
	if old := s.v4[l.Addr]; old != nil {
		s.drop4(old)
	}
	s.v4[l.Addr] = l
	s.byMAC[string(l.MAC)] = l
	if l.ClientID != nil {
		s.byID[string(l.ClientID)] = l
	}
	s.changed()
}

func (s *Store) drop4(l *V4) {
	delete(s.v4, l.Addr)
	if s.byMAC[string(l.MAC)] == l {
		delete(s.byMAC, string(l.MAC))
	}
	if l.ClientID != nil && s.byID[string(l.ClientID)] == l {
		delete(s.byID, string(l.ClientID))
	}
	s.changed()
}

func (s *Store) changed() {
	s.dirty = true
	s.gen++
}

// Generation grows with every change.
func (s *Store) Generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gen
}

// Addr4 is the lease of an address, nil if there is none.
func (s *Store) Addr4(a netip.Addr) *V4 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v4[a]
}

// Client4 finds the lease of a client: by its id if it sends one, else by its
// MAC address.
func (s *Store) Client4(id []byte, hw net.HardwareAddr) *V4 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != nil {
		if l := s.byID[string(id)]; l != nil {
			return l
		}
		// A client that has got an id since, such as the system after the
		// boot loader, keeps its address.
		if l := s.byMAC[string(hw)]; l != nil && l.ClientID == nil {
			return l
		}
		return nil
	}
	return s.byMAC[string(hw)]
}

// Put4 stores a lease in the place of whatever the address and the client had.
func (s *Store) Put4(l *V4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put4(l)
}

// Drop4 ends a lease.
func (s *Store) Drop4(l *V4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.v4[l.Addr] == l {
		s.drop4(l)
	}
}

// All4 are all leases by address.
func (s *Store) All4() []*V4 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted4()
}

// Len4 and Len6 count the leases.
func (s *Store) Len4() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.v4) }

// Len6 counts the IPv6 leases.
func (s *Store) Len6() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.v6) }

// Pruned counts leases that ran out.
func (s *Store) Pruned() (v4, v6 uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pruned4, s.pruned6
}

// Get6 is the lease of an identity association, nil if there is none.
func (s *Store) Get6(duid []byte, iaid uint32, pd bool) *V6 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v6[key6(duid, iaid, pd)]
}

// Put6 stores a lease.
func (s *Store) Put6(l *V6) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v6[key6(l.DUID, l.IAID, l.PD)] = l
	s.changed()
}

// Drop6 ends a lease.
func (s *Store) Drop6(l *V6) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key6(l.DUID, l.IAID, l.PD)
	if s.v6[k] == l {
		delete(s.v6, k)
		s.changed()
	}
}

// All6 are all leases, in the order of the file.
func (s *Store) All6() []*V6 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted6()
}

// Prune drops what has run out and returns it.
func (s *Store) Prune(now time.Time) (v4 []*V4, v6 []*V6) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.v4 {
		if !l.Expires.IsZero() && !l.Expires.After(now) {
			v4 = append(v4, l)
		}
	}
	for _, l := range v4 {
		s.drop4(l)
	}
	for k, l := range s.v6 {
		if !l.Expires.IsZero() && !l.Expires.After(now) {
			v6 = append(v6, l)
			delete(s.v6, k)
			s.changed()
		}
	}
	s.pruned4 += uint64(len(v4))
	s.pruned6 += uint64(len(v6))
	return v4, v6
}

// Commit calls done once all changes made before are in the file; with an error
// if they could not be written, in which case they are in memory all the same.
// It does not block. done runs in the goroutine of Run, or here if nothing has
// changed.
func (s *Store) Commit(done func(error)) {
	s.mu.Lock()
	if !s.dirty && len(s.wait) == 0 && !s.busy || s.closed {
		s.mu.Unlock()
		if done != nil {
			done(nil)
		}
		return
	}
	if done != nil {
		s.wait = append(s.wait, done)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes the file whenever Commit asks, until stop is closed; then it
// writes what is left.
func (s *Store) Run(stop <-chan struct{}) {
	for {
		select {
		case <-s.wake:
			s.flush()
		case <-stop:
			s.mu.Lock()
			s.closed = true
			s.mu.Unlock()
			s.flush()
			return
		}
	}
}

func (s *Store) flush() {
	s.mu.Lock()
	wait, dirty := s.wait, s.dirty
	s.wait, s.dirty, s.busy = nil, false, true
	var text []byte
	if dirty {
		text = s.text()
	}
	path := s.path
	s.mu.Unlock()
	var err error
	if dirty {
		if err = writeFile(path, text); err != nil {
			s.mu.Lock()
			s.dirty = true
			s.mu.Unlock()
		}
	}
	for _, f := range wait {
		f(err)
	}
	s.mu.Lock()
	s.busy = false
	s.mu.Unlock()
}

// Move lets the file be elsewhere from now on.
func (s *Store) Move(path string) {
	s.mu.Lock()
	if s.path != path {
		s.path, s.dirty = path, true
	}
	s.mu.Unlock()
	s.Commit(nil)
}

func writeFile(path string, text []byte) error {
	// In the same folder, for rename; hidden, as scripts may glob.
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("write the leases: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write the leases: %w", err)
	}
	return nil
}
