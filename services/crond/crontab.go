package crond

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"weft/init/unit"
)

const crontabUsage = `Usage: crontab [-c DIR] [-u USER] [-l | -e | -r | FILE | -]

The commands that cron runs for a user.

  -l       list them
  -e       edit them, by $VISUAL, $EDITOR or vi
  -r       remove them
  FILE     replace them by a file; - by standard input
  -u USER  another user's (root alone)
  -c DIR   folder of the files (/etc/crontabs)

Example:
  echo '30 4 * * 1 /sbin/reboot' | crontab -
`

// Exit codes of Crontab.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Crontab is the command crontab. A file with a faulty line is not installed.
func Crontab(ctx context.Context, c *unit.Call) int {
	f := flag.NewFlagSet("crontab", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	dir := f.String("c", Dir, "")
	user := f.String("u", "", "")
	list, edit, remove := f.Bool("l", false, ""), f.Bool("e", false, ""), f.Bool("r", false, "")
	err := f.Parse(c.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(c.Stdout, crontabUsage)
		return 0
	}
	actions := f.NArg()
	for _, b := range []bool{*list, *edit, *remove} {
		if b {
			actions++
		}
	}
	if err == nil && actions != 1 {
		err = errors.New("expected one of -l, -e, -r, a file or -")
	}
	if err == nil && (strings.ContainsAny(*user, "/\x00") || strings.HasPrefix(*user, ".")) {
		err = fmt.Errorf("%q is no name of a user", *user)
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "crontab: %v\n%s", err, crontabUsage)
		return exitUsage
	}
	fail := func(err error) int {
		fmt.Fprintf(c.Stderr, "crontab: %v\n", err)
		return exitFailed
	}
	if *user == "" {
		if *user, err = ownName(); err != nil {
			return fail(err)
		}
	}
	path := filepath.Join(c.Path(*dir), *user)
	switch {
	case *list:
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fail(fmt.Errorf("no crontab of %s", *user))
		}
		if err != nil {
			return fail(err)
		}
		if _, err := c.Stdout.Write(text); err != nil {
			return fail(err)
		}
	case *remove:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(err)
		}
	case *edit:
		return editTable(ctx, c, *user, path)
	default:
		in := io.Reader(c.Stdin)
		if name := f.Arg(0); name != "-" {
			file, err := os.Open(c.Path(name))
			if err != nil {
				return fail(err)
			}
			defer file.Close()
			in = file
		}
		text, err := io.ReadAll(io.LimitReader(in, maxFile+1))
		if err == nil {
			err = install(*user, path, text)
		}
		if err != nil {
			return fail(err)
		}
	}
	return 0
}

// ownName is the name of the user who calls.
func ownName() (string, error) {
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return "", err
	}
	uid := strconv.Itoa(os.Getuid())
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == uid {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("user %s is not in /etc/passwd: name one by -u", uid)
}

// install puts a checked crontab in place as a whole.
func install(user, path string, text []byte) error {
	if len(text) > maxFile {
		return fmt.Errorf("larger than 1 MiB")
	}
	if n := len(text); n > 0 && text[n-1] != '\n' {
		text = append(text, '\n')
	}
	if _, errs := parseTable(user, string(text)); len(errs) > 0 {
		return fmt.Errorf("not installed: %w", errors.Join(errs...))
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".new-*") // 0600; names with a dot are no crontabs
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}

func editTable(ctx context.Context, c *unit.Call, user, path string) int {
	fail := func(err error) int {
		fmt.Fprintf(c.Stderr, "crontab: %v\n", err)
		return exitFailed
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	tmp, err := os.CreateTemp("", "crontab-*")
	if err != nil {
		return fail(err)
	}
	name := tmp.Name()
	_, err = tmp.Write(old)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(name)
		return fail(err)
	}
	editor := c.Getenv("VISUAL")
	if editor == "" {
		editor = c.Getenv("EDITOR")
	}
	if editor == "" {
		editor = "vi"
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", editor+` "$1"`, "sh", name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	if err := cmd.Run(); err != nil {
		os.Remove(name)
		return fail(fmt.Errorf("editor %s: %w: nothing was changed", editor, err))
	}
	text, err := os.ReadFile(name)
	if err == nil {
		err = install(user, path, text)
	}
	if err != nil {
		return fail(fmt.Errorf("%w; what was edited is in %s", err, name))
	}
	os.Remove(name)
	return 0
}
