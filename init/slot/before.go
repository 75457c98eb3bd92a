package slot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"weft/init/overlay"
)

// Before is what the network was like before an upgrade: what the new system
// must be as good as.
type Before struct {
	Interfaces    []string `json:"interfaces"` // UCI names of uplinks that were up
	DefaultRoute4 bool     `json:"default_route4"`
	DefaultRoute6 bool     `json:"default_route6"`
}

// SaveBefore leaves b for the slot that is about to be tried, below data, where
// the data file system is mounted. Prepare comes first.
func SaveBefore(data string, id ID, b Before) error {
	fail := func(err error) error { return fmt.Errorf("keep what the network was like: %w", err) }
	text, err := json.Marshal(b)
	if err != nil {
		return fail(err)
	}
	path := filepath.Join(overlay.SlotDir(data, string(id)), overlay.Before)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fail(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fail(err)
	}
	return syncfs(filepath.Dir(path))
}

// LoadBefore reads what SaveBefore left; the error wraps fs.ErrNotExist if there
// is nothing.
func LoadBefore(data string, id ID) (Before, error) {
	text, err := os.ReadFile(filepath.Join(overlay.SlotDir(data, string(id)), overlay.Before))
	if err != nil {
		return Before{}, fmt.Errorf("read what the network was like: %w", err)
	}
	var b Before
	if err := json.Unmarshal(text, &b); err != nil {
		return Before{}, fmt.Errorf("read what the network was like: %w", err)
	}
	return b, nil
}
