// Package lab runs Weft images, or any kernel, in QEMU: unprivileged, without touching the image, with every wait bounded.
//
// A [Config] is what you ask for, a [Machine] is what you get: a private folder with copies of the disks and of the
// firmware's variables, started and stopped any number of times. Consoles are recorded from the first byte on and
// searched with [Console.WaitLine]; commands run in the guest through a shell on a console ([Machine.Run]); QEMU itself
// is driven over QMP ([Machine.QMP]). All channels between QEMU and the lab are socket pairs inherited by file
// descriptor, so nothing depends on path lengths, start order or free ports.
//
// QEMU and its firmware come from the pinned packages, else from the machine ([FindQEMU]). The processor is emulated
// unless WEFT_ACCEL asks for KVM and a probe boot has printed ([QEMU.Accelerator]).
//
// What a machine starts dies with the program that started it: QEMU runs in a process group of its own, with
// PR_SET_PDEATHSIG, and is killed by number only.
//
// Environment (for development only): WEFT_TIMEOUT_FACTOR multiplies every bound given by [Timeout];
// WEFT_ACCEL is tcg (default), kvm or auto; WEFT_QEMU names a qemu-system-x86_64 to use instead of the pinned one.
package lab
