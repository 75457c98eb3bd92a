// Package stage1 is the first program of the device, /init of the initramfs. It
// mounts what the kernel offers, loads the modules of this machine, finds the
// boot disk, puts the root file system together out of squashfs and overlay,
// restores a saved config, and becomes /sbin/init of the result.
//
// # Kernel arguments
//
//	root=…                     where the squashfs is (rootdisk.ParseRoot)
//	rootwait[=seconds]         how long to wait for it before asking for help (default 30)
//	failsafe, failsafe=true    failsafe mode
//	weft.failsafe_wait=seconds how long the f key is waited for, counted from the
//	                           prompt (default 0.5; LEDE waits 4)
//	panic=seconds              when stage 1 cannot go on and nobody presses a key:
//	                           reboot after so long; without it the device waits
//	                           for help for ever
//
//	weft.slot=a|b              the slot whose overlay this boot has (default a)
//	weft.trial=<tries left>    the slot is on trial: the watchdog is armed before
//	                           the overlay is touched, and handed to process 1
//	weft.rescue=…              the rescue system instead of a slot
//
// The f key is listened for while the modules load and the disk is sought, so
// that the wait costs nothing as long as that takes longer; keys pressed before
// count.
//
// # What it says
//
// Every line goes to all consoles and begins with "weft: ". These texts are
// stable; tests and people look for them:
//
//	weft: starting on Linux <release>
//	weft: Press the [f] key and hit [enter] to enter failsafe mode
//	weft: warning: failsafe mode: <reason>
//	weft: failsafe: <interface> has 192.168.1.1/24; "mount_root" mounts the overlay
//	weft: waiting for the root disk root=…
//	weft: warning: partition 4 of /dev/… is not grown: …        (a fault; nothing is said when there is no need)
//	weft: partition 4 of /dev/… grew from … to …
//	weft: warning: the partition table at the start of /dev/… was damaged: restored from the copy at its end
//	weft: making the data file system on /dev/… (…)
//	weft: warning: /dev/… does not mount (…): repairing it, …
//	weft: warning: /dev/… is repaired: files may be missing, see lost+found in /overlay
//	weft: error: /dev/… cannot be repaired: formatting it, what was in the overlay is lost…
//	weft: warning: the data partition is full (…)…
//	weft: warning: the overlay is in memory, changes are lost at the next reboot: …
//	weft: restored the saved config (<n> files) from <where>
//	weft: error: the saved config <where> is damaged and kept as sysupgrade.tgz.bad: …
//
//	weft: the overlay is that of slot a from now on
//	weft: slot <x> is on trial
//	weft: warning: slot <x> was given up, slot <y> runs: <check>: <detail>
//	weft: warning: slot state: …
//
// When this slot cannot make a root file system and the other one came up before:
//
//	weft: error: slot <x> cannot be started: …
//	weft: rebooting into slot <y>
//
// When it cannot go on:
//
//	weft: error: cannot boot: <n> disks carry the id root=…, and it is not known which one was booted: <disk>; <disk>
//	weft: error: cannot boot: root=…: no disk carries this id; disks present: …
//	weft: hint: <what to do>
//	weft: rescue: press [enter] for a shell; trying again when a disk comes or goes[; reboot in <n> s]
//	weft: rescue: <what the rescue system says>
//
// Without panic= it starts the rescue system (package rescue), which the boot loader
// has brought along or which lies in the boot partition. It then waits for a key on any console, for a disk to come or go, and for the
// time in panic=. Nothing here ends in a kernel panic: a failed step, and even
// a crash of this program's own, ends in the rescue.
//
// # What it leaves
//
// The handover file (package handover), /tmp/sysinfo/{board_name,model}, the
// mounts of lede-compat section 6, and in failsafe mode /tmp/failsafe.
//
// Extroot and LEDE's preinit messages on UDP port 4919 are not supported.
package stage1
