//go:build initramfs

package main

import (
	"fmt"
	"os"
)

// applets is what a person at the rescue shell of stage 1 has. Services and what
// speaks HTTP, TLS or DNS stay out: they are half of the binary, and GRUB reads
// the initramfs through the firmware, the slowest part of a boot.
var applets = everyday

// root is not reached: /sbin/init is the whole program, in the root file system.
func root() int {
	fmt.Fprintln(os.Stderr, "init: this is the program of the initramfs; start the kernel with it as /init")
	return 1
}
