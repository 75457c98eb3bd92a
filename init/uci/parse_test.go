package uci

import (
	"errors"
	"strings"
	"testing"
)

func TestX(t *testing.T) {
	p, err := Parse("t", strings.NewReader("config a b extra\n"), true)
	t.Log(p, err)
	var pe *ParseError
	if !errors.As(err, &pe) || pe.Byte != 17 {
		t.Fatal(err)
	}
}
