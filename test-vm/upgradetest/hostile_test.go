package upgradetest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/image/firmware"
)

// hostile images, each made from the good one.
func makeHostile(t *testing.T, b *bed) map[string]string {
	t.Helper()
	good, err := os.ReadFile(b.good)
	if err != nil {
		t.Fatal(err)
	}
	file, err := firmware.Scan(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Info()
	if err != nil {
		t.Fatal(err)
	}
	info.SupportedDevices = []string{"another-board"}
	meta, err := info.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var wrong bytes.Buffer
	w := firmware.NewWriter(&wrong)
	if _, err := w.Write(good[:file.ImageSize]); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(firmware.Metadata, meta); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0x10
	out := map[string]string{}
	for name, data := range map[string][]byte{
		"flipped": flipped, "truncated": good[:len(good)*2/3], "other-board": wrong.Bytes(), "text": []byte("this is no image\n"),
	} {
		file := "hostile-" + name + ".img.gz"
		if err := os.WriteFile(filepath.Join(b.dir, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
		out[name] = file
	}
	return out
}

// hostile has the running device refuse images, and looks whether that has changed what it boots.
func (v *vm) hostile() {
	v.t.Helper()
	before := fmt.Sprintf("%+v", v.status())
	for name, file := range makeHostile(v.t, v.bed) {
		r := v.try("sysupgrade " + v.bed.server + file)
		if r.Code == 0 || strings.TrimSpace(r.Output) == "" {
			v.t.Errorf("image %s: exit %d, said %q; a refusal with its reason is expected", name, r.Code, r.Output)
		}
		v.t.Logf("image %s: %s", name, r.Output)
	}
	if after := fmt.Sprintf("%+v", v.status()); after != before {
		v.t.Errorf("after images that were refused: %s\nbefore: %s", after, before)
	}
}
