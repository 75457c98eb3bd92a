// Package squash writes the root file system as squashfs through a pinned
// mksquashfs, and reads one back through unsquashfs.
//
// The tree goes in as a tar stream, so that owners, modes, times and devices
// are what the builder says, with no staging folder, no fakeroot and no trace
// of the umask.
package squash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strconv"
	"strings"
)

// Commander runs one program; *pins.Tool is one.
type Commander interface {
	Command(ctx context.Context, args ...string) *exec.Cmd
}

// The compression, chosen by measurement on the router image (60 MB; processor
// seconds): zstd 9 16.2 MB in 1.1 s, zstd 15 15.3 MB in 7.9 s, xz with BCJ
// 13.4 MB in 27 s. xz does not fit into a rebuild of ten seconds and opens
// several times slower on the device, where each program start reads from it.
// The block of 256 KiB is LEDE's.
const (
	Compressor = "zstd"
	Level      = 9
	BlockSize  = 256 << 10
)

// WriteSmall is Write with xz and blocks of 1 MiB: as small as it can be, for what
// is hardly ever read. A bcj filter of mksquashfs, such as "x86", helps programs
// of that processor; "" is none.
func WriteSmall(ctx context.Context, mksquashfs Commander, out string, epoch int64, bcj string, feed func(w io.Writer) error) error {
	options := []string{"-comp", "xz", "-b", strconv.Itoa(1 << 20), "-Xdict-size", "100%"}
	if bcj != "" {
		options = append(options, "-Xbcj", bcj)
	}
	return write(ctx, mksquashfs, out, epoch, options, feed)
}

// Write makes a squashfs file out of the tar stream that feed writes. The same
// stream and epoch (seconds since 1970, of the file system itself) give the
// same bytes, whatever the number of processors.
func Write(ctx context.Context, mksquashfs Commander, out string, epoch int64, feed func(w io.Writer) error) error {
	return write(ctx, mksquashfs, out, epoch, []string{"-comp", Compressor, "-Xcompression-level", strconv.Itoa(Level), "-b", strconv.Itoa(BlockSize)}, feed)
}

func write(ctx context.Context, mksquashfs Commander, out string, epoch int64, compression []string, feed func(w io.Writer) error) error {
	when := strconv.FormatInt(epoch, 10)
	args := append([]string{"-", out, "-tar", "-noappend", "-no-progress", "-quiet"}, compression...)
	cmd := mksquashfs.Command(ctx, append(args, "-mkfs-time", when, "-root-time", when, "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0",
		"-no-xattrs", "-processors", strconv.Itoa(runtime.GOMAXPROCS(0)))...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make the squashfs: %w", err)
	}
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make the squashfs: start mksquashfs: %w", err)
	}
	feedErr := feed(stdin)
	if err := stdin.Close(); feedErr == nil && err != nil {
		feedErr = err
	}
	if err := cmd.Wait(); err != nil {
		_ = os.Remove(out)
		return fmt.Errorf("make the squashfs: mksquashfs: %w: %s", err, strings.TrimSpace(text.String()))
	}
	if feedErr != nil {
		_ = os.Remove(out)
		return fmt.Errorf("make the squashfs: %w", feedErr)
	}
	return nil
}

// Entry is one file of a squashfs as unsquashfs lists it.
type Entry struct {
	Mode  string // as ls -l writes it
	Owner string // uid/gid
	Size  int64  // of files; of other kinds 0
	Path  string // relative to the root, "" for the root
	Link  string // of a symbolic link
	Dev   string // "major,minor" of a device
}

// List lists a squashfs file with all its attributes but the times.
func List(ctx context.Context, unsquashfs Commander, file string) ([]Entry, error) {
	cmd := unsquashfs.Command(ctx, "-lln", "-d", "", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the squashfs %s: %w: %s", file, err, strings.TrimSpace(stderr.String()))
	}
	return parseList(string(out))
}

func parseList(text string) ([]Entry, error) {
	var out []Entry
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		e, err := parseLine(line)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

var errLine = errors.New("unsquashfs listed something unexpected")

// parseLine reads "mode uid/gid size date time /path[ -> link]"; a device has
// "major,minor" with blanks around it in the place of the size.
func parseLine(line string) (Entry, error) {
	var e Entry
	rest := line
	word := func() string {
		rest = strings.TrimLeft(rest, " ")
		w, r, _ := strings.Cut(rest, " ")
		rest = r
		return w
	}
	e.Mode, e.Owner = word(), word()
	if len(e.Mode) != 10 || !strings.Contains(e.Owner, "/") {
		return e, fmt.Errorf("%w: %q", errLine, line)
	}
	size := word()
	switch e.Mode[0] {
	case 'c', 'b':
		if strings.HasSuffix(size, ",") {
			size += word()
		}
		e.Dev = size
	default:
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return e, fmt.Errorf("%w: %q", errLine, line)
		}
		if e.Mode[0] == '-' {
			e.Size = n
		}
	}
	word() // date
	word() // time
	e.Path = strings.TrimPrefix(rest, "/")
	if e.Mode[0] == 'l' {
		var ok bool
		if e.Path, e.Link, ok = strings.Cut(e.Path, " -> "); !ok {
			return e, fmt.Errorf("%w: %q", errLine, line)
		}
	}
	return e, nil
}

// Cat copies one file out of a squashfs.
func Cat(ctx context.Context, unsquashfs Commander, file, name string, w io.Writer) error {
	cmd := unsquashfs.Command(ctx, "-cat", file, path.Clean(name))
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("read %s from the squashfs %s: %w: %s", name, file, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}
