package firstboot

import (
	"os"
	"path/filepath"
	"testing"

	"weft/init/uci/pending"
)

// TestPendingApply: what was on trial when the power went is undone before the
// scripts of the first start see it.
func TestPendingApply(t *testing.T) {
	d := newDevice(t, map[string]string{"etc/config/network": "\nconfig interface 'lan'\n\toption proto 'static'\n", "etc/config/system": "\nconfig system\n"})
	before := d.read("etc/config/network")
	dir, file := filepath.Join(d.Root, pending.Dir), filepath.Join(d.Root, "etc/config/network")
	if err := pending.Save(dir, "network", file); err != nil {
		t.Fatal(err)
	}
	if err := pending.Begin(dir, &pending.Record{SID: "s", Configs: []string{"network"}, Boot: "an earlier one"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("\nconfig interface 'lan'\n\toption proto 'none'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.boot()
	if got := d.read("etc/config/network"); got != before {
		t.Errorf("not rolled back:\n%s", got)
	}
}
