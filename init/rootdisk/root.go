package rootdisk

import (
	"fmt"
	"strconv"
	"strings"
)

// Spec is a parsed root= argument. Exactly one of the forms is set.
type Spec struct {
	text string

	hasSignature bool // PARTUUID=<8 hex>-<2 hex>
	signature    uint32

	hasGUID bool // PARTUUID=<guid>
	guid    GUID

	label string // PARTLABEL=<name>
	dev   string // /dev/<name>, without /dev/

	hasNumber    bool // major:minor
	major, minor uint32

	number int // of the partition, where the form says it
	offset int // /PARTNROFF=
}

// String returns the argument as it was given.
func (s Spec) String() string { return s.text }

// ParseRoot reads the value of the kernel's root= argument in the forms that
// the kernel (block/early-lookup.c) and LEDE's export_bootdevice know:
// PARTUUID=<8 hex digits>-<2 hex digits>, PARTUUID=<GUID>, both with
// /PARTNROFF=<n>, PARTLABEL=<name>, /dev/<name>, <major>:<minor> and the hex
// device number (0xfe02, fe02).
func ParseRoot(text string) (Spec, error) {
	s := Spec{text: text}
	bad := func(why string) (Spec, error) {
		return Spec{}, fmt.Errorf("root=%s: %s: expected PARTUUID=<id>, PARTLABEL=<name>, /dev/<name> or <major>:<minor>", text, why)
	}
	switch {
	case strings.HasPrefix(text, "PARTUUID="):
		id := strings.TrimPrefix(text, "PARTUUID=")
		if head, off, found := strings.Cut(id, "/PARTNROFF="); found {
			n, err := strconv.Atoi(off)
			if err != nil || n < -maxEntries || n > maxEntries {
				return bad("PARTNROFF is no number")
			}
			id, s.offset = head, n
		}
		if len(id) == 11 && id[8] == '-' {
			sig, err1 := strconv.ParseUint(id[:8], 16, 32)
			num, err2 := strconv.ParseUint(id[9:], 16, 8)
			if err1 != nil || err2 != nil {
				return bad("the disk id is not hexadecimal")
			}
			s.hasSignature, s.signature, s.number = true, uint32(sig), int(num)
			return s, nil
		}
		g, err := ParseGUID(id)
		if err != nil {
			return bad("the id is neither 8 hex digits, a dash and 2 hex digits, nor a GUID")
		}
		s.hasGUID, s.guid = true, g
		return s, nil
	case strings.HasPrefix(text, "PARTLABEL="):
		s.label = strings.TrimPrefix(text, "PARTLABEL=")
		if s.label == "" {
			return bad("the name is empty")
		}
		return s, nil
	case strings.HasPrefix(text, "/dev/"):
		s.dev = strings.TrimPrefix(text, "/dev/")
		if s.dev == "" || strings.Contains(s.dev, "..") {
			return bad("no device name")
		}
		return s, nil
	case strings.Contains(text, ":"):
		major, minor, _ := strings.Cut(text, ":")
		a, err1 := strconv.ParseUint(major, 10, 12)
		b, err2 := strconv.ParseUint(minor, 10, 20)
		if err1 != nil || err2 != nil {
			return bad("no device number")
		}
		s.hasNumber, s.major, s.minor = true, uint32(a), uint32(b)
		return s, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 32)
	if err != nil || text == "" {
		return bad("unknown form")
	}
	// The kernel's new_decode_dev: minor bits 0-7 and 20-31, major 8-19.
	s.hasNumber = true
	s.major, s.minor = uint32(n>>8&0xfff), uint32(n&0xff|n>>12&0xfff00)
	return s, nil
}

// match returns the number of the root partition if the table is the one that
// the id names. 0 and true: the form says only the disk.
func (s Spec) match(t *Table) (number int, ok bool) {
	switch {
	case s.hasSignature:
		// A GPT disk of the same build carries the same four bytes; the
		// kernel does not take it for this form, so neither do we.
		if t.Scheme == MBR && t.Signature == s.signature {
			return s.number + s.offset, true
		}
	case s.hasGUID && t.Scheme == GPT:
		for _, p := range t.Partitions {
			if p.GUID == s.guid {
				return p.Number + s.offset, true
			}
		}
		// LEDE: the disk GUID ends in a zero byte, entry n in byte n.
		disk := s.guid
		disk[15] = 0
		if n := int(s.guid[15]); disk == t.DiskGUID && n != 0 {
			return n + s.offset, true
		}
	case s.label != "":
		for _, p := range t.Partitions {
			if p.Name == s.label {
				return p.Number, true
			}
		}
	}
	return 0, false
}
