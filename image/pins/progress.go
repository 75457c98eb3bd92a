package pins

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress shows downloads: bars on a terminal, else a line for each.
type progress struct {
	mu    sync.Mutex
	out   io.Writer
	bars  *mpb.Progress
	total *mpb.Bar
	count int
	bytes int64
	begin time.Time
}

// bar is one download's progress. Its methods may be called on nil.
type bar struct {
	p     *progress
	pkg   Package
	bar   *mpb.Bar
	at    int64
	begin time.Time
}

// newProgress shows the download of list on out, on nothing if out is nil.
func newProgress(out io.Writer, list []Package) *progress {
	p := &progress{out: out, begin: time.Now()}
	if out == nil {
		return p
	}
	var sum int64
	for _, pkg := range list {
		sum += pkg.Size
	}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("CI") == "" {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh())
		p.total = p.addBar(packages(len(list)), sum, mpb.BarPriority(1<<20))
		return p
	}
	return p
}

func (p *progress) addBar(name string, size int64, opts ...mpb.BarOption) *mpb.Bar {
	return p.bars.AddBar(size, append(opts,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(name, decor.WC{C: decor.DindentRight | decor.DextraSpace, W: 36})),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace), decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace)),
	)...)
}

func (p *progress) start(pkg Package) *bar {
	b := &bar{p: p, pkg: pkg, begin: time.Now()}
	if p.bars != nil {
		b.bar = p.addBar(pkg.Name, pkg.Size)
	}
	return b
}

// set tells how many bytes are there.
func (b *bar) set(n int64) {
	if b == nil {
		return
	}
	if b.bar != nil {
		b.bar.SetCurrent(n)
		b.p.total.IncrInt64(n - b.at)
	}
	b.at = n
}

// finish ends the bar.
func (b *bar) finish(err error) {
	if b == nil || b.p.out == nil {
		return
	}
	p := b.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.count++
		p.bytes += b.pkg.Size
	}
	switch {
	case b.bar != nil && err != nil:
		b.bar.Abort(true)
	case b.bar != nil:
		b.bar.SetTotal(b.pkg.Size, true)
	case err == nil && b.pkg.Size >= 1<<20: // the many small ones are in the sum
		fmt.Fprintf(p.out, "fetched %s, %s in %s\n", b.pkg, mebibytes(b.pkg.Size), seconds(time.Since(b.begin)))
	case errors.Is(err, ErrGone):
		fmt.Fprintf(p.out, "%s has left the mirrors\n", b.pkg)
	}
}

// wait ends the display.
func (p *progress) wait() {
	if p.bars != nil {
		p.total.Abort(true)
		p.bars.Wait()
	}
	if p.out != nil && p.count > 0 {
		d := time.Since(p.begin)
		fmt.Fprintf(p.out, "fetched %s, %s in %s\n", packages(p.count), mebibytes(p.bytes), seconds(d))
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func packages(n int) string {
	if n == 1 {
		return "1 package"
	}
	return fmt.Sprintf("%d packages", n)
}
