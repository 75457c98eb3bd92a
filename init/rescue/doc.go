// Package rescue is the system that comes up when no slot can be started: a
// network address, SSH, and a page that takes an image and writes it.
//
// It is a program of its own (folder program), in a file of the boot partition
// that the boot loader loads for its rescue entry alone and that stage 1 unpacks
// when it cannot make a root file system, so that an ordinary boot does not pay
// for it. Stage 1 starts it, shows what it prints on the consoles and starts it
// again if it ends.
//
// # What it offers, and to whom
//
// The first port asks for an address by DHCP and takes LEDE's 192.168.1.1/24 when
// nobody answers; all others ask for ever. SSH has the host keys, the authorized
// keys and root's password of the device, read from the overlay of the slot that
// was preferred, else of the other one. The page asks for root's password as well
// (HTTP basic authentication, user root). Where there is no password, or nothing
// can be read, both are open as LEDE's failsafe mode is, but to private and
// link-local addresses alone.
//
// # What it does to the disk
//
// Nothing until an image is given. Then it is what sysupgrade does: the image is
// verified as a whole (package init/sysupgrade), written to the slot that is not
// preferred or not to be started, and that is put on trial. The settings of the
// device are carried over unless the person says otherwise.
//
// It has no TLS: a certificate of a device without a name and a clock helps
// nobody, and whoever is on the wire of a broken device can reset it anyway.
package rescue
