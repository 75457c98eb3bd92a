// Package slot keeps the state of the two systems that a disk holds: which one
// the boot loader starts, which one is on trial and how often it may still try,
// which ones may be started at all, and why the last trial failed.
//
// # Where the state lies
//
// In two files of the boot partition, boot/grub/grubenv and boot/grub/grubenv2,
// in the form of GRUB's environment block: GRUB reads them, and writes one thing,
// the tries that are left, before it starts a slot on trial. All content lies in
// the first 512 bytes, so that one write of one sector is the whole change; the
// files never change in size. Both copies carry the same state. A sequence number
// tells which is newer where a power cut came between the two writes, a CRC-32
// tells whether a copy is whole. Open writes a copy that is not whole anew from
// the other one; if none is, it starts from what a fresh image has.
//
// The CRC covers everything but the tries, which GRUB changes and cannot sum up.
// For GRUB, which knows no CRC of its variables, weft_check repeats sequence,
// slots and tries given: a copy where they differ is not whole.
//
// # What a change promises
//
// A change is one sector written to the copy that is not in force, brought to the
// medium, and then the same in the other copy. Whatever a power cut leaves of
// either write, garbage included, the state is the old one or the new one.
// Whoever calls brings everything that the new state refers to to the medium
// first.
//
// # What lies beside the state
//
// Files names the kernel, initramfs and rescue system of each slot; Prepare makes
// the folder of the data partition that holds a slot's overlay.
package slot
