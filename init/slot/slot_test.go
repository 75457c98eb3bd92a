package slot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/init/overlay"
)

// bootDir is a boot partition as the builder leaves it.
func bootDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	// In memory where there is such a place: what is counted here are bytes, and
	// every change waits for the medium twice.
	if shm, err := os.MkdirTemp("/dev/shm", "slot-test-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(shm) })
		dir = shm
	}
	if err := os.MkdirAll(filepath.Join(dir, "boot/grub"), 0o755); err != nil {
		t.Fatal(err)
	}
	block, err := encode(Fresh())
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, 0, block)
	put(t, dir, 1, block)
	return dir
}

func put(t testing.TB, dir string, n int, block []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, copies[n]), block, 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, dir string, n int) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, copies[n]))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func do(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBlockForm fixes the bytes: GRUB's script and image/boot.FreshEnv rely on
// them.
func TestBlockForm(t *testing.T) {
	const fresh = "# GRUB Environment Block\nweft_seq=1\nweft_slot=a\nweft_trial=-\nweft_given=0\nweft_boot=a\nweft_bad=b\nweft_check=1/a/-/0/a\nweft_last=-\nweft_crc=5839dffe\nweft_tries=1.0.1\n"
	b, err := Block(Fresh())
	do(t, err)
	if want := fresh + strings.Repeat("#", 1024-len(fresh)); string(b) != want {
		t.Errorf("a fresh image:\n%s\nwant\n%s", b, want)
	}
	s := Fresh()
	s.Seq, s.Trial, s.Given, s.TriesLeft, s.Bad[B] = 41, B, 3, 3, false
	s.Last = Result{Slot: B, Check: "dhcp", Detail: "wan: no answer\nin 300 s, \\o/ für \x01", At: time.Unix(1796000000, 0).UTC()}
	b, err = Block(s)
	do(t, err)
	for _, line := range []string{"weft_trial=b", "weft_boot=a", "weft_bad=-", "weft_check=41/a/b/3/a", "weft_last=b,1796000000,dhcp,wan: no answer in 300 s, /o/ f?r ?", "weft_tries=41.3.41"} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, b)
		}
	}
}

func TestLifeOfAnUpgrade(t *testing.T) {
	dir := bootDir(t)
	s := open(t, dir)
	if st := s.State(); st.Preferred != A || !st.Bootable(A) || st.Bootable(B) || st.Trial != "" {
		t.Fatalf("fresh: %+v", st)
	}
	if err := s.Invalidate(A); !errors.Is(err, ErrInUse) {
		t.Errorf("the only system was invalidated: %v", err)
	}
	if err := s.Rollback("x"); !errors.Is(err, ErrNoFallback) {
		t.Errorf("rolled back to nothing: %v", err)
	}
	if err := s.StartTrial(A, 3); !errors.Is(err, ErrInUse) {
		t.Errorf("the preferred slot on trial: %v", err)
	}
	do(t, s.Invalidate(B))
	do(t, s.StartTrial(B, 3))

	// GRUB starts it twice; the second time the user reboots on purpose.
	grubCounts(t, dir)
	if st := open(t, dir).State(); st.Trial != B || st.TriesLeft != 2 {
		t.Errorf("after the first try: %+v", st)
	}
	grubCounts(t, dir)
	s = open(t, dir)
	do(t, s.GiveBack())
	if st := s.State(); st.TriesLeft != 2 {
		t.Errorf("the try was not given back: %+v", st)
	}
	do(t, s.Confirm(B))
	if st := open(t, dir).State(); st.Preferred != B || st.Trial != "" || !st.Bootable(A) || !st.Bootable(B) || st.TriesLeft != 0 {
		t.Errorf("confirmed: %+v", st)
	}

	do(t, s.Rollback("the user wants it"))
	if st := open(t, dir).State(); st.Preferred != A || !st.Bootable(B) || st.Last.Check != "hand" || st.Last.Slot != B {
		t.Errorf("rolled back: %+v", st)
	}
	do(t, s.Rollback("and back again"))
	do(t, s.Invalidate(A))
	do(t, s.StartTrial(A, 1))
	at := time.Unix(1796000000, 0).UTC()
	do(t, s.Fail(Result{Slot: A, Check: "dhcp", Detail: "wan: no answer", At: at}))
	want := State{Preferred: B, Confirmed: map[ID]bool{A: false, B: true}, Bad: map[ID]bool{A: true, B: false}, Last: Result{A, "dhcp", "wan: no answer", at}, Seq: s.State().Seq}
	if st := open(t, dir).State(); !reflect.DeepEqual(st, want) {
		t.Errorf("failed:\n%+v\nwant\n%+v", st, want)
	}
	// When the other one fails as well, nothing is bootable: GRUB's rescue entry.
	do(t, s.Fail(Result{Slot: B, Check: "stage1", Detail: "no root"}))
	if st := s.State(); st.Bootable(A) || st.Bootable(B) {
		t.Errorf("both failed: %+v", st)
	}
	// The rescue system writes one of them anew.
	do(t, s.StartTrial(B, 2))
	if st := open(t, dir).State(); st.Preferred != B || st.Trial != B || !st.Bootable(B) || st.Bootable(A) {
		t.Errorf("written anew: %+v", st)
	}
	do(t, s.Confirm(B))
}

// grubCounts does what weft_count in grub.cfg does: one digit of the copy that it
// takes.
func grubCounts(t testing.TB, dir string) {
	t.Helper()
	n, best := -1, State{}
	for i := range copies {
		if st, err := parse(get(t, dir, i)); err == nil && (n < 0 || st.Seq > best.Seq) {
			n, best = i, st
		}
	}
	if n < 0 || best.Trial == "" || best.TriesLeft == 0 {
		return
	}
	b := get(t, dir, n)
	head := fmt.Sprintf("weft_tries=%d.", best.Seq)
	b[bytes.Index(b, []byte(head))+len(head)]--
	put(t, dir, n, b)
}

func TestBadArguments(t *testing.T) {
	s := open(t, bootDir(t))
	before := s.State()
	for name, err := range map[string]error{
		"slot c": s.StartTrial("c", 3), "no tries": s.StartTrial(B, 0), "ten tries": s.StartTrial(B, 10), "confirm none": s.Confirm(""),
		"fail none": s.Fail(Result{}), "invalidate none": s.Invalidate("A"),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if got := s.State(); !reflect.DeepEqual(got, before) {
		t.Errorf("something changed: %+v", got)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a folder that is not there was opened")
	}
}

// transitions are all changes that a state can see.
func transitions() map[string]func(*Store) error {
	m := map[string]func(*Store) error{"give back": (*Store).GiveBack, "roll back": func(s *Store) error { return s.Rollback("test") }}
	for _, id := range []ID{A, B} {
		m["confirm "+string(id)] = func(s *Store) error { return s.Confirm(id) }
		m["fail "+string(id)] = func(s *Store) error { return s.Fail(Result{Slot: id, Check: "c", Detail: strings.Repeat("d", 300)}) }
		m["invalidate "+string(id)] = func(s *Store) error { return s.Invalidate(id) }
		m["trial "+string(id)] = func(s *Store) error { return s.StartTrial(id, 3) }
	}
	return m
}

// same compares what decides about a boot, and the reason of a failure.
func same(a, b State) bool {
	a.Seq, b.Seq = 0, 0
	return reflect.DeepEqual(a, b)
}

// TestTornWrites takes every transition from every state that a few transitions
// reach, and for each every way in which a power cut can leave the two writes: the
// first, then the second, torn after any number of bytes, or with the sector full
// of garbage. The state is the old one or the new one, and it is that after Open
// has repaired the copies as well.
func TestTornWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 12))
	all := transitions()
	var names []string
	for n := range all {
		names = append(names, n)
	}
	sortStrings(names)
	type pair [2][]byte
	dir := bootDir(t)
	frontier := []pair{{get(t, dir, 0), get(t, dir, 1)}}
	seen := map[string]bool{}
	checked := 0
	for depth := 0; depth < 3; depth++ {
		var next []pair
		for _, p := range frontier {
			put(t, dir, 0, p[0])
			put(t, dir, 1, p[1])
			old, _ := Read(dir)
			for _, name := range names {
				put(t, dir, 0, p[0])
				put(t, dir, 1, p[1])
				s := open(t, dir)
				if all[name](s) != nil {
					continue
				}
				after := pair{get(t, dir, 0), get(t, dir, 1)}
				now := s.State()
				if got, _ := Read(dir); !reflect.DeepEqual(strip(got), strip(now)) {
					t.Fatalf("%s: reads %+v, want %+v", name, got, now)
				}
				first := 0
				if st, err := parse(p[0]); err == nil && st.Seq == old.Seq {
					first = 1 // the copy in force comes last
				}
				for step := range 2 {
					n := first
					base := p
					if step == 1 {
						n = 1 - first
						base[first] = after[first]
					}
					for _, torn := range tears(rng, base[n], after[n]) {
						put(t, dir, 1-n, base[1-n])
						put(t, dir, n, torn)
						got, _ := Read(dir)
						if !same(got, old) && !same(got, strip(now)) {
							t.Fatalf("%s, write %d: %+v is neither %+v nor %+v", name, step, got, old, now)
						}
						if step == 1 && !same(got, strip(now)) {
							t.Fatalf("%s: the second write lost what the first had put in force", name)
						}
						checked++
						if checked%7 == 0 {
							if again := open(t, dir).State(); !reflect.DeepEqual(again, got) {
								t.Fatalf("%s: repaired to %+v, was %+v", name, again, got)
							}
							for i := range copies {
								if st, err := parse(get(t, dir, i)); err != nil || !reflect.DeepEqual(st, got) {
									t.Fatalf("%s: copy %d after the repair: %+v, %v", name, i, st, err)
								}
							}
						}
					}
				}
				k := strip(now)
				k.Seq = 0
				if key := fmt.Sprintf("%+v", k); !seen[key] {
					seen[key] = true
					next = append(next, after)
				}
			}
		}
		frontier = next
	}
	t.Logf("%d torn writes of transitions from %d states", checked, len(seen))
	if checked < 5000 {
		t.Errorf("only %d torn writes were tried", checked)
	}
}

// strip gives a state the form that it has after it was read: the detail cut to
// the sector.
func strip(s State) State {
	b, err := encode(s)
	if err != nil {
		panic(err)
	}
	out, err := parse(b)
	if err != nil {
		panic(err)
	}
	return out
}

// tears are what a sector can hold after a cut while the new one was written.
func tears(rng *rand.Rand, old, now []byte) [][]byte {
	var out [][]byte
	for n := 0; n <= sectorSize; n += 1 + rng.IntN(20) {
		out = append(out, append(append([]byte(nil), now[:n]...), old[n:]...))
		// Or the drive begins at the end.
		out = append(out, append(append(append([]byte(nil), old[:n]...), now[n:sectorSize]...), old[sectorSize:]...))
	}
	junk := append([]byte(nil), old...)
	for i := range sectorSize {
		junk[i] = byte(rng.Uint32())
	}
	zero := append(make([]byte, sectorSize), old[sectorSize:]...)
	return append(out, junk, zero, old, now)
}

func sortStrings(s []string) {
	for i := range s {
		for j := i + 1; j < len(s); j++ {
			if s[j] < s[i] {
				s[i], s[j] = s[j], s[i]
			}
		}
	}
}

// TestUnreadableCopies: a copy that is missing, empty, short, long, a folder or
// full of junk is made anew; with both gone there is a system to boot.
func TestUnreadableCopies(t *testing.T) {
	spoil := map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"short":   func(p string) error { return os.Truncate(p, 600) },
		"long":    func(p string) error { return os.Truncate(p, 4096) },
		"folder":  func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
		"junk":    func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte{0xa5}, 1024), 0o644) },
	}
	for name, f := range spoil {
		t.Run(name, func(t *testing.T) {
			for _, which := range [][]int{{0}, {1}, {0, 1}} {
				dir := bootDir(t)
				s := open(t, dir)
				do(t, s.Invalidate(B))
				do(t, s.StartTrial(B, 3))
				want := s.State()
				for _, n := range which {
					do(t, f(filepath.Join(dir, copies[n])))
				}
				got := open(t, dir)
				if len(got.Notes()) == 0 {
					t.Errorf("copies %v: nothing was said", which)
				}
				if len(which) == 2 && name != "short" && name != "long" {
					want = Fresh()
				}
				// In those two the first sector is whole.
				if st := got.State(); !reflect.DeepEqual(st, want) {
					t.Errorf("copies %v: %+v, want %+v", which, st, want)
				}
				for n := range copies {
					if b := get(t, dir, n); len(b) != blockSize || strings.Trim(string(b[sectorSize:]), "#") != "" {
						t.Errorf("copy %d: %q", n, b)
					}
				}
				if again := open(t, dir); len(again.Notes()) != 0 || !reflect.DeepEqual(again.State(), got.State()) {
					t.Errorf("copies %v: not repaired: %v", which, again.Notes())
				}
			}
		})
	}
}

// TestPlaceIsKept: the files stay where they are on the disk, which is where GRUB
// found them: no change makes a new file.
func TestPlaceIsKept(t *testing.T) {
	dir := bootDir(t)
	var before [2]os.FileInfo
	for n := range copies {
		before[n], _ = os.Stat(filepath.Join(dir, copies[n]))
	}
	s := open(t, dir)
	do(t, s.Invalidate(B))
	do(t, s.StartTrial(B, 3))
	do(t, s.Confirm(B))
	for n := range copies {
		now, err := os.Stat(filepath.Join(dir, copies[n]))
		if err != nil || !os.SameFile(before[n], now) || now.Size() != blockSize {
			t.Errorf("copy %d is another file: %v", n, err)
		}
		if b := get(t, dir, n); strings.Trim(string(b[sectorSize:]), "#") != "" {
			t.Errorf("copy %d: something lies in its second sector", n)
		}
	}
}

// TestTwoPrograms: changes by two stores do not lose each other.
func TestTwoPrograms(t *testing.T) {
	dir := bootDir(t)
	one, two := open(t, dir), open(t, dir)
	do(t, one.Invalidate(B))
	do(t, two.StartTrial(B, 2))
	do(t, one.GiveBack())
	if st := open(t, dir).State(); st.Trial != B || st.TriesLeft != 2 || st.Seq != 3 {
		t.Errorf("%+v", st)
	}
}

func TestFromCmdline(t *testing.T) {
	for text, want := range map[string]ID{
		"root=PARTUUID=1-02 quiet": A, "a=b weft.slot=b quiet": B, "weft.slot=b weft.slot=a\n": A, "weft.slot=c": "", "weft.slot=": "",
	} {
		got, err := FromCmdline(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestFiles: an image's files go to the same names for slot a, which are LEDE's,
// and below boot/b for slot b.
func TestFiles(t *testing.T) {
	for n, f := range Files(B) {
		a := Files(A)[n]
		if a.Path != a.Image || f.Image != a.Image || f.Path != "boot/b/"+filepath.Base(f.Image) {
			t.Errorf("%+v and %+v", a, f)
		}
	}
}

func TestPrepare(t *testing.T) {
	data := t.TempDir()
	old := filepath.Join(overlay.SlotDir(data, "b"), "upper/etc")
	do(t, os.MkdirAll(old, 0o755))
	do(t, os.WriteFile(filepath.Join(old, "secret"), []byte("x"), 0o600))
	do(t, os.MkdirAll(overlay.SlotDir(data, "a"), 0o755))
	for range 2 { // it may be repeated
		do(t, Prepare(data, B, strings.NewReader("archive")))
	}
	if b, err := os.ReadFile(filepath.Join(data, "slot-b", overlay.Saved)); err != nil || string(b) != "archive" {
		t.Errorf("the config: %q, %v", b, err)
	}
	if s := overlay.GetState(filepath.Join(data, "slot-b")); s != overlay.Pending {
		t.Errorf("state %v", s)
	}
	entries, err := os.ReadDir(data)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	want := Before{Interfaces: []string{"wan"}, DefaultRoute4: true}
	do(t, SaveBefore(data, B, want))
	if got, err := LoadBefore(data, B); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("before: %+v, %v", got, err)
	}
	do(t, Prepare(data, B, nil))
	if _, err := LoadBefore(data, B); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a new preparation keeps the old record: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "slot-b", overlay.Saved)); err == nil {
		t.Error("a config where none was given")
	}
}

// TestPrepareFails: a config that cannot be read leaves the slot as it was.
func TestPrepareFails(t *testing.T) {
	data := t.TempDir()
	do(t, Prepare(data, B, strings.NewReader("one")))
	if err := Prepare(data, B, failing{}); err == nil {
		t.Fatal("a reader's error was lost")
	}
	if b, err := os.ReadFile(filepath.Join(data, "slot-b", overlay.Saved)); err != nil || string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("torn cable") }

func FuzzParse(f *testing.F) {
	fresh, err := encode(Fresh())
	do(f, err)
	f.Add(fresh)
	s := Fresh()
	s.Trial, s.Given, s.TriesLeft, s.Seq = B, 3, 1, 77
	s.Last = Result{Slot: B, Check: "boot", Detail: "a,b,c", At: time.Unix(1, 0).UTC()}
	trial, err := encode(s)
	do(f, err)
	f.Add(trial)
	f.Add(bytes.Replace(trial, []byte("weft_tries=77.1."), []byte("weft_tries=77.0."), 1))
	f.Add(fresh[:300])
	f.Add([]byte(signature))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parse(b)
		if err != nil {
			return
		}
		again, err := encode(s)
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", s, err)
		}
		back, err := parse(again)
		if err != nil || !reflect.DeepEqual(s, back) {
			t.Fatalf("%+v, then %+v, %v", s, back, err)
		}
		if s.TriesLeft > s.Given || !s.Preferred.Valid() {
			t.Fatalf("%+v", s)
		}
	})
}
