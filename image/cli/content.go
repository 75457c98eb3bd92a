package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"weft/image/disk"
	"weft/image/firmware/sysuptar"
	"weft/image/firmware/ucert"
)

// content is what an image file holds below its trailers.
type content struct {
	Form    string           `json:"form"` // disk, sysupgrade tar, squashfs, unknown
	Gzip    bool             `json:"gzip"`
	Size    int64            `json:"size"` // unpacked
	Magic   string           `json:"magic,omitempty"`
	Table   string           `json:"table,omitempty"` // of a disk: mbr or gpt
	Parts   []partReport     `json:"partitions,omitempty"`
	Stock   bool             `json:"stock_accepts_magic,omitempty"` // stock's first test of an x86 image
	Slots   bool             `json:"two_slots,omitempty"`
	Board   string           `json:"board,omitempty"` // of a tar
	Members map[string]int64 `json:"members,omitempty"`
}

type partReport struct {
	Number  int   `json:"number"`
	Start   int64 `json:"start"` // sectors of 512 bytes
	Sectors int64 `json:"sectors"`
}

// maxContent bounds what an image may unpack to.
const maxContent = 16 << 30

// headBytes is looked at to tell what the content is: a GPT and its entries.
const headBytes = 34 * disk.SectorSize

// readContent unpacks an image, without its trailers, to its end. The error is a
// fault of the image.
func readContent(image io.Reader) (*content, error) {
	c := &content{}
	in := bufio.NewReaderSize(image, 1<<20)
	plain := io.Reader(in)
	if m, err := in.Peek(2); err == nil && m[0] == 0x1f && m[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			return c, fmt.Errorf("gzip: %w", err)
		}
		z.Multistream(false)
		c.Gzip, plain = true, z
	}
	counter := &countReader{r: io.LimitReader(plain, maxContent)}
	head := make([]byte, headBytes)
	n, err := io.ReadFull(counter, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return c, fmt.Errorf("unpack the image: %w", err)
	}
	head = head[:n]
	rest := io.MultiReader(bytes.NewReader(head), counter)
	switch {
	case n >= disk.SectorSize && head[510] == 0x55 && head[511] == 0xaa:
		c.Form = "disk"
		c.Magic = fmt.Sprintf("%02X%02X", head[0], head[1])
		c.Stock = c.Magic == "EB48" || c.Magic == "EB63"
		l, err := disk.Read(bytes.NewReader(head))
		if err != nil {
			return c, err
		}
		c.Table = string(l.Table)
		for _, p := range l.Partitions {
			c.Parts = append(c.Parts, partReport{p.Number, p.Start, p.Sectors})
		}
		if l.BIOSBoot.Number != 0 {
			c.Parts = append(c.Parts, partReport{l.BIOSBoot.Number, l.BIOSBoot.Start, l.BIOSBoot.Sectors})
		}
		c.Slots = len(l.Partitions) >= 4 && l.Partitions[1].Sectors == l.Partitions[2].Sectors
	case bytes.HasPrefix(head, []byte("hsqs")):
		c.Form = "squashfs"
	case bytes.HasPrefix(head, []byte("sysupgrade-")):
		c.Form, c.Members = "sysupgrade tar", map[string]int64{}
		board, members, err := sysuptar.Read(rest, maxContent, func(sysuptar.Member, io.Reader) error { return nil })
		if err != nil {
			return c, err
		}
		c.Board = board
		for _, m := range members {
			c.Members[m.Name] = m.Size
		}
	default:
		c.Form = "unknown"
	}
	if _, err := io.Copy(io.Discard, counter); err != nil {
		return c, fmt.Errorf("unpack the image: %w", err)
	}
	if c.Size = counter.n; c.Size == maxContent {
		return c, fmt.Errorf("it unpacks to more than %d GiB", maxContent>>30)
	}
	return c, nil
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// write tells it in words.
func (c *content) write(line func(name, format string, args ...any)) {
	packed := "not compressed"
	if c.Gzip {
		packed = "gzip"
	}
	switch c.Form {
	case "disk":
		line("content", "a whole disk of %s, %s; partition table %s", size(c.Size), packed, strings.ToUpper(c.Table))
		if c.Stock {
			line("first bytes", "%s: stock sysupgrade on x86 takes it", c.Magic)
		} else {
			line("first bytes", "%s: stock sysupgrade on x86 wants EB48 or EB63", c.Magic)
		}
		for _, p := range c.Parts {
			line(fmt.Sprintf("partition %d", p.Number), "sectors %d to %d, %s: %s", p.Start, p.Start+p.Sectors-1, size(p.Sectors*disk.SectorSize), purpose(p.Number, c.Slots))
		}
	case "sysupgrade tar":
		line("content", "a sysupgrade tar (%s) for the board %s", packed, c.Board)
		for _, name := range []string{"CONTROL", "kernel", "root", "dtb"} {
			if n, ok := c.Members[name]; ok {
				line("member "+name, "%d bytes", n)
			}
		}
	case "squashfs":
		line("content", "a squashfs of %s, %s: a root file system alone, not to be flashed", size(c.Size), packed)
	default:
		line("content", "%s, %s: neither a disk, a squashfs nor a sysupgrade tar", size(c.Size), packed)
	}
}

func purpose(number int, slots bool) string {
	switch {
	case number == 1:
		return "boot: kernel and boot loader"
	case number == 2 && slots:
		return "root file system of slot a"
	case number == 2:
		return "root file system"
	case number == 3 && slots:
		return "root file system of slot b"
	case number == 4 && slots:
		return "data: settings of both slots"
	case number == 128:
		return "GRUB, started by a BIOS"
	}
	return "other"
}

// chainWords tells what the certificates of a chain say.
func chainWords(chain ucert.Chain) []string {
	var out []string
	for _, e := range chain {
		c := e.Certificate
		switch {
		case c == nil:
		case c.Type == ucert.Revocation:
			out = append(out, fmt.Sprintf("key %s revokes key %s", e.Signature.Fingerprint, c.Fingerprint))
		default:
			out = append(out, fmt.Sprintf("key %s lets key %s sign from %s until %s", e.Signature.Fingerprint, c.Key.Fingerprint,
				c.ValidFrom.UTC().Format(time.DateOnly), c.ExpiresAt.UTC().Format(time.DateOnly)))
		}
	}
	return out
}
