// Package power cuts the power of virtual machines at any write.
//
// A [Disk] is a view of a raw image that is never written to: what a guest writes goes to a [Log], which keeps every
// write, discard and flush in the order in which the disk answered them. [Serve] offers a Disk to QEMU as an NBD export
// on a unix socket. [Log.At] gives back the disk as it was when the power was cut after a number of writes, by the rules of
// disks with a volatile cache: what was flushed is there; of what was not, any part may be, in units of 512-byte sectors;
// the sector that was being written holds its old or its new bytes. Which part, a seed says, so that a cut that broke a
// system can be made again. The result is a Disk as well: it is booted without copying anything.
//
// What it does not do: disks that lie about flushes, and sectors that are torn within 512 bytes or become unreadable.
package power
