package handover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestWriteRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run/weft/stage1.json")
	h := &Handover{
		Failsafe: true, FailsafeReason: "kernel argument", Overlay: None, Root: "/dev/vda2",
		Marks:    []Mark{{"modules", 2310}},
		Messages: []Message{{Warn, "the data partition is full", 2400}},
	}
	if err := h.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("got %+v, %v; want %+v", got, err, h)
	}
	b, err := os.ReadFile(path)
	const want = `{"failsafe":true,"failsafe_reason":"kernel argument","overlay":"none","root":"/dev/vda2","data":"","marks":[{"name":"modules","ms":2310}],"messages":[{"level":"warn","text":"the data partition is full","ms":2400}]}` + "\n"
	if err != nil || string(b) != want {
		t.Errorf("file:\n%s, %v; want\n%s", b, err, want)
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte(`{"failsafe":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(bad); err == nil {
		t.Error("half a file was accepted")
	}
}
