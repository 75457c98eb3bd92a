package files

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Gzip compresses files; under the names gunzip and zcat it decompresses them.
func Gzip(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "cdfktnqv123456789 stdout=c decompress=d force=f keep=k test=t fast=1 best=9", `[-cdfkt1..9] [FILE]...
  -c  to the output, files stay   -d  decompress   -k  files stay   -t  test   -f  overwrite
Example: gzip -9 < backup.tar > backup.tar.gz`)
	if code >= 0 {
		return code
	}
	name := filepath.Base(c.Args[0])
	unpack := o.Has('d') || o.Has('t') || name == "gunzip" || name == "zcat"
	toOut := o.Has('c') || name == "zcat" || o.Has('t')
	level := gzip.DefaultCompression
	for _, l := range o.Order {
		if l.Letter >= '1' && l.Letter <= '9' {
			level = int(l.Letter - '0')
		}
	}
	convert := func(w io.Writer, r io.Reader, name string, when time.Time) error {
		r = reader{ctx, r}
		if unpack {
			z, err := gzip.NewReader(bufio.NewReader(r))
			if err != nil {
				return err
			}
			if o.Has('t') {
				w = io.Discard
			}
			_, err = io.Copy(w, z)
			return err
		}
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return err
		}
		if !o.Has('n') {
			z.Name, z.ModTime = name, when
		}
		_, err = io.Copy(z, r)
		return errors.Join(err, z.Close())
	}
	if len(o.Args) == 0 {
		o.Args = []string{"-"}
	}
	code = 0
	for _, arg := range o.Args {
		if arg == "-" {
			if err := convert(c.Stdout, c.Stdin, "", time.Time{}); err != nil {
				code = failf(c, "input: %v", err)
			}
			continue
		}
		if err := gzipFile(c, c.Path(arg), unpack, toOut, o.Has('f'), o.Has('k'), convert); err != nil {
			code = failf(c, "%s: %v", arg, unwrap(err))
		}
	}
	return code
}

func gzipFile(c *unit.Call, path string, unpack, toOut, force, keepIt bool, convert func(io.Writer, io.Reader, string, time.Time) error) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if toOut {
		return convert(c.Stdout, in, filepath.Base(path), st.ModTime())
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a regular file; left as it is")
	}
	target := path + ".gz"
	if unpack {
		switch {
		case strings.HasSuffix(path, ".gz"):
			target = strings.TrimSuffix(path, ".gz")
		case strings.HasSuffix(path, ".tgz"):
			target = strings.TrimSuffix(path, ".tgz") + ".tar"
		default:
			return errors.New("the name does not end in .gz; -c writes to the output")
		}
	} else if strings.HasSuffix(path, ".gz") && !force {
		return errors.New("ends in .gz already")
	}
	if _, err := os.Lstat(target); err == nil && !force {
		return fmt.Errorf("%s is there already (-f overwrites it)", filepath.Base(target))
	}
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(convert(out, in, filepath.Base(path), st.ModTime()), out.Close())
	if err == nil {
		err = keep(target, st)
	}
	if err != nil {
		os.Remove(target)
		return err
	}
	if keepIt {
		return nil
	}
	return os.Remove(path)
}

// Mkdir makes folders.
func Mkdir(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "pm:v parents=p mode=m verbose=v", `[-pv] [-m MODE] FOLDER...
  -p  parents too, and no word if it is there   -m  permissions
Example: mkdir -p /tmp/run/mine`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	mode, err := ParseMode(o.Value('m', "777"), 0o777, 0, true)
	if err != nil {
		return o.Fail("-m: %v", err)
	}
	code = 0
	for _, name := range o.Args {
		path := c.Path(name)
		if st, serr := os.Stat(path); serr == nil && st.IsDir() && o.Has('p') {
			continue
		}
		if o.Has('p') {
			if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
				code = fail(c, err)
				continue
			}
		}
		err := os.Mkdir(path, os.FileMode(mode&0o777))
		if err == nil && o.Has('m') {
			err = wrapPath("chmod", path, unix.Chmod(path, mode)) // whatever the umask says
		}
		if err != nil {
			code = failf(c, "%s: %v", name, unwrap(err))
		} else if o.Has('v') {
			fmt.Fprintf(c.Stdout, "made '%s'\n", name)
		}
	}
	return code
}
