// Package text has the applets that work on lines of text: grep, sed, sort, cut,
// tr, head, tail, wc and the like. Regular expressions are those of package
// posixre.
//
// Characters are UTF-8; sort and comparisons go by bytes, as in the C locale.
package text

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"weft/init/unit"
)

// fail reports an error under the applet's name and returns exit code 1.
func fail(c *unit.Call, err error) int {
	text := err.Error()
	var pe *fs.PathError
	if errors.As(err, &pe) && err == error(pe) {
		text = pe.Path + ": " + pe.Err.Error()
	}
	fmt.Fprintf(c.Stderr, "%s: %s\n", filepath.Base(c.Args[0]), text)
	return 1
}

func failf(c *unit.Call, format string, args ...any) int { return fail(c, fmt.Errorf(format, args...)) }

// open opens a file for reading, "-" being the applet's input.
func open(c *unit.Call, name string) (io.ReadCloser, error) {
	if name == "-" {
		if c.Stdin == nil {
			return nil, errors.New("there is no input")
		}
		return io.NopCloser(c.Stdin), nil
	}
	f, err := os.Open(c.Path(name))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err.(*fs.PathError).Err}
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		f.Close()
		return nil, fmt.Errorf("%s: is a directory", name)
	}
	return f, nil
}

// orInput is the list of files to read: the input if there are none.
func orInput(names []string) []string {
	if len(names) == 0 {
		return []string{"-"}
	}
	return names
}

// lineReader reads lines of any length.
type lineReader struct {
	ctx context.Context
	r   *bufio.Reader
	end byte
}

func newLineReader(ctx context.Context, r io.Reader) *lineReader {
	return &lineReader{ctx, bufio.NewReaderSize(r, 32*1024), '\n'}
}

// next returns a line without its newline; complete says that it had one. At the
// end it returns io.EOF.
func (l *lineReader) next() (line string, complete bool, err error) {
	if err := l.ctx.Err(); err != nil {
		return "", false, err
	}
	line, err = l.r.ReadString(l.end)
	if err == nil {
		return line[:len(line)-1], true, nil
	}
	if err == io.EOF && line != "" {
		return line, false, nil
	}
	return "", false, err
}

// eachLine calls f for every line of the files; f returns false to stop.
func eachLine(ctx context.Context, c *unit.Call, names []string, f func(line string) bool) (code int) {
	for _, name := range orInput(names) {
		in, err := open(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		lr := newLineReader(ctx, in)
		for {
			line, _, err := lr.next()
			if err != nil {
				if err != io.EOF {
					code = fail(c, err)
				}
				break
			}
			if !f(line) {
				in.Close()
				return code
			}
		}
		in.Close()
	}
	return code
}

// output buffers an applet's output. Its error, once there, stops the writers:
// nobody reads any more.
type output struct {
	*bufio.Writer
}

func newOutput(c *unit.Call) output { return output{bufio.NewWriterSize(c.Stdout, 16*1024)} }

// close flushes and turns a failure into the exit code.
func (o output) close(code int) int {
	if o.Flush() != nil {
		return max(code, 1)
	}
	return code
}

// broken says that the output is gone.
func (o output) broken() bool {
	_, err := o.Write(nil)
	return err != nil
}
