package vi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"
)

// maxFile bounds what is held in memory; a configuration file is a thousandth of it.
const maxFile = 16 << 20

// rawByte marks a rune that stands for one byte which is no UTF-8.
const rawByte = utf8.MaxRune + 1

// text is the content of a file. Lines are never changed in place, so that a
// copy of the slice is a snapshot.
type text struct {
	lines [][]rune
	// noEOL: the last line had no line feed, and gets none when written.
	noEOL bool
}

func decode(data []byte) text {
	t := text{noEOL: len(data) > 0 && data[len(data)-1] != '\n'}
	data = bytes.TrimSuffix(data, []byte("\n"))
	for _, l := range bytes.Split(data, []byte("\n")) {
		t.lines = append(t.lines, runes(l))
	}
	return t
}

func runes(b []byte) []rune {
	out := make([]rune, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			r = rawByte + rune(b[0])
		}
		out = append(out, r)
		b = b[n:]
	}
	return out
}

func encodeLine(line []rune) []byte {
	var b []byte
	for _, r := range line {
		if r >= rawByte {
			b = append(b, byte(r-rawByte))
			continue
		}
		b = utf8.AppendRune(b, r)
	}
	return b
}

func (t text) encode() []byte {
	var b bytes.Buffer
	for i, l := range t.lines {
		b.Write(encodeLine(l))
		if i < len(t.lines)-1 || !t.noEOL {
			b.WriteByte('\n')
		}
	}
	if len(t.lines) == 1 && len(t.lines[0]) == 0 {
		return nil
	}
	return b.Bytes()
}

// load reads a file to edit. A missing file is an empty text.
func load(path string) (t text, isNew bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return decode(nil), true, nil
	}
	if err != nil {
		return text{}, false, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		return text{}, false, fmt.Errorf("%s is a folder: name a file in it", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return text{}, false, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFile {
		return text{}, false, fmt.Errorf("%s is larger than %d MiB, the most that is edited here; cut it first (head, tail, split)", path, maxFile>>20)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return text{}, false, fmt.Errorf("%s is not text: byte %d is NUL; look at it with hexdump", path, i)
	}
	return decode(data), false, nil
}

// save writes data over path in one step: after a power cut the file has the
// old or the new content.
func save(path string, data []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	mode := fs.FileMode(0o644)
	var owner *syscall.Stat_t
	if st, err := os.Stat(path); err == nil {
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file: write to another name with :w NAME", path)
		}
		mode = st.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
		owner, _ = st.Sys().(*syscall.Stat_t)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".vi-*")
	if err != nil {
		return err
	}
	err = func() error {
		if _, err := f.Write(data); err != nil {
			return err
		}
		if owner != nil {
			// Without the right to give a file away the writer becomes its owner,
			// as with every other program that replaces files.
			_ = f.Chown(int(owner.Uid), int(owner.Gid))
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		return f.Sync()
	}()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// show is a rune as it stands on the screen: tabs to the next column of eight,
// control characters as ^X, stray bytes as \xNN.
func show(r rune, col int) string {
	switch {
	case r == '\t':
		return strings.Repeat(" ", 8-col%8)
	case r >= rawByte:
		return fmt.Sprintf(`\x%02x`, r-rawByte)
	case r < 32:
		return "^" + string(r+64)
	case r == 127:
		return "^?"
	}
	return string(r)
}

// width is how many columns a shown string takes. East Asian wide characters
// are two columns, combining marks none.
func width(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case r <= 0x36f, r >= 0x200b && r <= 0x200f, r >= 0xfe00 && r <= 0xfe0f:
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
		r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
		r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}
