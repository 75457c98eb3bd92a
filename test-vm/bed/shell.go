package bed

import (
	"sync/atomic"

	"weft/test-vm/lab"
)

// faults are what goes on on a link of guests.
type faults struct{ silent, stripping atomic.Bool }

// Shell is how a person gets at a node: a namespace to enter, or a console to talk to.
type Shell struct {
	Namespace string   // file for setns(2); empty for a guest
	Dir       string   // folder to be in
	Env       []string // environment
	Console   *lab.Console
}

// Shell is the way to the node of that name.
func (b *Bed) Shell(name string) (Shell, error) {
	n, err := b.node(name)
	if err != nil {
		return Shell{}, err
	}
	return n.shell(), nil
}

func (s *spaceNode) shell() Shell {
	return Shell{Namespace: s.space.Path(), Dir: s.dir, Env: s.environ()}
}

// shell of a guest is the serial console, so that the other one stays free for commands.
func (g *guestNode) shell() Shell { return Shell{Console: g.m.Serial()} }
