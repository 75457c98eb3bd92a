//go:build !initramfs

package main

import (
	"path"

	"weft/init/applet/logcli"
	"weft/init/applet/mptcpcli"
	"weft/init/applet/nettools"
	"weft/init/applet/reset"
	"weft/init/applet/servicecli"
	"weft/init/applet/tc"
	"weft/init/applet/ubuscli"
	"weft/init/applet/ucicli"
	"weft/init/applet/upgradecli"
	"weft/init/firstboot"
	"weft/init/pid1"
	"weft/init/supervise/process"
	"weft/init/unit"
	"weft/services/crond"
	"weft/services/dhcp"
	"weft/services/firewall"
	"weft/services/healthgate"
	"weft/services/ledd"
	"weft/services/logd"
	"weft/services/mptcpproxy"
	"weft/services/network"
	"weft/services/ntpd"
	"weft/services/rpcd"
	"weft/services/sshd"
	"weft/services/ubusd"
	"weft/services/uhttpd"
)

// applets is the one table of the device binary. applets.txt, from which the
// builder makes the links, is held equal to it by a test (go test ./init -update).
var applets = append([]applet{
	// services
	{"/usr/libexec/weft/dhcp", unit.Main(dhcp.Run), plain},
	{"/usr/libexec/weft/healthgate", unit.Main(healthgate.Run), plain},
	{"/usr/libexec/weft/crond", unit.Main(crond.Run), plain},
	{"/usr/libexec/weft/firewall", unit.Main(firewall.Run), plain},
	{"/usr/libexec/weft/ledd", unit.Main(ledd.Run), plain},
	{"/usr/libexec/weft/logd", unit.Main(logd.Run), plain},
	{"/usr/libexec/weft/mptcpproxy", unit.Main(mptcpproxy.Run), plain},
	{"/usr/libexec/weft/network", unit.Main(network.Run), plain},
	{"/usr/libexec/weft/ntpd", unit.Main(ntpd.Run), plain},
	{"/usr/libexec/weft/rpcd", unit.Main(rpcd.Run), plain},
	{"/usr/libexec/weft/sshd", unit.Main(sshd.Run), plain},
	{"/usr/libexec/weft/sshd-connection", sshd.Connection, plain},
	{"/usr/libexec/weft/ubusd", unit.Main(ubusd.Run), plain},
	{"/usr/libexec/weft/uhttpd", unit.Main(uhttpd.Run), plain},
	// far sides of copies over SSH
	{"/usr/bin/scp", sshd.SCP, device},
	{"/usr/libexec/sftp-server", sshd.SFTP, device},
	// parts of the boot
	{"/usr/libexec/weft/boot", firstboot.Boot, device},
	{"/usr/libexec/weft/" + process.ConfineName, process.Confine, device},
	{"/bin/board_detect", firstboot.BoardDetect, device},
	{"/bin/config_generate", firstboot.ConfigGenerate, device},
	{"/sbin/factoryreset", reset.FactoryReset, device},
	{"/sbin/firstboot", reset.FactoryReset, device},
	{"/sbin/jffs2reset", reset.FactoryReset, device},
	{"/sbin/mount_root", reset.MountRoot, device},
	{"/sbin/sysupgrade", upgradecli.Sysupgrade, device},
	{"/usr/libexec/validate_firmware_image", upgradecli.ValidateFirmwareImage, device},
	// services and power
	{"/sbin/service", servicecli.Service, device},
	{"/usr/libexec/weft/service-call", servicecli.ServiceCall, device},
	{"/sbin/halt", servicecli.Halt, device},
	{"/sbin/poweroff", servicecli.Poweroff, device},
	{"/sbin/reboot", servicecli.Reboot, device},
	// configuration, bus, log
	{"/usr/bin/crontab", crond.Crontab, plain},
	{"/sbin/uci", ucicli.UCI, plain},
	{"/bin/ubus", ubuscli.Ubus, plain},
	{"/sbin/reload_config", ubuscli.ReloadConfig, device},
	{"/sbin/logread", logcli.Logread, plain},
	{"/usr/bin/logger", logcli.Logger, inline},
	// network
	{"/usr/bin/mptcp", mptcpcli.MPTCP, plain},
	{"/bin/ping", nettools.Ping, plain},
	{"/bin/ping6", nettools.Ping, plain},
	{"/bin/uclient-fetch", nettools.Wget, plain},
	{"/sbin/fw4", firewall.CLI, plain},
	{"/sbin/ip", nettools.IP, plain},
	{"/sbin/tc", tc.TC, plain},
	{"/usr/bin/nslookup", nettools.Nslookup, plain},
	{"/usr/bin/wget", nettools.Wget, plain},
}, everyday...)

// root is what PID 1 does when the kernel, or stage 1, has started /sbin/init.
func root() int { return pid1.Run(programs()) }

// programs is the table in the form that PID 1 takes.
func programs() map[string]unit.Func {
	m := make(map[string]unit.Func, len(applets))
	for _, a := range applets {
		m[path.Base(a.path)] = a.run
	}
	return m
}
