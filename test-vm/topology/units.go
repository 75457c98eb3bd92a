package topology

import (
	"fmt"
	"strconv"
	"strings"
)

// Rate is in bit/s, written as tc writes it: "10mbit", "2.5gbit", "64kbit".
type Rate float64

// UnmarshalText reads a rate above 0.
func (r *Rate) UnmarshalText(text []byte) error {
	for _, u := range []struct {
		suffix string
		factor float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		if number, ok := strings.CutSuffix(string(text), u.suffix); ok {
			v, err := strconv.ParseFloat(number, 64)
			if err != nil || !(v > 0) || v*u.factor > 1e12 {
				break
			}
			*r = Rate(v * u.factor)
			return nil
		}
	}
	return fmt.Errorf(`%q: want a number above 0 with bit, kbit, mbit or gbit behind it, as "10mbit"`, text)
}

// String is the rate as tc reads it.
func (r Rate) String() string {
	v := float64(r)
	switch {
	case v >= 1e9:
		return strconv.FormatFloat(v/1e9, 'g', 6, 64) + "gbit"
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 6, 64) + "mbit"
	case v >= 1e3:
		return strconv.FormatFloat(v/1e3, 'g', 6, 64) + "kbit"
	}
	return strconv.FormatFloat(v, 'g', 6, 64) + "bit"
}

// Percent is a part in percent, written "1%" or "0.5%".
type Percent float64

// UnmarshalText reads 0 to 100 percent.
func (p *Percent) UnmarshalText(text []byte) error {
	number, ok := strings.CutSuffix(string(text), "%")
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(v >= 0 && v <= 100) {
		return fmt.Errorf(`%q: want 0%% to 100%%, as "1%%"`, text)
	}
	*p = Percent(v)
	return nil
}

func (p Percent) String() string { return strconv.FormatFloat(float64(p), 'g', 6, 64) + "%" }

// Size is in bytes, written "16kb" or "1mb" (powers of 1024, as tc takes them), or "1500b".
type Size int

// UnmarshalText reads a size above 0.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range []struct {
		suffix string
		factor int
	}{{"kb", 1 << 10}, {"mb", 1 << 20}, {"b", 1}} {
		if number, ok := strings.CutSuffix(string(text), u.suffix); ok {
			v, err := strconv.Atoi(number)
			if err != nil || v <= 0 || v > 1<<30 {
				break
			}
			*s = Size(v * u.factor)
			return nil
		}
	}
	return fmt.Errorf(`%q: want a number above 0 with b, kb or mb behind it, as "16kb"`, text)
}
