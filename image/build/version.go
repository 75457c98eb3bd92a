package build

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// fixedEpoch (2026-01-01) dates builds of a source tree without version control.
const fixedEpoch = 1767225600

// SourceVersion returns the time and revision that images carry: from the
// environment (SOURCE_DATE_EPOCH), the files version and version.date at the
// top of the tree as LEDE has them, or git's last commit.
func SourceVersion(source string) (epoch int64, revision string, err error) {
	epoch, revision = fixedEpoch, "unknown"
	gitEpoch, gitRevision := gitVersion(source)
	if gitRevision != "" {
		epoch, revision = gitEpoch, gitRevision
	}
	switch text, err := os.ReadFile(filepath.Join(source, "version")); {
	case err == nil:
		revision = strings.TrimSpace(string(text))
	case !errors.Is(err, fs.ErrNotExist):
		return 0, "", fmt.Errorf("read the source's version: %w", err)
	}
	from, text := "SOURCE_DATE_EPOCH", os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		from = filepath.Join(source, "version.date")
		data, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) {
			return epoch, revision, nil
		}
		if err != nil {
			return 0, "", fmt.Errorf("read the source's date: %w", err)
		}
		text = strings.TrimSpace(string(data))
	}
	epoch, err = strconv.ParseInt(text, 10, 64)
	// Squashfs and tar know 32 bits of seconds.
	if err != nil || epoch < 0 || epoch > 1<<32-1 {
		return 0, "", fmt.Errorf("%s=%q: want seconds since 1970, 0 to 4294967295", from, text)
	}
	return epoch, revision, nil
}

// gitVersion returns the last commit's time and LEDE's r<count>-<hash>; empty
// if the source is no git checkout or there is no git.
func gitVersion(source string) (epoch int64, revision string) {
	if _, err := os.Stat(filepath.Join(source, ".git")); err != nil {
		return 0, "" // a checkout above this folder is not this source's
	}
	out, err := git(source, "log", "-1", "--format=%ct %H")
	if err != nil {
		return 0, ""
	}
	when, hash, ok := strings.Cut(out, " ")
	if !ok || len(hash) < 10 {
		return 0, ""
	}
	if epoch, err = strconv.ParseInt(when, 10, 64); err != nil {
		return 0, ""
	}
	count, err := git(source, "rev-list", "--count", "HEAD")
	if err != nil {
		return 0, ""
	}
	return epoch, "r" + count + "-" + hash[:10]
}

func git(dir string, args ...string) (string, error) {
	// A tree may belong to another user than the builder's.
	cmd := exec.Command("git", append([]string{"-c", "safe.directory=*", "-c", "core.fsmonitor=false"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_DIR="+filepath.Join(dir, ".git"), "LC_ALL=C")
	out, err := cmd.Output()
	return string(bytes.TrimSpace(out)), err
}
