package main

import (
	"path"
	"slices"

	"weft/init/applet/logcli"
	"weft/init/applet/nettools"
	"weft/init/applet/reset"
	"weft/init/applet/scriptcmd"
	"weft/init/applet/servicecli"
	"weft/init/applet/shell"
	"weft/init/applet/ubuscli"
	"weft/init/applet/ucicli"
	"weft/init/applet/vi"
	"weft/init/firstboot"
	"weft/init/supervise/process"
	"weft/init/unit"
	"weft/services/logd"
	"weft/services/network"
	"weft/services/rpcd"
	"weft/services/ubusd"
)

// applet is one thing that the binary can be.
type applet struct {
	path string // where its link lies on the device; the last part is its name
	run  unit.Func
	kind kind
}

type kind int

const (
	plain  kind = iota // a process of its own
	inline             // the shell may run it in its own process
	device             // changes the machine: make host makes no link for it
)

// applets is the one table of the device binary. applets.txt, from which the
// builder makes the links, is held equal to it by a test (go test ./init -update).
var applets = []applet{
	// services
	{"/usr/libexec/weft/logd", unit.Main(logd.Run), plain},
	{"/usr/libexec/weft/network", unit.Main(network.Run), plain},
	{"/usr/libexec/weft/rpcd", unit.Main(rpcd.Run), plain},
	{"/usr/libexec/weft/ubusd", unit.Main(ubusd.Run), plain},
	// parts of the boot
	{"/usr/libexec/weft/boot", firstboot.Boot, device},
	{"/usr/libexec/weft/" + process.ConfineName, process.Confine, device},
	{"/bin/board_detect", firstboot.BoardDetect, device},
	{"/bin/config_generate", firstboot.ConfigGenerate, device},
	{"/sbin/factoryreset", reset.FactoryReset, device},
	{"/sbin/firstboot", reset.FactoryReset, device},
	{"/sbin/jffs2reset", reset.FactoryReset, device},
	{"/sbin/mount_root", reset.MountRoot, device},
	// services and power
	{"/sbin/service", servicecli.Service, device},
	{"/usr/libexec/weft/service-call", servicecli.ServiceCall, device},
	{"/sbin/halt", servicecli.Halt, device},
	{"/sbin/poweroff", servicecli.Poweroff, device},
	{"/sbin/reboot", servicecli.Reboot, device},
	// configuration, bus, log
	{"/sbin/uci", ucicli.UCI, plain},
	{"/bin/ubus", ubuscli.Ubus, plain},
	{"/sbin/reload_config", ubuscli.ReloadConfig, device},
	{"/sbin/logread", logcli.Logread, plain},
	{"/usr/bin/logger", logcli.Logger, inline},
	// shell
	{"/bin/ash", shell.Sh, plain},
	{"/bin/sh", shell.Sh, plain},
	{"/bin/echo", scriptcmd.Echo, inline},
	{"/bin/false", scriptcmd.False, inline},
	{"/bin/kill", scriptcmd.Kill, plain},
	{"/bin/true", scriptcmd.True, inline},
	{"/usr/bin/[", scriptcmd.Test, inline},
	{"/usr/bin/printf", scriptcmd.Printf, inline},
	{"/usr/bin/test", scriptcmd.Test, inline},
	// network
	{"/bin/ping", nettools.Ping, plain},
	{"/bin/ping6", nettools.Ping, plain},
	{"/bin/uclient-fetch", nettools.Wget, plain},
	{"/sbin/ip", nettools.IP, plain},
	{"/usr/bin/nslookup", nettools.Nslookup, plain},
	{"/usr/bin/wget", nettools.Wget, plain},
	// everyday
	{"/usr/bin/vi", vi.Vi, plain},
}

// lookup finds an applet by name.
func lookup(name string) (f unit.Func, inShell bool) {
	i := slices.IndexFunc(applets, func(a applet) bool { return path.Base(a.path) == name })
	if i < 0 {
		return nil, false
	}
	return applets[i].run, applets[i].kind == inline
}

// names lists the applets in order.
func names() []string {
	var out []string
	for _, a := range applets {
		out = append(out, path.Base(a.path))
	}
	slices.Sort(out)
	return out
}

// programs is the table in the form that PID 1 takes.
func programs() map[string]unit.Func {
	m := make(map[string]unit.Func, len(applets))
	for _, a := range applets {
		m[path.Base(a.path)] = a.run
	}
	return m
}
