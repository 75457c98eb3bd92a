package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/test-vm/lab"
	"weft/test-vm/netns"
)

// Process is a script that runs on a node in the background.
type Process interface {
	// Wait waits for its end.
	Wait(ctx context.Context) (lab.Result, error)
	// Stop kills it and what it started.
	Stop(ctx context.Context) error
}

// Spawn starts a script with sh on a node and returns at once.
func (b *Bed) Spawn(ctx context.Context, name, script string) (Process, error) {
	n, err := b.node(name)
	if err != nil {
		return nil, err
	}
	switch n := n.(type) {
	case *spaceNode:
		p := &spaceProcess{script: script}
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = n.dir, n.environ(), &p.out, &p.out
		if p.Process, err = n.space.Start(cmd); err != nil {
			return nil, err
		}
		return p, nil
	case *guestNode:
		r, err := n.exec(ctx, "lab-probe start "+quote(script))
		if err != nil {
			return nil, err
		}
		id, err := strconv.Atoi(strings.TrimSpace(r.Output))
		if r.Code != 0 || err != nil {
			return nil, fmt.Errorf("node %s: start %q: exit status %d: %s", name, script, r.Code, strings.TrimSpace(r.Output))
		}
		return &guestProcess{n, id, script}, nil
	}
	return nil, fmt.Errorf("node %s cannot run %q", name, script)
}

type spaceProcess struct {
	*netns.Process
	script string
	out    syncBuffer
}

func (p *spaceProcess) Wait(ctx context.Context) (lab.Result, error) {
	err := p.Process.Wait(ctx)
	if ctx.Err() != nil {
		return lab.Result{Output: p.out.String()}, fmt.Errorf("%q is not done in time: %w", p.script, context.Cause(ctx))
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return lab.Result{Code: exit.ExitCode(), Output: p.out.String()}, nil
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return lab.Result{Output: p.out.String()}, err
}

func (p *spaceProcess) Stop(context.Context) error {
	p.Kill()
	return nil
}

type guestProcess struct {
	n      *guestNode
	id     int
	script string
}

// pollEvery is how often a guest is asked whether a script has ended: each question costs it some processor time.
const pollEvery = 400 * time.Millisecond

func (p *guestProcess) Wait(ctx context.Context) (lab.Result, error) {
	for {
		r, err := p.n.exec(ctx, fmt.Sprintf("lab-probe result %d", p.id))
		if err != nil {
			return r, err
		}
		first, rest, _ := strings.Cut(r.Output, "\n")
		if r.Code != 0 {
			return r, fmt.Errorf("node %s: %q: %s", p.n.n.Name, p.script, strings.TrimSpace(r.Output))
		}
		if first != "running" {
			code, err := strconv.Atoi(first)
			if err != nil {
				return r, fmt.Errorf("node %s: %q: exit status %q", p.n.n.Name, p.script, first)
			}
			return lab.Result{Code: code, Output: rest}, nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return lab.Result{}, fmt.Errorf("node %s: %q is not done in time: %w", p.n.n.Name, p.script, context.Cause(ctx))
		}
	}
}

func (p *guestProcess) Stop(ctx context.Context) error {
	if !p.n.m.Running() {
		return nil
	}
	_, err := p.n.exec(ctx, fmt.Sprintf("lab-probe stop %d", p.id))
	return err
}

// syncBuffer is a buffer that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
