package stage1

import (
	"strconv"
	"strings"
	"time"
)

// args are the kernel's arguments.
type args map[string]string

// parseCmdline splits the kernel's command line as the kernel does: at blanks
// outside double quotes; the last of several wins. A word without a value is
// there with an empty one.
func parseCmdline(text string) args {
	a := args{}
	var word strings.Builder
	quoted := false
	end := func() {
		if word.Len() == 0 {
			return
		}
		key, value, _ := strings.Cut(word.String(), "=")
		a[key] = value
		word.Reset()
	}
	for _, c := range strings.TrimSpace(text) {
		switch {
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ' ' || c == '\t' || c == '\n'):
			end()
		default:
			word.WriteRune(c)
		}
	}
	end()
	return a
}

// failsafe says whether failsafe mode is asked for: LEDE takes any failsafe=,
// here a clear no is one.
func (a args) failsafe() bool {
	v, ok := a["failsafe"]
	return ok && v != "0" && v != "false" && v != "no" && v != "off"
}

// seconds reads a duration; what is no number counts as absent.
func (a args) seconds(key string, def time.Duration) time.Duration {
	f, err := strconv.ParseFloat(a[key], 64)
	if err != nil || !(f >= 0 && f <= 3600) { // NaN included
		return def
	}
	return time.Duration(f * float64(time.Second))
}
