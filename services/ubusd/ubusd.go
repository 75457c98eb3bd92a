// Package ubusd is the broker of the bus as a service: it opens the socket,
// routes messages between all others and reads the ACL files for those that are
// not root. All it does is in package bus.
package ubusd

import (
	"context"
	"fmt"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

// Run serves the bus on env.BusPath until ctx ends. SIGHUP reads the ACL files
// again. It is ready when the socket takes connections, and healthy while a
// client of its own gets an answer. An argument replaces the ACL folder.
func Run(ctx context.Context, env *unit.Env) error {
	opts := bus.BrokerOptions{Log: env.Log}
	switch len(env.Args) {
	case 0:
	case 1:
		opts.ACLDir = env.Call.Path(env.Args[0])
	default:
		return fmt.Errorf("unexpected argument %q: at most the folder of the ACL files is taken", env.Args[1])
	}
	b, err := bus.Listen(env.BusPath, opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx) }()
	env.Health(func(ctx context.Context) error { return ping(ctx, env.BusPath) })
	env.Ready()
	for {
		select {
		case err := <-served:
			return err
		case <-env.Reload():
			env.Reloading()
			b.ReloadACL()
			env.Ready()
		}
	}
}

// ping goes through accept, greeting and dispatch, as any client does.
func ping(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := bus.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Ping(ctx)
}
