package sysupgrade

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"weft/init/slot"
)

// Target is where a Weft image goes.
type Target struct {
	Slot     slot.ID // the one that does not run
	Root     Volume  // its root partition
	RootSize int64   // bytes
	Data     string  // where the data file system is mounted
	// Boot mounts the boot partition; done brings everything to the medium and
	// unmounts it.
	Boot func(ctx context.Context) (dir string, done func() error, err error)
}

// Options of an upgrade.
type Options struct {
	Force  bool
	Keep   Keep
	Config io.ReadSeeker // settings to carry over (tar.gz); nil for none
	Before *slot.Before  // what the network is like now; nil if not known
	Tries  int           // boots that the new system gets to prove itself; default 3
}

// StageDir is the folder of the data file system where boot files wait until
// everything is verified.
const StageDir = "upgrade"

// Upgrade brings a Weft image into the slot that does not run and puts that on
// trial for the next boot. Whatever fails, the running slot stays as it is and is
// started again; the error says at which step. The report is there whenever the
// image could be judged.
func Upgrade(ctx context.Context, src Source, dev *Device, t *Target, o Options, p *Progress) (*Report, error) {
	p.step(StepCheck)
	r, err := Validate(ctx, src, dev, o.Keep)
	if err != nil {
		return r, fmt.Errorf("check the image: %w", err)
	}
	if err := r.Err(o.Force); err != nil {
		return r, err
	}
	if r.Kind != KindWeft {
		return r, fmt.Errorf("%w: it is no image with two slots", ErrRefused)
	}
	in, err := newInstall(t, o, p)
	if err != nil {
		return r, err
	}
	defer in.close()
	in.ctx = ctx
	if err := in.free(); err != nil {
		return r, err
	}
	p.step(StepWrite)
	pass, err := r.head.begin(ctx, src, dev.Keys, dev.Now)
	if err != nil {
		return r, err
	}
	defer pass.close()
	if err := pass.parts(in, t.RootSize); err != nil {
		return r, fmt.Errorf("write the image: %w", err)
	}
	if err := in.flush(); err != nil {
		return r, err
	}
	signers, signed, err := pass.finish()
	if err != nil {
		return r, fmt.Errorf("check the image: %w", err)
	}
	r.Signers = nil
	r.signatures(signers, signed, dev)
	if err := r.Err(o.Force); err != nil {
		return r, err
	}
	return r, in.commit(ctx)
}

// install is one upgrade's work on the target.
type install struct {
	ctx   context.Context
	t     *Target
	o     Options
	p     *Progress
	begun bool
	stage string
	files map[string]*staged // by the image's name
	w     *sameWriter
	size  int64
	sum   hash.Hash
}

type staged struct {
	*os.File
	size int64
	sum  []byte // of the file as staged
}

func newInstall(t *Target, o Options, p *Progress) (*install, error) {
	in := &install{ctx: context.Background(), t: t, o: o, p: p, files: map[string]*staged{}, stage: filepath.Join(t.Data, StageDir)}
	if o.Tries == 0 {
		in.o.Tries = 3
	}
	p.change(true, func(s *Status) { s.Slot = string(t.Slot) })
	if err := in.clean(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(in.stage, 0o700); err != nil {
		return nil, fmt.Errorf("make room for the upgrade: %w", err)
	}
	return in, nil
}

// clean removes what an upgrade that was cut off has left, but not a spooled
// image, which may be what this one reads.
func (in *install) clean() error {
	entries, err := os.ReadDir(in.stage)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("make room for the upgrade: %w", err)
	}
	for _, e := range entries {
		if e.Name() == "image" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(in.stage, e.Name())); err != nil {
			return fmt.Errorf("make room for the upgrade: %w", err)
		}
	}
	return nil
}

func (in *install) close() {
	for _, f := range in.files {
		f.Close()
	}
	_ = in.clean() // the next upgrade cleans as well
	_ = os.Remove(in.stage)
}

// free makes sure, before anything is fetched, that the slot may be written: the
// boot loader must not need it.
func (in *install) free() (err error) {
	dir, done, err := in.t.Boot(in.ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	st, _ := slot.Read(dir)
	if st.Preferred == in.t.Slot && st.Bootable(in.t.Slot) {
		return fmt.Errorf("slot %s is what the boot loader falls back to while the running system is on trial: wait for the health gate, or keep the running system with `sysupgrade --confirm`, then upgrade: %w", in.t.Slot, slot.ErrInUse)
	}
	if !st.Bootable(st.Preferred) {
		return fmt.Errorf("slot %s, which runs, never came up well: `sysupgrade --confirm` says that it did: %w", in.t.Slot.Other(), slot.ErrNoFallback)
	}
	return nil
}

// begin takes the slot out of service before the first byte of it changes.
func (in *install) begin() (err error) {
	if in.begun {
		return nil
	}
	dir, done, err := in.t.Boot(in.ctx)
	if err != nil {
		return err
	}
	defer func() {
		if derr := done(); err == nil {
			err = derr
		}
		if err != nil {
			err = fmt.Errorf("take slot %s out of service: %w", in.t.Slot, err)
		}
	}()
	store, err := slot.Open(dir)
	if err != nil {
		return err
	}
	if err := store.Invalidate(in.t.Slot); err != nil {
		return err
	}
	// Where its kernel is, a slot counts as whole: it goes first and comes last.
	kernel := filepath.Join(dir, in.kernel().Path)
	if err := os.Rename(kernel, kernel+".prev"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	in.begun = true
	return nil
}

// kernel is the slot's file that comes last.
func (in *install) kernel() slot.File { return slot.Files(in.t.Slot)[0] }

func (in *install) bootFile(name string, size int64) (io.WriterAt, error) {
	if free, err := freeBytes(in.t.Data); err == nil && free < size+1<<20 {
		return nil, fmt.Errorf("the data partition has %d MiB left, %s needs %d", free>>20, name, (size+1<<20)>>20)
	}
	f, err := os.OpenFile(filepath.Join(in.stage, filepath.Base(name)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	in.files[name] = &staged{File: f, size: size}
	return f, nil
}

func (in *install) root(size int64) (io.Writer, error) {
	if err := in.begin(); err != nil {
		return nil, err
	}
	in.size, in.sum = size, sha256.New()
	in.w = newSameWriter(in.t.Root, "the root partition", 0, in.t.RootSize, in.sum, in.p)
	return in.w, nil
}

// flush brings the root file system to the medium.
func (in *install) flush() error {
	if err := in.w.flush(); err != nil {
		return err
	}
	if err := in.t.Root.Sync(); err != nil {
		return fmt.Errorf("write the root partition: %w", err)
	}
	return nil
}

// ErrReadBack says that the disk gives back something else than was written.
var ErrReadBack = errors.New("the disk gives back other bytes than were written: it is failing, or full of errors")

// commit is called once everything was verified: it reads back, puts the boot
// files in place, prepares the settings and, last, switches.
func (in *install) commit(ctx context.Context) error {
	in.p.step(StepVerify)
	sum := sha256.New()
	if err := readBack(in.t.Root, 0, in.size, sum); err != nil {
		return fmt.Errorf("read the root partition back: %w", err)
	}
	if !bytes.Equal(sum.Sum(nil), in.sum.Sum(nil)) {
		return fmt.Errorf("the root partition: %w", ErrReadBack)
	}
	for name, f := range in.files {
		sum := sha256.New()
		if _, err := io.CopyBuffer(onlyWriter{sum}, io.NewSectionReader(f, 0, f.size), make([]byte, blockSize)); err != nil {
			return fmt.Errorf("read %s back: %w", name, err)
		}
		f.sum = sum.Sum(nil)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	in.p.step(StepSwitch)
	if err := in.bootFiles(ctx); err != nil {
		return fmt.Errorf("write the boot partition: %w", err)
	}
	var config io.Reader
	if in.o.Config != nil {
		if _, err := in.o.Config.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("carry the settings over: %w", err)
		}
		config = in.o.Config
	}
	if err := slot.Prepare(in.t.Data, in.t.Slot, config); err != nil {
		return err
	}
	if in.o.Before != nil {
		if err := slot.SaveBefore(in.t.Data, in.t.Slot, *in.o.Before); err != nil {
			return err
		}
	}
	dir, done, err := in.t.Boot(ctx)
	if err != nil {
		return err
	}
	if err := in.onDisk(dir); err != nil {
		return errors.Join(err, done())
	}
	store, err := slot.Open(dir)
	if err == nil {
		err = store.StartTrial(in.t.Slot, in.o.Tries)
	}
	if err := errors.Join(err, done()); err != nil {
		return fmt.Errorf("switch to slot %s: %w", in.t.Slot, err)
	}
	return nil
}

// bootFiles puts kernel and initramfs in place; what is there already stays.
func (in *install) bootFiles(ctx context.Context) (err error) {
	dir, done, err := in.t.Boot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	files := slot.Files(in.t.Slot)
	need := int64(0)
	for n, f := range files {
		path := filepath.Join(dir, f.Path)
		have := path
		if n == 0 {
			have += ".prev"
		}
		s := in.files[f.Image]
		if s == nil || !sameFile(have, s) {
			if err := os.Remove(have); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			if s != nil {
				need += s.size + blockSize
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(files[0].Path)), 0o755); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if free, err := freeBytes(dir); err == nil && free < need {
		return fmt.Errorf("%d KiB are free, %d are needed for kernel and initramfs", free>>10, need>>10)
	}
	for n := len(files) - 1; n >= 0; n-- { // the kernel last
		f := files[n]
		path := filepath.Join(dir, f.Path)
		s := in.files[f.Image]
		if s == nil {
			continue
		}
		have := path
		if n == 0 {
			have += ".prev"
			if err := syncDir(dir); err != nil { // the others are whole before it appears
				return err
			}
		}
		if _, err := os.Stat(have); err != nil {
			have = path + ".new"
			if err := copyTo(have, s); err != nil {
				return err
			}
			in.p.wrote(s.size, 0)
		} else {
			in.p.wrote(0, s.size)
		}
		if have != path {
			if err := os.Rename(have, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// onDisk reads the boot files back after the boot partition was unmounted.
func (in *install) onDisk(dir string) error {
	for _, f := range slot.Files(in.t.Slot) {
		s := in.files[f.Image]
		if s != nil && !sameFile(filepath.Join(dir, f.Path), s) {
			return fmt.Errorf("%s: %w", f.Path, ErrReadBack)
		}
	}
	return nil
}

func sameFile(path string, s *staged) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != s.size {
		return false
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	sum := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{sum}, f, make([]byte, blockSize)); err != nil {
		return false
	}
	return bytes.Equal(sum.Sum(nil), s.sum)
}

func copyTo(path string, s *staged) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(onlyWriter{f}, io.NewSectionReader(s, 0, s.size), make([]byte, blockSize))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
