package sysupgrade

import (
	"fmt"
	"sync"
)

// Step is what an upgrade is doing.
type Step string

// The steps, in order.
const (
	StepCheck  Step = "check"  // the image, before anything is written
	StepWrite  Step = "write"  // fetch, verify, write
	StepVerify Step = "verify" // read back
	StepSwitch Step = "switch" // settings, boot configuration
	StepDone   Step = "done"
	StepFailed Step = "failed"
)

// Status is how far an upgrade is, and what it came to.
type Status struct {
	Step    Step   `json:"step"`
	Message string `json:"message,omitempty"` // the last thing worth telling
	Error   string `json:"error,omitempty"`

	Fetched int64  `json:"fetched"` // bytes from the source
	Total   int64  `json:"total"`   // bytes that the source has; 0: not known
	Written int64  `json:"written"` // bytes that differed and went to the disk
	Same    int64  `json:"same"`    // bytes that were there already
	Slot    string `json:"slot,omitempty"`
	Reboot  bool   `json:"reboot,omitempty"` // the device restarts now
}

// Progress collects a Status and hands on what changes. A nil one does nothing.
type Progress struct {
	// Changed is called with every change of step or message and about every
	// MiB; it must not block for long.
	Changed func(Status)

	mu   sync.Mutex
	s    Status
	told int64
}

// Status returns the current one.
func (p *Progress) Status() Status {
	if p == nil {
		return Status{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.s
}

func (p *Progress) change(always bool, f func(s *Status)) {
	if p == nil {
		return
	}
	p.mu.Lock()
	f(&p.s)
	s := p.s
	tell := always
	if n := s.Fetched + s.Written + s.Same; n-p.told >= 1<<20 {
		p.told, tell = n, true
	}
	changed := p.Changed
	p.mu.Unlock()
	if tell && changed != nil {
		changed(s)
	}
}

func (p *Progress) step(step Step) { p.change(true, func(s *Status) { s.Step = step }) }

func (p *Progress) note(format string, args ...any) {
	p.change(true, func(s *Status) { s.Message = fmt.Sprintf(format, args...) })
}

func (p *Progress) fetched(n, total int64) {
	p.change(false, func(s *Status) {
		s.Fetched += n
		if total > 0 {
			s.Total = total
		}
	})
}

func (p *Progress) wrote(written, same int64) {
	p.change(false, func(s *Status) { s.Written += written; s.Same += same })
}

// Finish sets the last step: StepDone, or StepFailed with the error.
func (p *Progress) Finish(err error, reboot bool) {
	p.change(true, func(s *Status) {
		s.Step, s.Reboot = StepDone, reboot
		if err != nil {
			s.Step, s.Error, s.Reboot = StepFailed, err.Error(), false
		}
	})
}
