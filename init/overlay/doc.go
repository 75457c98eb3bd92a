// Package overlay is the writable part of the root file system: it makes,
// repairs, mounts and resets the data file system, and restores a saved config
// into it. Stage 1 uses it at boot, the reset applets on the running system.
//
// The layout is LEDE's (fstools; compatibility facts, section 6): the data file
// system at /overlay with upper/ and work/, overlayfs named overlayfs:/overlay
// over the squashfs at /rom, and the link .fs_state that says whether the first
// boot or a reset was finished (2) or must be started again from nothing (1).
//
// Each of the two system slots has such a layout of its own, in the folders slot-a
// and slot-b of the data file system (SlotDir): that of the running slot is shown
// at /overlay, the whole at /data. A data file system without these folders, from
// before there were slots or from LEDE, becomes that of slot a.
//
// # What is formatted, and what never
//
// A volume is formatted when it is blank, carries LEDE's mark DE AD C0 DE or
// holds nothing that is known here. It is never formatted when it cannot be
// read, when the kernel lacks the file system, or when it carries a foreign
// format (LUKS, XFS, a FAT …): then the overlay is in memory, and a warning
// says what to do.
//
// A data file system that does not mount is checked with e2fsck -p, then -y.
// If it still does not mount, it is formatted anew: there is no second place on
// the disk where a broken file system of any size could be kept, and a router
// that comes up with its defaults can be helped from afar, one without can not.
// Before that, the old upper/etc is read without the journal and what could be
// read is put into the new file system, so that the configuration survives most
// damage.
//
// # What differs from LEDE
//
// The file system is always ext4 (LEDE takes f2fs from 100 MiB up); f2fs made
// by LEDE is mounted if the kernel has it. An overlay with content but no state
// link is kept, where LEDE erases it: a link lost to a repaired file system is
// not worth a configuration. Extroot (a mount for / or /overlay in
// /etc/config/fstab) is not supported.
package overlay
