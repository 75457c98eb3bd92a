package boot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/test-vm/lab"
)

// TestOverlay: what was written survives a reboot, a power-off and a power cut after sync, and not a factory reset.
func TestOverlay(t *testing.T) {
	t.Parallel()
	v := newVM(t, direct(t, ""))
	v.boot()
	v.run("uci set system.@system[0].hostname=kept && uci commit system && echo one >/etc/kept && rm /etc/banner && sync")

	check := func(after string) {
		t.Helper()
		for cmd, want := range map[string]string{
			"cat /etc/kept": "one", "uci get system.@system[0].hostname": "kept", "cat /proc/sys/kernel/hostname": "kept",
			"ls /etc/banner 2>/dev/null; true": "", "readlink /overlay/.fs_state": "2",
		} {
			if got := v.run(cmd); got != want {
				t.Errorf("after %s: %s: %q, want %q", after, cmd, got, want)
			}
		}
	}
	v.Kill()
	v.boot()
	check("a power cut")
	v.reboot("")
	check("a reboot")
	v.powerOff()
	v.boot()
	check("a power-off")

	v.run("echo n | firstboot; test -e /etc/kept") // asked, and answered no
	v.reboot("factoryreset -y -r")
	v.run("test ! -e /etc/kept && test -e /etc/banner")
	if got := v.run("uci get system.@system[0].hostname"); got == "kept" {
		t.Error("the host name survived a factory reset")
	}
	v.run("echo two >/etc/kept && sync")
	v.Kill() // the overlay made after a reset is as good as the first
	v.boot()
	v.expect("cat /etc/kept", "^two$")
}

// TestFailsafe enters failsafe mode in each of its three ways.
func TestFailsafe(t *testing.T) {
	t.Parallel()
	check := func(v *vm) {
		t.Helper()
		if _, err := v.WaitFailsafe(bound(v.t, bootBound)); err != nil {
			v.t.Fatal(err)
		}
		v.run("test -e /tmp/failsafe")
		v.expect("grep Uid: /proc/self/status", `^Uid:\s+0\s`)
		if out := v.run("cat /proc/mounts"); strings.Contains(out, " /overlay ext4") {
			v.t.Errorf("the overlay is mounted in failsafe mode:\n%s", out)
		}
		v.until(commandBound, "ip -4 addr", matches(`inet 192\.168\.1\.1/24`))
	}
	t.Run("kernel argument", func(t *testing.T) {
		v := newVM(t, direct(t, "failsafe=true"))
		v.start()
		check(v)
		// The way back: mount the overlay, repair, boot.
		v.run("mount_root")
		v.expect("cat /proc/mounts", ` /overlay ext4 rw`)
	})
	t.Run("key", func(t *testing.T) {
		v := newVM(t, direct(t, "weft.failsafe_wait=20"))
		v.start()
		v.wait(`^weft: Press the \[f\] key and hit \[enter\] to enter failsafe mode`)
		if _, err := v.Serial().Write([]byte("f\r")); err != nil {
			t.Fatal(err)
		}
		v.wait(`^weft: (warning: )?failsafe mode: the f key`)
		check(v)
	})
	t.Run("menu entry", func(t *testing.T) {
		v := newVM(t, nil)
		v.chooseFailsafeEntry()
		check(v)
		v.reboot("") // and the next boot is an ordinary one
		v.expect("cat /proc/mounts", ` /overlay ext4 rw`)
	})
}

// archive is a config archive as sysupgrade -b makes them.
func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// systemConfig is an /etc/config/system that names the host.
func systemConfig(name string) string {
	return "config system\n\toption hostname '" + name + "'\n\toption timezone 'GMT0'\n"
}

// TestRestore: a config left on partition 1 or in the data file system is taken over once; a damaged one is said so.
func TestRestore(t *testing.T) {
	t.Parallel()
	v := newVM(t, direct(t, ""))
	tgz := filepath.Join(t.TempDir(), "sysupgrade.tgz")
	if err := os.WriteFile(tgz, archive(t, map[string]string{"etc/config/system": systemConfig("from-p1"), "etc/restored": "p1\n"}), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := v.mtool("mcopy", tgz, "::/sysupgrade.tgz"); err != nil {
		t.Fatalf("put the archive on partition 1: %v: %s", err, out)
	}
	v.start()
	v.wait(`^weft: restored the saved config \(2 files\) from `)
	v.ready()
	v.expect("cat /etc/restored", "^p1$")
	v.expect("uci get system.@system[0].hostname", "^from-p1$")
	v.expect("cat /proc/sys/kernel/hostname", "^from-p1$")
	v.expect("ls -l /etc/restored", `^-rw-r-----`)

	// In the data file system, as the stock system leaves it there.
	push := func(data []byte) {
		t.Helper()
		if err := v.Shell().Push(bound(t, commandBound), "/overlay/sysupgrade.tgz", data); err != nil {
			t.Fatal(err)
		}
		v.run("sync")
	}
	push(archive(t, map[string]string{"etc/config/system": systemConfig("from-data")}))
	v.reboot("")
	v.expect("uci get system.@system[0].hostname", "^from-data$")
	v.run("test ! -e /overlay/sysupgrade.tgz")

	// Once only: what was changed afterwards stays.
	v.run("uci set system.@system[0].hostname=mine && uci commit system && sync")
	v.reboot("")
	v.expect("uci get system.@system[0].hostname", "^mine$")

	// Damaged: it says so, boots, and keeps both the config and the archive.
	good := archive(t, map[string]string{"etc/config/system": systemConfig(strings.Repeat("damaged", 20))})
	push(good[:len(good)-20])
	if err := v.Machine.Reboot(bound(t, commandBound), ""); err != nil {
		t.Fatal(err)
	}
	v.wait(`^weft: error: the saved config .* is damaged and kept as sysupgrade\.tgz\.bad`)
	v.ready()
	v.expect("uci get system.@system[0].hostname", "^mine$")
	v.run("ls /overlay/sysupgrade.tgz.bad")

	v.powerOff()
	if out, err := v.mtool("mdir", "-b", "::/"); err != nil || strings.Contains(out, "sysupgrade.tgz") {
		t.Errorf("partition 1 still holds the archive: %v: %s", err, out)
	}
}

// TestTwoDisks: two disks with one id are not guessed between; when one goes, the boot goes on.
func TestTwoDisks(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(direct(t, ""), func(b *bed, c *lab.Config) {
		c.Disks = append(c.Disks, lab.Disk{Image: b.disk, Serial: "twin"})
	}))
	v.start()
	said := v.wait(`^weft: error: cannot boot: 2 disks carry the id root=`)
	if !strings.Contains(said, "vda") || !strings.Contains(said, "vdb") {
		t.Errorf("the disks are not named: %s", said)
	}
	v.wait(`^weft: hint: `)
	v.wait(`^weft: rescue: `)
	if err := v.Unplug(bound(t, commandBound), "disk1"); err != nil {
		t.Fatal(err)
	}
	v.ready()
	v.expect("cat /proc/mounts", `(?m)^/dev/vda4 /overlay ext4 rw`)
}

// TestFullData: a device whose data partition is full boots, says so and can be freed.
func TestFullData(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(direct(t, ""), withProbe))
	v.boot()
	v.getProbe()
	v.run("/tmp/probe fill /etc/full")
	v.try("uci set system.@system[0].hostname=full; uci commit system")
	if got := v.run("uci get network.lan.proto"); got != "static" {
		t.Errorf("config read on a full disk: %q", got)
	}
	if err := v.Machine.Reboot(bound(t, commandBound), ""); err != nil {
		t.Fatal(err)
	}
	v.wait(`^weft: warning: the data partition is full`)
	v.ready()
	v.run("test -s /etc/config/system && uci show system >/dev/null")
	v.run("rm /etc/full && sync")
	v.run("uci set system.@system[0].hostname=freed && uci commit system && sync")
	v.reboot("")
	v.expect("uci get system.@system[0].hostname", "^freed$")
}

// TestCorruptOverlay: a damaged data file system is repaired or made anew, and the boot says which.
func TestCorruptOverlay(t *testing.T) {
	t.Parallel()
	// Grown to a size that has copies of the superblock (ext4 keeps them from its second group on, 128 MiB).
	v := newVM(t, all(direct(t, ""), func(_ *bed, c *lab.Config) { c.Disks[0].Size = 1 << 30 }))
	v.boot()
	v.run("uci set system.@system[0].hostname=before && uci commit system && sync")
	v.powerOff()
	garbage := bytes.Repeat([]byte("\xde\xadgarbage"), 64<<10/9+1)[:64<<10]
	p := v.partition(4)

	// The superblock alone: there is a copy of it, and nothing is lost.
	if err := lab.WriteDisk(v.Disk(0), p.Start+1024, garbage[:1024]); err != nil {
		t.Fatal(err)
	}
	v.start()
	v.wait(`^weft: warning: .*(damaged|does not mount)`)
	v.wait(`^weft: warning: .* is repaired`)
	v.ready()
	v.expect("uci get system.@system[0].hostname", "^before$")
	v.powerOff()

	// Garbage all over the first 8 MiB and every copy of the superblock: no more than a working system can be asked for.
	for off := int64(0); off < p.Length; off += 1 << 20 {
		if err := lab.WriteDisk(v.Disk(0), p.Start+off, garbage); err != nil {
			t.Fatal(err)
		}
	}
	for off := int64(0); off < 8<<20; off += int64(len(garbage)) {
		if err := lab.WriteDisk(v.Disk(0), p.Start+off, garbage); err != nil {
			t.Fatal(err)
		}
	}
	v.start()
	v.wait(`^weft: (warning|error): .*(formatting it)`)
	v.ready()
	v.run("uci set system.@system[0].hostname=after && uci commit system && sync")
	v.reboot("")
	v.expect("uci get system.@system[0].hostname", "^after$")
}

// TestBadConfig: garbage in network and an empty system leave a device that boots and can be reached.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(direct(t, ""), withProbe))
	v.boot()

	// One bad line costs what it says and no more.
	v.run(`printf "config interface 'x\n\tfoo bar\n" >>/etc/config/network && sync`)
	v.reboot("")
	v.until(commandBound, "ip -4 addr", matches(`inet 192\.168\.1\.1/24`))
	v.until(commandBound, "ip -4 addr", matches(`inet 10\.0\.3\.\d+/24`))
	v.until(commandBound, "logread", matches(`/etc/config/network:\d+: `))

	// Nothing but garbage, and an empty file.
	v.run(`printf 'config interface "lan\n\toption \001\377 }{\n' >/etc/config/network && : >/etc/config/system && sync`)
	v.reboot("")
	v.getProbe()
	v.until(commandBound, "ip -4 addr", matches(`inet 192\.168\.1\.1/24`))
	v.run("/tmp/probe listen 7000 >/dev/null 2>&1 &")
	if got := v.greeting(7000); got != "hello from the guest\n" {
		t.Errorf("got %q", got)
	}
	v.until(commandBound, "logread", matches(`(?i)/etc/config/network`)) // and says what is wrong with it
}

// TestGrowth: the data partition grows to the disk at the first boot, and at the first boot alone.
func TestGrowth(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(direct(t, ""), func(_ *bed, c *lab.Config) { c.Disks[0].Size = 1 << 30 }))
	before := v.partition(4)
	v.start()
	v.wait(`^weft: partition 4 of /dev/vda grew from .* to `)
	r := v.ready()
	report.add("first boot with growth on a 1 GiB disk: ready %.2f s after the kernel's start (no boot loader)", r.Guest.Seconds())
	if after := v.partition(4); after.Start != before.Start || after.Length <= before.Length || after.Start+after.Length < 1<<30-2<<20 {
		t.Errorf("partition 4 was %+v, is %+v on a disk of 1 GiB", before, after)
	}
	v.expect("df -k /overlay", `(?m)\s[5-9]\d{5}\s`) // 500 to 999 MiB in KiB
	mark := v.Serial().Mark()
	v.reboot("")
	if said := v.Serial().Since(mark); strings.Contains(said, "grew from") || strings.Contains(said, "making the data file system") {
		t.Errorf("grown again at the second boot:\n%s", said)
	}
}

// TestWatchdog: when process 1 hangs, the hardware watchdog resets the machine.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	v := newVM(t, all(direct(t, ""), withProbe, func(_ *bed, c *lab.Config) { c.Watchdog = true }))
	v.boot()
	v.getProbe()
	v.expect("ls -l /dev/watchdog", "^c")
	v.run("/tmp/probe freeze 1 >/tmp/frozen 2>&1 </dev/null &")
	v.until(commandBound, "cat /tmp/frozen", matches(`^frozen: [1-9]`))
	if _, err := v.WaitEvent(bound(t, commandBound*2), "WATCHDOG"); err != nil {
		t.Fatal(err)
	}
	v.ready()
	v.powerOff()
}
