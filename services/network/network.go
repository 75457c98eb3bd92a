package network

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
)

// Where LEDE has the resolver file and the runner of hotplug scripts.
const (
	resolverDir = "/tmp"
	hotplugCall = "/sbin/hotplug-call"
	boardJSON   = "/etc/board.json"
)

// lastWords is the time for telling others that the interfaces went down.
const lastWords = 3 * time.Second

// Run is the network service. With a state folder of its own (--state-dir) it
// keeps the resolver file there and runs no hotplug scripts, so that a trial
// run touches nothing outside its network namespace.
func Run(ctx context.Context, env *unit.Env) error {
	if len(env.Args) > 0 {
		return fmt.Errorf("argument %q: this service takes none but flags, see --help", env.Args[0])
	}
	k, err := newKernel(env.Log)
	if err != nil {
		return err
	}
	defer k.close()

	m := newManager(env.Log, k)
	m.tree = uci.Tree{ConfDir: env.ConfigDir, NonStrict: true}
	m.resolver, m.status = env.StateDir, env.Status
	hotplug := ""
	if env.StateDir == filepath.Join(unit.DefaultRunDir, env.Name) {
		m.resolver, hotplug, m.boardJSON = resolverDir, hotplugCall, boardJSON
	}

	// The helpers outlive the loop: its last words go through them.
	helpers, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	client := bus.Connect(helpers, env.BusPath, env.Log)
	o := newObjects(client, m, env.Log, hotplug)
	m.bus = o
	said := make(chan struct{})
	wg.Go(func() { defer close(said); o.run(helpers) })
	wg.Go(func() { watch(helpers, env.Log, m.linksChanged) })
	env.Health(func(ctx context.Context) error {
		if err := m.do(ctx, func() {}); err != nil {
			return fmt.Errorf("the main loop does not answer: %w", err)
		}
		return nil
	})
	m.loop(ctx, env.Reload(), o.announced, env.Reloading, env.Ready)
	close(o.queue)
	select {
	case <-said:
	case <-time.After(lastWords):
		env.Log.Warn("the bus or a hotplug script did not take the last messages")
	}
	stop()
	err = client.Close()
	wg.Wait()
	return err
}
