package rootdisk

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is a GUID in the byte order of the disk: the first three fields are
// little-endian (UEFI specification, appendix A).
type GUID [16]byte

// Well-known partition types.
var (
	TypeLinux    = mustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
	TypeBIOSBoot = mustGUID("21686148-6449-6e6f-744e-656564454649")
)

// ParseGUID reads the text form, in either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	groups := strings.Split(s, "-")
	if len(groups) != 5 || len(groups[0]) != 8 || len(groups[1]) != 4 || len(groups[2]) != 4 ||
		len(groups[3]) != 4 || len(groups[4]) != 12 {
		return g, fmt.Errorf("GUID %q: expected 8-4-4-4-12 hex digits", s)
	}
	raw, err := hex.DecodeString(strings.Join(groups, ""))
	if err != nil {
		return g, fmt.Errorf("GUID %q: expected 8-4-4-4-12 hex digits", s)
	}
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(raw[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(raw[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(raw[6:]))
	copy(g[8:], raw[8:])
	return g, nil
}

func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return g
}

// String returns the text form in lower case, as blkid and the kernel print it.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x",
		binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:16])
}

// IsZero reports whether all bytes are zero, which marks an unused entry.
func (g GUID) IsZero() bool { return g == GUID{} }
