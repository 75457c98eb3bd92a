// Package unit is what a program of the device binary owes its caller.
//
// An applet is a Func: it takes its arguments, streams, folder and environment
// from a Call and returns an exit code, so that the shell, the tests and the
// multi-call main all run it in the same way.
//
// A service is a function of a context and an Env, wrapped by Main:
//
//	var Service = unit.Main(func(ctx context.Context, env *unit.Env) error {
//		srv, err := open(env.ConfigDir)
//		if err != nil {
//			return fmt.Errorf("open %s: %w", env.ConfigDir, err)
//		}
//		env.Health(srv.Check)
//		env.Ready()
//		for {
//			select {
//			case <-ctx.Done():
//				return srv.Close()
//			case <-env.Reload():
//				srv.Reload()
//			}
//		}
//	})
//
// Main parses the flags every service has (--config-dir, --bus, --state-dir),
// cancels the context on SIGTERM and SIGINT, turns SIGHUP into a value on
// Reload, and speaks the sd_notify protocol (sd_notify(3)) with the supervisor
// that set NOTIFY_SOCKET. Without a supervisor the same program runs in the
// foreground and the notifications go nowhere.
//
// Log lines go to standard error. Below a supervisor each carries the priority
// prefix of sd-daemon(3) ("<6>link up name=eth0"); on a terminal the level is
// written out instead.
//
// This package imports the standard library alone and stays small: every
// service and applet links it.
package unit
