package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Type is the type of a blobmsg attribute (blobmsg.h, enum blobmsg_type).
type Type uint8

// The blobmsg types. TypeBool is an 8-bit integer on the wire.
const (
	TypeUnspec Type = 0
	TypeArray  Type = 1
	TypeTable  Type = 2
	TypeString Type = 3
	TypeInt64  Type = 4
	TypeInt32  Type = 5
	TypeInt16  Type = 6
	TypeBool   Type = 7
	TypeDouble Type = 8
)

// String names the type as `ubus list -v` does.
func (t Type) String() string {
	switch t {
	case TypeArray:
		return "Array"
	case TypeTable:
		return "Table"
	case TypeString:
		return "String"
	case TypeInt32:
		return "Integer"
	case TypeBool:
		return "Boolean"
	}
	return "(unknown)"
}

const (
	// maxMessage bounds the blob of a message, in bytes (UBUS_MAX_MSGLEN).
	maxMessage = 1 << 20
	// maxDepth bounds the nesting of tables and arrays. Upstream has no bound
	// but the C stack; the deepest real messages (procd triggers) need about 8.
	maxDepth = 64

	blobExtended = 1 << 31
	blobLenMask  = 1<<24 - 1
)

var (
	errBlob  = errors.New("malformed blob")
	errDepth = fmt.Errorf("%w: nested deeper than %d", errBlob, maxDepth)
	errSize  = fmt.Errorf("message is larger than %d bytes", maxMessage)
)

func pad4(n int) int { return (n + 3) &^ 3 }

// appendPad pads dst so that its length counted from start is a multiple of 4.
func appendPad(dst []byte, start int) []byte {
	for (len(dst)-start)&3 != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// appendBlob appends an attribute without a name, as the message level uses.
func appendBlob(dst []byte, id uint8, data []byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(id)<<24|uint32(4+len(data)))
	dst = append(dst, data...)
	return appendPad(dst, start)
}

func appendBlobString(dst []byte, id uint8, s string) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(id)<<24|uint32(4+len(s)+1))
	dst = append(dst, s...)
	dst = append(dst, 0)
	return appendPad(dst, start)
}

func appendBlobUint32(dst []byte, id uint8, v uint32) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(id)<<24|8)
	return binary.BigEndian.AppendUint32(dst, v)
}

func appendBlobBool(dst []byte, id uint8, v bool) []byte {
	b := byte(0)
	if v {
		b = 1
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(id)<<24|5)
	return append(dst, b, 0, 0, 0)
}

// nextBlob splits the first attribute off b. ok is false at the end and where
// b is malformed, which upstream treats alike.
func nextBlob(b []byte) (id uint8, data, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, nil, false
	}
	h := binary.BigEndian.Uint32(b)
	n := int(h & blobLenMask)
	if n < 4 || n > len(b) {
		return 0, nil, nil, false
	}
	return uint8(h >> 24 & 0x7f), b[4:n], b[min(pad4(n), len(b)):], true
}

// appendTable appends the attributes of t.
func appendTable(dst []byte, t Table, depth int) ([]byte, error) {
	var err error
	for i := range t {
		if dst, err = appendValue(dst, t[i].Name, t[i].Value, depth); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

func appendValue(dst []byte, name string, v any, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("attribute %q: %w", name, errDepth)
	}
	if len(name) > math.MaxUint16 || strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("attribute name of %d bytes: longer than 65535 or with a NUL byte in it", len(name))
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(name)))
	dst = append(dst, name...)
	dst = append(dst, 0)
	dst = appendPad(dst, start)
	var t Type
	var err error
	switch v := v.(type) {
	case nil:
		t = TypeUnspec
	case bool:
		t = TypeBool
		b := byte(0)
		if v {
			b = 1
		}
		dst = append(dst, b)
	case int16:
		t = TypeInt16
		dst = binary.BigEndian.AppendUint16(dst, uint16(v))
	case int32:
		t = TypeInt32
		dst = binary.BigEndian.AppendUint32(dst, uint32(v))
	case int64:
		t = TypeInt64
		dst = binary.BigEndian.AppendUint64(dst, uint64(v))
	case float64:
		t = TypeDouble
		dst = binary.BigEndian.AppendUint64(dst, math.Float64bits(v))
	case string:
		t = TypeString
		if strings.IndexByte(v, 0) >= 0 {
			return nil, fmt.Errorf("attribute %q: a string cannot carry a NUL byte", name)
		}
		dst = append(dst, v...)
		dst = append(dst, 0)
	case Table:
		t = TypeTable
		if dst, err = appendTable(dst, v, depth+1); err != nil {
			return nil, err
		}
	case Array:
		t = TypeArray
		for _, e := range v {
			if dst, err = appendValue(dst, "", e, depth+1); err != nil {
				return nil, err
			}
		}
	default:
		n, err := normalize(v, depth)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		return appendValue(dst[:start], name, n, depth)
	}
	if len(dst)-start > maxMessage {
		return nil, fmt.Errorf("attribute %q: %w", name, errSize)
	}
	binary.BigEndian.PutUint32(dst[start:], blobExtended|uint32(t)<<24|uint32(len(dst)-start))
	return appendPad(dst, start), nil
}

// encode returns the attributes of t as the payload of a DATA attribute.
func (t Table) encode() ([]byte, error) {
	b, err := appendTable(make([]byte, 0, 16+16*len(t)), t, 0)
	if err != nil {
		return nil, err
	}
	if len(b) > maxMessage {
		return nil, errSize
	}
	return b, nil
}

// decodeTable reads a sequence of blobmsg attributes. The strings in the result
// share one copy of b.
func decodeTable(b []byte) (Table, error) {
	if len(b) == 0 {
		return nil, nil
	}
	return parseTable(string(b), 0)
}

func parseTable(s string, depth int) (Table, error) {
	t := make(Table, 0, countAttrs(s))
	for len(s) > 0 {
		var a Attr
		var err error
		if a, s, err = parseAttr(s, depth); err != nil {
			return nil, err
		}
		t = append(t, a)
	}
	return t, nil
}

// countAttrs says how many attributes s holds, if it is well formed.
func countAttrs(s string) int {
	n := 0
	for len(s) >= 4 {
		l := int(be32(s) & blobLenMask)
		if l < 4 || l > len(s) {
			break
		}
		s = s[min(pad4(l), len(s)):]
		n++
	}
	return n
}

func be32(s string) uint32 {
	return uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3])
}

func be64(s string) uint64 { return uint64(be32(s))<<32 | uint64(be32(s[4:])) }

func parseAttr(s string, depth int) (a Attr, rest string, err error) {
	if depth > maxDepth {
		return a, "", errDepth
	}
	if len(s) < 4 {
		return a, "", fmt.Errorf("%w: %d bytes where an attribute should start", errBlob, len(s))
	}
	h := be32(s)
	n := int(h & blobLenMask)
	if h&blobExtended == 0 || n < 4 || n > len(s) {
		return a, "", fmt.Errorf("%w: header %#08x with %d bytes left", errBlob, h, len(s))
	}
	rest = s[min(pad4(n), len(s)):]
	s = s[4:n]
	if len(s) < 3 {
		return a, "", fmt.Errorf("%w: attribute without room for a name", errBlob)
	}
	nl := int(s[0])<<8 | int(s[1])
	if 2+nl+1 > len(s) || s[2+nl] != 0 {
		return a, "", fmt.Errorf("%w: name of %d bytes in %d", errBlob, nl, len(s))
	}
	a.Name = s[2 : 2+nl]
	if strings.IndexByte(a.Name, 0) >= 0 {
		return a, "", fmt.Errorf("%w: NUL byte in the name %q", errBlob, a.Name)
	}
	s = s[min(pad4(2+nl+1), len(s)):]
	t := Type(h >> 24 & 0x7f)
	if want := fixedSize(t); want > 0 && len(s) != want {
		return a, "", fmt.Errorf("%w: attribute %q of type %d has %d bytes, not %d", errBlob, a.Name, t, len(s), want)
	}
	switch t {
	case TypeUnspec:
	case TypeBool:
		a.Value = s[0] != 0
	case TypeInt16:
		a.Value = int16(uint16(s[0])<<8 | uint16(s[1]))
	case TypeInt32:
		a.Value = int32(be32(s))
	case TypeInt64:
		a.Value = int64(be64(s))
	case TypeDouble:
		a.Value = math.Float64frombits(be64(s))
	case TypeString:
		if len(s) == 0 || s[len(s)-1] != 0 {
			return a, "", fmt.Errorf("%w: string %q without its NUL byte", errBlob, a.Name)
		}
		a.Value = s[:strings.IndexByte(s, 0)]
	case TypeTable:
		var v Table
		if v, err = parseTable(s, depth+1); err != nil {
			return a, "", err
		}
		a.Value = v
	case TypeArray:
		v := make(Array, 0, countAttrs(s))
		for len(s) > 0 {
			var e Attr
			if e, s, err = parseAttr(s, depth+1); err != nil {
				return a, "", err
			}
			v = append(v, e.Value)
		}
		a.Value = v
	default:
		return a, "", fmt.Errorf("%w: attribute %q has the unknown type %d", errBlob, a.Name, t)
	}
	return a, rest, nil
}

// fixedSize is the size in bytes of the data of a scalar type, else 0.
func fixedSize(t Type) int {
	switch t {
	case TypeBool:
		return 1
	case TypeInt16:
		return 2
	case TypeInt32:
		return 4
	case TypeInt64, TypeDouble:
		return 8
	}
	return 0
}
