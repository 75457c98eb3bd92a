package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ID names a slot.
type ID string

// The slots.
const (
	A ID = "a"
	B ID = "b"
)

// Other returns the other slot.
func (i ID) Other() ID {
	if i == B {
		return A
	}
	return B
}

// RootPartition is the number of the partition with the slot's squashfs.
func (i ID) RootPartition() int {
	if i == B {
		return 3
	}
	return 2
}

// Valid says whether i is one of the two.
func (i ID) Valid() bool { return i == A || i == B }

// File is one file that the boot loader reads for a slot.
type File struct {
	Image    string // where an image has it, relative to its boot partition
	Path     string // where the slot has it, relative to the boot partition
	Optional bool   // an image without it is no worse
}

// Files are what a slot has in the boot partition. An image has its files where
// slot a has them: at LEDE's names.
func Files(id ID) []File {
	files := []File{{Image: "boot/vmlinuz"}, {Image: "boot/initramfs.cpio.zst"}, {Image: "boot/rescue.cpio", Optional: true}}
	for i := range files {
		files[i].Path = files[i].Image
		if id == B {
			files[i].Path = "boot/b/" + strings.TrimPrefix(files[i].Image, "boot/")
		}
	}
	return files
}

// Result says why a slot was given up.
type Result struct {
	Slot   ID
	Check  string    // what failed, in one word: boot, stage1, dhcp, hand …
	Detail string    // for people; cut where the sector is full, ASCII
	At     time.Time // whole seconds; zero when the clock was not known
}

// State is what the environment says.
type State struct {
	Preferred ID // what the boot loader starts when nothing is on trial
	Trial     ID // "" for none
	TriesLeft int
	Given     int         // tries that the trial began with
	Confirmed map[ID]bool // came up well at least once since it was written
	Bad       map[ID]bool // failed, or is being overwritten: not started
	Last      Result      // the last failure; Slot is "" if there was none
	Seq       uint64
}

// Bootable says whether the boot loader would start the slot by itself.
func (s State) Bootable(id ID) bool {
	return id.Valid() && !s.Bad[id] && (s.Confirmed[id] || s.Trial == id && s.TriesLeft > 0)
}

func (s State) clone() State {
	c := s
	c.Confirmed = map[ID]bool{A: s.Confirmed[A], B: s.Confirmed[B]}
	c.Bad = map[ID]bool{A: s.Bad[A], B: s.Bad[B]}
	return c
}

// Fresh is the state of an image: slot a holds a system, slot b nothing.
func Fresh() State { return only(A) }

func only(id ID) State {
	return State{Preferred: id, Confirmed: map[ID]bool{id: true, id.Other(): false}, Bad: map[ID]bool{id: false, id.Other(): true}, Seq: 1}
}

// MaxTries is the largest number of tries: GRUB counts in one digit.
const MaxTries = 9

// Errors of transitions that would leave the device without a system.
var (
	ErrNoFallback = errors.New("the other slot holds no system that came up before")
	ErrInUse      = errors.New("the boot loader starts this slot or falls back to it")
)

// Store reads and changes the state. It is not safe for use by several
// goroutines at once; two programs that change at once are kept apart by a lock.
type Store struct {
	dir   string
	state State
	notes []string
}

// The copies, in the order in which GRUB takes equal ones.
var copies = []string{"boot/grub/grubenv", "boot/grub/grubenv2"}

// Read returns the state that is in force below bootDir (the mounted boot
// partition) without changing anything. The notes say, for people, what is wrong
// with the copies; if none is whole the running slot is taken for the only one, and
// the notes say so.
func Read(bootDir string) (State, []string) {
	s, notes, _, _ := load(bootDir)
	return s, notes
}

// Open reads the state below bootDir, where the boot partition is mounted
// read-write, and writes copies that are not whole or out of date anew.
func Open(bootDir string) (*Store, error) {
	unlock, err := lock(bootDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	st, notes, blocks, _ := load(bootDir)
	s := &Store{dir: bootDir, state: st, notes: notes}
	want, err := encode(st)
	if err != nil {
		return nil, err
	}
	for n, name := range copies {
		if blocks[n] == string(want) {
			continue
		}
		if err := writeCopy(filepath.Join(bootDir, name), want); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Notes say what Open found wrong with the copies and repaired.
func (s *Store) Notes() []string { return s.notes }

// State returns the state in force.
func (s *Store) State() State { return s.state.clone() }

// load reads both copies. current is the index of the one in force, -1 for none.
func load(bootDir string) (st State, notes []string, blocks [2]string, current int) {
	current = -1
	for n, name := range copies {
		b, err := readCopy(filepath.Join(bootDir, name))
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s cannot be read: %v", name, err))
			continue
		}
		blocks[n] = string(b)
		if len(b) != blockSize {
			notes = append(notes, fmt.Sprintf("%s has not %d bytes", name, blockSize))
		}
		got, err := parse(b)
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s is not whole: %v", name, err))
			continue
		}
		switch {
		case current < 0 || got.Seq > st.Seq:
			st, current = got, n
		case got.Seq == st.Seq:
			// GRUB counts in one copy only.
			st.TriesLeft = min(st.TriesLeft, got.TriesLeft)
		}
	}
	if current < 0 {
		st = only(A)
		if id, err := Running(); err == nil {
			st = only(id)
		}
		notes = append(notes, fmt.Sprintf("neither copy of the slot state is whole: slot %s, which runs, is taken for the only one", st.Preferred))
	}
	return st, notes, blocks, current
}

// change applies f to a copy of the state and puts the result in force.
func (s *Store) change(what string, f func(st *State) error) error {
	unlock, err := lock(s.dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer unlock()
	// Somebody else may have changed it since.
	now, _, _, current := load(s.dir)
	if current < 0 {
		now = s.state
	}
	next := now.clone()
	if err := f(&next); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	next.Seq = now.Seq + 1
	block, err := encode(next)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	// The copy in force comes last.
	first := 0
	if current == 0 {
		first = 1
	}
	for _, n := range []int{first, 1 - first} {
		if err := writeCopy(filepath.Join(s.dir, copies[n]), block); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	s.state = next
	return nil
}

// StartTrial makes the boot loader start slot to from the next boot on, at most
// tries times (1 to MaxTries) unless it is confirmed; then it starts the
// preferred one again, or the rescue system where that cannot be started. It is
// the single switch at the end of an upgrade.
func (s *Store) StartTrial(to ID, tries int) error {
	return s.change(fmt.Sprintf("put slot %s on trial", to), func(st *State) error {
		switch {
		case !to.Valid():
			return fmt.Errorf("slot %q: want a or b", to)
		case tries < 1 || tries > MaxTries:
			return fmt.Errorf("%d tries: want 1 to %d", tries, MaxTries)
		case to == st.Preferred && st.Bootable(to):
			return ErrInUse
		}
		st.Trial, st.TriesLeft, st.Given = to, tries, tries
		st.Bad[to], st.Confirmed[to] = false, false
		return nil
	})
}

// Confirm ends the trial of a slot: it came up well and is preferred from now on.
func (s *Store) Confirm(id ID) error {
	return s.change(fmt.Sprintf("confirm slot %s", id), func(st *State) error {
		if !id.Valid() {
			return fmt.Errorf("slot %q: want a or b", id)
		}
		if st.Trial == id {
			st.Trial, st.TriesLeft, st.Given = "", 0, 0
		}
		st.Preferred = id
		st.Confirmed[id], st.Bad[id] = true, false
		return nil
	})
}

// Fail gives a slot up and says why. The other slot is started from the next
// boot on if it may be.
func (s *Store) Fail(r Result) error {
	return s.change(fmt.Sprintf("give slot %s up", r.Slot), func(st *State) error {
		if !r.Slot.Valid() {
			return fmt.Errorf("slot %q: want a or b", r.Slot)
		}
		if st.Trial == r.Slot {
			st.Trial, st.TriesLeft, st.Given = "", 0, 0
		}
		st.Bad[r.Slot], st.Confirmed[r.Slot] = true, false
		if st.Preferred == r.Slot && st.Bootable(r.Slot.Other()) {
			st.Preferred = r.Slot.Other()
		}
		st.Last = r
		return nil
	})
}

// Rollback goes back by hand: from the slot on trial, else from the preferred
// one, to the other, which must have come up before. ErrNoFallback otherwise.
func (s *Store) Rollback(reason string) error {
	return s.change("roll back", func(st *State) error {
		from := st.Preferred
		if st.Trial != "" {
			from = st.Trial
		}
		to := from.Other()
		if !st.Confirmed[to] || st.Bad[to] {
			return ErrNoFallback
		}
		if st.Trial != "" {
			st.Trial, st.TriesLeft, st.Given = "", 0, 0
			st.Bad[from], st.Confirmed[from] = true, false
		}
		st.Preferred = to
		st.Last = Result{Slot: from, Check: "hand", Detail: reason, At: time.Now()}
		return nil
	})
}

// GiveBack returns the try that the running boot of the slot on trial has used:
// somebody rebooted on purpose before the trial was decided. Without a trial it
// does nothing.
func (s *Store) GiveBack() error {
	if s.State().Trial == "" {
		return nil
	}
	return s.change("give a try back", func(st *State) error {
		if st.Trial != "" {
			st.TriesLeft = min(st.TriesLeft+1, st.Given)
		}
		return nil
	})
}

// Invalidate makes a slot not bootable before it is overwritten, until StartTrial.
// The preferred slot is refused with ErrInUse.
func (s *Store) Invalidate(id ID) error {
	return s.change(fmt.Sprintf("invalidate slot %s", id), func(st *State) error {
		if !id.Valid() {
			return fmt.Errorf("slot %q: want a or b", id)
		}
		if id == st.Preferred && st.Bootable(id) {
			return ErrInUse
		}
		if st.Trial == id {
			st.Trial, st.TriesLeft, st.Given = "", 0, 0
		}
		st.Bad[id], st.Confirmed[id] = true, false
		return nil
	})
}

// Running is the slot that this system was started from, as the kernel's
// arguments say (weft.slot=); a without one.
func Running() (ID, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("find the running slot: %w", err)
	}
	return FromCmdline(string(text))
}

// FromCmdline reads weft.slot= out of the kernel's arguments; the last one
// counts, and a is what it means without one.
func FromCmdline(text string) (ID, error) {
	id := A
	for word := range strings.FieldsSeq(text) {
		if v, ok := strings.CutPrefix(word, "weft.slot="); ok {
			id = ID(v)
		}
	}
	if !id.Valid() {
		return "", fmt.Errorf("find the running slot: the kernel's argument weft.slot=%s: want a or b", string(id))
	}
	return id, nil
}

// missing says whether err is that a file is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
