package sshd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openPTY makes a pseudo terminal for a user (pts(4)).
func openPTY(p *PTY, a *account) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	slave, err = os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	if os.Geteuid() == 0 {
		// The group tty may write, as write(1) wants it.
		err = errors.Join(slave.Chown(int(a.uid), 5), slave.Chmod(0o620))
	}
	if err == nil {
		err = setModes(int(slave.Fd()), p.Modes)
	}
	if err == nil {
		err = setSize(master, p)
	}
	if err != nil {
		slave.Close()
		return nil, nil, fmt.Errorf("set up %s: %w", name, err)
	}
	return master, slave, nil
}

// modes are the encoded terminal modes (RFC 4254, section 8).
type modes struct {
	chars                       map[byte]int
	input, local, output, sizes map[byte]uint32
}

func knownModes() modes {
	return modes{
		chars: map[byte]int{
			1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
			8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 18: unix.VDISCARD,
		},
		input: map[byte]uint32{
			30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL,
			37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8,
		},
		local: map[byte]uint32{
			50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL,
			57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
		},
		output: map[byte]uint32{70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET},
		sizes:  map[byte]uint32{90: unix.CS7, 91: unix.CS8},
	}
}

// setModes gives a terminal the modes that a client has; unknown ones are passed
// over.
func setModes(fd int, list []byte) error {
	known := knownModes()
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	set := func(flags *uint32, bit uint32, on bool) {
		if *flags &^= bit; on {
			*flags |= bit
		}
	}
	for len(list) >= 5 && list[0] != 0 && list[0] < 160 {
		op, v := list[0], binary.BigEndian.Uint32(list[1:])
		list = list[5:]
		if i, ok := known.chars[op]; ok {
			if v == 255 {
				v = 0 // not used
			}
			t.Cc[i] = byte(v)
		} else if bit, ok := known.input[op]; ok {
			set(&t.Iflag, bit, v != 0)
		} else if bit, ok := known.local[op]; ok {
			set(&t.Lflag, bit, v != 0)
		} else if bit, ok := known.output[op]; ok {
			set(&t.Oflag, bit, v != 0)
		} else if bit, ok := known.sizes[op]; ok && v != 0 {
			t.Cflag = t.Cflag&^unix.CSIZE | bit
		}
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}
