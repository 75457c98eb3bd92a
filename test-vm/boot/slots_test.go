package boot

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"weft/test-vm/lab"
)

// environment is a copy of the slot state as GRUB and the device read it, written
// here from its description (init/slot) alone.
func environment(seq int, slot, trial string, tries int, boot, bad string) []byte {
	text := fmt.Sprintf("# GRUB Environment Block\nweft_seq=%d\nweft_slot=%s\nweft_trial=%s\nweft_given=%d\nweft_boot=%s\nweft_bad=%s\nweft_check=%d/%s/%s/%d/%s\nweft_last=-\n",
		seq, slot, trial, tries, boot, bad, seq, slot, trial, tries, boot)
	text += fmt.Sprintf("weft_crc=%08x\nweft_tries=%d.%d.%d\n", crc32.ChecksumIEEE([]byte(text)), seq, tries, seq)
	return []byte(text + strings.Repeat("#", 1024-len(text)))
}

// put copies bytes to a file of the boot partition; the machine is off.
func (v *vm) put(name string, data []byte) {
	v.t.Helper()
	file := filepath.Join(v.t.TempDir(), "file")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		v.t.Fatal(err)
	}
	if out, err := v.mtool("mcopy", "-o", file, "::"+name); err != nil {
		v.t.Fatalf("copy to %s: %v: %s", name, err, out)
	}
}

// fetch reads a file of the boot partition; the machine is off.
func (v *vm) fetch(name string) []byte {
	v.t.Helper()
	file := filepath.Join(v.t.TempDir(), "file")
	if out, err := v.mtool("mcopy", "::"+name, file); err != nil {
		v.t.Fatalf("read %s: %v: %s", name, err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		v.t.Fatal(err)
	}
	return data
}

// badInitramfs is an archive (newc) whose /init is no program: the kernel panics.
func badInitramfs() []byte {
	var b bytes.Buffer
	record := func(name string, mode int, data string) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.WriteString(data)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	record("init", 0o100755, "this is no program\n")
	record("TRAILER!!!", 0, "")
	return b.Bytes()
}

// trialBound is for several boots in a row, some of which wait ten seconds after
// a panic.
const trialBound = 10 * time.Minute

// TestTrialFallsBack: a slot on trial whose kernel panics is tried as often as the
// state says, then the other slot runs again and says why; one copy of the state is
// garbage all the while, and whole at the end.
func TestTrialFallsBack(t *testing.T) {
	t.Parallel()
	v := newVM(t, nil)
	v.put("boot/b/vmlinuz", v.fetch("boot/vmlinuz"))
	v.put("boot/b/initramfs.cpio.zst", badInitramfs())
	v.put("boot/grub/grubenv", bytes.Repeat([]byte{0xa5}, 1024))
	v.put("boot/grub/grubenv2", environment(7, "a", "b", 2, "a", "-"))
	if err := v.Start(bound(t, bootBound)); err != nil {
		t.Fatal(err)
	}
	l, err := v.Serial().WaitLine(bound(t, trialBound), regexp.MustCompile(`^weft: warning: slot b was given up, slot a runs: `))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(l.Text, "boot: not confirmed in 2 tries") {
		t.Errorf("the reason: %s", l.Text)
	}
	v.ready()
	if n := strings.Count(v.Serial().Since(0), "Kernel panic"); n != 2 {
		t.Errorf("slot b was tried %d times, want 2", n)
	}
	v.expect("cat /proc/cmdline", `weft\.slot=a`)
	v.expect("cat /proc/mounts", `(?m)^/dev/vda4 /data ext4 rw`)
	v.run("test -d /data/slot-a/upper && test -d /overlay/upper")
	v.powerOff()
	one, two := v.fetch("boot/grub/grubenv"), v.fetch("boot/grub/grubenv2")
	if !bytes.Equal(one, two) || !bytes.Contains(one, []byte("\nweft_slot=a\nweft_trial=-\n")) || !bytes.Contains(one, []byte("\nweft_bad=b\n")) {
		t.Errorf("the copies of the state at the end:\n%.300s\n%.300s", one, two)
	}
}

// TestRescue: when no slot may be started, the rescue system comes up by itself,
// with a network, SSH, and a page that says what is wrong.
func TestRescue(t *testing.T) {
	t.Parallel()
	v := newVM(t, func(_ *bed, c *lab.Config) {
		c.NICs[1].Forwards = append(c.NICs[1].Forwards, lab.Forward{Guest: 22}, lab.Forward{Guest: 80})
	})
	for _, name := range []string{"boot/grub/grubenv", "boot/grub/grubenv2"} {
		v.put(name, environment(9, "a", "-", 0, "-", "ab"))
	}
	if err := v.Start(bound(t, bootBound)); err != nil {
		t.Fatal(err)
	}
	v.wait(`^weft: error: cannot boot: no slot can be started`)
	// In whatever order.
	for missing := []string{`eth1 has 10\.0\.3\.\d+/24`, `SSH is at TCP port 22`, `the upload page is at TCP port 80`}; len(missing) > 0; {
		said := v.wait(`^weft: rescue: `)
		missing = slices.DeleteFunc(missing, func(expr string) bool { return regexp.MustCompile(expr).MatchString(said) })
	}

	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(v.Forwarded(22)))
	var client *ssh.Client
	var err error
	for ctx := bound(t, commandBound); ctx.Err() == nil; { // QEMU accepts before the guest does
		client, err = ssh.Dial("tcp", address, &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: lab.Timeout(commandBound)})
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("SSH: %v", err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.CombinedOutput("cat /proc/cmdline; ls /rescue")
	if err != nil || !strings.Contains(string(out), "weft.rescue=") || !strings.Contains(string(out), "rescue\n") {
		t.Errorf("over SSH: %v: %s", err, out)
	}

	ctx := bound(t, commandBound)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(v.Forwarded(80)))+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(page), "no slot can be started") || !strings.Contains(string(page), `type="file"`) {
		t.Errorf("the page: %v, %s: %s", err, resp.Status, page)
	}
}
