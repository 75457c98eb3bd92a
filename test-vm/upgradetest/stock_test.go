package upgradetest

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"weft/test-vm/lab"
)

// makeStock makes an image of the shape that stock's have: a boot and a root partition and nothing else, no metadata. Its
// parts are ours, since there is no stock image here: what comes up is our system, where stock's would.
func makeStock(t *testing.T, b *bed) (name string) {
	t.Helper()
	parts, err := lab.Partitions(b.disk)
	if err != nil {
		t.Fatal(err)
	}
	if len(parts) < 2 || parts[1].Number != 2 {
		t.Fatalf("partitions of the image: %+v", parts)
	}
	in, err := os.Open(b.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	head := make([]byte, 512)
	if _, err := io.ReadFull(in, head); err != nil {
		t.Fatal(err)
	}
	clear(head[446+2*16 : 446+4*16])
	name = "stock.img.gz"
	out, err := os.Create(filepath.Join(b.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, err = z.Write(head)
	if err == nil {
		_, err = io.Copy(z, io.NewSectionReader(in, 512, parts[1].Start+parts[1].Length-512))
	}
	if err := errors.Join(err, z.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestToStock: an image of stock's shape is taken after a plain word about the end of the two slots, written where stock
// would write it, and finds the settings where stock looks for them.
func TestToStock(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.boot()
	v.settle("", "5", "900")
	url := v.bed.server + makeStock(t, v.bed)
	v.expect("sysupgrade -T "+url+" 2>&1", `(?i)(two slots|A/B|fall ?back)`)
	v.restart("sysupgrade "+url, upgradeBound)
	v.wait(bootBound, `^weft: restored the saved config \(\d+ files\)`)
	v.ready()
	v.expect("uci get system.@system[0].hostname", "^kept$")
}
