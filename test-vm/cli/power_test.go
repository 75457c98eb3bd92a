package cli

import (
	"errors"
	"testing"

	"weft/test-vm/power"
)

func TestParseCut(t *testing.T) {
	for _, want := range []power.Cut{{After: 12}, {After: 0, Mode: power.Drop, Seed: 3}, {After: 9, Mode: power.Torn, Seed: 1 << 40}} {
		if got, err := parseCut(want.String()); err != nil || got != want {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
	for _, s := range []string{"", "1", "x:clean", "-1:clean", "1:clean:2", "1:drop", "1:drop:x", "1:gone:2", "1:torn:2:3"} {
		var usage usageError
		if _, err := parseCut(s); !errors.As(err, &usage) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
