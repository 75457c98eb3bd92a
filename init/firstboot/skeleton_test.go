package firstboot

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/uci"
)

// The skeleton of the root file system, which the first boot builds on.
const skeleton = "../../buildroot-overlay/rootfs"

// TestSkeletonConfigs: the shipped packages are in the form that a commit
// writes, so that the first commit on a device changes only what was asked for.
func TestSkeletonConfigs(t *testing.T) {
	files, err := filepath.Glob(skeleton + "/etc/config/*")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := uci.Parse(filepath.Base(name), bytes.NewReader(text), true)
		if err != nil {
			t.Error(err)
			continue
		}
		var out bytes.Buffer
		if _, err := p.WriteTo(&out); err != nil || out.String() != string(text) {
			t.Errorf("%s is not as a commit writes it (%v):\n%s", name, err, out.String())
		}
	}
	for _, name := range []string{"network", "system"} {
		if _, err := os.Stat(filepath.Join(skeleton, "etc/config", name)); err == nil {
			t.Errorf("etc/config/%s is shipped: the first boot would not make one for the machine", name)
		}
	}
}

// TestSkeletonAccounts: every account has its group and its line in shadow.
func TestSkeletonAccounts(t *testing.T) {
	lines := func(name string) map[string][]string {
		text, err := os.ReadFile(filepath.Join(skeleton, "etc", name))
		if err != nil {
			t.Fatal(err)
		}
		m := map[string][]string{}
		for line := range strings.Lines(string(text)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if _, twice := m[f[0]]; twice {
				t.Errorf("%s: %s is there twice", name, f[0])
			}
			m[f[0]] = f
		}
		return m
	}
	passwd, shadow := lines("passwd"), lines("shadow")
	groups := map[string]bool{}
	for _, g := range lines("group") {
		groups[g[2]] = true
	}
	for name, f := range passwd {
		if len(f) != 7 || shadow[name] == nil || !groups[f[3]] {
			t.Errorf("account %q: shadow line %q, group %s known: %v", f, shadow[name], f[3], groups[f[3]])
		}
	}
	if shadow["root"][1] != "" {
		t.Error("root has a password that nobody knows")
	}
	if len(shadow) != len(passwd) {
		t.Error("shadow has accounts that passwd has not")
	}
}

func TestSkeletonJSON(t *testing.T) {
	files, err := filepath.Glob(skeleton + "/usr/share/rpcd/acl.d/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil || !json.Valid(text) {
			t.Errorf("%s is no JSON (%v)", name, err)
		}
	}
}
