package boot

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/test-vm/lab"
)

// TestSystem boots through SeaBIOS and GRUB with 256 MiB and looks at the running system.
func TestSystem(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(withProbe, func(_ *bed, c *lab.Config) { c.OneThread = false })) // as make run does it
	r := v.boot()
	report.add("BIOS: ready %.2f s after the kernel's start, %.2f s after power-on", r.Guest.Seconds(), r.Wall.Seconds())
	// Memory first: what follows starts processes.
	v.memory()
	v.getProbe()

	t.Run("identity", func(t *testing.T) {
		v := v.in(t)
		v.expect("cat /proc/1/comm", "^init$")
		v.expect("cat /proc/cmdline", `root=PARTUUID=[0-9a-f]{8}-02 `)
		v.expect("cat /proc/mounts", `(?m)^overlayfs:/overlay / overlay rw`)
		v.expect("cat /proc/mounts", `(?m)^\S+ /rom squashfs ro`)
		v.expect("cat /proc/mounts", `(?m)^/dev/vda4 /overlay ext4 rw\S*noatime`)
		v.expect("cat /tmp/sysinfo/board_name", `^qemu-standard-pc-`)
		v.expect("cat /etc/openwrt_release", `DISTRIB_ID=`)
		v.expect("ls -l /var", `-> tmp`)
		v.expect("uci get network.lan.proto", `^static$`)
		v.expect("ubus call system board", `"board_name": "qemu-standard-pc`)
	})
	t.Run("services", func(t *testing.T) {
		v := v.in(t)
		out := v.run("service status")
		report.add("service status:\n%s", out)
		for _, name := range []string{"ubusd", "logd", "rpcd", "network"} {
			if !regexp.MustCompile(`(?m)^\W*` + name + `\b.*running`).MatchString(out) {
				t.Errorf("%s is not running in:\n%s", name, out)
			}
			if v.pid(name) == 0 {
				t.Errorf("the bus knows no process of %s", name)
			}
		}
		report.add("service timeline:\n%s", v.run("service timeline"))
	})
	t.Run("network", func(t *testing.T) {
		v := v.in(t)
		v.until(commandBound, "ip -4 addr show dev eth1", matches(`inet 10\.0\.3\.\d+/24`))
		v.until(commandBound, "ip -4 addr", matches(`inet 192\.168\.1\.1/24`))
		v.expect("ubus call network.interface.wan status", `"up": true`)
		v.run("ping -c 1 -W 5 10.0.3.2") // QEMU's gateway
		// Towards wan nothing is open by default.
		v.run("uci set firewall.probe=rule; uci set firewall.probe.src=wan; uci set firewall.probe.proto=tcp; uci set firewall.probe.dest_port=7001; " +
			"uci set firewall.probe.target=ACCEPT; uci commit firewall; reload_config")
		v.until(commandBound, "fw4 print", matches(`tcp dport 7001 .*accept`))
		for _, port := range []int{7000, 7001} {
			if r := v.try(fmt.Sprintf("/tmp/probe listen %d >/dev/null 2>&1 &", port)); r.Code != 0 {
				t.Fatal(r.Output)
			}
			if got := v.greeting(port); got != "hello from the guest\n" {
				t.Errorf("port %d said %q", port, got)
			}
		}
	})
	t.Run("log", func(t *testing.T) {
		v := v.in(t)
		v.expect("logread", `(?m)kern\.\w+ kernel: .*Linux version`)
		v.expect("logread", `(?m)daemon\.\w+ (network|rpcd|logd)\[\d+\]: `)
		v.run("logger -t bootcheck first; logger -t bootcheck second")
		v.until(commandBound, "logread -e bootcheck", matches(`bootcheck.*first\n.*bootcheck.*second`))
		v.expect("logread -l 1", `^[^\n]+$`)
		v.run("logread -f >/tmp/follow 2>&1 </dev/null & echo $! >/tmp/follow.pid")
		v.until(commandBound, "logger -t followed now; cat /tmp/follow", matches(`followed.*now`))
		v.run("kill $(cat /tmp/follow.pid)")
	})
	t.Run("crash", func(t *testing.T) {
		v := v.in(t)
		ubusd, old := v.pid("ubusd"), v.pid("rpcd")
		v.run(fmt.Sprintf("kill -KILL %d", old))
		v.newPID("rpcd", old, commandBound)
		if now := v.pid("ubusd"); now != ubusd {
			t.Errorf("the crash of rpcd restarted ubusd: %d, then %d", ubusd, now)
		}
		v.until(commandBound, "ubus list", matches(`(?m)^session$`)) // it is back on the bus
		v.until(commandBound, "logread", matches(`rpcd.*(signal|killed|KILL)`))
	})
	t.Run("broker crash", func(t *testing.T) {
		v := v.in(t)
		old := v.pid("ubusd")
		v.run(fmt.Sprintf("kill -KILL %d", old))
		// All who live on the bus come back to it by themselves.
		v.until(commandBound, "ubus list", matches(`(?s)log\n.*network\n.*service\n.*session\n.*system\n.*uci\n`))
		v.newPID("ubusd", old, commandBound)
	})
	t.Run("hang", func(t *testing.T) {
		v := v.in(t)
		old := v.pid("rpcd")
		v.run(fmt.Sprintf("kill -STOP %d", old))
		v.newPID("rpcd", old, 3*time.Minute)
		v.until(commandBound, "logread", matches(`rpcd.*(health|watchdog)`))
	})
	t.Run("memory limit", func(t *testing.T) {
		v := v.in(t)
		before := map[string]int{}
		for _, name := range []string{"ubusd", "logd", "network"} {
			before[name] = v.pid(name)
		}
		// A process that rpcd might have started eats all that rpcd may have and more.
		old := v.pid("rpcd")
		group := strings.TrimPrefix(v.run(fmt.Sprintf("cat /proc/%d/cgroup", old)), "0::")
		v.expect("cat /sys/fs/cgroup"+group+"/memory.max", `^\d+$`)
		v.run("sh -c 'echo $$ >/sys/fs/cgroup" + group + "/cgroup.procs && exec /tmp/probe eat 200' >/dev/null 2>&1 </dev/null &")
		v.newPID("rpcd", old, commandBound)
		v.until(commandBound, "logread", matches(`(?i)kernel: .*(memory cgroup out of memory|oom-kill)`))
		v.until(commandBound, "logread", matches(`(?i)weft.*rpcd.*memory`)) // the supervisor says why
		for name, pid := range before {
			if now := v.pid(name); now != pid {
				t.Errorf("%s was %d, is %d: a service over its limit must leave others alone", name, pid, now)
			}
		}
	})
	t.Run("reload", func(t *testing.T) {
		v := v.in(t)
		old := v.pid("network")
		v.run("uci set network.lan.ipaddr=192.168.1.77/24 && uci commit network && reload_config")
		v.until(commandBound, "ip -4 addr", matches(`inet 192\.168\.1\.77/24`))
		if now := v.pid("network"); now != old {
			t.Errorf("network was restarted by a reload: %d, then %d", old, now)
		}
	})

	began := time.Now()
	v.powerOff()
	report.add("power-off took %.1f s", time.Since(began).Seconds())
	for _, e := range v.Events() {
		if e.Name == "SHUTDOWN" && strings.Contains(string(e.Data), "guest-shutdown") {
			return
		}
	}
	t.Errorf("QEMU ended without a power-off by the guest: %v", v.Events())
}

// in is the same machine for a subtest.
func (v *vm) in(t *testing.T) *vm { return &vm{v.Machine, t, v.bed} }

// memory checks what an idle system leaves of a 256 MiB guest: 106 MiB with all that a router runs by default, 118 MiB
// without what serves the LAN (half of the guest is 128; the modules of the firewall stay).
func (v *vm) memory() {
	v.t.Helper()
	available := v.meminfo("MemAvailable")
	report.add("256 MiB guest, idle router: %.1f MiB available (MemAvailable)", float64(available)/1024)
	if available < 106<<10 {
		v.t.Errorf("MemAvailable is %d KiB, want at least %d", available, 106<<10)
	}
	for _, s := range lanServices {
		v.run("service " + s + " stop")
	}
	available = v.meminfo("MemAvailable")
	report.add("the same without %s: %.1f MiB", strings.Join(lanServices, ", "), float64(available)/1024)
	if available < 118<<10 {
		v.t.Errorf("MemAvailable of the basis is %d KiB, want at least %d", available, 118<<10)
	}
	for _, s := range lanServices {
		v.run("service " + s + " start")
	}
	// free's own columns: total, used, free, shared, buff/cache, available.
	m := regexp.MustCompile(`(?m)^Mem:\s+(\d+)\s+(\d+)\s+(\d+).*?(\d+)$`).FindStringSubmatch(v.run("free"))
	if m == nil {
		v.t.Fatalf("free: no line of memory in %s", v.run("free"))
	}
	total, _ := strconv.Atoi(m[1]) // digits by the expression
	if want := v.meminfo("MemTotal"); total != want {
		v.t.Errorf("free shows %d KiB in all, /proc/meminfo %d", total, want)
	}
}

// lanServices serve a LAN and its managers; the basis works without them.
var lanServices = []string{"cron", "dhcp", "dropbear", "firewall", "sysntpd", "uhttpd"}

// meminfo is a line of /proc/meminfo, in KiB.
func (v *vm) meminfo(name string) int {
	v.t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindStringSubmatch(v.run("cat /proc/meminfo"))
	if m == nil {
		v.t.Fatalf("/proc/meminfo has no %s", name)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		v.t.Fatal(err)
	}
	return n
}

// TestUEFI boots the EFI image through OVMF.
func TestUEFI(t *testing.T) {
	t.Parallel()
	v := newVM(t, func(b *bed, c *lab.Config) {
		image, err := b.images.Path("combined-efi")
		if err != nil {
			t.Fatal(err)
		}
		c.Firmware, c.Disks = lab.UEFI, []lab.Disk{{Image: image}}
	})
	r := v.boot()
	report.add("UEFI: ready %.2f s after the kernel's start, %.2f s after power-on", r.Guest.Seconds(), r.Wall.Seconds())
	v.run("test -d /sys/firmware/efi")
	v.expect("cat /proc/cmdline", `root=PARTUUID=[0-9a-f]{8}-[0-9a-f-]{27} `)
	v.expect("cat /proc/mounts", `(?m)^/dev/vda4 /overlay ext4 rw`)
	v.run("echo kept >/etc/kept && sync")
	v.reboot("")
	v.expect("cat /etc/kept", "^kept$")
	v.powerOff()
}

// TestEFIImageBootsByBIOS boots the EFI image through SeaBIOS, as LEDE's can be.
func TestEFIImageBootsByBIOS(t *testing.T) {
	t.Parallel()
	v := newVM(t, func(b *bed, c *lab.Config) {
		image, err := b.images.Path("combined-efi")
		if err != nil {
			t.Fatal(err)
		}
		c.Disks = []lab.Disk{{Image: image}}
	})
	v.boot()
	v.run("test ! -d /sys/firmware/efi")
	v.powerOff()
}

// TestSmall boots with 192 MiB.
func TestSmall(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(direct(t, ""), func(_ *bed, c *lab.Config) { c.Memory = 192 }))
	v.boot()
	report.add("192 MiB guest, idle: %.1f MiB available (MemAvailable)", float64(v.meminfo("MemAvailable"))/1024)
	v.run("uci set system.@system[0].hostname=small && uci commit system")
	v.expect("ubus list", `(?m)^network$`)
	if out := v.run("logread"); strings.Contains(out, "Out of memory") {
		t.Errorf("out of memory:\n%s", out)
	}
	v.powerOff()
}

// TestBuses boots from the other kinds of disk.
func TestBuses(t *testing.T) {
	t.Parallel()
	for _, bus := range []lab.Bus{lab.SATA, lab.IDE, lab.USB} {
		t.Run(string(bus), func(t *testing.T) {
			v := newVM(t, func(_ *bed, c *lab.Config) { c.Disks[0].Bus = bus })
			v.boot()
			v.expect("cat /proc/mounts", `(?m)^/dev/sda4 /overlay ext4 rw`)
		})
	}
}

// TestTwoGuests joins the lan ports of two devices by a link of the lab.
func TestTwoGuests(t *testing.T) {
	t.Parallel()
	// The only test that holds both slots: two of them could wait for each other.
	link := lab.NewLink("lan")
	join := func(_ *bed, c *lab.Config) {
		c.NICs = []lab.NIC{{Link: link, Capture: true}}
	}
	a := newVM(t, all(direct(t, ""), join, func(_ *bed, c *lab.Config) { c.Name = "a" }))
	b := newVM(t, all(direct(t, ""), join, func(_ *bed, c *lab.Config) { c.Name = "b" }))
	a.start()
	b.start()
	a.ready()
	b.ready()
	b.run("uci set network.lan.ipaddr=192.168.1.2/24 && uci commit network && reload_config")
	b.until(commandBound, "ip -4 addr", matches(`inet 192\.168\.1\.2/24`))
	a.until(commandBound, "ping -c 1 -W 2 192.168.1.2", func(r lab.Result) bool { return r.Code == 0 })
	link.Cut()
	if r := a.try("ping -c 1 -W 2 192.168.1.2"); r.Code == 0 {
		t.Errorf("ping over a cut link: %s", r.Output)
	}
	link.Restore()
	a.until(commandBound, "ping -c 1 -W 2 192.168.1.2", func(r lab.Result) bool { return r.Code == 0 })
}
