// Package sysupgrade replaces the system of a device and carries its settings
// along.
//
// An image (Source) is judged as a stock LEDE/OpenWrt system judges it
// (compatibility facts, section 4.3), and more strictly where it may hurt: every
// trailer's checksum, the partition table, the file systems inside. Nothing that
// the boot loader reads changes before the whole image was verified and read back
// from the disk.
//
// A Weft image goes into the slot that does not run (Upgrade): the image is
// streamed through a window of some hundred KiB, so neither memory nor /tmp has to
// hold it. A stock image for the same board replaces everything, the stock way
// (Stock), and ends the two slots.
//
// What the target holds already is not written again; it is fetched again, since
// there are no deltas. The package starts no processes; it restarts the device
// itself only after a stock image has taken the place of the running system.
package sysupgrade
