package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrNoImage is returned when the image asked for has not been built.
var ErrNoImage = errors.New("run make image first")

// Images are the files of one board in bin/targets, as its profiles.json lists them.
type Images struct {
	Dir     string
	Version string
	files   map[string]string // type -> name
}

// FindImages reads <binDir>/targets/<board>/<subtarget>/profiles.json. A board is named as the builder names it,
// "x86-64". An empty binDir is the folder bin of the checkout.
func FindImages(binDir, board string) (*Images, error) {
	if binDir == "" {
		root, err := Root()
		if err != nil {
			return nil, err
		}
		binDir = filepath.Join(root, "bin")
	}
	target, subtarget, ok := strings.Cut(board, "-")
	if !ok {
		return nil, fmt.Errorf("board %q is not of the form target-subtarget, as x86-64", board)
	}
	return ReadImages(filepath.Join(binDir, "targets", target, subtarget))
}

// ReadImages reads the profiles.json in dir. Source of its form: OpenWrt's scripts/json_overview_image_info.py.
func ReadImages(dir string) (*Images, error) {
	path := filepath.Join(dir, "profiles.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no image in %s: %w", dir, ErrNoImage)
	}
	if err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	var doc struct {
		Version  string `json:"version_number"`
		Profiles map[string]struct {
			Images []struct {
				Name string `json:"name"`
				Type string `json:"type"`
			} `json:"images"`
		} `json:"profiles"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(doc.Profiles) != 1 {
		return nil, fmt.Errorf("read %s: %d profiles, expected one", path, len(doc.Profiles))
	}
	im := &Images{Dir: dir, Version: doc.Version, files: map[string]string{}}
	for _, p := range doc.Profiles {
		for _, f := range p.Images {
			if f.Name != filepath.Base(f.Name) {
				return nil, fmt.Errorf("read %s: image name %q is not a file name", path, f.Name)
			}
			im.files[f.Type] = f.Name
		}
	}
	return im, nil
}

// Path is the image of a type: combined, combined-efi, kernel, initramfs or rootfs.
func (im *Images) Path(typ string) (string, error) {
	name, ok := im.files[typ]
	if !ok {
		return "", fmt.Errorf("%s lists no image of type %s: %w", filepath.Join(im.Dir, "profiles.json"), typ, ErrNoImage)
	}
	path := filepath.Join(im.Dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("image %s is listed but missing: %w (%w)", name, ErrNoImage, err)
	}
	return path, nil
}

// Root is the checkout that holds the working folder: the nearest one upwards with a go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod in %s or above it: run this from inside the checkout", dir)
		}
	}
}
