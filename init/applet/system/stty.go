package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

const sttyUsage = `[-F DEVICE] [-a|-g|SETTING...]
Show or set how a terminal works.
  -a  all of it     -g  in a form that stty reads back     -F  another terminal
Settings: [-]NAME as in -a; raw cooked sane cbreak evenp oddp ek nl, rows N, cols N,
size, speed, a rate, ispeed N, ospeed N, and intr, eof, erase … KEY (^C, undef).
Example: stty -F /dev/ttyS0 115200 -echo`

// mode is a bit, or a choice in some bits, of one of the four words.
type mode struct {
	name       string
	word       int // index of words
	bits, mask uint32
	sane       int // 1: on when sane, -1: off, 0: left alone
}

// words are the fields of a termios in the order of the struct.
func words(t *unix.Termios) [4]*uint32 {
	return [4]*uint32{&t.Iflag, &t.Oflag, &t.Cflag, &t.Lflag}
}

const (
	inWord = iota
	outWord
	controlWord
	localWord
)

// modes are the names of POSIX and of Linux (termios(3)), control first, as stty
// shows them.
func modes() []mode {
	return []mode{
		{"parenb", controlWord, unix.PARENB, 0, 0}, {"parodd", controlWord, unix.PARODD, 0, 0},
		{"cs5", controlWord, unix.CS5, unix.CSIZE, 0}, {"cs6", controlWord, unix.CS6, unix.CSIZE, 0},
		{"cs7", controlWord, unix.CS7, unix.CSIZE, 0}, {"cs8", controlWord, unix.CS8, unix.CSIZE, 1},
		{"hupcl", controlWord, unix.HUPCL, 0, 0}, {"cstopb", controlWord, unix.CSTOPB, 0, 0},
		{"cread", controlWord, unix.CREAD, 0, 1}, {"clocal", controlWord, unix.CLOCAL, 0, 0},
		{"crtscts", controlWord, unix.CRTSCTS, 0, 0},
		{"ignbrk", inWord, unix.IGNBRK, 0, -1}, {"brkint", inWord, unix.BRKINT, 0, 1},
		{"ignpar", inWord, unix.IGNPAR, 0, 0}, {"parmrk", inWord, unix.PARMRK, 0, 0},
		{"inpck", inWord, unix.INPCK, 0, 0}, {"istrip", inWord, unix.ISTRIP, 0, 0},
		{"inlcr", inWord, unix.INLCR, 0, -1}, {"igncr", inWord, unix.IGNCR, 0, -1},
		{"icrnl", inWord, unix.ICRNL, 0, 1}, {"ixon", inWord, unix.IXON, 0, 0},
		{"ixoff", inWord, unix.IXOFF, 0, -1}, {"iuclc", inWord, unix.IUCLC, 0, -1},
		{"ixany", inWord, unix.IXANY, 0, -1}, {"imaxbel", inWord, unix.IMAXBEL, 0, 1},
		{"iutf8", inWord, unix.IUTF8, 0, 0},
		{"opost", outWord, unix.OPOST, 0, 1}, {"olcuc", outWord, unix.OLCUC, 0, -1},
		{"ocrnl", outWord, unix.OCRNL, 0, -1}, {"onlcr", outWord, unix.ONLCR, 0, 1},
		{"onocr", outWord, unix.ONOCR, 0, -1}, {"onlret", outWord, unix.ONLRET, 0, -1},
		{"ofill", outWord, unix.OFILL, 0, -1}, {"ofdel", outWord, unix.OFDEL, 0, -1},
		{"isig", localWord, unix.ISIG, 0, 1}, {"icanon", localWord, unix.ICANON, 0, 1},
		{"iexten", localWord, unix.IEXTEN, 0, 1}, {"echo", localWord, unix.ECHO, 0, 1},
		{"echoe", localWord, unix.ECHOE, 0, 1}, {"echok", localWord, unix.ECHOK, 0, 1},
		{"echonl", localWord, unix.ECHONL, 0, -1}, {"noflsh", localWord, unix.NOFLSH, 0, -1},
		{"xcase", localWord, unix.XCASE, 0, -1}, {"tostop", localWord, unix.TOSTOP, 0, -1},
		{"echoprt", localWord, unix.ECHOPRT, 0, -1}, {"echoctl", localWord, unix.ECHOCTL, 0, 1},
		{"echoke", localWord, unix.ECHOKE, 0, 1}, {"flusho", localWord, unix.FLUSHO, 0, -1},
	}
}

// controlKey is a key with a meaning.
type controlKey struct {
	name  string
	index int
	sane  byte
}

func controlKeys() []controlKey {
	return []controlKey{
		{"intr", unix.VINTR, 3}, {"quit", unix.VQUIT, 28}, {"erase", unix.VERASE, 127}, {"kill", unix.VKILL, 21},
		{"eof", unix.VEOF, 4}, {"eol", unix.VEOL, 0}, {"eol2", unix.VEOL2, 0}, {"swtch", unix.VSWTC, 0},
		{"start", unix.VSTART, 17}, {"stop", unix.VSTOP, 19}, {"susp", unix.VSUSP, 26}, {"rprnt", unix.VREPRINT, 18},
		{"werase", unix.VWERASE, 23}, {"lnext", unix.VLNEXT, 22}, {"flush", unix.VDISCARD, 15},
	}
}

// rate is a speed in baud and its code.
type rate struct {
	baud int
	code uint32
}

func rates() []rate {
	return []rate{
		{0, unix.B0}, {50, unix.B50}, {75, unix.B75}, {110, unix.B110}, {134, unix.B134}, {150, unix.B150}, {200, unix.B200},
		{300, unix.B300}, {600, unix.B600}, {1200, unix.B1200}, {1800, unix.B1800}, {2400, unix.B2400}, {4800, unix.B4800},
		{9600, unix.B9600}, {19200, unix.B19200}, {38400, unix.B38400}, {57600, unix.B57600}, {115200, unix.B115200},
		{230400, unix.B230400}, {460800, unix.B460800}, {500000, unix.B500000}, {576000, unix.B576000}, {921600, unix.B921600},
		{1000000, unix.B1000000}, {1152000, unix.B1152000}, {1500000, unix.B1500000}, {2000000, unix.B2000000},
		{2500000, unix.B2500000}, {3000000, unix.B3000000}, {3500000, unix.B3500000}, {4000000, unix.B4000000},
	}
}

func baud(t *unix.Termios) int {
	for _, r := range rates() {
		if r.code == t.Cflag&unix.CBAUD {
			return r.baud
		}
	}
	return 0
}

func setBaud(t *unix.Termios, n int) bool {
	for _, r := range rates() {
		if r.baud == n {
			// The input's rate follows the output's where its bits are 0.
			t.Cflag = t.Cflag&^(unix.CBAUD|unix.CIBAUD) | r.code
			return true
		}
	}
	return false
}

// sane makes a terminal usable again; rate, size and parity stay.
func sane(t *unix.Termios) {
	w := words(t)
	for _, m := range modes() {
		switch {
		case m.sane == 1 && m.mask != 0:
			*w[m.word] = *w[m.word]&^m.mask | m.bits
		case m.sane == 1:
			*w[m.word] |= m.bits
		case m.sane == -1:
			*w[m.word] &^= m.bits
		}
	}
	t.Oflag &^= unix.NLDLY | unix.CRDLY | unix.TABDLY | unix.BSDLY | unix.VTDLY | unix.FFDLY
	for _, k := range controlKeys() {
		t.Cc[k.index] = k.sane
	}
}

func raw(t *unix.Termios) {
	t.Iflag = 0
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ISIG | unix.ICANON | unix.XCASE
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

func cooked(t *unix.Termios) {
	t.Iflag |= unix.BRKINT | unix.IGNPAR | unix.ICRNL | unix.IXON
	t.Oflag |= unix.OPOST
	t.Lflag |= unix.ISIG | unix.ICANON
	t.Cc[unix.VEOF], t.Cc[unix.VEOL] = 4, 0 // VMIN and VTIME lie in the same place on some machines
}

// keyName shows a key as ^C, M-x or undef.
func keyName(b byte) string {
	switch {
	case b == 0:
		return "<undef>"
	case b >= 128:
		return "M-" + strings.Replace(keyName(b&127), "<undef>", "^@", 1)
	case b < 32:
		return "^" + string(rune(b+64))
	case b == 127:
		return "^?"
	}
	return string(rune(b))
}

func parseKey(s string) (byte, bool) {
	switch {
	case s == "undef" || s == "^-" || s == "<undef>":
		return 0, true
	case s == "^?":
		return 127, true
	case len(s) == 2 && s[0] == '^':
		return s[1] & 31, true
	case len(s) == 1:
		return s[0], true
	}
	n, err := strconv.ParseUint(s, 0, 8)
	return byte(n), err == nil
}

// saved is the form of -g: the four words and the keys in hexadecimal.
func saved(t *unix.Termios) string {
	var b strings.Builder
	for _, w := range words(t) {
		fmt.Fprintf(&b, "%x:", *w)
	}
	for i, c := range t.Cc {
		if i > 0 {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%x", c)
	}
	return b.String()
}

func restore(t *unix.Termios, s string) bool {
	f := strings.Split(s, ":")
	if len(f) < 4+len(t.Cc) { // others keep more keys than the kernel has
		return false
	}
	next := *t
	for i, w := range words(&next) {
		n, err := strconv.ParseUint(f[i], 16, 32)
		if err != nil {
			return false
		}
		*w = uint32(n)
	}
	for i := range next.Cc {
		n, err := strconv.ParseUint(f[4+i], 16, 8)
		if err != nil {
			return false
		}
		next.Cc[i] = byte(n)
	}
	*t = next
	return true
}

// terminalState is what stty changes.
type terminalState struct {
	unix.Termios
	rows, cols uint16
	resized    bool
	out        []string // what the settings ask to be shown
}

// apply does the settings in their order; the error names the wrong one.
func (t *terminalState) apply(args []string) error {
	all, keys := modes(), controlKeys()
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		name, off := strings.CutPrefix(a, "-")
		if i := slices.IndexFunc(all, func(m mode) bool { return m.name == name }); i >= 0 {
			m, w := all[i], words(&t.Termios)
			if m.mask != 0 && off {
				return fmt.Errorf("%s cannot be turned off", name)
			}
			if off {
				*w[m.word] &^= m.bits
			} else {
				*w[m.word] = *w[m.word]&^m.mask | m.bits
			}
			continue
		}
		if i := slices.IndexFunc(keys, func(k controlKey) bool { return k.name == a }); i >= 0 {
			if len(args) == 0 {
				return fmt.Errorf("%s needs a key", a)
			}
			b, ok := parseKey(args[0])
			if !ok {
				return fmt.Errorf("%s: %q is not a key", a, args[0])
			}
			t.Cc[keys[i].index] = b
			args = args[1:]
			continue
		}
		switch a {
		case "sane":
			sane(&t.Termios)
		case "raw", "-cooked":
			raw(&t.Termios)
		case "-raw", "cooked":
			cooked(&t.Termios)
		case "cbreak":
			t.Lflag &^= unix.ICANON
			t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		case "-cbreak":
			t.Lflag |= unix.ICANON
		case "evenp", "parity":
			t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARODD) | unix.PARENB | unix.CS7
		case "oddp":
			t.Cflag = t.Cflag&^unix.CSIZE | unix.PARENB | unix.PARODD | unix.CS7
		case "-evenp", "-parity", "-oddp":
			t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB|unix.PARODD) | unix.CS8
		case "nl":
			t.Iflag &^= unix.ICRNL
			t.Oflag &^= unix.ONLCR
		case "-nl":
			t.Iflag = t.Iflag&^(unix.INLCR|unix.IGNCR) | unix.ICRNL
			t.Oflag = t.Oflag&^(unix.OCRNL|unix.ONLRET) | unix.ONLCR
		case "ek":
			t.Cc[unix.VERASE], t.Cc[unix.VKILL] = 127, 21
		case "size":
			t.out = append(t.out, fmt.Sprintf("%d %d", t.rows, t.cols))
		case "speed":
			t.out = append(t.out, strconv.Itoa(baud(&t.Termios)))
		case "rows", "cols", "columns", "ispeed", "ospeed", "min", "time":
			if len(args) == 0 {
				return fmt.Errorf("%s needs a number", a)
			}
			bits := 16
			switch a {
			case "ispeed", "ospeed":
				bits = 31
			case "min", "time":
				bits = 8
			}
			n, err := strconv.ParseUint(args[0], 10, bits)
			if err != nil {
				return fmt.Errorf("%s: %q is not a number that fits", a, args[0])
			}
			switch a {
			case "rows":
				t.rows, t.resized = uint16(n), true
			case "cols", "columns":
				t.cols, t.resized = uint16(n), true
			case "min":
				t.Cc[unix.VMIN] = byte(n)
			case "time":
				t.Cc[unix.VTIME] = byte(n)
			default:
				if !setBaud(&t.Termios, int(n)) {
					return fmt.Errorf("%s: no terminal has %d baud", a, n)
				}
			}
			args = args[1:]
		default:
			if n, err := strconv.Atoi(a); err == nil && n >= 0 {
				if !setBaud(&t.Termios, n) {
					return fmt.Errorf("no terminal has %d baud", n)
				}
			} else if !strings.Contains(a, ":") || !restore(&t.Termios, a) {
				return fmt.Errorf("there is no setting %q", a)
			}
		}
	}
	return nil
}

// describe shows a terminal, all or what is not as sane has it.
func (t *terminalState) describe(all bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "speed %d baud;", baud(&t.Termios))
	if all {
		fmt.Fprintf(&b, " rows %d; columns %d;", t.rows, t.cols)
	}
	fmt.Fprintf(&b, " line = %d;\n", t.Line)
	line := ""
	flush := func() {
		if line != "" {
			b.WriteString(line + "\n")
			line = ""
		}
	}
	add := func(s string) {
		if line != "" && len(line)+1+len(s) > 79 {
			flush()
		}
		if line != "" {
			line += " "
		}
		line += s
	}
	for _, k := range controlKeys() {
		if c := t.Cc[k.index]; all || c != k.sane {
			add(fmt.Sprintf("%s = %s;", k.name, keyName(c)))
		}
	}
	if all || t.Lflag&unix.ICANON == 0 {
		add(fmt.Sprintf("min = %d; time = %d;", t.Cc[unix.VMIN], t.Cc[unix.VTIME]))
	}
	flush()
	w, word := words(&t.Termios), controlWord
	for _, m := range modes() {
		if m.word != word {
			flush()
			word = m.word
		}
		mask := m.mask
		if mask == 0 {
			mask = m.bits
		}
		on := *w[m.word]&mask == m.bits
		switch {
		case on && (all || m.sane == -1):
			add(m.name)
		case !on && m.mask == 0 && (all || m.sane == 1):
			add("-" + m.name)
		}
	}
	flush()
	return b.String()
}

// Stty shows and sets how a terminal works.
func Stty(_ context.Context, c *unit.Call) int {
	// Settings begin with a dash too: only what stands first are options.
	call := *c
	args := c.Args[1:]
	var own []string
	for len(args) > 0 {
		if args[0] == "-F" && len(args) > 1 {
			own, args = append(own, args[:2]...), args[2:]
			continue
		}
		if a := args[0]; a == "-a" || a == "-g" || a == "--help" || strings.HasPrefix(a, "-F") || a == "-ag" || a == "-ga" {
			own, args = append(own, a), args[1:]
			continue
		}
		break
	}
	call.Args = append([]string{c.Args[0]}, own...)
	o, code := options.Parse(&call, "agF:", sttyUsage)
	if code >= 0 {
		return code
	}
	if o.Has('a') && o.Has('g') || (o.Has('a') || o.Has('g')) && len(args) > 0 {
		return o.Fail("-a and -g go alone")
	}
	tty := file(c.Stdin)
	if path := o.Value('F', ""); path != "" {
		// Not to wait for a modem's carrier.
		f, err := os.OpenFile(c.Path(path), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return fail(c, err)
		}
		defer f.Close()
		tty = f
	}
	if tty == nil {
		return fail(c, errors.New("standard input is not a terminal"))
	}
	fd := int(tty.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fail(c, fmt.Errorf("%s is not a terminal: %w", tty.Name(), err))
	}
	t := &terminalState{Termios: *old}
	if ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
		t.rows, t.cols = ws.Row, ws.Col
	}
	switch {
	case o.Has('g'):
		fmt.Fprintln(c.Stdout, saved(&t.Termios))
		return 0
	case len(args) == 0:
		fmt.Fprint(c.Stdout, t.describe(o.Has('a')))
		return 0
	}
	if err := t.apply(args); err != nil {
		return o.Fail("%v", err)
	}
	if t.Termios != *old {
		// After what is on its way out.
		if err := unix.IoctlSetTermios(fd, unix.TCSETSW, &t.Termios); err != nil {
			return fail(c, fmt.Errorf("set %s: %w", tty.Name(), err))
		}
	}
	if t.resized {
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: t.rows, Col: t.cols}); err != nil {
			return fail(c, fmt.Errorf("set the size of %s: %w", tty.Name(), err))
		}
	}
	for _, line := range t.out {
		fmt.Fprintln(c.Stdout, line)
	}
	return 0
}

// Clear empties the screen.
func Clear(_ context.Context, c *unit.Call) int {
	if _, code := options.Parse(c, "", "\nClear the screen."); code >= 0 {
		return code
	}
	fmt.Fprint(c.Stdout, "\x1b[H\x1b[2J\x1b[3J")
	return 0
}

// Reset makes a terminal usable that a program has left in disorder.
func Reset(_ context.Context, c *unit.Call) int {
	if _, code := options.Parse(c, "", "\nMake the terminal usable again (type it blindly, and Ctrl-J)."); code >= 0 {
		return code
	}
	// Full reset, character set, attributes, main screen, cursor.
	fmt.Fprint(c.Stdout, "\x1bc\x1b(B\x0f\x1b[0m\x1b[?1049l\x1b[?25h\x1b[J")
	tty := file(c.Stdin)
	if tty == nil {
		return 0
	}
	t, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return 0 // not a terminal: the sequences were all there is to do
	}
	sane(t)
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETSW, t); err != nil {
		return fail(c, fmt.Errorf("set %s: %w", tty.Name(), err))
	}
	return 0
}
