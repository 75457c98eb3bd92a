package sysupgrade

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"weft/image/firmware"
	"weft/image/firmware/trust"
	"weft/init/rootdisk"
	"weft/init/slot"
)

// Device is what an image is judged against.
type Device struct {
	Boards   []string        // names of this board: /tmp/sysinfo/board_name, oem_name
	Compat   string          // UCI system.@system[0].compat_version; "" is 1.0
	Table    *rootdisk.Table // of the boot disk
	Keys     *trust.Keyring  // nil: no key folder, signatures are not looked at
	Signers  int             // how many known keys must vouch; 0: an unsigned image passes
	RootSize int64           // bytes of the partition that a Weft image's root must fit; 0: one slot only
	Now      time.Time       // for the validity of certificates
}

// Keep says what of the settings is kept: the compat version's minor part counts
// only then.
type Keep struct {
	Config      bool
	IgnoreMinor bool // --ignore-minor-compat-version
}

// Report is the answer of validate_firmware_image, in its JSON form. The first
// four are stock's.
type Report struct {
	Tests       map[string]bool `json:"tests"`
	Valid       bool            `json:"valid"`
	Forceable   bool            `json:"forceable"`
	AllowBackup bool            `json:"allow_backup"`

	Kind    Kind     `json:"kind,omitempty"`
	Version string   `json:"version,omitempty"`
	Reasons []string `json:"reasons,omitempty"` // why it is not valid
	Notes   []string `json:"notes,omitempty"`
	Signers []string `json:"signers,omitempty"` // fingerprints of known keys that vouch

	head   *Head
	broken bool
}

// Names of the tests; the first two are stock's.
const (
	TestSignature = "fwtool_signature"
	TestDevice    = "fwtool_device_match"
	TestIntact    = "weft_intact" // checksums, table, file systems; not forceable
	TestFits      = "weft_fits"   // the disk has room for it
)

func (r *Report) fail(test string, err error) {
	r.Tests[test] = false
	r.Valid = false
	r.Reasons = append(r.Reasons, err.Error())
	if test == TestIntact {
		r.broken, r.Forceable = true, false
	}
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Err is nil for an image that may be written; force lets a forceable one pass.
func (r *Report) Err(force bool) error {
	if r.Valid || force && r.Forceable {
		return nil
	}
	err := fmt.Errorf("%w: %s", ErrRefused, strings.Join(r.Reasons, "; "))
	if r.Forceable {
		return fmt.Errorf("%w (--force goes on nevertheless)", err)
	}
	return err
}

// ErrRefused is an image that validation refused.
var ErrRefused = errors.New("the image is refused")

// Validate judges an image. A source that can be read twice is read to its end,
// so that everything is known before anything is written; of others only the two
// ends are looked at, and the rest is checked while it is written. The error is
// for what hinders the judgement itself: a source that cannot be read.
func Validate(ctx context.Context, src Source, dev *Device, keep Keep) (*Report, error) {
	r := &Report{Tests: map[string]bool{TestSignature: true, TestDevice: true, TestIntact: true, TestFits: true}, Valid: true, Forceable: true, AllowBackup: true}
	head, err := ReadHead(ctx, src)
	if err != nil {
		return r, r.verdict(err)
	}
	r.head, r.Kind = head, head.Kind
	r.metadata(head.Info, dev, keep)
	r.fits(dev)
	if src.Twice() {
		signers, signed, err := r.whole(ctx, src, dev)
		if err != nil {
			return r, r.verdict(err)
		}
		r.signatures(signers, signed, dev)
		return r, nil
	}
	if dev.Keys != nil {
		signers, err := dev.Keys.Begin(head.Trailer, dev.Now).Outlook()
		r.signatures(signers, err, dev)
	} else {
		r.signatures(nil, nil, dev)
	}
	return r, nil
}

// verdict turns a fault of the image into one of the report.
func (r *Report) verdict(err error) error {
	if errors.Is(err, ErrImage) || errors.Is(err, firmware.ErrDamaged) {
		r.fail(TestIntact, err)
		return nil
	}
	return err
}

// metadata is stock's decision (compatibility facts, section 4.3).
func (r *Report) metadata(info *firmware.Info, dev *Device, keep Keep) {
	if info == nil {
		r.note("the image has no metadata: whether it is for this board cannot be told")
		return
	}
	r.Version = strings.TrimSpace(info.Version.Dist + " " + info.Version.Version + " " + info.Version.Revision)
	devices := info.Devices()
	if !slices.ContainsFunc(dev.Boards, func(b string) bool { return slices.Contains(devices, b) }) {
		err := fmt.Errorf("the image is not for this board: this is %s, the image is for %s", strings.Join(dev.Boards, ", "), list(devices))
		if len(devices) == 0 {
			err = errors.New("the image is not for this board: it names none")
		}
		r.fail(TestDevice, err)
	}
	if err := compat(dev.Compat, info.CompatVersion, keep); err != nil {
		if info.CompatMessage != "" {
			err = fmt.Errorf("%w: %s", err, info.CompatMessage)
		}
		r.fail(TestDevice, err)
	}
}

// list is what a message may show of foreign names.
func list(names []string) string {
	const most = 6
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	var out []string
	for _, n := range names {
		out = append(out, fmt.Sprintf("%.80q", n))
	}
	return strings.Join(out, ", ") + more
}

// compat compares the versions of the configuration's form.
func compat(device, image string, keep Keep) error {
	if device == "" {
		device = "1.0"
	}
	major := func(s string) string { m, _, _ := strings.Cut(s, "."); return m }
	switch {
	case image == device:
		return nil
	case major(image) != major(device):
		return fmt.Errorf("the image has compat version %.20q, the device %q: the settings cannot be carried over, and an image of another major number needs what its release notes say", image, device)
	case keep.Config && !keep.IgnoreMinor:
		return fmt.Errorf("the image has compat version %.20q, the device %q: upgrade without settings (-n), or with --ignore-minor-compat-version if the release notes say so", image, device)
	}
	return nil
}

// fits compares with the boot disk.
func (r *Report) fits(dev *Device) {
	if dev.Table == nil {
		return
	}
	if r.Kind == KindWeft && dev.RootSize > 0 {
		return // its root is measured where it lies
	}
	if dev.RootSize > 0 {
		r.note("%s", EndOfSlots(r.head, &StockTarget{Table: dev.Table, SavePartitions: true}))
	}
	if missing := missingLines(r.head.Table, dev.Table); missing != "" {
		r.note("the partition table differs (%s): the full image would be written, and partitions that were grown or added would be lost", missing)
	}
	if last := span(r.head.Table); last > dev.Table.Sectors*uint64(dev.Table.SectorSize)/sector {
		r.fail(TestFits, fmt.Errorf("the image needs %d MiB, the disk has %d", last*sector>>20, dev.Table.Sectors*uint64(dev.Table.SectorSize)>>20))
		r.Forceable = false
	}
	if dev.Table.SectorSize != sector {
		r.fail(TestFits, fmt.Errorf("the disk has sectors of %d bytes, the image is for 512", dev.Table.SectorSize))
		r.Forceable = false
	}
}

func span(t *rootdisk.Table) uint64 {
	last := uint64(0)
	for _, p := range t.Partitions {
		last = max(last, p.End())
	}
	return last
}

// missingLines restates the stock comparison (compatibility facts, section 1.4):
// every entry of the image, of a GPT only numbers 1 to 15, must be on the disk
// with the same start and length. It names the first that is not.
func missingLines(image, disk *rootdisk.Table) string {
	for _, p := range image.Partitions {
		if image.Scheme == rootdisk.GPT && p.Number > 15 {
			continue
		}
		q, ok := disk.Partition(p.Number)
		switch {
		case image.Scheme != disk.Scheme:
			return fmt.Sprintf("the image has %s, the disk %s", image.Scheme, disk.Scheme)
		case !ok:
			return fmt.Sprintf("the disk has no partition %d", p.Number)
		case q.Start != p.Start || q.Sectors != p.Sectors:
			return fmt.Sprintf("partition %d: image %d+%d, disk %d+%d", p.Number, p.Start, p.Sectors, q.Start, q.Sectors)
		}
	}
	return ""
}

// whole reads everything: first the file as it is, against its checksums and
// signatures, and only what is undamaged is unpacked and taken apart.
func (r *Report) whole(ctx context.Context, src Source, dev *Device) (signers []trust.Signer, signed, err error) {
	if len(r.head.Trailer.Chunks) > 0 {
		in := src.Stream(ctx)
		defer in.Close()
		sums := r.head.Trailer.Begin()
		to := io.Writer(sums)
		var sign *trust.Checker
		if dev.Keys != nil {
			sign = dev.Keys.Begin(r.head.Trailer, dev.Now)
			to = io.MultiWriter(sums, sign)
		}
		if _, err := io.CopyBuffer(onlyWriter{to}, in, make([]byte, blockSize)); err != nil {
			return nil, nil, err
		}
		if err := sums.Finish(); err != nil {
			return nil, nil, err
		}
		if sign != nil {
			signers, signed = sign.Finish()
		}
	} else if dev.Keys != nil {
		signed = trust.ErrUnsigned
	}
	p, err := r.head.begin(ctx, src, nil, dev.Now)
	if err != nil {
		return nil, nil, err
	}
	defer p.close()
	if r.Kind == KindWeft && dev.RootSize > 0 {
		if err := p.parts(discard{}, dev.RootSize); err != nil {
			var big *tooLarge
			if !errors.As(err, &big) {
				return nil, nil, err
			}
			r.fail(TestFits, err)
			r.Forceable = false
		}
	}
	_, _, err = p.finish()
	return signers, signed, err
}

// signatures is stock's decision, with a number of signers.
func (r *Report) signatures(signers []trust.Signer, err error, dev *Device) {
	var why []string
	for _, s := range signers {
		if s.Err == nil && s.Root != nil {
			r.Signers = append(r.Signers, s.Root.Fingerprint.String())
		} else if s.Err != nil {
			why = append(why, s.Err.Error())
		}
	}
	switch {
	case dev.Keys == nil && dev.Signers > 0:
		r.fail(TestSignature, fmt.Errorf("%d known keys must vouch for the image, and this device has no key folder", dev.Signers))
	case dev.Keys == nil:
		r.note("this device has no key folder: signatures were not looked at")
	case errors.Is(err, trust.ErrUnsigned) && dev.Signers == 0:
		r.note("the image is not signed")
	case err != nil && len(why) > 0:
		r.fail(TestSignature, fmt.Errorf("%w: %s", err, strings.Join(why, "; ")))
	case err != nil:
		r.fail(TestSignature, err)
	case len(why) > 0:
		r.note("signatures that do not count: %s", strings.Join(why, "; "))
	}
}

// sink takes the parts of a Weft image.
type sink interface {
	// bootFile is a place for a file of the boot partition.
	bootFile(name string, size int64) (io.WriterAt, error)
	// root is a place for the root file system.
	root(size int64) (io.Writer, error)
}

type discard struct{}

func (discard) bootFile(string, int64) (io.WriterAt, error) { return discard{}, nil }
func (discard) root(int64) (io.Writer, error)               { return io.Discard, nil }
func (discard) WriteAt(b []byte, _ int64) (int, error)      { return len(b), nil }

// tooLarge is a root file system that does not fit.
type tooLarge struct{ need, have int64 }

func (e *tooLarge) Error() string {
	return fmt.Sprintf("the root file system of the image needs %d KiB, the slot's partition has %d KiB", e.need>>10, e.have>>10)
}

// parts takes a Weft image apart: boot files, then the root file system.
func (p *pass) parts(to sink, room int64) error {
	p1, _ := p.head.Table.Partition(1)
	p2, _ := p.head.Table.Partition(2)
	if err := p.skipTo(int64(p1.Start) * sector); err != nil {
		return err
	}
	want := map[string]fatWant{}
	for _, f := range slot.Files(slot.A) {
		want[f.Image] = fatWant{optional: f.Optional}
	}
	fat := newFATReader(want, to.bootFile)
	if err := p.copy(fat, int64(p1.Sectors)*sector); err != nil {
		return err
	}
	if err := fat.Close(); err != nil {
		return err
	}
	if err := p.skipTo(int64(p2.Start) * sector); err != nil {
		return err
	}
	super := make([]byte, 96)
	if err := p.copy(&fill{super}, int64(len(super))); err != nil {
		return err
	}
	size, err := squashSize(super)
	if err != nil {
		return err
	}
	switch {
	case size > int64(p2.Sectors)*sector:
		return badImage("its root file system says that it has %d bytes, in a partition of %d", size, int64(p2.Sectors)*sector)
	case size > room:
		return &tooLarge{size, room}
	}
	w, err := to.root(size)
	if err != nil {
		return err
	}
	if _, err := w.Write(super); err != nil {
		return err
	}
	return p.copy(w, size-int64(len(super)))
}

// fill is a Writer into a slice of fixed length.
type fill struct{ b []byte }

func (f *fill) Write(b []byte) (int, error) {
	n := copy(f.b, b)
	f.b = f.b[n:]
	return n, nil
}

// squashSize is the length of a squashfs by its superblock, padded as
// mksquashfs does.
func squashSize(super []byte) (int64, error) {
	if string(super[:4]) != "hsqs" {
		return 0, badImage("its partition 2 holds no squashfs")
	}
	n := binary.LittleEndian.Uint64(super[40:])
	if n < 96 || n > maxSpan {
		return 0, badImage("its squashfs says that it has %d bytes", n)
	}
	return int64(n+4095) &^ 4095, nil
}

// Refuse adds a reason that has nothing to do with the image itself, and that
// force does not overrule.
func (r *Report) Refuse(err error) {
	r.fail(TestFits, err)
	r.Forceable = false
}
