// Package rootdisk finds the disk the system was booted from, reads its
// partition table and grows the data partition to the end of the disk.
//
// The disk is found from the kernel's root= argument as LEDE does it
// (T:package/base-files/files/lib/upgrade/common.sh, restated in the
// compatibility facts, section 1.4): an MBR id is compared with the four bytes
// at 440, a GUID with the disk GUID in the GPT header (last byte zeroed) or,
// which LEDE does not do, with the GUIDs of the partitions themselves. When two
// disks carry the same id nothing is guessed: Find returns a *DuplicateError
// that names both.
//
// Tables are read and written here and nowhere else on the device. A GPT is
// written so that a power cut at any point leaves one valid copy: the copy at
// the end of the disk first, then, after it is on the medium, the one at the
// start in a single write. Linux reads the second copy only with the kernel
// argument "gpt" (block/partitions/efi.c), so ReadTable falls back to it and
// Table.RestorePrimary puts the first one back.
//
// Not supported: logical partitions of an MBR (they are never boot or data
// partitions here), and entries of a GPT beyond number 1024.
package rootdisk
