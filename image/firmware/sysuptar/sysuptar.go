// Package sysuptar writes and reads the tar form of a sysupgrade image, which
// boards with NAND or eMMC use (compatibility facts, section 3): one folder
// sysupgrade-<board>/ with the files CONTROL, kernel, root and perhaps dtb.
//
// The writer gives the same bytes for the same input. The reader takes nothing
// for granted: names that leave the folder, links, devices, members that are
// there twice and sizes beyond the given bound are errors, and it never holds
// more than a block of what it reads.
package sysuptar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// ErrFormat says that a file is no sysupgrade tar, or one that nobody should
// unpack.
var ErrFormat = errors.New("not a sysupgrade tar")

// rootPad is what a squashfs root is padded to (T:scripts/sysupgrade-tar.sh).
const rootPad = 1024

// maxControl bounds CONTROL, maxMembers the number of members looked at.
const (
	maxControl = 4 << 10
	maxMembers = 16
)

// Part is a file of the archive.
type Part struct {
	Name string // kernel, root or dtb
	Size int64  // bytes that Data gives
	Data io.Reader
}

// names are the parts an archive may have beside CONTROL.
var names = []string{"dtb", "kernel", "root"}

// Folder is the name of the archive's folder for a board: commas become
// underscores.
func Folder(board string) string { return "sysupgrade-" + strings.ReplaceAll(board, ",", "_") }

// Write writes an archive for the board: names sorted, owner 0, times epoch
// (seconds since 1970).
func Write(w io.Writer, board string, epoch int64, parts ...Part) error {
	fail := func(err error) error { return fmt.Errorf("write the sysupgrade tar for %s: %w", board, err) }
	if board == "" || strings.ContainsAny(board, "/\x00\n") {
		return fail(fmt.Errorf("board name %q: want one without slash and line break", board))
	}
	dir := Folder(board)
	when := time.Unix(epoch, 0)
	tw := tar.NewWriter(w)
	control := "BOARD=" + strings.TrimPrefix(dir, "sysupgrade-") + "\n"
	all := append([]Part{{Name: "CONTROL", Size: int64(len(control)), Data: strings.NewReader(control)}}, parts...)
	slices.SortFunc(all, func(a, b Part) int { return strings.Compare(a.Name, b.Name) })
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: when, Format: tar.FormatUSTAR}); err != nil {
		return fail(err)
	}
	for i, p := range all {
		switch {
		case p.Name != "CONTROL" && !slices.Contains(names, p.Name):
			return fail(fmt.Errorf("part %q: want one of %s", p.Name, strings.Join(names, ", ")))
		case i > 0 && all[i-1].Name == p.Name:
			return fail(fmt.Errorf("part %s twice", p.Name))
		}
		pad := int64(0)
		if p.Name == "root" {
			pad = (rootPad - p.Size%rootPad) % rootPad
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: dir + "/" + p.Name, Mode: 0o644, Size: p.Size + pad, ModTime: when, Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(h); err != nil {
			return fail(err)
		}
		n, err := io.Copy(tw, io.LimitReader(p.Data, p.Size))
		if err == nil && n < p.Size {
			err = fmt.Errorf("%s ended after %d of %d bytes: %w", p.Name, n, p.Size, io.ErrUnexpectedEOF)
		}
		if err == nil {
			_, err = tw.Write(make([]byte, pad))
		}
		if err != nil {
			return fail(err)
		}
	}
	if err := tw.Close(); err != nil {
		return fail(err)
	}
	return nil
}

// Member is what Read found.
type Member struct {
	Name string // CONTROL, kernel, root, dtb
	Size int64
}

// Read reads an archive to its end and calls each for every part but CONTROL, in
// the order of the archive; each need not read to the end. max bounds the size of
// a part in bytes. It returns the board of CONTROL and the members. The error
// wraps ErrFormat when the archive is at fault, and nothing of what each was
// given counts then.
func Read(r io.Reader, max int64, each func(m Member, data io.Reader) error) (board string, members []Member, err error) {
	bad := func(format string, args ...any) (string, []Member, error) {
		return "", nil, fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
	}
	tr := tar.NewReader(r)
	folder := ""
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if n == maxMembers {
			return bad("more than %d members", maxMembers)
		}
		name := strings.TrimSuffix(h.Name, "/")
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		if dir == "" {
			dir, base = base, ""
		}
		switch {
		case !strings.HasPrefix(dir, "sysupgrade-") || strings.ContainsAny(dir, "/\x00") || len(dir) > 128:
			return bad("member %.100q lies outside of a folder sysupgrade-<board>", h.Name)
		case folder != "" && dir != folder:
			return bad("two folders, %s and %s", folder, dir)
		case base == "" && h.Typeflag != tar.TypeDir, base != "" && h.Typeflag != tar.TypeReg:
			return bad("member %.100q has the type %q: want a file in one folder", h.Name, h.Typeflag)
		case base != "" && base != "CONTROL" && !slices.Contains(names, base):
			return bad("member %.100q is not known: want CONTROL, %s", h.Name, strings.Join(names, ", "))
		}
		folder = dir
		if base == "" {
			continue
		}
		if slices.ContainsFunc(members, func(m Member) bool { return m.Name == base }) {
			return bad("%s is there twice", base)
		}
		limit := max
		if base == "CONTROL" {
			limit = maxControl
		}
		if h.Size < 0 || h.Size > limit {
			return bad("%s claims %d bytes, the limit is %d", base, h.Size, limit)
		}
		m := Member{Name: base, Size: h.Size}
		members = append(members, m)
		if base == "CONTROL" {
			text, err := io.ReadAll(tr)
			if err != nil {
				return "", nil, fmt.Errorf("%w: CONTROL: %w", ErrFormat, err)
			}
			for line := range strings.Lines(string(text)) {
				if v, ok := strings.CutPrefix(strings.TrimSpace(line), "BOARD="); ok {
					board = v
				}
			}
			continue
		}
		if err := each(m, tr); err != nil {
			return "", nil, err
		}
	}
	if board == "" || Folder(board) != folder {
		return bad("CONTROL names the board %.64q, the folder is %s", board, folder)
	}
	if !slices.ContainsFunc(members, func(m Member) bool { return m.Name == "root" }) {
		return bad("it has no root")
	}
	return board, members, nil
}
