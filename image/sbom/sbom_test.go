package sbom

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func input(t *testing.T) Input {
	t.Helper()
	exe, err := os.Executable() // a Go binary with modules: this test
	if err != nil {
		t.Fatal(err)
	}
	return Input{Dist: "Weft", Version: "0.1.0", Revision: "r1-abc", Board: "x86-64", Role: "router", Epoch: 1700000000, Program: exe,
		Packages: []Package{
			{Name: "libc6", Version: "2.41-12+deb13u1", Arch: "amd64", Licence: "LGPL-2.1+, GPL-2", Files: []string{"/b", "a"}, Role: "files", SHA256: strings.Repeat("0", 64)},
			{Name: "linux-image", Version: "6.12", Arch: "amd64", Role: "kernel"},
		},
		Modules: []Module{{"virtio_net", "GPL"}, {"ahci", "GPL"}}}
}

func TestWrite(t *testing.T) {
	info := &buildinfo.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Path: "weft"}, Deps: []*debug.Module{
		{Path: "example.org/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/new", Version: "v1.1.0", Sum: "h1:x="}}}}
	text, err := write(input(t), info)
	if err != nil {
		t.Fatal(err)
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(text), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bom.SerialNumber) {
		t.Errorf("serial number %q", bom.SerialNumber)
	}
	refs := map[string]cdx.Component{}
	for _, c := range *bom.Components {
		if _, twice := refs[c.BOMRef]; twice {
			t.Errorf("reference %s is used twice", c.BOMRef)
		}
		refs[c.BOMRef] = c
	}
	libc := refs["deb/libc6"]
	if libc.PackageURL != "pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64" || len(*libc.Licenses) != 2 || (*libc.Evidence.Occurrences)[0].Location != "/a" {
		t.Errorf("libc6: %+v", libc)
	}
	if mods := refs["deb/linux-image"].Components; mods == nil || (*mods)[0].Name != "ahci" {
		t.Errorf("kernel modules: %+v", mods)
	}
	for _, ref := range []string{"pkg:golang/example.org/new@v1.1.0", "pkg:golang/std@1.26.8"} {
		if _, ok := refs[ref]; !ok {
			t.Errorf("%s is missing", ref)
		}
	}
	for _, d := range *bom.Dependencies {
		for _, r := range *d.Dependencies {
			if _, ok := refs[r]; !ok {
				t.Errorf("%s depends on %s, which is no component", d.Ref, r)
			}
		}
	}
}

func TestDeterministic(t *testing.T) {
	in := input(t)
	a, err := Write(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Packages[0], in.Packages[1] = in.Packages[1], in.Packages[0]
	b, err := Write(in)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the order of the input shows in the output")
	}
	in.Version = "0.1.1"
	if c, _ := Write(in); bytes.Equal(b, c) {
		t.Error("another version gives the same document")
	}
}
