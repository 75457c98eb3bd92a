// Test-vm boots the images that `make image` built in QEMU: by hand, for one command, or to measure the boot.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"weft/test-vm/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
