package text

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"weft/init/applet/options"
	"weft/init/unit"
)

// limited opens the files of an applet as one stream, without the first skip
// bytes and with at most length ones (length < 0: all).
func limited(c *unit.Call, names []string, skip, length int64) (io.Reader, func(), error) {
	var readers []io.Reader
	var closers []io.Closer
	closeAll := func() {
		for _, f := range closers {
			f.Close()
		}
	}
	for _, n := range orInput(names) {
		in, err := open(c, n)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		closers = append(closers, in)
		if s, ok := in.(io.Seeker); ok && skip > 0 && len(names) == 1 {
			if _, err := s.Seek(skip, io.SeekStart); err == nil {
				skip = 0
			}
		}
		readers = append(readers, in)
	}
	r := io.MultiReader(readers...)
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, r, skip); err != nil && err != io.EOF {
			closeAll()
			return nil, nil, err
		}
	}
	if length >= 0 {
		r = io.LimitReader(r, length)
	}
	return r, closeAll, nil
}

func offset(s string) (int64, error) {
	mul := int64(1)
	for suffix, by := range map[string]int64{"k": 1 << 10, "m": 1 << 20, "b": 512} {
		if v, ok := strings.CutSuffix(s, suffix); ok && !strings.HasPrefix(s, "0x") {
			s, mul = v, by
			break
		}
	}
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil || n < 0 || n > 1<<60/mul {
		return 0, fmt.Errorf("%q is not a number of bytes", s)
	}
	return n * mul, nil
}

// Hexdump shows bytes; -e takes formats as '6/1 "%02x:"'.
func Hexdump(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "Cxvbdon:s:e: canonical=C", `[-C|-x|-b|-d|-o] [-v] [-n BYTES] [-s SKIP] [-e FORMAT]... [FILE]...
  -C  bytes and characters   -v  no * for what repeats
FORMAT: [COUNT]/[SIZE] "TEXT" with %x %X %d %u %o %c %_p %_c
Example: hexdump -v -n 6 -s 4 -e '5/1 "%02x:" 1/1 "%02x"' /dev/mtd2`)
	if code >= 0 {
		return code
	}
	skip, length := int64(0), int64(-1)
	var err error
	if o.Has('s') {
		if skip, err = offset(o.Value('s', "")); err != nil {
			return o.Fail("-s: %v", err)
		}
	}
	if o.Has('n') {
		if length, err = offset(o.Value('n', "")); err != nil {
			return o.Fail("-n: %v", err)
		}
	}
	var units []dumpUnit
	for _, f := range o.Values('e') {
		u, err := parseFormat(f)
		if err != nil {
			return o.Fail("-e: %v", err)
		}
		units = append(units, u...)
	}
	r, closeAll, err := limited(c, o.Args, skip, length)
	if err != nil {
		return fail(c, err)
	}
	defer closeAll()
	out := newOutput(c)
	size := 16
	if units != nil {
		size = 0
		for _, u := range units {
			size += u.count * u.size
		}
		if size == 0 {
			return o.Fail("-e: the format takes no bytes")
		}
	}
	br := bufio.NewReader(r)
	at := skip
	var before []byte
	starred := false
	for ctx.Err() == nil {
		b := make([]byte, size)
		n, err := io.ReadFull(br, b)
		b = b[:n]
		if n > 0 {
			if !o.Has('v') && n == size && string(b) == string(before) {
				if !starred {
					out.WriteString("*\n")
				}
				starred = true
			} else {
				starred = false
				if units != nil {
					formatBlock(out, units, b)
				} else {
					dumpLine(out, o, at, b)
				}
			}
			before = b
			at += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return fail(c, err)
		}
		if out.broken() {
			return 1
		}
	}
	if units == nil && at > skip {
		if o.Has('C') {
			fmt.Fprintf(out, "%08x\n", at)
		} else {
			fmt.Fprintf(out, "%07x\n", at)
		}
	}
	return out.close(0)
}

func dumpLine(out output, o *options.Set, at int64, b []byte) {
	switch {
	case o.Has('C'):
		fmt.Fprintf(out, "%08x ", at)
		for i := range 16 {
			if i == 8 {
				out.WriteByte(' ')
			}
			if i < len(b) {
				fmt.Fprintf(out, " %02x", b[i])
			} else {
				out.WriteString("   ")
			}
		}
		out.WriteString("  |")
		for _, ch := range b {
			if ch < ' ' || ch >= 0x7f {
				ch = '.'
			}
			out.WriteByte(ch)
		}
		out.WriteString("|\n")
		return
	case o.Has('b'):
		fmt.Fprintf(out, "%07x", at)
		for _, ch := range b {
			fmt.Fprintf(out, " %03o", ch)
		}
		out.WriteString(strings.Repeat("    ", 16-len(b)) + "\n")
		return
	}
	format := " %04x"
	switch {
	case o.Has('x'):
		format = "    %04x"
	case o.Has('d'):
		format = "   %05d"
	case o.Has('o'):
		format = "  %06o"
	}
	fmt.Fprintf(out, "%07x", at)
	line := 0
	for i := 0; i < len(b); i += 2 {
		two := [2]byte{b[i]}
		if i+1 < len(b) {
			two[1] = b[i+1]
		}
		n, _ := fmt.Fprintf(out, format, binary.NativeEndian.Uint16(two[:]))
		line += n
	}
	if pad := 8 * len(fmt.Sprintf(format, 0)); line < pad { // the last line is filled up
		out.WriteString(strings.Repeat(" ", pad-line))
	}
	out.WriteByte('\n')
}

// dumpUnit is one COUNT/SIZE "TEXT" of a format.
type dumpUnit struct {
	count, size int
	text        string
}

func parseFormat(f string) ([]dumpUnit, error) {
	var out []dumpUnit
	for f = strings.TrimSpace(f); f != ""; f = strings.TrimSpace(f) {
		u := dumpUnit{count: 1}
		head, rest, ok := strings.Cut(f, `"`)
		text, tail, ok2 := strings.Cut(rest, `"`)
		if !ok || !ok2 {
			return nil, fmt.Errorf("%q: a text in double quotes is missing", f)
		}
		n, size, slash := strings.Cut(strings.TrimSpace(head), "/")
		var err1, err2 error
		if n = strings.TrimSpace(n); n != "" {
			u.count, err1 = strconv.Atoi(n)
		}
		if size = strings.TrimSpace(size); slash && size != "" {
			u.size, err2 = strconv.Atoi(size)
		}
		if err1 != nil || err2 != nil || u.count < 0 || u.count > 1<<16 || u.size < 0 || u.size > 8 {
			return nil, fmt.Errorf("%q: COUNT/SIZE is expected", head)
		}
		var b strings.Builder
		for i := 0; i < len(text); i++ {
			if text[i] == '\\' && i+1 < len(text) {
				i++
				if n := strings.IndexByte("abfnrtv0", text[i]); n >= 0 {
					b.WriteByte("\a\b\f\n\r\t\v\x00"[n])
				} else {
					b.WriteByte(text[i])
				}
				continue
			}
			b.WriteByte(text[i])
		}
		u.text = b.String()
		verb, err := dumpVerb(u.text)
		if err != nil {
			return nil, err
		}
		switch {
		case verb == 0:
			u.size = 0
		case u.size == 0 && (verb == 'c' || verb == 'p'):
			u.size = 1
		case u.size == 0:
			u.size = 4
		}
		out = append(out, u)
		f = tail
	}
	return out, nil
}

// dumpVerb returns the one conversion of a text, 0 if there is none.
func dumpVerb(text string) (byte, error) {
	verb := byte(0)
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			continue
		}
		i++
		if i < len(text) && text[i] == '%' {
			continue
		}
		for i < len(text) && strings.IndexByte("-+ #0123456789.", text[i]) >= 0 {
			i++
		}
		if i < len(text) && text[i] == '_' {
			i++
			if i < len(text) && strings.IndexByte("pcu", text[i]) >= 0 && verb == 0 {
				verb = 'p'
				continue
			}
			return 0, fmt.Errorf("%q: %%_p, %%_c or %%_u is expected", text)
		}
		if i >= len(text) || strings.IndexByte("xXdiuoc", text[i]) < 0 {
			return 0, fmt.Errorf("%q: the conversions are x X d u o c _p", text)
		}
		if verb != 0 {
			return 0, fmt.Errorf("%q: one conversion for each text", text)
		}
		verb = text[i]
	}
	return verb, nil
}

func formatBlock(out output, units []dumpUnit, b []byte) {
	for _, u := range units {
		for range u.count {
			if u.size == 0 {
				out.WriteString(strings.ReplaceAll(u.text, "%%", "%"))
				continue
			}
			if len(b) == 0 {
				return
			}
			part := make([]byte, 8)
			n := copy(part, b[:min(u.size, len(b))])
			b = b[n:]
			out.WriteString(formatOne(u, part, n))
		}
	}
}

// formatOne formats the n bytes at the start of part (8 bytes, little endian
// machines' order as everywhere here).
func formatOne(u dumpUnit, part []byte, n int) string {
	v := binary.LittleEndian.Uint64(part)
	shift := 64 - 8*u.size
	signed := int64(v) << shift >> shift
	var b strings.Builder
	t := u.text
	for i := 0; i < len(t); i++ {
		if t[i] != '%' {
			b.WriteByte(t[i])
			continue
		}
		if i+1 < len(t) && t[i+1] == '%' {
			b.WriteByte('%')
			i++
			continue
		}
		j := i + 1
		for strings.IndexByte("-+ #0123456789.", t[j]) >= 0 {
			j++
		}
		flags := t[i:j]
		switch t[j] {
		case 'd', 'i':
			fmt.Fprintf(&b, flags+"d", signed)
		case 'u':
			fmt.Fprintf(&b, flags+"d", v)
		case 'x', 'X', 'o':
			fmt.Fprintf(&b, flags+string(t[j]), v)
		case 'c':
			fmt.Fprintf(&b, flags+"c", part[0])
		case '_':
			ch := part[0]
			if ch < ' ' || ch >= 0x7f {
				ch = '.'
			}
			fmt.Fprintf(&b, flags+"c", ch)
			j++
		}
		i = j
	}
	return b.String()
}

// Xxd shows bytes as hex, or with -r turns it back.
func Xxd(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "prl:s:c:u plain=p ps=p revert=r", `[-p] [-r] [-l BYTES] [-s SKIP] [-c COLUMNS] [FILE]
  -p  hex alone   -r  back to bytes
Example: xxd -l 64 /dev/mtd0`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 1); code >= 0 {
		return code
	}
	skip, length := int64(0), int64(-1)
	var err error
	if o.Has('s') {
		if skip, err = offset(o.Value('s', "")); err != nil {
			return o.Fail("-s: %v", err)
		}
	}
	if o.Has('l') {
		if length, err = offset(o.Value('l', "")); err != nil {
			return o.Fail("-l: %v", err)
		}
	}
	def := 16
	if o.Has('p') {
		def = 30
	}
	cols, code := o.Int('c', def)
	if code >= 0 {
		return code
	}
	if cols < 1 || cols > 256 {
		return o.Fail("-c: 1 to 256 columns are possible")
	}
	out := newOutput(c)
	if o.Has('r') {
		code := eachLine(ctx, c, o.Args, func(l string) bool {
			if !o.Has('p') {
				_, rest, ok := strings.Cut(l, ": ")
				if !ok {
					return true
				}
				if i := strings.Index(rest, "  "); i >= 0 {
					rest = rest[:i]
				}
				l = rest
			}
			l = strings.ReplaceAll(strings.ReplaceAll(l, " ", ""), "\t", "")
			b, derr := hex.DecodeString(l)
			if derr != nil {
				err = fmt.Errorf("%q is not hex", l)
				return false
			}
			_, werr := out.Write(b)
			return werr == nil
		})
		if err != nil {
			out.Flush()
			return fail(c, err)
		}
		return out.close(code)
	}
	r, closeAll, err := limited(c, o.Args, skip, length)
	if err != nil {
		return fail(c, err)
	}
	defer closeAll()
	br := bufio.NewReader(r)
	b := make([]byte, cols)
	format := "%02x"
	if o.Has('u') {
		format = "%02X"
	}
	for at := skip; ctx.Err() == nil; {
		n, err := io.ReadFull(br, b)
		if n > 0 {
			if !o.Has('p') {
				fmt.Fprintf(out, "%08x:", at)
			}
			for i := range cols {
				if !o.Has('p') && i%2 == 0 {
					out.WriteByte(' ')
				}
				switch {
				case i < n:
					fmt.Fprintf(out, format, b[i])
				case !o.Has('p'):
					out.WriteString("  ")
				}
			}
			if !o.Has('p') {
				out.WriteString("  ")
				for _, ch := range b[:n] {
					if ch < ' ' || ch >= 0x7f {
						ch = '.'
					}
					out.WriteByte(ch)
				}
			}
			if out.WriteByte('\n') != nil {
				return 1
			}
			at += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return fail(c, err)
		}
	}
	return out.close(0)
}

// Strings prints runs of printable characters.
func Strings(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "an:t: bytes=n radix=t", "[-n LENGTH] [-t d|o|x] [FILE]...")
	if code >= 0 {
		return code
	}
	least, code := o.Int('n', 4)
	if code >= 0 {
		return code
	}
	radix := o.Value('t', "")
	if radix != "" && (len(radix) != 1 || strings.IndexByte("dox", radix[0]) < 0) || least < 1 {
		return o.Fail("-t takes d, o or x, -n a length")
	}
	out := newOutput(c)
	code = 0
	for _, name := range orInput(o.Args) {
		in, err := open(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		br := bufio.NewReader(in)
		var run []byte
		flush := func(at int64) {
			if len(run) >= least {
				if radix != "" {
					fmt.Fprintf(out, "%7"+radix+" ", at-int64(len(run)))
				}
				out.Write(run)
				out.WriteByte('\n')
			}
			run = run[:0]
		}
		at := int64(0)
		for ; ctx.Err() == nil; at++ {
			b, err := br.ReadByte()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					code = fail(c, err)
				}
				break
			}
			if b >= ' ' && b < 0x7f || b == '\t' {
				run = append(run, b)
				continue
			}
			flush(at)
		}
		flush(at)
		in.Close()
	}
	return out.close(code)
}
