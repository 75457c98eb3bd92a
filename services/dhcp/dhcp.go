package dhcp

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/dnsd"
)

// Run is the dhcp service. With a state folder of its own (--state-dir) it keeps
// the lease file there, whatever the configuration says, and reads no hosts
// files of the system, so that a trial run touches nothing outside its network
// namespace.
func Run(ctx context.Context, env *unit.Env) error {
	if len(env.Args) > 0 {
		return fmt.Errorf("argument %q: this service takes none but flags, see --help", env.Args[0])
	}
	helpers, stop := context.WithCancel(context.WithoutCancel(ctx))
	client := bus.Connect(helpers, env.BusPath, env.Log)
	m := newManager(env.Log, &source{tree: uci.Tree{ConfDir: env.ConfigDir, NonStrict: true}, bus: client}, client)
	m.status = env.Status
	if env.StateDir == filepath.Join(unit.DefaultRunDir, env.Name) {
		m.etcHosts, m.hostsDir, m.ethers = dnsd.EtcHostsDefault, config.DefaultHostsDir, "/etc/ethers"
	} else {
		m.leaseFile = filepath.Join(env.StateDir, "dhcp.leases")
		m.hostsDir = filepath.Join(env.StateDir, "hosts")
	}
	var wg sync.WaitGroup
	o := newObjects(client, m, env.Log)
	m.tell = o.lease
	wg.Go(func() { o.run(helpers) })
	wg.Go(func() { watchKernel(helpers, m.look) })
	env.Health(func(ctx context.Context) error {
		if err := m.do(ctx, func() {}); err != nil {
			return fmt.Errorf("the main loop does not answer: %w", err)
		}
		return nil
	})
	err := m.loop(ctx, env.Reload(), env.Reloading, env.Ready)
	stop()
	cerr := client.Close()
	wg.Wait()
	if err == nil {
		err = cerr
	}
	return err
}

// watchKernel calls changed when links, addresses or routes have changed, and
// now and then again if it cannot know.
func watchKernel(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		done := make(chan struct{})
		links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
		failed := make(chan struct{}, 4)
		fail := func(error) {
			select {
			case failed <- struct{}{}:
			default:
			}
		}
		err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail})
		if err == nil {
			err = netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: fail})
		}
		changed()
		for err == nil {
			select {
			case _, open := <-links:
				if !open {
					err = context.Canceled
				}
			case _, open := <-addrs:
				if !open {
					err = context.Canceled
				}
			case <-failed: // lost some; look and go on
			case <-ctx.Done():
				err = ctx.Err()
			}
			changed()
		}
		close(done)
		// Let the readers end: they close their channels.
		go func() {
			for range links {
			}
		}()
		go func() {
			for range addrs {
			}
		}()
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}
