package ucert

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The part of libubox's blob and blobmsg that chains use (blob.h, blobmsg.h).
// An attribute is a big-endian word (bit 31 extended, 7 bits id, 24 bits length
// with the word), the data, and zero bytes up to a multiple of 4. A blobmsg is
// an extended attribute whose id is a type and whose data starts with a name.

const (
	typeTable  = 2
	typeString = 3
	typeInt64  = 4
	typeInt32  = 5
)

type attr struct {
	extended bool
	id       uint8
	name     string
	data     []byte
}

func next(b []byte, what string) (attr, []byte, error) {
	if len(b) < 4 {
		return attr{}, nil, fmt.Errorf("%s cut short after %d bytes: %w", what, len(b), ErrFormat)
	}
	head := binary.BigEndian.Uint32(b)
	n := int(head & 0xffffff)
	if n < 4 || n > len(b) {
		return attr{}, nil, fmt.Errorf("%s claims %d bytes, %d are there: %w", what, n, len(b), ErrFormat)
	}
	a := attr{extended: head>>31 == 1, id: uint8(head >> 24 & 0x7f), data: b[4:n]}
	return a, b[min((n+3)&^3, len(b)):], nil
}

func nextMessage(b []byte) (attr, []byte, error) {
	a, rest, err := next(b, "field")
	if err != nil {
		return a, nil, err
	}
	if !a.extended || len(a.data) < 3 {
		return a, nil, fmt.Errorf("a field without name: %w", ErrFormat)
	}
	n := int(binary.BigEndian.Uint16(a.data))
	head := (2 + n + 1 + 3) &^ 3
	if head > len(a.data) || a.data[2+n] != 0 {
		return a, nil, fmt.Errorf("a field's name of %d bytes does not fit: %w", n, ErrFormat)
	}
	a.name = string(a.data[2 : 2+n])
	a.data = a.data[head:]
	return a, rest, nil
}

func trimNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// appendAttr appends an attribute to b, whose length is a multiple of 4.
func appendAttr(b []byte, head uint32, data func([]byte) []byte) []byte {
	at := len(b)
	b = data(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], head<<24|uint32(len(b)-at))
	return pad(b)
}

func appendMessage(b []byte, typ uint32, name string, data func([]byte) []byte) []byte {
	return appendAttr(b, 0x80|typ, func(b []byte) []byte {
		b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
		return data(pad(append(append(b, name...), 0)))
	})
}

func appendTable(b []byte, name string, fields func([]byte) []byte) []byte {
	return appendMessage(b, typeTable, name, fields)
}

func appendString(b []byte, name, v string) []byte {
	return appendMessage(b, typeString, name, func(b []byte) []byte { return append(append(b, v...), 0) })
}

func appendInt32(b []byte, name string, v int32) []byte {
	return appendMessage(b, typeInt32, name, func(b []byte) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) })
}

func appendInt64(b []byte, name string, v int64) []byte {
	return appendMessage(b, typeInt64, name, func(b []byte) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) })
}
