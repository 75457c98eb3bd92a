// Package servicecli has the commands around services: service, reboot,
// poweroff and halt, and service-call, the helper of /lib/functions/procd.sh.
//
// service without arguments lists as on LEDE; `service NAME VERB` runs
// /etc/init.d/NAME, except that a native service (one with a file in
// /usr/lib/weft/services) is asked for over the bus. `service status` and
// `service timeline` are ours.
//
// Exit codes of `service NAME status` and `running` are rc.common's: 0 running,
// 3 inactive, 4 no such service or instance, 5 not running.
package servicecli
