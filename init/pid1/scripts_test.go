package pid1

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"weft/init/applet/files"
	"weft/init/applet/scriptcmd"
	"weft/init/applet/servicecli"
	"weft/init/applet/shell"
	"weft/init/applet/ubuscli"
	"weft/init/applet/ucicli"
	"weft/init/bus"
	"weft/init/unit"
)

// shellApplets are the commands that scripts of a device find.
var shellApplets = map[string]unit.Func{
	"ash": shell.Sh, "uci": ucicli.UCI, "ubus": ubuscli.Ubus, "reload_config": ubuscli.ReloadConfig,
	"service": servicecli.Service, "service-call": servicecli.ServiceCall,
	"cat": files.Cat, "ls": files.Ls, "rm": files.Rm, "mkdir": files.Mkdir, "ln": files.Ln, "readlink": files.Readlink,
	"echo": scriptcmd.Echo, "printf": scriptcmd.Printf, "test": scriptcmd.Test, "[": scriptcmd.Test, "true": scriptcmd.True, "false": scriptcmd.False,
}

func lookup(name string) (unit.Func, bool) {
	f := shellApplets[name]
	return f, name == "echo" || name == "printf" || name == "test" || name == "[" || name == "true" || name == "false"
}

func runShellApplet(name string) (int, bool) {
	f := shellApplets[name]
	if f == nil {
		return 0, false
	}
	shell.SetApplets(lookup)
	return f(context.Background(), unit.OSCall()), true
}

// thirdParty is an init script as people write them.
const thirdParty = `#!/bin/sh /etc/rc.common
# A daemon of somebody.

START=50
STOP=10
USE_PROCD=1
EXTRA_COMMANDS="greet"
EXTRA_HELP="	greet           Say hello"

PROG=/sbin/good

greet() {
	echo "hello from $name: $*"
}

one() {
	local cfg="$1" enabled port names
	config_get_bool enabled "$cfg" enabled 1
	config_get port "$cfg" port 22
	config_get names "$cfg" name
	[ "$enabled" = 1 ] || return 0
	procd_open_instance "$cfg"
	procd_set_param command "$PROG" -p "$port"
	procd_append_param command -n "$names" "two
lines	and a tab \\ \"q\""
	procd_set_param env A=1 "B=x y"
	procd_set_param limits core="unlimited" nofile="100 200"
	procd_set_param respawn 60 1 3
	procd_set_param file /etc/config/third
	procd_set_param stdout 1
	procd_set_param stderr 1
	procd_set_param reload_signal HUP
	procd_set_param term_timeout 2
	procd_close_instance
}

start_service() {
	config_load third
	config_foreach one daemon
}

service_triggers() {
	procd_add_reload_trigger third
	procd_add_reload_interface_trigger wan
}

service_started() { echo "started $name" >>/notes; }
reload_service() {
	echo "reload $name" >>/notes
	rc_procd start_service
}
`

const thirdConfig = `config daemon 'a'
	option port '2222'
	list name 'x'
	list name 'it'\''s'

config daemon 'off'
	option enabled 'no'

config daemon
	option port '23'
`

// TestInitScripts runs an init script of a third party at boot and by hand, with
// the device's own shell, rc.common and functions.
func TestInitScripts(t *testing.T) {
	if raceBuild {
		t.Skip("a race build sleeps a second at the end of each of the hundred processes of this test")
	}
	f := services()
	overlay := "../../buildroot-overlay/rootfs"
	for _, name := range []string{"etc/rc.common", "lib/functions.sh", "lib/config/uci.sh", "lib/functions/procd.sh", "sbin/hotplug-call", "etc/init.d/network"} {
		text, err := os.ReadFile(filepath.Join(overlay, name))
		if err != nil {
			t.Fatal(err)
		}
		f[name] = string(text)
	}
	for name := range shellApplets {
		f["bin/"+name] = "-> /program"
	}
	delete(f, "bin/sh")
	f["bin/sh"] = "-> ash"
	f["usr/libexec/weft/service-call"] = "-> /program"
	f["etc/inittab"] = "ttyT0::respawn:/bin/ash\n"
	f["etc/init.d/third"] = thirdParty
	f["etc/config/third"] = thirdConfig
	f["etc/rc.d/S50third"] = "-> ../init.d/third"
	f["etc/rc.d/K10third"] = "-> ../init.d/third"
	f["usr/lib/weft/services/rcS.toml"] = "command = [\"@rcS\"]\ntype = \"oneshot\"\nready_timeout = \"0s\""
	f["etc/rc.d/S09rcS"] = "-> ../init.d/rcS"
	f["etc/hotplug.d/iface/10-x"] = "echo \"$HOTPLUG_TYPE $ACTION $INTERFACE\" >>/notes\nexit 3\n"
	f["etc/hotplug.d/iface/20-y"] = "echo \"second $ACTION\" >>/notes\n"
	d := start(t, f)
	d.expect(`^weft: ready in`)
	d.file("notes", "started third")

	c := d.dial()
	d.file("log", "service started unit=third.a")
	js, _ := d.call(c, "service", "list", bus.Table{{Name: "name", Value: "third"}, {Name: "verbose", Value: true}}).MarshalJSON()
	for _, want := range []string{
		`"script":"\/etc\/init.d\/third"`,
		`"command":["\/sbin\/good","-p","2222","-n","x it's","two\nlines\tand a tab \\ \"q\""],"term_timeout":2,`,
		`"env":{"A":"1","B":"x y"},"file":["\/etc\/config\/third"],"limits":{"core":"unlimited","nofile":"100 200"},"reload_signal":1,"respawn":{"threshold":60,"timeout":1,"retry":3}`,
		`"cfg036d39":{"running":`, // the name uci gives the unnamed section
		`["config.change",["if",["eq","package","third"],["run_script","\/etc\/init.d\/third","reload"]],1000]`,
		`["interface.*",["if",["eq","interface","wan"],["run_script","\/etc\/init.d\/third","reload"]],1000]`,
	} {
		if !strings.Contains(string(js), want) {
			t.Errorf("%s is missing in\n%s", want, js)
		}
	}
	if strings.Contains(string(js), `"off"`) {
		t.Error("the disabled daemon runs")
	}

	// By hand, on the console. What is typed is echoed, so that what is waited
	// for must not be in it.
	sh := func(command, want string) {
		t.Helper()
		before := len(d.text())
		d.pty.WriteString(command + "; echo \"exit=$?\"\n")
		d.expectAfter(before, want)
	}
	sh("/etc/init.d/third status", `^running\nexit=0$`)
	sh("/etc/init.d/third status a", `^running\nexit=0$`)
	sh("/etc/init.d/third status nosuch", `^unknown instance nosuch\nexit=4$`)
	sh("/etc/init.d/third greet you", `^hello from third: you\nexit=0$`)
	sh("/etc/init.d/third disable; ls /etc/rc.d; /etc/init.d/third enabled", `^(S\d\d\w+ +)*S20good\nexit=1$`)
	sh("/etc/init.d/third enable && ls /etc/rc.d && /etc/init.d/third enabled && echo ye''s", `K10third .*S50third.*\nyes\nexit=0$`)
	sh("/etc/init.d/third running && echo run''s", `^runs\nexit=0$`)
	sh("/etc/init.d/third nonsense", `unknown command nonsense(.*\n)*.*greet(.*\n)*exit=1$`)
	sh("service third greet again", `^hello from third: again\nexit=0$`)

	// A changed option reloads the service by its trigger.
	sh("uci set third.a.port=4444 && uci commit third && ubus call service event '{\"type\":\"config.change\",\"data\":{\"package\":\"third\"}}'", `^exit=0$`)
	d.file("notes", "reload third")
	d.file("log", "service reloads unit=third.a")

	sh("/etc/init.d/third stop", `exit=0$`)
	sh("/etc/init.d/third status", `^inactive\nexit=3$`)
	sh("service go''od status", `^running\nexit=0$`)
	sh("ACTION=ifup INTERFACE=wan hotplug-call iface", `exit=0$`)
	d.file("notes", "iface ifup wan\nsecond ifup\n")

	d.cmd.Process.Signal(syscall.SIGTERM)
	d.ends(syscall.SIGHUP)
}
