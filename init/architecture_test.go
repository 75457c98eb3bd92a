package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// allowed says which packages of this module each part of the house may
// import, by path prefix. A part not listed here is an error, so that a new
// top-level part has to be thought about.
var allowed = []struct {
	part string
	may  []string
	why  string
}{
	{"weft/boards", nil, "boards are data: the loader stands on nothing"},
	{"weft/image", []string{"weft/image", "weft/boards", "weft/init/uci"}, "the builder must not depend on the device or its services"},
	{"weft/test-vm", []string{"weft/test-vm", "weft/image", "weft/boards", "weft/init/uci"}, "the lab drives images from outside"},
	{"weft/services/healthgate", []string{"weft/init/uci", "weft/init/bus", "weft/init/unit", "weft/init/slot", "weft/services/internal"}, "the health gate decides about slots, and meets others on the bus"},
	{"weft/services", []string{"weft/init/uci", "weft/init/bus", "weft/init/unit", "weft/init/crypt", "weft/services/internal"}, "services meet on the bus or in UCI, never by import"},
	{"weft/init", []string{"weft/init", "weft/image/firmware"}, "the libraries below init never import a service"},
}

// TestImports holds the import table of the architecture against the code.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Doc,Name", "weft/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p struct {
			ImportPath, Name, Doc              string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment: say what it provides", p.ImportPath)
		}
		if p.ImportPath == "weft/init" || p.ImportPath == "weft/init/rescue/program" {
			continue // mains alone may name services
		}
		may, why, own := rule(p.ImportPath)
		if own == "" {
			t.Errorf("%s stands outside the house: see the table in this test", p.ImportPath)
			continue
		}
		imports := append(append(p.Imports, p.TestImports...), p.XTestImports...)
		for _, imp := range imports {
			if !strings.HasPrefix(imp, "weft/") || below(imp, own) || anyBelow(imp, may) {
				continue
			}
			t.Errorf("%s imports %s: %s", p.ImportPath, imp, why)
		}
	}
}

// rule returns what the package may import, why, and the folder it owns.
// A service owns its own folder alone.
func rule(path string) (may []string, why, own string) {
	for _, a := range allowed {
		if !below(path, a.part) {
			continue
		}
		own = a.part
		if a.part == "weft/services" {
			own = strings.Join(strings.SplitN(path, "/", 4)[:min(3, strings.Count(path, "/")+1)], "/")
		}
		return a.may, a.why, own
	}
	return nil, "", ""
}

func below(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

func anyBelow(path string, folders []string) bool {
	for _, f := range folders {
		if below(path, f) {
			return true
		}
	}
	return false
}
