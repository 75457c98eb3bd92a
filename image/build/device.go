package build

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Names of the device program, of the part of it that the initramfs needs (build
// tag initramfs), and of the rescue system's program, in the outputs of their steps.
const (
	deviceName = "weft"
	stage1Name = "weft-initramfs"
	rescueName = "weft-rescue"
)

// deviceFlags are the compiler's: no path, no version control, no build id, so
// that the bytes depend on the source alone. The twin with symbols serves the
// size report.
func deviceFlags(symbols bool) []string {
	ld := "-s -w -buildid="
	if symbols {
		ld = "-buildid="
	}
	return []string{"-trimpath", "-ldflags", ld}
}

// goDeps is what is known of the packages that the device program consists of.
type goDeps struct {
	Sum    string   `json:"sum"`   // of all inputs when it was taken
	Dirs   []string `json:"dirs"`  // of packages of this module, relative to the source
	Embeds []string `json:"embed"` // folders of embedded files
}

// deviceInputs lists the device program's inputs: every Go file of the
// packages it consists of, what they embed, go.mod and the compiler. Which
// packages these are is asked of the go command only when one of their files
// has changed: no new import can come in otherwise.
func (b *Builder) deviceInputs(symbols bool) (map[string]string, error) {
	return b.goProgram(program, "godeps.json", symbols)
}

// rescueProgramInputs lists the same of the rescue system's program, whose steps
// are not repeated for every change of the device program.
func (b *Builder) rescueProgramInputs() (map[string]string, error) {
	return b.goProgram(rescueProgram, "godeps-rescue.json", false)
}

func (b *Builder) goProgram(source, name string, symbols bool) (map[string]string, error) {
	if b.cfg.Program != "" {
		h, err := b.stat.hash(b.cfg.Program)
		return map[string]string{"given program": h, "symbols": fmt.Sprint(symbols)}, err
	}
	record := filepath.Join(b.scope, name)
	var deps goDeps
	if err := readJSON(record, &deps); err == nil {
		inputs, err := b.goInputs(deps, symbols)
		if err == nil && keyOf("", withoutFlags(inputs)) == deps.Sum {
			return inputs, nil
		}
	}
	deps, err := b.listGo(source)
	if err != nil {
		return nil, err
	}
	inputs, err := b.goInputs(deps, symbols)
	if err != nil {
		return nil, err
	}
	deps.Sum = keyOf("", withoutFlags(inputs))
	if b.cfg.DryRun {
		return inputs, nil
	}
	return inputs, writeJSON(record, deps)
}

// withoutFlags leaves out what differs between the program and its twin.
func withoutFlags(inputs map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range inputs {
		if k != "compiler flags" {
			out[k] = v
		}
	}
	return out
}

func (b *Builder) goInputs(deps goDeps, symbols bool) (map[string]string, error) {
	inputs := map[string]string{"go": goVersion, "compiler flags": strings.Join(deviceFlags(symbols), " ")}
	for k, v := range b.board.Arch.Go {
		inputs["board "+k] = v
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		h, err := b.stat.hash(filepath.Join(b.cfg.Source, f))
		if err != nil {
			return nil, err
		}
		inputs[f] = h
	}
	for _, d := range deps.Dirs {
		entries, err := os.ReadDir(filepath.Join(b.cfg.Source, d))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := e.Name()
			switch {
			case e.IsDir() || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_"):
				continue
			case strings.HasSuffix(name, ".go"), strings.HasSuffix(name, ".s"), strings.HasSuffix(name, ".h"), strings.HasSuffix(name, ".syso"):
			default:
				continue
			}
			p := filepath.Join(d, name)
			h, err := b.stat.hash(filepath.Join(b.cfg.Source, p))
			if err != nil {
				return nil, err
			}
			inputs[p] = h
		}
	}
	for _, d := range deps.Embeds {
		if err := b.stat.tree(inputs, filepath.Join(b.cfg.Source, d), d, false); err != nil {
			return nil, err
		}
	}
	return inputs, nil
}

// listGo asks the go command what a program consists of.
func (b *Builder) listGo(source string) (goDeps, error) {
	const format = `{{if and (not .Standard) .Module}}{{if .Module.Main}}{{.Dir}}{{range .EmbedFiles}}` + "\t" + `{{.}}{{end}}` + "\n" + `{{end}}{{end}}`
	out, err := b.goCommand(context.Background(), "list", "-deps", "-f", format, source) // stage 1 has nothing of its own
	if err != nil {
		return goDeps{}, err
	}
	var deps goDeps
	for line := range strings.Lines(out) {
		words := strings.Split(strings.TrimSpace(line), "\t")
		if words[0] == "" {
			continue
		}
		dir, err := filepath.Rel(b.cfg.Source, words[0])
		if err != nil {
			return goDeps{}, err
		}
		deps.Dirs = append(deps.Dirs, dir)
		for _, e := range words[1:] {
			// A file embedded from the package's own folder counts by itself,
			// others by their topmost folder: new ones may match the pattern.
			top, _, below := strings.Cut(filepath.ToSlash(e), "/")
			if below || !strings.HasSuffix(e, ".go") {
				deps.Embeds = append(deps.Embeds, filepath.Join(dir, top))
			}
		}
	}
	slices.Sort(deps.Dirs)
	slices.Sort(deps.Embeds)
	deps.Embeds = slices.Compact(deps.Embeds)
	return deps, nil
}

// goCommand runs the go command for the board's processor.
func (b *Builder) goCommand(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.cfg.Source
	for _, v := range os.Environ() {
		if k, _, _ := strings.Cut(v, "="); !slices.Contains(goSettings, k) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	// Settings that shape the program are fixed here; where modules come from
	// and where the compiler's cache lies is the user's.
	cmd.Env = append(cmd.Env, "GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off", "GOEXPERIMENT=", "GODEBUG=", "GOFIPS140=off", "LC_ALL=C")
	for _, k := range sortedKeys(b.board.Arch.Go) {
		cmd.Env = append(cmd.Env, k+"="+b.board.Arch.Go[k])
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("go %s: %w: the builder needs Go in the PATH", args[0], err)
		}
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// goSettings are the environment variables of the go command that goCommand
// does not pass on.
var goSettings = []string{"GOOS", "GOARCH", "GOAMD64", "GO386", "GOARM", "GOARM64", "GOMIPS", "GOMIPS64", "GOPPC64", "GORISCV64", "GOFLAGS", "GOWORK", "GOEXPERIMENT", "GODEBUG", "GOFIPS140", "CGO_ENABLED", "LC_ALL"}

// deviceProgram builds the device program into out.
func (b *Builder) deviceProgram(ctx context.Context, out string, symbols bool) error {
	file := filepath.Join(out, deviceName)
	if b.cfg.Program != "" {
		return errors.Join(copyFile(b.cfg.Program, file), copyFile(b.cfg.Program, filepath.Join(out, stage1Name)))
	}
	for name, tags := range map[string]string{deviceName: "", stage1Name: "initramfs"} {
		args := append([]string{"build", "-tags", tags, "-o", filepath.Join(out, name)}, deviceFlags(symbols)...)
		if _, err := b.goCommand(ctx, append(args, program)...); err != nil {
			return err
		}
	}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return fmt.Errorf("look at the device program: %w", err)
	}
	if info.GoVersion != goVersion {
		return fmt.Errorf("the device program was built by %s and the builder by %s: put one Go in the PATH", info.GoVersion, goVersion)
	}
	return nil
}

// runRescueProgram builds the rescue system's program into out.
func (b *Builder) runRescueProgram(ctx context.Context, out string) error {
	file := filepath.Join(out, rescueName)
	if b.cfg.Program != "" {
		return copyFile(b.cfg.Program, file)
	}
	_, err := b.goCommand(ctx, append(append([]string{"build", "-o", file}, deviceFlags(false)...), rescueProgram)...)
	return err
}
