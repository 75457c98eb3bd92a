package system

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"weft/init/applet/internal/ptytest"
)

// saneTerminal is 115200 baud, 8 bits, as sane has it.
func saneTerminal(t *testing.T) *terminalState {
	t.Helper()
	s := &terminalState{rows: 24, cols: 80}
	sane(&s.Termios)
	if err := s.apply([]string{"115200"}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSttyDescribe(t *testing.T) {
	s := saneTerminal(t)
	if got, want := s.describe(false), "speed 115200 baud; line = 0;\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	want := `speed 115200 baud; rows 24; columns 80; line = 0;
intr = ^C; quit = ^\; erase = ^?; kill = ^U; eof = ^D; eol = <undef>;
eol2 = <undef>; swtch = <undef>; start = ^Q; stop = ^S; susp = ^Z; rprnt = ^R;
werase = ^W; lnext = ^V; flush = ^O; min = 0; time = 0;
-parenb -parodd cs8 -hupcl -cstopb cread -clocal -crtscts
-ignbrk brkint -ignpar -parmrk -inpck -istrip -inlcr -igncr icrnl -ixon -ixoff
-iuclc -ixany imaxbel -iutf8
opost -olcuc -ocrnl onlcr -onocr -onlret -ofill -ofdel
isig icanon iexten echo echoe echok -echonl -noflsh -xcase -tostop -echoprt
echoctl echoke -flusho
`
	if d := cmp.Diff(want, s.describe(true)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestSttyApply(t *testing.T) {
	for args, want := range map[string]string{
		"-echo":                        "speed 115200 baud; line = 0;\n-echo\n",
		"-echo sane":                   "speed 115200 baud; line = 0;\n",
		"9600 evenp -icrnl -onlcr":     "speed 9600 baud; line = 0;\n-icrnl\n-onlcr\n",
		"intr ^A eof undef erase ^h":   "speed 115200 baud; line = 0;\nintr = ^A; erase = ^H; eof = <undef>;\n",
		"raw":                          "speed 115200 baud; line = 0;\nmin = 1; time = 0;\n-brkint -icrnl -imaxbel\n-opost\n-isig -icanon\n",
		"raw sane":                     "speed 115200 baud; line = 0;\n",
		"ospeed 4000000 min 3 -icanon": "speed 4000000 baud; line = 0;\nmin = 3; time = 0;\n-icanon\n",
		"nl":                           "speed 115200 baud; line = 0;\n-icrnl\n-onlcr\n",
		"nl -nl cbreak -cbreak time 0": "speed 115200 baud; line = 0;\n",
		"olcuc tostop -iexten igncr":   "speed 115200 baud; line = 0;\nigncr\nolcuc\n-iexten tostop\n",
		"intr x eol M-x":               "",
	} {
		s := saneTerminal(t)
		err := s.apply(strings.Fields(args))
		if want == "" {
			if err == nil {
				t.Errorf("%s was taken", args)
			}
			continue
		}
		s.Cflag = s.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 // shown for no difference here
		if err != nil || s.describe(false) != want {
			t.Errorf("%s: %v\n%q, want\n%q", args, err, s.describe(false), want)
		}
	}
	s := saneTerminal(t)
	before := s.Termios
	if err := s.apply([]string{"rows", "50", "cols", "132", "size", "speed"}); err != nil || !s.resized || strings.Join(s.out, "|") != "50 132|115200" {
		t.Errorf("%v %q", err, s.out)
	}
	text := saved(&s.Termios)
	if err := s.apply([]string{"raw", "300", "intr", "x", text}); err != nil || s.Termios != before {
		t.Errorf("%s does not bring it back: %v", text, err)
	}
	for _, args := range []string{"nope", "-cs8", "rows", "rows x", "rows 70000", "intr", "intr abc", "12345", "ospeed 7", "a:b", strings.Replace(text, "c", "zz", 1), "--"} {
		if err := saneTerminal(t).apply(strings.Fields(args)); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
	if keyName(0x81) != "M-^A" || keyName('a') != "a" || keyName(127) != "^?" {
		t.Error(keyName(0x81), keyName('a'), keyName(127))
	}
}

func TestSttyTerminal(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh here")
	}
	cmd := exec.Command(sh, "-c", `stty() { BE=stty "$0" "$@"; }
stty size; old=$(stty -g); stty raw -echo; stty -a; BE=reset "$0"; stty; stty cols 66 size
stty "$old"; [ "$old" = "$(stty -g)" ] && echo same; stty nonsense; echo "code $?"; stty -x; echo "code $?"; stty -F /dev/null; echo "code $?"`, self(t))
	cmd.Env = append(os.Environ(), "TERM=vt100")
	s := ptytest.Start(t, 80, 40, cmd)
	s.WaitFor("code 1")
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	raw := strings.ReplaceAll(s.Raw(), "\r\n", "\n")
	for _, want := range []string{"40 80\n", "-isig -icanon", "40 66\n", "same\n", "there is no setting \"nonsense\"\nUsage: stty", "code 2\n", "code 1"} {
		if !strings.Contains(raw, want) {
			t.Errorf("%q is missing in\n%s", want, raw)
		}
	}
	if strings.Count(raw, "code 2") != 2 {
		t.Errorf("wrong settings:\n%s", raw)
	}
	if _, after, _ := strings.Cut(raw, "\x1bc"); strings.Contains(after[:strings.Index(after, "40 66")], "-icanon") {
		t.Errorf("reset leaves it raw:\n%s", raw)
	}
}

func TestClear(t *testing.T) {
	if got := ok(t, Clear, "clear"); got != "\x1b[H\x1b[2J\x1b[3J" {
		t.Errorf("%q", got)
	}
	if got := ok(t, Reset, "reset"); !strings.HasPrefix(got, "\x1bc") {
		t.Errorf("%q", got)
	}
	fails(t, 1, "not a terminal", Stty, "stty", "size")
}

func FuzzStty(f *testing.F) {
	f.Add("raw -echo 9600 intr ^C rows 3")
	s := &terminalState{}
	f.Add(saved(&s.Termios))
	f.Fuzz(func(t *testing.T, text string) {
		s := &terminalState{}
		s.apply(strings.Fields(text)) // any text may be wrong
		s.describe(true)
	})
}
