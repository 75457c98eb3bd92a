package ruleset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// answerWithin bounds the wait for the kernel's answers to one batch.
const answerWithin = 30 * time.Second

// chunk is how many elements go into one message, whose lists end at 64 KiB.
const chunk = 500

// Kernel writes rulesets into the network namespace of the calling thread.
type Kernel struct {
	last map[string]*Set // what the sets of the last transaction were made of
}

func (k *Kernel) open() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
		// A batch goes out in one piece and each message is acknowledged: the
		// kernel's default buffers hold some hundred rules.
		if err := s.SetReadBuffer(8 << 20); err != nil {
			return err
		}
		if err := s.SetWriteBuffer(8 << 20); err != nil {
			return err
		}
		return s.SetDeadline(time.Now().Add(answerWithin))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables (is nf_tables there, with CAP_NET_ADMIN?): %w", err)
	}
	return c, nil
}

// state is what the kernel holds of a table.
type state struct {
	exists bool
	chains []*nftables.Chain
	sets   []*nftables.Set
	objs   []nftables.Obj
	flows  []*nftables.Flowtable
}

func read(c *nftables.Conn, t *nftables.Table) (*state, error) {
	tables, err := c.ListTablesOfFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables (is nf_tables there, with CAP_NET_ADMIN?): %w", err)
	}
	s := &state{exists: slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == t.Name && x.Family == t.Family })}
	if !s.exists {
		return s, nil
	}
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == t.Name {
			s.chains = append(s.chains, ch)
		}
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("list nftables sets: %w", err)
	}
	for _, x := range sets {
		if !x.Anonymous {
			s.sets = append(s.sets, x)
		}
	}
	if s.objs, err = c.GetNamedObjects(t); err != nil {
		return nil, fmt.Errorf("list nftables objects: %w", err)
	}
	if s.flows, err = c.ListFlowtables(t); err != nil {
		return nil, fmt.Errorf("list nftables flowtables: %w", err)
	}
	return s, nil
}

// Exists tells whether the kernel has the table.
func (k *Kernel) Exists(table string) (bool, error) {
	c, err := k.open()
	if err != nil {
		return false, err
	}
	defer c.CloseLasting()
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == table && x.Family == nftables.TableFamilyINet }), nil
}

// Remove takes the table away, if it is there.
func (k *Kernel) Remove(table string) error {
	k.last = nil
	there, err := k.Exists(table)
	if err != nil || !there {
		return err
	}
	c, err := k.open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	c.DelTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table inet %s: %w", table, err)
	}
	return nil
}

// Replace makes the table what r says, in one transaction: packets meet either
// all of the old rules or all of the new ones. Connection tracking is not
// touched. Named sets that keep their type keep the elements that others have
// put into them, and an unchanged flowtable its flows. If the kernel refuses,
// the table is as it was.
func (k *Kernel) Replace(r *Ruleset) error {
	c, err := k.open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	t := &nftables.Table{Name: r.Table, Family: nftables.TableFamilyINet}
	old, err := read(c, t)
	if err != nil {
		return err
	}
	if err := k.fill(c, t, r, old); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("load nftables table inet %s: %w", r.Table, err)
	}
	k.last = map[string]*Set{}
	for _, s := range r.Sets {
		k.last[s.Name] = s
	}
	return nil
}

// Try asks the kernel whether it takes the ruleset, in a table of its own that no
// packet meets.
func (k *Kernel) Try(r *Ruleset) error {
	c, err := k.open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	t := &nftables.Table{Name: r.Table + "_try", Family: nftables.TableFamilyINet, Flags: unix.NFT_TABLE_F_DORMANT}
	if err := (&Kernel{}).fill(c, t, r, &state{}); err != nil {
		return err
	}
	c.DelTable(t)
	return c.Flush()
}

func (k *Kernel) fill(c *nftables.Conn, t *nftables.Table, r *Ruleset, old *state) error {
	c.AddTable(t)
	for _, ch := range old.chains {
		c.FlushChain(&nftables.Chain{Table: t, Name: ch.Name})
	}
	for _, ch := range old.chains {
		if n := r.Chain(ch.Name); n == nil || !sameHook(n, ch) {
			c.DelChain(&nftables.Chain{Table: t, Name: ch.Name})
		}
	}
	keepFlows := false
	for _, f := range old.flows {
		if n := r.Flowtable; n != nil && n.Name == f.Name && slices.Equal(sorted(n.Devices), sorted(f.Devices)) && n.Hardware == (f.Flags&nftables.FlowtableFlagsHWOffload != 0) {
			keepFlows = true
			continue
		}
		f.Table = t
		c.DelFlowtable(f)
	}
	if f := r.Flowtable; f != nil && !keepFlows {
		flags := nftables.FlowtableFlags(0)
		if f.Hardware {
			flags = nftables.FlowtableFlagsHWOffload
		}
		c.AddFlowtable(&nftables.Flowtable{Table: t, Name: f.Name, Devices: f.Devices, Flags: flags})
	}
	keep := map[string]bool{}
	for _, o := range old.objs {
		if n, ok := o.(*nftables.NamedObj); ok {
			if h, ok := n.Obj.(*expr.CtHelper); ok && slices.ContainsFunc(r.Helpers, func(x Helper) bool { return x.Name == n.Name && x.Name == h.Name && x.Proto == h.L4Proto }) {
				keep[n.Name] = true
				continue
			}
			n.Table = t
		}
		c.DeleteObject(o)
	}
	for _, h := range r.Helpers {
		if !keep[h.Name] {
			c.AddObj(&nftables.NamedObj{Table: t, Name: h.Name, Type: nftables.ObjTypeCtHelper,
				Obj: &expr.CtHelper{Name: h.Name, L3Proto: unix.NFPROTO_INET, L4Proto: h.Proto}})
		}
	}
	if err := k.sets(c, t, r, old); err != nil {
		return err
	}
	for _, ch := range r.Chains {
		c.AddChain(chainOf(ch, t))
	}
	for _, ch := range r.Chains {
		for _, rule := range ch.Rules {
			e := &emitter{c: c, t: t}
			for _, term := range rule.Terms {
				term.exprs(e)
			}
			if e.err != nil {
				return fmt.Errorf("chain %s, rule %q: %w", ch.Name, rule.text(r.Zone), e.err)
			}
			n := &nftables.Rule{Table: t, Chain: &nftables.Chain{Name: ch.Name, Table: t}, Exprs: e.out}
			if rule.Comment != "" {
				n.UserData = userdata.AppendString(nil, userdata.TypeComment, comment(rule.Comment))
			}
			c.AddRule(n)
		}
	}
	return nil
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

var hooks = [...]struct {
	name string
	hook *nftables.ChainHook
}{
	{"prerouting", nftables.ChainHookPrerouting}, {"input", nftables.ChainHookInput}, {"forward", nftables.ChainHookForward},
	{"output", nftables.ChainHookOutput}, {"postrouting", nftables.ChainHookPostrouting},
}

var priorities = [...]struct {
	name     string
	priority *nftables.ChainPriority
}{
	{"raw", nftables.ChainPriorityRaw}, {"mangle", nftables.ChainPriorityMangle}, {"dstnat", nftables.ChainPriorityNATDest},
	{"filter", nftables.ChainPriorityFilter}, {"srcnat", nftables.ChainPriorityNATSource},
}

func chainOf(ch *Chain, t *nftables.Table) *nftables.Chain {
	n := &nftables.Chain{Table: t, Name: ch.Name}
	if ch.Hook == "" {
		return n
	}
	n.Type = nftables.ChainType(ch.Type)
	for _, h := range hooks {
		if h.name == ch.Hook {
			n.Hooknum = h.hook
		}
	}
	for _, p := range priorities {
		if p.name == ch.Priority {
			n.Priority = p.priority
		}
	}
	policy := nftables.ChainPolicyAccept
	if ch.Policy == "drop" {
		policy = nftables.ChainPolicyDrop
	}
	n.Policy = &policy
	return n
}

func sameHook(n *Chain, old *nftables.Chain) bool {
	want := chainOf(n, old.Table)
	if want.Hooknum == nil || old.Hooknum == nil {
		return (want.Hooknum == nil) == (old.Hooknum == nil)
	}
	return want.Type == old.Type && *want.Hooknum == *old.Hooknum && old.Priority != nil && *want.Priority == *old.Priority
}

func (s *Set) kernel(t *nftables.Table) (*nftables.Set, error) {
	n := &nftables.Set{
		Table: t, Name: s.Name, Interval: s.Interval, AutoMerge: s.Interval, Size: s.Size, Counter: s.Counter,
		Timeout: s.Timeout, HasTimeout: s.Timeout > 0 || s.Expires, Comment: comment(s.Comment), KeyByteOrder: binaryutil.BigEndian,
	}
	var types []nftables.SetDatatype
	for _, f := range s.Fields {
		switch f {
		case SrcPort, DestPort:
			types = append(types, nftables.TypeInetService)
		case SrcMAC:
			types = append(types, nftables.TypeEtherAddr)
		default:
			types = append(types, s.Family.addrType())
		}
	}
	if len(types) == 1 {
		n.KeyType = types[0]
		return n, nil
	}
	var err error
	n.Concatenation = true
	n.KeyType, err = nftables.ConcatSetType(types...)
	return n, err
}

func (s *Set) elements() []nftables.SetElement {
	list := s.merged()
	if s.Interval && len(s.Fields) == 1 {
		size := map[Field]int{SrcPort: 2, DestPort: 2, SrcMAC: 6}[s.Fields[0]]
		var ranges [][2][]byte
		for _, e := range list {
			n := len(e.key)
			if size > 0 {
				n = size
			}
			ranges = append(ranges, [2][]byte{e.key[:n], e.end[:n]})
		}
		return intervals(ranges)
	}
	var out []nftables.SetElement
	for _, e := range list {
		x := nftables.SetElement{Key: e.key}
		if len(s.Fields) == 1 && (s.Fields[0] == SrcPort || s.Fields[0] == DestPort) {
			x.Key = e.key[:2]
		} else if len(s.Fields) == 1 && s.Fields[0] == SrcMAC {
			x.Key = e.key[:6]
		}
		if s.Interval {
			x.KeyEnd = e.end
		}
		out = append(out, x)
	}
	return out
}

// sets makes the named sets. One that is there with the same type stays.
func (k *Kernel) sets(c *nftables.Conn, t *nftables.Table, r *Ruleset, old *state) error {
	kept := map[string]bool{}
	for _, o := range old.sets {
		i := slices.IndexFunc(r.Sets, func(s *Set) bool { return s.Name == o.Name })
		if i >= 0 {
			s := r.Sets[i]
			last := k.last[s.Name]
			n, err := s.kernel(t)
			same := err == nil && n.KeyType.Name == o.KeyType.Name && n.Interval == o.Interval && n.HasTimeout == o.HasTimeout && n.Timeout == o.Timeout
			if same && last != nil {
				same = last.spec() == s.spec()
			}
			// Ranges cannot be exchanged one by one: a new one may overlap what
			// somebody else has put in.
			if same && (!s.Interval || last != nil && sameElements(last, s)) {
				kept[s.Name] = true
				if err := k.adjust(c, o, n, last, s); err != nil {
					return err
				}
				continue
			}
		}
		c.DelSet(&nftables.Set{Table: t, Name: o.Name})
	}
	for _, s := range r.Sets {
		if kept[s.Name] {
			continue
		}
		n, err := s.kernel(t)
		if err == nil {
			err = c.AddSet(n, nil)
		}
		if err == nil {
			err = addElements(c, n, s.elements())
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	return nil
}

func sameElements(a, b *Set) bool {
	return slices.EqualFunc(a.merged(), b.merged(), func(x, y Element) bool { return bytes.Equal(x.key, y.key) && bytes.Equal(x.end, y.end) })
}

// adjust adds the elements of the configuration to a set that stays, and takes
// those away that the configuration had before.
func (k *Kernel) adjust(c *nftables.Conn, o, n *nftables.Set, last, s *Set) error {
	if s.Interval {
		return nil // unchanged
	}
	add := s.elements()
	if last != nil {
		gone := slices.DeleteFunc(last.elements(), func(x nftables.SetElement) bool {
			return slices.ContainsFunc(add, func(y nftables.SetElement) bool { return bytes.Equal(x.Key, y.Key) })
		})
		if len(gone) > 0 {
			there, err := c.GetSetElements(o)
			if err != nil {
				return fmt.Errorf("read set %s: %w", s.Name, err)
			}
			gone = slices.DeleteFunc(gone, func(x nftables.SetElement) bool {
				return !slices.ContainsFunc(there, func(y nftables.SetElement) bool { return bytes.Equal(x.Key, y.Key) })
			})
		}
		for g := range slices.Chunk(gone, chunk) {
			if err := c.SetDeleteElements(n, g); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	if err := addElements(c, n, add); err != nil {
		return fmt.Errorf("set %s: %w", s.Name, err)
	}
	return nil
}

func addElements(c *nftables.Conn, s *nftables.Set, elems []nftables.SetElement) error {
	for part := range slices.Chunk(elems, chunk) {
		if err := c.SetAddElements(s, part); err != nil {
			return err
		}
	}
	return nil
}

// LoadText lets the program nft load text, which is one transaction as well.
func LoadText(ctx context.Context, nft, text string) error {
	cmd := exec.CommandContext(ctx, nft, "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		msg := strings.TrimSpace(string(out))
		if len(msg) > 1000 {
			msg = msg[:1000] + " …"
		}
		return fmt.Errorf("%s: %w: %s", nft, err, msg)
	}
	return nil
}
