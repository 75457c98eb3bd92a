// Package firstboot makes a configured device of a fresh root file system, and
// does the small part of that work which every boot needs: the unit boot runs
// it before everything that reads the configuration.
//
// In this order, as LEDE's boot script (compatibility facts, section 7):
//
//  1. /etc/board.json, if it is missing: what the machine is and what its ports
//     are for. Built-in knowledge first (LAN on eth0, WAN on eth1), then
//     /usr/lib/weft/board.json of the image, then the scripts in /etc/board.d.
//  2. /etc/config/network and /etc/config/system, each only if it is missing or
//     empty, from board.json, in the form of 25.12.
//  3. /etc/uci-defaults: each script is sourced in a subshell; one that ends with
//     0 is deleted, any other is kept, logged, and run again at the next boot.
//     Scripts are deleted only after what they changed has been committed and is
//     on the medium: a power cut repeats them, it never loses them. (LEDE
//     deletes first.)
//  4. network.globals: ula_prefix and dhcp_default_duid with the value auto get
//     one made for this device.
//  5. The hashes from which reload_config tells what changed later.
//
// With nothing to do no process is started and nothing is written but the
// hashes, in memory.
//
// Not supported: board.json's credentials, and switch, led and gpio sections of
// boards that do not exist here.
package firstboot
