package pid1

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"weft/init/supervise"
)

// rcDir has the start and stop links.
const rcDir = "/etc/rc.d"

// rcLink is a link S20network or K80x.
type rcLink struct {
	file   string
	number int
	name   string
}

// rcLinks reads the links that begin with letter, in the order of their names.
func rcLinks(dir string, letter byte) []rcLink {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []rcLink
	for _, e := range entries {
		n := e.Name()
		if len(n) < 4 || n[0] != letter {
			continue
		}
		number, err := strconv.ParseUint(n[1:3], 10, 8)
		if err != nil {
			continue
		}
		out = append(out, rcLink{filepath.Join(dir, n), int(number), n[3:]})
	}
	return out
}

// nativeLimit is how long a start script waits for the native services in front
// of it. LEDE would wait for ever.
const nativeLimit = 30 * time.Second

// startScripts runs the start links of services that are not native, one at a
// time, each after the native services with a number not above its own have come
// to a result.
func (p *pid1) startScripts(ctx context.Context) error {
	for _, l := range rcLinks(rcDir, 'S') {
		if p.natives[l.name] != nil {
			continue
		}
		var before []string
		for _, n := range rcLinks(rcDir, 'S') {
			if u := p.natives[n.name]; u != nil && n.number <= l.number && u.Name != rcUnit {
				before = append(before, u.Spec.ID)
			}
		}
		wait, cancel := context.WithTimeout(ctx, nativeLimit)
		p.waitSettled(wait, before)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		start := bootTime()
		x := p.runner.Run(ctx, []string{l.file, "boot"}, nil, l.name)
		p.tl.mark("script "+l.name, bootTime())
		if x.Code != 0 {
			p.log.Warn("start script failed", "script", l.file, "result", x.String())
		} else {
			p.log.Info("start script done", "script", l.file, "ms", (bootTime() - start).Milliseconds())
		}
	}
	return nil
}

// stopScripts runs the stop links of services that are not native.
func (p *pid1) stopScripts(ctx context.Context) {
	for _, l := range rcLinks(rcDir, 'K') {
		if p.natives[l.name] != nil || p.runner == nil {
			continue
		}
		limit, cancel := context.WithTimeout(ctx, scriptLimit)
		x := p.runner.Run(limit, []string{l.file, "shutdown"}, nil, l.name)
		if limit.Err() != nil {
			p.con.print("stop script %s did not end within %v", l.name, scriptLimit)
		} else if x.Code != 0 {
			p.log.Warn("stop script failed", "script", l.file, "result", x.String())
		}
		cancel()
	}
}

// waitSettled returns when all units have come to a first result, or ctx ends.
func (p *pid1) waitSettled(ctx context.Context, ids []string) {
	for {
		changed := p.changed()
		settled := true
		err := p.sup.Do(ctx, func(m *supervise.Machine, _ time.Duration) []supervise.Action {
			for _, id := range ids {
				if s, ok := m.Status(id); ok && s.Want && !s.Settled() {
					settled = false
				}
			}
			return nil
		})
		if err != nil || settled {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
