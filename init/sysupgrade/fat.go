package sysupgrade

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// ErrImage says that an image is damaged or not of the kind that it says.
var ErrImage = errors.New("bad image")

func badImage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrImage, fmt.Sprintf(format, args...))
}

// fatReader takes files out of a FAT16 file system that comes by in one pass, as
// the boot partition of an image does inside of a gzip stream. It holds the
// allocation table (at most 128 KiB), the root folder and one cluster.
//
// One pass is enough where folders lie before their files and files before
// nothing that names them: the builder makes folders first. Anything else is an
// error, not a wrong file.
type fatReader struct {
	want map[string]fatWant // by lower-case path without leading slash
	open func(name string, size int64) (io.WriterAt, error)

	buf   []byte // what is being collected
	need  int    // bytes of it until the next step
	state func(b []byte) error
	err   error

	clusterSize int
	reserved    int
	fatBytes    int
	fats        int
	rootBytes   int
	clusters    int
	fat         []byte
	at          int  // number of the cluster that comes, or is being read
	inCluster   bool // the cluster at is being read: what it names lies behind it
	role        map[int]*fatRole
	found       map[string]*fatFile
}

type fatWant struct{ optional bool }

type fatFile struct {
	size, have int64
	to         io.WriterAt
}

// fatRole says what a cluster is for.
type fatRole struct {
	dir string // a folder's path with a slash at its end
	lfn *lfn   // the folder's, carried over clusters

	file *fatFile
	off  int64
}

// lfn collects a long name.
type lfn struct {
	parts [20]string
	next  int // the sequence number expected next, 0: no name
	count int
	sum   byte
	end   bool // the folder has ended
}

const (
	maxFATRoot = 64 << 10
	sector     = 512
)

// newFATReader takes the wanted files, by path; open is called for each that is
// there with its size.
func newFATReader(want map[string]fatWant, open func(name string, size int64) (io.WriterAt, error)) *fatReader {
	f := &fatReader{want: map[string]fatWant{}, open: open, role: map[int]*fatRole{}, found: map[string]*fatFile{}, need: sector}
	for name, w := range want {
		f.want[strings.ToLower(name)] = w
	}
	f.state = f.bootSector
	return f
}

// Write takes the next bytes of the partition.
func (f *fatReader) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 && f.err == nil {
		if f.state == nil { // behind the last cluster
			return total, nil
		}
		n := min(len(b), f.need-len(f.buf))
		if len(f.buf) == 0 && n == f.need {
			f.err = f.state(b[:n]) // no copy where a whole piece comes at once
		} else if f.buf = append(f.buf, b[:n]...); len(f.buf) == f.need {
			whole := f.buf
			f.buf = f.buf[:0]
			f.err = f.state(whole)
		}
		b = b[n:]
	}
	if f.err != nil {
		return total - len(b), f.err
	}
	return total, nil
}

// Close says whether everything wanted came.
func (f *fatReader) Close() error {
	if f.err != nil {
		return f.err
	}
	for name, w := range f.want {
		file := f.found[name]
		switch {
		case file == nil && !w.optional:
			return badImage("its boot partition has no %s", name)
		case file != nil && file.have < file.size:
			return badImage("%s in its boot partition ends after %d of %d bytes", name, file.have, file.size)
		}
	}
	return nil
}

func (f *fatReader) bootSector(b []byte) error {
	le := binary.LittleEndian
	if b[510] != 0x55 || b[511] != 0xaa || le.Uint16(b[11:]) != sector {
		return badImage("its boot partition is no FAT file system")
	}
	perCluster, reserved := int(b[13]), int(le.Uint16(b[14:]))
	f.fats = int(b[16])
	entries, fatSectors := int(le.Uint16(b[17:])), int(le.Uint16(b[22:]))
	sectors := int(le.Uint16(b[19:]))
	if sectors == 0 {
		sectors = int(le.Uint32(b[32:]))
	}
	f.rootBytes = (entries*32 + sector - 1) / sector * sector
	if perCluster == 0 || perCluster&(perCluster-1) != 0 || perCluster > 128 || reserved == 0 || f.fats < 1 || f.fats > 2 || fatSectors == 0 || fatSectors > 256 || entries == 0 || f.rootBytes > maxFATRoot {
		return badImage("its boot partition is a FAT file system of an unknown shape")
	}
	f.clusterSize = perCluster * sector
	f.reserved = reserved
	f.fatBytes = fatSectors * sector
	data := sectors - reserved - f.fats*fatSectors - f.rootBytes/sector
	f.clusters = data / perCluster
	if data <= 0 || f.clusters < 4085 || f.clusters >= 65525 || (f.clusters+2)*2 > f.fatBytes {
		return badImage("its boot partition is no FAT16 (%d clusters)", f.clusters)
	}
	return f.skip((reserved-1)*sector, f.fatBytes, f.table)
}

// skip passes over n bytes and then collects need bytes for state.
func (f *fatReader) skip(n, need int, state func([]byte) error) error {
	f.need, f.state = need, state
	if n > 0 {
		f.need = min(n, blockSize)
		f.state = func(b []byte) error { return f.skip(n-len(b), need, state) }
	}
	return nil
}

func (f *fatReader) table(b []byte) error {
	f.fat = append([]byte(nil), b...)
	return f.skip((f.fats-1)*f.fatBytes, f.rootBytes, f.root)
}

func (f *fatReader) root(b []byte) error {
	f.at = 2
	if err := f.entries("", &lfn{}, b); err != nil {
		return err
	}
	f.need, f.state = f.clusterSize, f.cluster
	return nil
}

func (f *fatReader) cluster(b []byte) error {
	if r := f.role[f.at]; r != nil {
		delete(f.role, f.at)
		if r.file != nil {
			n := min(int64(len(b)), r.file.size-r.off)
			if _, err := r.file.to.WriteAt(b[:n], r.off); err != nil {
				return err
			}
			r.file.have += n
		} else {
			f.inCluster = true
			if err := f.entries(r.dir, r.lfn, b); err != nil {
				return err
			}
			f.inCluster = false
		}
	}
	f.at++
	if f.at-2 == f.clusters {
		f.state = nil
	}
	return nil
}

// next is the cluster behind c in its chain; 0 at the end.
func (f *fatReader) next(c int) (int, error) {
	n := int(binary.LittleEndian.Uint16(f.fat[2*c:]))
	switch {
	case n >= 0xfff8:
		return 0, nil
	case n < 2 || n >= f.clusters+2:
		return 0, badImage("the chain of cluster %d in its boot partition leads to %d", c, n)
	}
	return n, nil
}

// entries reads a piece of a folder.
func (f *fatReader) entries(dir string, l *lfn, b []byte) error {
	le := binary.LittleEndian
	for ; len(b) >= 32 && !l.end; b = b[32:] {
		e := b[:32]
		attr := e[11]
		switch {
		case e[0] == 0:
			l.end = true
			continue
		case e[0] == 0xe5:
			l.next, l.count = 0, 0
			continue
		case attr&0x3f == 0x0f:
			l.add(e)
			continue
		}
		name := l.name(e)
		l.next, l.count = 0, 0
		if attr&0x08 != 0 || name == "." || name == ".." || name == "" {
			continue // a label, or the folder itself
		}
		path := dir + strings.ToLower(name)
		first, size := int(le.Uint16(e[26:])), int64(le.Uint32(e[28:]))
		if attr&0x10 != 0 {
			if f.leads(path + "/") {
				if err := f.chain(path+"/", first, &fatRole{dir: path + "/", lfn: &lfn{}}, 0); err != nil {
					return err
				}
			}
			continue
		}
		if _, ok := f.want[path]; !ok {
			continue
		}
		if f.found[path] != nil {
			return badImage("%s is twice in its boot partition", path)
		}
		if size == 0 || size > int64(f.clusters)*int64(f.clusterSize) {
			return badImage("%s in its boot partition has %d bytes", path, size)
		}
		to, err := f.open(path, size)
		if err != nil {
			return err
		}
		file := &fatFile{size: size, to: to}
		f.found[path] = file
		if err := f.chain(path, first, &fatRole{file: file}, size); err != nil {
			return err
		}
	}
	return nil
}

func (f *fatReader) leads(dir string) bool {
	for w := range f.want {
		if strings.HasPrefix(w, dir) {
			return true
		}
	}
	return false
}

// chain gives the clusters of a file (size > 0) or folder their role.
func (f *fatReader) chain(path string, c int, role *fatRole, size int64) error {
	if c < 2 || c >= f.clusters+2 {
		return badImage("%s in its boot partition begins at cluster %d", path, c)
	}
	last := 0
	for n := 0; c != 0; n++ {
		if n > f.clusters || f.role[c] != nil {
			return badImage("the clusters of %s in its boot partition are crossed", path)
		}
		if c <= f.at && f.inCluster {
			return badImage("%s in its boot partition lies before the folder that names it: the builder lays it out otherwise", path)
		}
		r := *role
		r.off = int64(n) * int64(f.clusterSize)
		if r.file == nil && c < last {
			return badImage("the folder %s in its boot partition is not in order", path)
		}
		if r.file != nil && r.off >= size {
			break // more clusters than bytes: harmless
		}
		f.role[c] = &r
		last = c
		next, err := f.next(c)
		if err != nil {
			return err
		}
		if next == 0 && r.file != nil && r.off+int64(f.clusterSize) < size {
			return badImage("%s in its boot partition has too few clusters", path)
		}
		c = next
	}
	return nil
}

func (l *lfn) add(e []byte) {
	seq := int(e[0] & 0x1f)
	if e[0]&0x40 != 0 && seq >= 1 && seq <= len(l.parts) {
		l.count, l.next, l.sum = seq, seq, e[13]
	}
	if l.next == 0 || seq != l.next || e[13] != l.sum {
		l.next, l.count = 0, 0
		return
	}
	var u []uint16
	for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := r[0]; i < r[1]; i += 2 {
			u = append(u, binary.LittleEndian.Uint16(e[i:]))
		}
	}
	for i, c := range u {
		if c == 0 {
			u = u[:i]
			break
		}
	}
	l.parts[seq-1] = string(utf16.Decode(u))
	l.next--
}

// name is the long name that belongs to the entry, else the short one.
func (l *lfn) name(e []byte) string {
	if l.count > 0 && l.next == 0 {
		sum := byte(0)
		for _, c := range e[:11] {
			sum = sum>>1 | sum<<7
			sum += c
		}
		if sum == l.sum {
			return strings.Join(l.parts[:l.count], "")
		}
	}
	base, ext := strings.TrimRight(string(e[:8]), " "), strings.TrimRight(string(e[8:11]), " ")
	if ext != "" {
		base += "." + ext
	}
	return base
}
