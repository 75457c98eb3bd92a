package mptcpcli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what the service answers to status (services/mptcpproxy README).
type report struct {
	State    string   `json:"state"`
	Reason   string   `json:"reason"`
	Uptime   int64    `json:"uptime"`
	Faults   []string `json:"faults"`
	Warnings []string `json:"warnings"`
	Fail     string   `json:"fail"`
	Syn      string   `json:"syn"`
	LAN      []string `json:"lan"`
	Bypass   bool     `json:"bypass"`

	Fallbacks uint64 `json:"fallbacks"`
	Flows     struct {
		Open, Parked                            int
		Opened, Failed, Reset, Refused, Limited uint64
	} `json:"flows"`
	Traffic struct {
		ToPeer       uint64 `json:"to_peer"`
		FromPeer     uint64 `json:"from_peer"`
		ToPeerRate   uint64 `json:"to_peer_rate"`
		FromPeerRate uint64 `json:"from_peer_rate"`
		Buffered     uint64 `json:"buffered"`
	} `json:"traffic"`
	Trunks struct {
		Open, Idle   int
		Lost, Reused uint64
	} `json:"trunks"`
	UDP struct {
		Flows, Up, Down, Dropped uint64
	} `json:"udp"`
	Tunnel struct {
		Device         string
		Sent, Received uint64
	} `json:"tunnel"`
	Memory struct {
		Heap uint64 `json:"heap"`
	} `json:"memory"`
	Peers []peer `json:"peers"`
	Paths []path `json:"paths"`
}

type peer struct {
	Name, Carrier, Node string
	Near, Up            bool
	Since               int64
	Addresses           []string
	RTT                 float64 `json:"rtt_ms"`
	Trunks, Idle        int
	Dialled, Failed     uint64
	Fallbacks           uint64
	LastError           string `json:"last_error"`
	Datagrams           []struct {
		Path  string
		Alive bool
		RTT   float64 `json:"rtt_ms"`
		Rate  uint64
		Loss  float64
	}
}

type path struct {
	Name, Device, Mode, State, Reason, Local4, Local6 string
	Stripped                                          bool
	RTT                                               float64 `json:"rtt_ms"`
	MinRTT                                            float64 `json:"min_rtt_ms"`
	Subflows                                          int
	Sent                                              uint64 `json:"sent_bytes"`
	Received                                          uint64 `json:"received_bytes"`
	Retrans                                           uint64 `json:"retrans_bytes"`
	SentRate                                          uint64 `json:"sent_rate"`
	RecvRate                                          uint64 `json:"received_rate"`
	Joins, Failed, Lost, Quota, Used                  uint64
	Bottlenecks                                       []struct {
		Peer, Remote, Congestion string
		Rate                     uint64
		Loss                     float64
	}
}

type flow struct {
	Peer, Src, Dst, State string
	Near                  bool
	Age                   int64
	ToPeer                uint64 `json:"to_peer"`
	FromPeer              uint64 `json:"from_peer"`
}

type event struct {
	Time   time.Time
	Event  string
	Name   string
	Device string
	Reason string
}

func (e event) line() string {
	s := e.Time.Format(time.DateTime) + " " + e.Event + " " + e.Name
	if e.Device != "" {
		s += " (" + e.Device + ")"
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// table prints rows in columns.
func table(w io.Writer, head string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, "|", "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

func (m *cli) status(ctx context.Context) error {
	var r report
	if print, err := m.show(ctx, "status", &r); !print {
		return err
	}
	w := m.Stdout
	fmt.Fprintf(w, "%s: %s\n", r.State, r.Reason)
	for _, f := range r.Faults {
		fmt.Fprintf(w, "fault: %s\n", f)
	}
	for _, f := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", f)
	}
	if r.State != "running" {
		return nil
	}
	if r.Bypass {
		what := "routed as if there were no proxy (fail open)"
		if r.Fail == "closed" {
			what = "rejected (fail closed)"
		}
		fmt.Fprintf(w, "no peer is up: new flows are %s\n", what)
	}
	if len(r.LAN) > 0 {
		fmt.Fprintf(w, "serves   %s, SYN %s, fail %s\n", strings.Join(r.LAN, " "), r.Syn, r.Fail)
	}
	fmt.Fprintf(w, "flows    %d open (%d idle without a trunk), %d opened, %d failed, %d reset, %d refused\n",
		r.Flows.Open, r.Flows.Parked, r.Flows.Opened, r.Flows.Failed, r.Flows.Reset, r.Flows.Refused+r.Flows.Limited)
	fmt.Fprintf(w, "rate     %s to peers, %s from peers; %s and %s in all\n",
		bits(r.Traffic.ToPeerRate), bits(r.Traffic.FromPeerRate), volume(r.Traffic.ToPeer), volume(r.Traffic.FromPeer))
	fmt.Fprintf(w, "trunks   %d open, %d idle, %d reused, %d lost, %d fell back to TCP\n", r.Trunks.Open, r.Trunks.Idle, r.Trunks.Reused, r.Trunks.Lost, r.Fallbacks)
	fmt.Fprintf(w, "udp      %d flows, %d packets up, %d down, %d dropped\n", r.UDP.Flows, r.UDP.Up, r.UDP.Down, r.UDP.Dropped)
	if r.Tunnel.Device != "" {
		fmt.Fprintf(w, "others   %d packets sent, %d received through %s\n", r.Tunnel.Sent, r.Tunnel.Received, r.Tunnel.Device)
	}
	fmt.Fprintf(w, "memory   %s, of it %s held back for slow readers\n\n", volume(r.Memory.Heap), volume(r.Traffic.Buffered))
	if err := peerTable(w, r.Peers); err != nil {
		return err
	}
	if len(r.Paths) > 0 {
		fmt.Fprintln(w)
		return pathTable(w, r.Paths)
	}
	return nil
}

func (m *cli) paths(ctx context.Context) error {
	var r report
	if print, err := m.show(ctx, "paths", &r); !print {
		return err
	}
	if len(r.Paths) == 0 {
		fmt.Fprintln(m.Stdout, "no paths: set option multipath on interfaces of /etc/config/network, or make sections of type path")
		return nil
	}
	if err := pathTable(m.Stdout, r.Paths); err != nil {
		return err
	}
	var rows [][]string
	for _, p := range r.Paths {
		for _, b := range p.Bottlenecks {
			rows = append(rows, []string{p.Name, b.Peer, b.Remote, bits(b.Rate), fmt.Sprintf("%.2f%%", b.Loss*100), b.Congestion})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(m.Stdout)
	return table(m.Stdout, "PATH|PEER|TO|BOTTLENECK|LOSS|CONGESTION", rows)
}

func pathTable(w io.Writer, list []path) error {
	var rows [][]string
	for _, p := range list {
		state := p.State
		if p.Stripped {
			state += ", MPTCP stripped"
		}
		quota := "-"
		if p.Quota > 0 {
			quota = volume(p.Used) + "/" + volume(p.Quota)
		}
		rows = append(rows, []string{
			p.Name, p.Device, p.Mode, state, fmt.Sprint(p.Subflows), millis(p.RTT) + "/" + millis(p.MinRTT),
			bits(p.SentRate), bits(p.RecvRate), volume(p.Sent), volume(p.Received), volume(p.Retrans), quota, p.Reason,
		})
	}
	return table(w, "PATH|DEVICE|MODE|STATE|SUBFLOWS|RTT/MIN ms|OUT|IN|SENT|RECEIVED|RESENT|QUOTA|", rows)
}

func (m *cli) peers(ctx context.Context) error {
	var r report
	if print, err := m.show(ctx, "peers", &r); !print {
		return err
	}
	if len(r.Peers) == 0 {
		fmt.Fprintln(m.Stdout, "no peers: make sections of type peer or accept in /etc/config/mptcpproxy")
		return nil
	}
	if err := peerTable(m.Stdout, r.Peers); err != nil {
		return err
	}
	var rows [][]string
	for _, p := range r.Peers {
		for _, d := range p.Datagrams {
			state := "silent"
			if d.Alive {
				state = "alive"
			}
			rows = append(rows, []string{p.Name, d.Path, state, millis(d.RTT), bits(d.Rate), fmt.Sprintf("%.2f%%", d.Loss*100)})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(m.Stdout)
	return table(m.Stdout, "PEER|DATAGRAM PATH|STATE|RTT ms|RATE|LOSS", rows)
}

func peerTable(w io.Writer, list []peer) error {
	var rows [][]string
	for _, p := range list {
		side, state := "dials us", "down"
		if p.Near {
			side = "dialled"
		}
		if p.Up {
			state = "up " + span(p.Since)
		}
		rows = append(rows, []string{
			p.Name, side, p.Carrier, state, p.Node, millis(p.RTT), fmt.Sprintf("%d/%d", p.Idle, p.Trunks),
			fmt.Sprintf("%d/%d", p.Failed, p.Dialled), fmt.Sprint(p.Fallbacks), strings.Join(p.Addresses, " "), p.LastError,
		})
	}
	return table(w, "PEER|SIDE|CARRIER|STATE|NODE|RTT ms|IDLE/TRUNKS|FAILED/DIALLED|TCP|ADDRESSES|", rows)
}

func (m *cli) flows(ctx context.Context, count int) error {
	raw, err := m.ask(ctx, "flows", map[string]int{"limit": max(1, min(count, 2000))})
	if err != nil {
		return err
	}
	if m.json {
		return m.raw(raw)
	}
	var list struct{ Flows []flow }
	if err := decode(raw, &list); err != nil {
		return err
	}
	var rows [][]string
	for _, f := range list.Flows[:min(len(list.Flows), count)] {
		arrow := "->"
		if !f.Near {
			arrow = "<-"
		}
		rows = append(rows, []string{f.Src, f.Dst, arrow + " " + f.Peer, f.State, span(f.Age), volume(f.ToPeer), volume(f.FromPeer)})
	}
	if err := table(m.Stdout, "CLIENT|SINK|PEER|STATE|AGE|TO PEER|FROM PEER", rows); err != nil {
		return err
	}
	if more := len(list.Flows) - len(rows); more > 0 {
		fmt.Fprintf(m.Stdout, "and %d more: mptcp flows -n %d\n", more, len(list.Flows))
	}
	return nil
}

// bits writes a rate with three digits or so.
func bits(n uint64) string { return scaled(float64(n), 1000, "bit/s") }

func volume(n uint64) string { return scaled(float64(n), 1000, "B") }

func scaled(v, step float64, unit string) string {
	for _, prefix := range []string{"", "k", "M", "G"} {
		if v < step {
			if prefix == "" {
				return fmt.Sprintf("%.0f %s", v, unit)
			}
			return fmt.Sprintf("%.3g %s%s", v, prefix, unit)
		}
		v /= step
	}
	return fmt.Sprintf("%.4g T%s", v, unit)
}

func millis(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3g", v)
}

func span(seconds int64) string {
	return (time.Duration(seconds) * time.Second).String()
}
