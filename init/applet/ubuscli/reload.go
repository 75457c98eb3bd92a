package ubuscli

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
)

// defaultHashes is where LEDE's reload_config keeps what it saw last.
const defaultHashes = "/var/run/config.md5"

const reloadUsage = `Usage: reload_config [-c <config dir>] [-s <socket>] [-f <hash file>]

Tells the services whose configuration has changed since the last run.
`

// ReloadConfig is LEDE's reload_config: it compares a hash of each package (as
// `uci show` prints it, staged changes included) with that of the last run and
// sends config.change through the service object for those that differ, came or
// went. The first run only takes the hashes. A package whose event could not be
// sent is reported, makes the exit code 1, and is sent again by the next run.
func ReloadConfig(ctx context.Context, c *unit.Call) int {
	f := flag.NewFlagSet(c.Args[0], flag.ContinueOnError)
	f.SetOutput(io.Discard)
	conf := f.String("c", uci.DefaultConfDir, "")
	socket := f.String("s", bus.DefaultSocket, "")
	hashes := f.String("f", defaultHashes, "")
	if err := f.Parse(c.Args[1:]); err != nil || f.NArg() > 0 {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(c.Stdout, reloadUsage)
			return 0
		}
		fmt.Fprint(c.Stderr, reloadUsage)
		return 2
	}
	r := reload{Call: c, tree: &uci.Tree{ConfDir: c.Path(*conf), NonStrict: true}, socket: c.Path(*socket), file: c.Path(*hashes)}
	if err := r.run(ctx); err != nil {
		fmt.Fprintf(c.Stderr, "reload_config: %v\n", err)
		return 1
	}
	return 0
}

type reload struct {
	*unit.Call
	tree   *uci.Tree
	socket string
	file   string
}

func (r *reload) run(ctx context.Context) error {
	names, err := r.tree.List()
	if err != nil {
		return err
	}
	old, err := readHashes(r.file)
	first := errors.Is(err, fs.ErrNotExist)
	if err != nil && !first {
		return err
	}
	now := map[string]string{}
	var faults []error
	for _, n := range names {
		h, err := r.hash(n)
		if err != nil {
			faults = append(faults, err)
		}
		now[n] = h
	}
	if !first {
		changed := []string{}
		for n, h := range now {
			if old[n] != h {
				changed = append(changed, n)
			}
		}
		for n := range old {
			if _, ok := now[n]; !ok {
				changed = append(changed, n)
			}
		}
		slices.Sort(changed)
		faults = append(faults, r.tell(ctx, changed, old, now))
	}
	faults = append(faults, writeHashes(r.file, now))
	return errors.Join(faults...)
}

// tell sends the events. For a package whose event fails the old hash stays.
func (r *reload) tell(ctx context.Context, changed []string, old, now map[string]string) error {
	if len(changed) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := bus.Dial(ctx, r.socket)
	if err == nil {
		defer client.Close()
	}
	var faults []error
	for _, n := range changed {
		cerr := err
		if cerr == nil {
			_, cerr = client.Call(ctx, "service", "event", bus.Table{
				{Name: "type", Value: "config.change"},
				{Name: "data", Value: bus.Table{{Name: "package", Value: n}}},
			})
		}
		if cerr == nil {
			continue
		}
		faults = append(faults, fmt.Errorf("tell the services of the change of %s: %w", n, cerr))
		if h, ok := old[n]; ok {
			now[n] = h
		} else {
			delete(now, n)
		}
	}
	return errors.Join(faults...)
}

// hash is the MD5 of the package in the form of `uci show`. A package with bad
// lines is hashed by what could be read, with an error; one that cannot be read
// at all by zeros.
func (r *reload) hash(name string) (string, error) {
	p, err := r.tree.Load(name)
	if p == nil {
		return strings.Repeat("0", 2*md5.Size), err
	}
	if err != nil {
		err = fmt.Errorf("configuration %s: %w", name, err)
	}
	h := md5.New()
	index := map[string]int{}
	for _, s := range p.Sections {
		ref := s.Name
		if s.Anonymous {
			ref = fmt.Sprintf("@%s[%d]", s.Type, index[s.Type])
		}
		index[s.Type]++
		fmt.Fprintf(h, "%s.%s=%s\n", name, ref, s.Type)
		for _, o := range s.Options {
			fmt.Fprintf(h, "%s.%s.%s=", name, ref, o.Name)
			for i, v := range o.Values {
				if i > 0 {
					io.WriteString(h, " ")
				}
				io.WriteString(h, uci.Quote(v))
			}
			io.WriteString(h, "\n")
		}
	}
	return hex.EncodeToString(h.Sum(nil)), err
}

// readHashes reads md5sum's format: hash, two blanks, path.
func readHashes(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the hashes of the last run: %w", err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		hash, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if ok && len(hash) == 2*md5.Size {
			m[filepath.Base(path)] = hash
		}
	}
	return m, nil
}

func writeHashes(file string, m map[string]string) error {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	var b bytes.Buffer
	for _, n := range names {
		fmt.Fprintf(&b, "%s  /var/run/config.check/%s\n", m[n], n)
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("keep the hashes of this run: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("keep the hashes of this run: %w", err)
	}
	return nil
}
