package text

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Tr translates, deletes or squeezes characters. It works on bytes, as every tr
// scripts are written for.
func Tr(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+cCdst complement=c delete=d squeeze-repeats=s", `[-cds] SET1 [SET2]
  -c  all but SET1   -d  delete   -s  repeats become one
SETs: a-z  \n \t \\ \012  [:digit:] [:upper:] and the like  [a*5]
Example: tr '[:upper:]' '[:lower:]'`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, 2); code >= 0 {
		return code
	}
	set1, err := trSet(o.Args[0], 0)
	if err != nil {
		return o.Fail("%v", err)
	}
	del, squeeze := o.Has('d'), o.Has('s')
	var in [256]bool
	for _, b := range set1 {
		in[b] = true
	}
	if o.Has('c') || o.Has('C') {
		set1 = set1[:0]
		for i := range in {
			if in[i] = !in[i]; in[i] {
				set1 = append(set1, byte(i))
			}
		}
	}
	var to [256]byte
	for i := range to {
		to[i] = byte(i)
	}
	var squeezed [256]bool
	if len(o.Args) == 2 {
		set2, err := trSet(o.Args[1], len(set1))
		if err != nil {
			return o.Fail("%v", err)
		}
		if del && !squeeze {
			return o.Fail("-d takes one set")
		}
		if !del {
			if len(set2) == 0 {
				return o.Fail("the second set is empty")
			}
			for i, b := range set1 {
				to[b] = set2[min(i, len(set2)-1)]
			}
		}
		for _, b := range set2 {
			squeezed[b] = squeeze
		}
	} else {
		if !del && !squeeze {
			return o.Fail("a second set is needed to translate")
		}
		if squeeze && !del {
			squeezed = in
		}
	}
	r, out := bufio.NewReaderSize(c.Stdin, 32*1024), newOutput(c)
	last := -1
	for n := 0; ; n++ {
		if n&0xffff == 0 && ctx.Err() != nil {
			return out.close(1)
		}
		b, err := r.ReadByte()
		if err == io.EOF {
			return out.close(0)
		}
		if err != nil {
			return fail(c, err)
		}
		if del && in[b] {
			continue
		}
		b = to[b]
		if squeezed[b] && last == int(b) {
			continue
		}
		last = int(b)
		if err := out.WriteByte(b); err != nil {
			return 1
		}
		if r.Buffered() == 0 {
			out.Flush() // what is typed is answered at once
		}
	}
}

// trSet expands a set; fill is how long [c*] makes it.
func trSet(spec string, fill int) ([]byte, error) {
	type item struct {
		b       byte
		escaped bool
	}
	var items []item
	for i := 0; i < len(spec); i++ {
		if spec[i] != '\\' || i+1 == len(spec) {
			items = append(items, item{spec[i], false})
			continue
		}
		i++
		switch ch := spec[i]; ch {
		case 'a', 'b', 'f', 'n', 'r', 't', 'v':
			items = append(items, item{"\a\b\f\n\r\t\v"[strings.IndexByte("abfnrtv", ch)], true})
		case '0', '1', '2', '3', '4', '5', '6', '7':
			j := i
			for j < len(spec) && j < i+3 && spec[j] >= '0' && spec[j] <= '7' {
				j++
			}
			n, err := strconv.ParseUint(spec[i:j], 8, 8)
			if err != nil {
				return nil, fmt.Errorf("\\%s is not a byte", spec[i:j])
			}
			items = append(items, item{byte(n), true})
			i = j - 1
		default:
			items = append(items, item{ch, true})
		}
	}
	plain := func(i int, b byte) bool { return i < len(items) && items[i].b == b && !items[i].escaped }
	var out []byte
	for i := 0; i < len(items); i++ {
		if plain(i, '[') && plain(i+1, ':') {
			end := -1
			var name strings.Builder
			for j := i + 2; j+1 < len(items); j++ {
				if plain(j, ':') && plain(j+1, ']') {
					end = j
					break
				}
				name.WriteByte(items[j].b)
			}
			if end > 0 {
				f := class(name.String())
				if f == nil {
					return nil, fmt.Errorf("[:%s:] is not a class", name.String())
				}
				for b := range 256 {
					if f(byte(b)) {
						out = append(out, byte(b))
					}
				}
				i = end + 1
				continue
			}
		}
		if plain(i, '[') && i+1 < len(items) && plain(i+2, '*') {
			j := i + 3
			num := ""
			for j < len(items) && items[j].b >= '0' && items[j].b <= '9' {
				num += string(items[j].b)
				j++
			}
			if plain(j, ']') {
				n := max(fill-len(out), 0)
				if num != "" {
					base := 10
					if num[0] == '0' {
						base = 8
					}
					v, err := strconv.ParseUint(num, base, 16)
					if err != nil {
						return nil, fmt.Errorf("%s is too often", num)
					}
					n = int(v)
				}
				for range n {
					out = append(out, items[i+1].b)
				}
				i = j
				continue
			}
		}
		if plain(i+1, '-') && i+2 < len(items) {
			lo, hi := items[i].b, items[i+2].b
			if hi < lo {
				return nil, fmt.Errorf("%c-%c runs backwards", lo, hi)
			}
			for b := int(lo); b <= int(hi); b++ {
				out = append(out, byte(b))
			}
			i += 2
			continue
		}
		out = append(out, items[i].b)
	}
	return out, nil
}

// class is a POSIX character class for bytes.
func class(name string) func(byte) bool {
	upper := func(b byte) bool { return b >= 'A' && b <= 'Z' }
	lower := func(b byte) bool { return b >= 'a' && b <= 'z' }
	digit := func(b byte) bool { return b >= '0' && b <= '9' }
	switch name {
	case "alpha":
		return func(b byte) bool { return upper(b) || lower(b) }
	case "alnum":
		return func(b byte) bool { return upper(b) || lower(b) || digit(b) }
	case "digit":
		return digit
	case "upper":
		return upper
	case "lower":
		return lower
	case "space":
		return func(b byte) bool { return b < 0x80 && unicode.IsSpace(rune(b)) }
	case "blank":
		return func(b byte) bool { return b == ' ' || b == '\t' }
	case "punct":
		return func(b byte) bool { return b > ' ' && b < 0x7f && !upper(b) && !lower(b) && !digit(b) }
	case "cntrl":
		return func(b byte) bool { return b < ' ' || b == 0x7f }
	case "print":
		return func(b byte) bool { return b >= ' ' && b < 0x7f }
	case "graph":
		return func(b byte) bool { return b > ' ' && b < 0x7f }
	case "xdigit":
		return func(b byte) bool { return digit(b) || b >= 'a' && b <= 'f' || b >= 'A' && b <= 'F' }
	}
	return nil
}
