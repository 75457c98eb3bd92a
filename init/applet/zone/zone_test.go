package zone

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ rule, winter, summer string }{
		{"CET-1CEST,M3.5.0,M10.5.0/3", "13:00 CET", "14:00 CEST"},
		{"GMT0", "12:00 GMT", "12:00 GMT"},
		{"UTC", "", ""},
		{"EST5EDT", "07:00 EST", "08:00 EDT"},
		{"<+0530>-5:30", "17:30 +0530", "17:30 +0530"},
		{"NZST-12NZDT,M9.5.0,M4.1.0/3", "01:00 NZDT", "00:00 NZST"},
		{"AEST-10", "22:00 AEST", "22:00 AEST"},
		{"", "", ""}, {"X", "", ""}, {"CET-1CEST,nonsense", "", ""}, {"CET-99", "", ""}, {"Europe/Berlin", "", ""}, {"<+05", "", ""},
	} {
		loc, err := Parse(c.rule)
		if c.winter == "" {
			if err == nil {
				t.Errorf("%q was taken", c.rule)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.rule, err)
			continue
		}
		w := time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC).In(loc).Format("15:04 MST")
		s := time.Date(2026, 7, 15, 12, 0, 0, 0, time.UTC).In(loc).Format("15:04 MST")
		if w != c.winter || s != c.summer {
			t.Errorf("%q: %s and %s, want %s and %s", c.rule, w, s, c.winter, c.summer)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("CET-1CEST,M3.5.0,M10.5.0/3")
	f.Add("<-03>3<-02>,M3.5.0/-2,M10.5.0/-1")
	f.Fuzz(func(t *testing.T, rule string) {
		if loc, err := Parse(rule); err == nil {
			if name, _ := time.Date(2026, 7, 15, 12, 0, 0, 0, loc).Zone(); name == "" {
				t.Errorf("%q gives a zone without a name", rule)
			}
		}
	})
}
