package system

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// contents is what a block device holds; kind is empty where that is not known.
type contents struct{ kind, label, uuid, version string }

// identify looks for the signatures of the file systems that a router meets.
// Offsets are those of the kernel's headers, named with each.
func identify(r io.ReaderAt) contents {
	at := func(off int64, n int) []byte {
		b := make([]byte, n)
		if _, err := r.ReadAt(b, off); err != nil {
			return make([]byte, n) // shorter than that: no signature there
		}
		return b
	}
	text := func(b []byte) string {
		b, _, _ = bytes.Cut(b, []byte{0})
		return strings.TrimRight(string(b), " ")
	}
	uuid := func(b []byte) string {
		if len(bytes.Trim(b, "\x00")) == 0 {
			return ""
		}
		h := hex.EncodeToString(b)
		return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	}
	fat := func(serial []byte, label []byte, version string) contents {
		n := binary.LittleEndian.Uint32(serial)
		name := text(label)
		if name == "NO NAME" {
			name = ""
		}
		return contents{"vfat", name, fmt.Sprintf("%04X-%04X", n>>16, n&0xffff), version}
	}
	head := at(0, 512)
	has := func(off int, magic string) bool { return string(head[off:off+len(magic)]) == magic }
	switch {
	case has(0, "hsqs"): // squashfs_fs.h
		return contents{kind: "squashfs", version: fmt.Sprintf("%d.%d", binary.LittleEndian.Uint16(head[28:]), binary.LittleEndian.Uint16(head[30:]))}
	case has(0, "XFSB"): // xfs_format.h
		return contents{kind: "xfs", uuid: uuid(head[32:48]), label: text(head[108:120])}
	case has(0, "LUKS\xba\xbe"):
		return contents{kind: "crypto_LUKS", uuid: text(at(168, 40)), version: fmt.Sprint(binary.BigEndian.Uint16(head[6:]))}
	case has(3, "NTFS    "):
		n := binary.LittleEndian.Uint64(head[72:])
		return contents{kind: "ntfs", uuid: fmt.Sprintf("%016X", n)}
	case has(3, "EXFAT   "):
		n := binary.LittleEndian.Uint32(head[100:])
		return contents{kind: "exfat", uuid: fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)}
	case has(510, "\x55\xaa") && has(82, "FAT32   "): // msdos_fs.h
		return fat(head[67:71], head[71:82], "FAT32")
	case has(510, "\x55\xaa") && (has(54, "FAT16   ") || has(54, "FAT12   ")):
		return fat(head[39:43], head[43:54], text(head[54:62]))
	}
	sb := at(1024, 1024)
	switch {
	case sb[0x38] == 0x53 && sb[0x39] == 0xef: // ext4.h
		kind := "ext2"
		compat, incompat := binary.LittleEndian.Uint32(sb[0x5c:]), binary.LittleEndian.Uint32(sb[0x60:])
		if compat&4 != 0 { // has_journal
			kind = "ext3"
		}
		if incompat&0x2c0 != 0 || binary.LittleEndian.Uint32(sb[0x64:])&0x78 != 0 { // extents, 64bit, flex_bg; huge_file…
			kind = "ext4"
		}
		return contents{kind, text(sb[0x78:0x88]), uuid(sb[0x68:0x78]), "1.0"}
	case string(sb[:4]) == "\x10\x20\xf5\xf2": // f2fs_fs.h
		name := make([]uint16, 0, 64)
		for b := at(1024+0x7c, 128); len(b) > 0 && (b[0] != 0 || b[1] != 0); b = b[2:] {
			name = append(name, binary.LittleEndian.Uint16(b))
		}
		return contents{"f2fs", utf16(name), uuid(sb[0x6c:0x7c]), fmt.Sprintf("%d.%d", binary.LittleEndian.Uint16(sb[4:]), binary.LittleEndian.Uint16(sb[6:]))}
	case string(sb[:4]) == "\xe2\xe1\xf5\xe0":
		return contents{kind: "erofs", uuid: uuid(sb[48:64]), label: text(sb[64:80])}
	}
	for _, page := range []int64{4096, 8192, 16384, 65536} { // swap.h: at the end of the first page
		if string(at(page-10, 10)) == "SWAPSPACE2" {
			return contents{kind: "swap", uuid: uuid(at(1024+12, 16)), label: text(at(1024+28, 16)), version: "1"}
		}
	}
	if b := at(0x10000, 0x180); string(b[0x40:0x48]) == "_BHRfS_M" { // btrfs_tree.h
		return contents{kind: "btrfs", uuid: uuid(b[0x20:0x30]), label: text(at(0x10000+0x12b, 256))}
	}
	if b := at(0x8000, 0x50); string(b[1:6]) == "CD001" {
		return contents{kind: "iso9660", label: text(b[40:72])}
	}
	return contents{}
}

// utf16 reads a label of f2fs; what is no character becomes a question mark.
func utf16(units []uint16) string {
	var b strings.Builder
	for _, u := range units {
		r := rune(u)
		if !utf8.ValidRune(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// quoted makes a label safe to print and to read back by a shell's eval.
func quoted(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '"' || r == '\\' || r == '$' || r == '`' {
			b.WriteByte('\\')
		}
		if !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// blockDevices are the disks and partitions that hold something.
func blockDevices() ([]string, error) {
	b, err := os.ReadFile("/proc/partitions")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without block devices
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[0] != "major" && !strings.HasPrefix(f[3], "ram") {
			list = append(list, "/dev/"+f[3])
		}
	}
	return list, nil
}

// deviceOf finds the device for LABEL=x or UUID=x.
func deviceOf(spec string) (string, error) {
	key, want, _ := strings.Cut(spec, "=")
	want = strings.Trim(want, `"`)
	devices, err := blockDevices()
	if err != nil {
		return "", err
	}
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			continue
		}
		id := identify(f)
		f.Close()
		if key == "LABEL" && id.label == want || key == "UUID" && strings.EqualFold(id.uuid, want) {
			return d, nil
		}
	}
	return "", fmt.Errorf("%s: %w (blkid lists what there is)", spec, unix.ENOENT)
}

// Blkid tells what is on block devices. Exit code 2: nothing known was found.
func Blkid(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", `[DEVICE]...
Show type, label and UUID of what is on block devices.
Example: blkid /dev/vda4`)
	if code >= 0 {
		return code
	}
	return blkid(c, o.Args, func(id contents, _ string) string {
		var b strings.Builder
		for _, kv := range [][2]string{{"LABEL", id.label}, {"UUID", id.uuid}, {"TYPE", id.kind}} {
			if kv[1] != "" {
				fmt.Fprintf(&b, " %s=\"%s\"", kv[0], quoted(kv[1]))
			}
		}
		return b.String()
	})
}

// Block is LEDE's block tool, of which there is "block info".
func Block(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", `info [DEVICE]...
Show UUID, label, version, mount and type of what is on block devices.`)
	if code >= 0 {
		return code
	}
	if len(o.Args) == 0 || o.Args[0] != "info" {
		return o.Fail("expected info")
	}
	mounts, err := readTable("/proc/self/mounts")
	if err != nil {
		return fail(c, err)
	}
	blkid(c, o.Args[1:], func(id contents, device string) string {
		where := ""
		for _, m := range mounts {
			if m.device == device {
				where = m.dir
			}
		}
		var b strings.Builder
		for _, kv := range [][2]string{{"UUID", id.uuid}, {"LABEL", id.label}, {"VERSION", id.version}, {"MOUNT", where}, {"TYPE", id.kind}} {
			if kv[1] != "" {
				fmt.Fprintf(&b, " %s=\"%s\"", kv[0], quoted(kv[1]))
			}
		}
		return b.String()
	})
	return 0
}

func blkid(c *unit.Call, devices []string, show func(id contents, device string) string) int {
	named := len(devices) > 0
	if !named {
		var err error
		if devices, err = blockDevices(); err != nil {
			return fail(c, err)
		}
	}
	code := 2
	for _, d := range devices {
		f, err := os.Open(c.Path(d))
		if err != nil {
			if named {
				fail(c, err)
			}
			continue
		}
		id := identify(f)
		f.Close()
		if id.kind != "" {
			code = 0
			fmt.Fprintf(c.Stdout, "%s:%s\n", d, show(id, d))
		}
	}
	return code
}
