package slot

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	blockSize  = 1024 // of the file: GRUB's environment block
	sectorSize = 512  // what one write replaces
	signature  = "# GRUB Environment Block\n"

	maxCheck = 16 // bytes of Result.Check
)

// encode writes a state as an environment block. Fields, in this order:
//
//	weft_seq    sequence number, decimal
//	weft_slot   preferred slot
//	weft_trial  slot on trial, - for none
//	weft_given  tries the trial began with
//	weft_boot   slots that may be started without a trial: ab, a, b, -
//	weft_bad    slots that may not be started: ab, a, b, -
//	weft_check  the six above but weft_bad, joined by slashes
//	weft_last   slot,unix time,check,detail; - for none
//	weft_crc    CRC-32 (IEEE, 8 hex digits) of all bytes before this line
//	weft_tries  tries left between two sequence numbers, joined by dots: GRUB
//	            overwrites the digit, and the numbers tie it to the rest of the sector
func encode(s State) ([]byte, error) {
	if !s.Preferred.Valid() || s.Trial != "" && !s.Trial.Valid() || s.TriesLeft < 0 || s.Given < 0 || s.Given > MaxTries || s.TriesLeft > s.Given {
		panic(fmt.Sprintf("BUG: slot state %+v", s))
	}
	trial := string(s.Trial)
	if trial == "" {
		trial = "-"
	}
	boot := set(s, func(id ID) bool { return s.Confirmed[id] && !s.Bad[id] })
	bad := set(s, func(id ID) bool { return s.Bad[id] })
	head := fmt.Sprintf("%sweft_seq=%d\nweft_slot=%s\nweft_trial=%s\nweft_given=%d\nweft_boot=%s\nweft_bad=%s\nweft_check=%d/%s/%s/%d/%s\n",
		signature, s.Seq, s.Preferred, trial, s.Given, boot, bad, s.Seq, s.Preferred, trial, s.Given, boot)
	tail := len("weft_last=\nweft_crc=01234567\nweft_tries=.0.\n#") + 2*len(strconv.FormatUint(s.Seq, 10))
	last := encodeLast(s.Last, sectorSize-len(head)-tail)
	text := head + "weft_last=" + last + "\n"
	text += fmt.Sprintf("weft_crc=%08x\nweft_tries=%d.%d.%d\n", crc32.ChecksumIEEE([]byte(text)), s.Seq, s.TriesLeft, s.Seq)
	if len(text) >= sectorSize {
		return nil, fmt.Errorf("the slot state takes %d bytes, a sector has %d", len(text), sectorSize)
	}
	return []byte(text + strings.Repeat("#", blockSize-len(text))), nil
}

// Block returns the environment block of a state, for the builder.
func Block(s State) ([]byte, error) { return encode(s) }

func set(s State, in func(ID) bool) string {
	text := ""
	for _, id := range []ID{A, B} {
		if in(id) {
			text += string(id)
		}
	}
	if text == "" {
		return "-"
	}
	return text
}

// encodeLast writes a result in at most size bytes, cutting the detail.
func encodeLast(r Result, size int) string {
	if !r.Slot.Valid() {
		return "-"
	}
	at := int64(0)
	if !r.At.IsZero() {
		at = r.At.Unix()
	}
	check := strings.ReplaceAll(plain(r.Check), ",", " ")
	text := fmt.Sprintf("%s,%d,%s,%s", r.Slot, at, check[:min(len(check), maxCheck)], plain(r.Detail))
	return strings.TrimRight(text[:min(len(text), size)], " ")
}

// plain makes text that GRUB's block holds without escapes: printable ASCII.
func plain(s string) string {
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		switch {
		case c == '\\':
			return '/'
		case c == '\n' || c == '\t':
			return ' '
		case c < ' ' || c > '~':
			return '?'
		}
		return c
	}, s))
}

var errForm = errors.New("not in the form that is written here")

// parse reads an environment block. It accepts what encode writes, with any
// digit for the tries up to those given, and nothing else.
func parse(b []byte) (State, error) {
	if len(b) < sectorSize || !bytes.HasPrefix(b, []byte(signature)) {
		return State{}, errors.New("no GRUB environment block")
	}
	b = b[:sectorSize]
	text := string(b[len(signature):])
	var s State
	fields := map[string]string{}
	var sum uint32
	pos := len(signature)
	for _, name := range []string{"weft_seq", "weft_slot", "weft_trial", "weft_given", "weft_boot", "weft_bad", "weft_check", "weft_last", "weft_crc", "weft_tries"} {
		line, rest, ok := strings.Cut(text, "\n")
		value, found := strings.CutPrefix(line, name+"=")
		if !ok || !found {
			return State{}, fmt.Errorf("%w: no %s", errForm, name)
		}
		if name == "weft_crc" {
			sum = crc32.ChecksumIEEE(b[:pos])
		}
		pos += len(line) + 1
		fields[name], text = value, rest
	}
	if strings.Trim(text, "#") != "" {
		return State{}, fmt.Errorf("%w: something follows", errForm)
	}
	if want := fmt.Sprintf("%08x", sum); fields["weft_crc"] != want {
		return State{}, fmt.Errorf("checksum %q, want %s", fields["weft_crc"], want)
	}
	var err error
	if s.Seq, err = strconv.ParseUint(fields["weft_seq"], 10, 63); err != nil {
		return State{}, fmt.Errorf("%w: weft_seq: %w", errForm, err)
	}
	s.Preferred = ID(fields["weft_slot"])
	if t := fields["weft_trial"]; t != "-" {
		s.Trial = ID(t)
		if !s.Trial.Valid() {
			return State{}, fmt.Errorf("%w: weft_trial=%s", errForm, t)
		}
	}
	if !s.Preferred.Valid() {
		return State{}, fmt.Errorf("%w: weft_slot=%s", errForm, s.Preferred)
	}
	if s.Given, err = digit(fields["weft_given"]); err != nil {
		return State{}, err
	}
	left, ok := strings.CutPrefix(fields["weft_tries"], fields["weft_seq"]+".")
	left, also := strings.CutSuffix(left, "."+fields["weft_seq"])
	if !ok || !also {
		return State{}, fmt.Errorf("%w: weft_tries=%s is of another state", errForm, fields["weft_tries"])
	}
	if s.TriesLeft, err = digit(left); err != nil {
		return State{}, err
	}
	s.TriesLeft = min(s.TriesLeft, s.Given)
	boot, bad := fields["weft_boot"], fields["weft_bad"]
	s.Confirmed = map[ID]bool{A: strings.Contains(boot, "a"), B: strings.Contains(boot, "b")}
	s.Bad = map[ID]bool{A: strings.Contains(bad, "a"), B: strings.Contains(bad, "b")}
	if s.Last, err = parseLast(fields["weft_last"]); err != nil {
		return State{}, err
	}
	// One form for one state: whatever is odd shows here.
	again, err := encode(s)
	if err != nil {
		return State{}, err
	}
	tries := len(b) - len(text) - len(fields["weft_seq"]) - 3
	again[tries] = b[tries]
	if !bytes.Equal(again[:sectorSize], b) {
		return State{}, errForm
	}
	return s, nil
}

func digit(text string) (int, error) {
	if len(text) != 1 || text[0] < '0' || text[0] > '9' {
		return 0, fmt.Errorf("%w: %q is no digit", errForm, text)
	}
	return int(text[0] - '0'), nil
}

func parseLast(text string) (Result, error) {
	if text == "-" {
		return Result{}, nil
	}
	parts := strings.SplitN(text, ",", 4)
	if len(parts) != 4 {
		return Result{}, fmt.Errorf("%w: weft_last=%s", errForm, text)
	}
	at, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || !ID(parts[0]).Valid() {
		return Result{}, fmt.Errorf("%w: weft_last=%s", errForm, text)
	}
	r := Result{Slot: ID(parts[0]), Check: parts[2], Detail: parts[3]}
	if at != 0 {
		r.At = time.Unix(at, 0).UTC()
	}
	return r, nil
}

func readCopy(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, blockSize+1))
}

// writeCopy replaces the first sector of a copy in place and brings it to the
// medium. A file that is missing or of the wrong size is made anew beside it: its
// place on the disk must not change otherwise, which GRUB writes to.
func writeCopy(path string, block []byte) error {
	fail := func(err error) error { return fmt.Errorf("write the slot state %s: %w", path, err) }
	fi, err := os.Lstat(path)
	if err != nil && !missing(err) {
		return fail(err)
	}
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != blockSize {
		return renew(path, block)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	_, err = f.WriteAt(block[:sectorSize], 0)
	// The rest is filling, which only a damaged file has wrong.
	rest := make([]byte, blockSize-sectorSize)
	if _, rerr := f.ReadAt(rest, sectorSize); err == nil && (rerr != nil || !bytes.Equal(rest, block[sectorSize:])) {
		_, err = f.WriteAt(block[sectorSize:], sectorSize)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fail(err)
	}
	return nil
}

func renew(path string, block []byte) error {
	fail := func(err error) error { return fmt.Errorf("make the slot state %s: %w", path, err) }
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(block)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fail(err)
	}
	if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
		if err := os.RemoveAll(path); err != nil {
			return fail(err)
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return fail(err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fail(err)
	}
	return nil
}

// lock keeps programs that change the state apart: an flock of the folder, which
// lasts as long as the file is open.
func lock(bootDir string) (unlock func(), err error) {
	d, err := os.Open(bootDir)
	if err != nil {
		return nil, fmt.Errorf("open the slot state: %w", err)
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("lock the slot state below %s: %w", bootDir, err)
	}
	return func() { d.Close() }, nil
}
