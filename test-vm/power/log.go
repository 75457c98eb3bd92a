package power

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
)

// Kind is what was done to a disk.
type Kind uint8

// The kinds of entries of a log. Marks are set by whoever drives the guest.
const (
	Write Kind = iota + 1
	Zero       // write zeros
	Trim       // discard
	Flush      // everything before it is durable
	Mark       // something happened in the guest; Off is the mark's number
)

func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Zero:
		return "zero"
	case Trim:
		return "trim"
	case Flush:
		return "flush"
	case Mark:
		return "mark"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

func (k Kind) changes() bool { return k == Write || k == Zero || k == Trim }

// Op is one entry of a log.
type Op struct {
	Kind     Kind
	FUA      bool  // durable by itself
	Off, Len int64 // bytes of the disk
	data     int64 // where the bytes of a Write are in the log's data
}

// Log is what was done to one disk, in the order in which it was answered. It is a folder with two files, ops and
// data, so that a recording outlives the program: a record of 32 bytes for each entry, and the bytes of all writes.
type Log struct {
	mu   sync.Mutex
	ops  []Op
	data *os.File
	end  int64    // of data
	file *os.File // ops, nil in a log that is not to be kept
	keep bool
	dir  string
}

const opSize = 32

// CreateLog makes an empty log in dir, which is made if missing. Close must follow.
func CreateLog(dir string) (*Log, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create a log of writes: %w", err)
	}
	l := &Log{dir: dir, keep: true}
	var err error
	if l.data, err = os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		return nil, fmt.Errorf("create a log of writes: %w", err)
	}
	if l.file, err = os.OpenFile(filepath.Join(dir, "ops"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		l.data.Close()
		return nil, fmt.Errorf("create a log of writes: %w", err)
	}
	return l, nil
}

// OpenLog reads a log that another program made. It cannot be added to; [Log.At] is what it is for.
func OpenLog(dir string) (*Log, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "ops"))
	if err != nil {
		return nil, fmt.Errorf("open a log of writes: %w", err)
	}
	data, err := os.Open(filepath.Join(dir, "data"))
	if err != nil {
		return nil, fmt.Errorf("open a log of writes: %w", err)
	}
	info, err := data.Stat()
	if err == nil {
		l := &Log{dir: dir, data: data, end: info.Size()}
		if l.ops, err = decodeOps(raw, info.Size()); err == nil {
			return l, nil
		}
	}
	data.Close()
	return nil, fmt.Errorf("open the log of writes in %s: %w", dir, err)
}

// decodeOps reads records whose data are within end bytes.
func decodeOps(raw []byte, end int64) ([]Op, error) {
	if len(raw)%opSize != 0 {
		return nil, fmt.Errorf("%d bytes of records, want a multiple of %d: it was cut", len(raw), opSize)
	}
	ops := make([]Op, 0, len(raw)/opSize)
	for ; len(raw) > 0; raw = raw[opSize:] {
		o := Op{
			Kind: Kind(raw[0]), FUA: raw[1] != 0,
			Off:  int64(binary.LittleEndian.Uint64(raw[8:])),
			Len:  int64(binary.LittleEndian.Uint64(raw[16:])),
			data: int64(binary.LittleEndian.Uint64(raw[24:])),
		}
		bad := o.Kind < Write || o.Kind > Mark || o.Off < 0 || o.Len < 0 || o.Off > 1<<60 || o.Len > 1<<60
		if o.Kind == Write {
			bad = bad || o.data < 0 || o.data > end || o.Len > end-o.data
		}
		if bad {
			return nil, fmt.Errorf("record %d (%s of %d bytes at %d) cannot be", len(ops), o.Kind, o.Len, o.Off)
		}
		ops = append(ops, o)
	}
	return ops, nil
}

// scratch is a log in a temporary file that is gone when the log is closed: for the writes of a guest that is only judged.
func scratch() (*Log, error) {
	f, err := os.CreateTemp("", "weft-power-")
	if err != nil {
		return nil, fmt.Errorf("make room for writes: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make room for writes: %w", err)
	}
	return &Log{data: f}, nil
}

// Close closes the files; what they hold stays.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.data.Close()
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
	}
	return err
}

// add appends an entry with the bytes of a write, and returns where these are.
func (l *Log) add(o Op, p []byte) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o.data = l.end
	if len(p) > 0 {
		if _, err := l.data.WriteAt(p, l.end); err != nil {
			return 0, fmt.Errorf("log a write: %w", err)
		}
		l.end += int64(len(p))
	}
	if l.file != nil {
		var r [opSize]byte
		r[0] = byte(o.Kind)
		if o.FUA {
			r[1] = 1
		}
		binary.LittleEndian.PutUint64(r[8:], uint64(o.Off))
		binary.LittleEndian.PutUint64(r[16:], uint64(o.Len))
		binary.LittleEndian.PutUint64(r[24:], uint64(o.data))
		if _, err := l.file.Write(r[:]); err != nil {
			return 0, fmt.Errorf("log a write: %w", err)
		}
	}
	if l.keep {
		l.ops = append(l.ops, o)
	}
	return o.data, nil
}

func (l *Log) read(p []byte, off int64) error {
	if _, err := l.data.ReadAt(p, off); err != nil {
		return fmt.Errorf("read the log of writes at %d: %w", off, err)
	}
	return nil
}

// Mark notes that something happened now; n is the caller's.
func (l *Log) Mark(n int) error {
	_, err := l.add(Op{Kind: Mark, Off: int64(n)}, nil)
	return err
}

// Ops are the entries so far. They must not be changed.
func (l *Log) Ops() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ops[:len(l.ops):len(l.ops)]
}

// Mode is what is left of writes that were not flushed when the power was cut.
type Mode int

// The modes of a cut.
const (
	Clean Mode = iota // all of them, whole
	Drop              // any of them, in parts of sectors
	Torn              // all but the last whole; any sectors of the last
)

func (m Mode) String() string {
	switch m {
	case Clean:
		return "clean"
	case Drop:
		return "drop"
	case Torn:
		return "torn"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

// ParseMode reads what String gives.
func ParseMode(s string) (Mode, error) {
	for m := Clean; m <= Torn; m++ {
		if s == m.String() {
			return m, nil
		}
	}
	return 0, fmt.Errorf("mode of a cut %q: clean, drop or torn is expected", s)
}

// Cut is a moment at which the power goes.
type Cut struct {
	After int // entries of the log that had been answered
	Mode  Mode
	Seed  uint64 // chooses what is left, unless the mode is Clean
}

func (c Cut) String() string {
	if c.Mode == Clean {
		return fmt.Sprintf("%d:clean", c.After)
	}
	return fmt.Sprintf("%d:%s:%d", c.After, c.Mode, c.Seed)
}

// At is the disk after a cut, over the same base as the recording. Its own writes are kept apart, and gone with Close.
func (l *Log) At(base io.ReaderAt, size int64, cut Cut) (*Disk, error) {
	ops := l.Ops()
	if cut.After < 0 || cut.After > len(ops) {
		return nil, fmt.Errorf("cut after entry %d: the log has %d", cut.After, len(ops))
	}
	ops = ops[:cut.After]
	flushed, last := 0, -1 // entries before the last flush; the last change
	for i, o := range ops {
		if o.Kind == Flush {
			flushed = i
		}
		if o.Kind.changes() {
			last = i
		}
	}
	d, err := NewDisk(base, size, l)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(cut.Seed, uint64(cut.After)))
	for i, o := range ops {
		if !o.Kind.changes() {
			continue
		}
		if err := d.check(o.Off, o.Len); err != nil {
			return nil, fmt.Errorf("entry %d of the log: %w", i, err)
		}
		e := extent{o.Off, o.Off + o.Len, o.data}
		if o.Kind != Write {
			e.data = -1
		}
		volatile := i >= flushed && !o.FUA
		switch {
		case cut.Mode == Drop && volatile:
			// A third is there, a third is not, of a third some sectors are.
			switch rng.IntN(3) {
			case 0:
				d.written.put(e)
			case 1:
				tear(&d.written, e, rng)
			}
		case cut.Mode == Torn && i == last && i >= flushed:
			// Even one with FUA: it had not been answered.
			tear(&d.written, e, rng)
		default:
			d.written.put(e)
		}
	}
	under := d
	room, err := scratch()
	if err != nil {
		return nil, err
	}
	return &Disk{base: under, size: size, log: room}, nil
}

// Close frees what the disk's own writes take; it is for disks that At made.
func (d *Disk) Close() error { return d.log.Close() }

// maxPieces bounds how many parts a torn entry falls into: a discard of gigabytes is not torn sector by sector.
const maxPieces = 4096

// tear puts a part of e: its first sectors up to some, its last ones, or any.
func tear(x *extents, e extent, rng *rand.Rand) {
	piece := func(from, to int64) {
		p := extent{from, to, e.data}
		if e.data >= 0 {
			p.data += from - e.from
		}
		x.put(p)
	}
	// Sectors of the disk, whose first and last may be written in part.
	first := e.from / Sector
	n := (e.to+Sector-1)/Sector - first
	edge := func(i int64) int64 { return min(max((first+i)*Sector, e.from), e.to) }
	switch rng.IntN(3) {
	case 0:
		piece(e.from, edge(rng.Int64N(n+1)))
	case 1:
		piece(edge(rng.Int64N(n+1)), e.to)
	default:
		step := n/maxPieces + 1
		for i := int64(0); i < n; i += step {
			if rng.IntN(2) == 0 {
				piece(edge(i), edge(min(i+step, n)))
			}
		}
	}
}
