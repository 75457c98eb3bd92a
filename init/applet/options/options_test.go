package options

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"weft/init/unit"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		spec, line, want string
		code             int
		errHas           string
	}{
		{spec: "abn:", line: "x -ab -n5 y -n 6 -- -a", want: "a:|b:|n:5|n:6 [x y -a]", code: -1},
		{spec: "+an:", line: "-a cmd -n", want: "a: [cmd -n]", code: -1},
		{spec: "an: all=a num=n", line: "--all --num=3 --num 4 -", want: "a:|n:3|n:4 [-]", code: -1},
		{spec: "a", line: "-q", code: 2, errHas: "no option -q\nUsage: cmd FILE"},
		{spec: "a", line: "--what", code: 2, errHas: "no option --what"},
		{spec: "n:", line: "-n", code: 2, errHas: "-n needs a value"},
		{spec: "a all=a", line: "--all=x", code: 2, errHas: "takes no value"},
		{spec: "a:", line: "-:", code: 2, errHas: "no option"},
		{spec: "a", line: "--help", code: 0},
	} {
		var out, errOut bytes.Buffer
		call := &unit.Call{Args: append([]string{"/bin/cmd"}, strings.Fields(c.line)...), Stdout: &out, Stderr: &errOut}
		s, code := Parse(call, c.spec, "FILE")
		if code != c.code || !strings.Contains(errOut.String(), c.errHas) {
			t.Errorf("%s: code %d, stderr %q", c.line, code, &errOut)
			continue
		}
		if code >= 0 {
			continue
		}
		var got []string
		for _, o := range s.Order {
			got = append(got, fmt.Sprintf("%c:%s", o.Letter, o.Value))
		}
		if g := strings.Join(got, "|") + fmt.Sprintf(" %v", s.Args); g != c.want {
			t.Errorf("%s: %s, want %s", c.line, g, c.want)
		}
	}
}
