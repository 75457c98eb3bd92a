package stage1

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/slot"
	"weft/init/stage1/kmod"
)

// Places of the rescue system (package rescue): the boot loader brings the file
// system beside the initramfs, or it is taken from the boot partition.
const (
	rescueDir     = "/rescue"
	rescueProgram = "/rescue/rescue"
	rescueLoaded  = "/rescue.squashfs"
	rescueCopy    = "/tmp/rescue.cpio"
	rescueFile    = "boot/rescue.cpio"
	// rescueBusy is there while the rescue system writes an image.
	rescueBusy = "/tmp/run/weft/rescue.busy"
	// rescuePause is the time before the program is started again.
	rescuePause = 2 * time.Second
)

// startRescue starts the rescue system, which says why no slot is started. stop
// ends it. Where there is none, the shell on the consoles is what is left.
func (b *boot) startRescue(ctx context.Context, why error) (stop func()) {
	if err := b.guard("mounting the rescue system", b.mountRescue); err != nil {
		b.say(slog.LevelWarn, "no rescue system: %v", err)
		return func() {}
	}
	b.need("ext4", "nls_cp437", "nls_ascii", "nls_utf8", "vfat")
	if err := loadNetworkDrivers(rescueDir); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	if set, err := kmod.Open(rescueDir); err == nil && set.Has("af_packet") {
		if err := set.Load("af_packet", ""); err != nil {
			b.say(slog.LevelWarn, "%v", err)
		}
	}
	board, model := machine("/sys", "/proc")
	if err := writeSysinfo("/tmp/sysinfo", board, model); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			err := b.runRescue(ctx, why)
			if ctx.Err() != nil {
				return
			}
			b.say(slog.LevelWarn, "the rescue system ended: %v: starting it again", err)
			select {
			case <-ctx.Done():
			case <-time.After(rescuePause):
			}
		}
	}()
	return func() {
		cancel()
		<-done
		for _, dir := range []string{dataDir, bootDir, romDir} {
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
}

// runRescue runs the program once and shows its lines.
func (b *boot) runRescue(ctx context.Context, why error) error {
	cmd := exec.CommandContext(ctx, rescueProgram, "--why", why.Error())
	cmd.Args[0] = "rescue"
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "HOME=/root", "TERM=linux"}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		b.con.print("weft: rescue: " + lines.Text())
	}
	io.Copy(io.Discard, out) // a line that is too long
	return cmd.Wait()
}

// mountRescue mounts the rescue system once.
func (b *boot) mountRescue() error {
	if _, err := os.Stat(rescueProgram); err == nil {
		return nil
	}
	b.need("loop", "squashfs")
	path, offset, size := rescueLoaded, int64(0), int64(0)
	if fi, err := os.Stat(rescueLoaded); err == nil {
		size = fi.Size()
	} else {
		if err := b.copyRescue(); err != nil {
			return err
		}
		path = rescueCopy
		if offset, size, err = findRescue(rescueCopy); err != nil {
			return err
		}
	}
	dev, detach, err := overlay.AttachFile(path, offset, size)
	if err != nil {
		return err
	}
	err = os.MkdirAll(rescueDir, 0o755)
	if err == nil {
		err = unix.Mount(dev, rescueDir, "squashfs", unix.MS_RDONLY|unix.MS_NODEV, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mount the rescue system: %w", err), detach())
	}
	return nil
}

// copyRescue takes the rescue system out of the boot partition, that of this slot
// first: its drivers are for the running kernel. It is copied into memory, because
// the partition must be free to be written.
func (b *boot) copyRescue() error {
	if b.disk == nil {
		return errors.New("the boot disk is not known")
	}
	part := b.bootPartition()
	if err := part.mount(unix.MS_RDONLY); err != nil {
		return err
	}
	err := errors.New("no slot")
	for _, id := range []slot.ID{b.slot, b.slot.Other()} {
		if err = copyFile(rescueCopy, bootFile(id, rescueFile)); err == nil {
			break
		}
	}
	return errors.Join(err, part.unmount())
}

// findRescue finds the squashfs in the archive.
func findRescue(path string) (offset, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, 0, fmt.Errorf("read the rescue system: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	return parseRescue(head[:n], fi.Size())
}

// parseRescue reads the header of the first file of an archive in the form "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst) that has total
// bytes: it must be the squashfs.
func parseRescue(head []byte, total int64) (offset, size int64, err error) {
	const fixed = 110
	name := filepath.Base(rescueLoaded)
	if len(head) < fixed+len(name)+1 || !bytes.HasPrefix(head, []byte("070701")) {
		return 0, 0, errors.New("the rescue system is no cpio archive")
	}
	field := func(n int) (int64, error) {
		var b [4]byte
		_, err := hex.Decode(b[:], head[6+8*n:6+8*n+8])
		return int64(binary.BigEndian.Uint32(b[:])), err
	}
	size, err1 := field(6)
	length, err2 := field(11)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("the rescue system is no cpio archive: %w", err)
	}
	if length != int64(len(name)+1) || string(head[fixed:fixed+len(name)]) != name {
		return 0, 0, fmt.Errorf("the archive of the rescue system does not begin with %s", name)
	}
	offset = (fixed + length + 3) &^ 3
	if size == 0 || offset+size > total {
		return 0, 0, fmt.Errorf("the rescue system is cut: %d bytes are there, %d are wanted", total, offset+size)
	}
	return offset, size, nil
}
