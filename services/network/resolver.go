package network

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// nameservers is what one interface knows about DNS.
type nameservers struct {
	iface   string
	metric  int
	servers []netip.Addr
	search  []string
}

// resolverText is the resolver file in the form of netifd: the interfaces in
// the order of their DNS metric, then name.
func resolverText(all []nameservers) []byte {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b nameservers) int {
		return cmp.Or(cmp.Compare(a.metric, b.metric), cmp.Compare(a.iface, b.iface))
	})
	var b bytes.Buffer
	for _, n := range all {
		if len(n.servers) == 0 && len(n.search) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# Interface %s\n", n.iface)
		for _, s := range n.servers {
			fmt.Fprintf(&b, "nameserver %s\n", s)
		}
		for _, s := range n.search {
			fmt.Fprintf(&b, "search %s\n", s)
		}
	}
	return b.Bytes()
}

// writeResolver puts text into <dir>/resolv.conf.d/resolv.conf.auto, if it is
// not there already, and lets <dir>/resolv.conf point to it unless somebody
// (dnsmasq) has put something else there.
func writeResolver(dir string, text []byte) error {
	path := filepath.Join(dir, "resolv.conf.d", "resolv.conf.auto")
	if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, text) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write resolver file: %w", err)
		}
		if err := os.WriteFile(path+".tmp", text, 0o644); err != nil {
			return fmt.Errorf("write resolver file: %w", err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			return fmt.Errorf("write resolver file: %w", err)
		}
	}
	link := filepath.Join(dir, "resolv.conf")
	if err := os.Symlink(path, link); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link resolver file: %w", err)
	}
	return nil
}
