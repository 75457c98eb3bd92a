package mptcpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/services/mptcpproxy/internal/settings"
	"weft/services/mptcpproxy/internal/status"
)

// metricsServer serves Prometheus metrics where the configuration says.
type metricsServer struct {
	addr string
	srv  *http.Server
	work sync.WaitGroup
}

// follow makes the server listen where cfg asks for; it does nothing if it does
// already.
func (m *metricsServer) follow(s *service, cfg *settings.Config) {
	addr := ""
	if cfg != nil && cfg.Enabled {
		addr = cfg.Metrics
	}
	if addr == m.addr {
		return
	}
	m.stop()
	if addr == "" {
		return
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.env.Log.Error("metrics are not served", "address", addr, "error", err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(s.Report))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	m.addr, m.srv = addr, srv
	m.work.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.env.Log.Error("metrics are no longer served", "address", addr, "error", err)
		}
	})
}

// stop ends the server.
func (m *metricsServer) stop() {
	if m.srv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if m.srv.Shutdown(ctx) != nil {
		m.srv.Close()
	}
	m.work.Wait()
	m.addr, m.srv = "", nil
}

// metric is one exported figure; without the prefix mptcpproxy_.
type metric struct {
	name, help string
	counter    bool
	labels     []string
}

// metricTable lists what is exported; the README has it for people.
var metricTable = []metric{
	{"up", "1 while the proxy works.", false, nil},
	{"bypass", "1 while no peer is up and new flows are routed or rejected as option fail says.", false, nil},
	{"peer_up", "1 while the control connection with the peer stands.", false, []string{"peer", "side"}},
	{"peer_rtt_seconds", "Round trip of the last heartbeat.", false, []string{"peer", "side"}},
	{"peer_trunks", "Connections with the peer that stand.", false, []string{"peer", "side"}},
	{"peer_fallbacks_total", "Connections with the peer that came up as plain TCP.", true, []string{"peer", "side"}},
	{"path_up", "1 while the path is used.", false, []string{"path", "device"}},
	{"path_stripped", "1 while something on the path takes MPTCP out.", false, []string{"path", "device"}},
	{"path_rtt_seconds", "Smoothed round trip of the path.", false, []string{"path", "device"}},
	{"path_subflows", "MPTCP subflows on the path.", false, []string{"path", "device"}},
	{"path_sent_bytes_total", "Payload sent on the path's subflows, retransmissions included.", true, []string{"path", "device"}},
	{"path_received_bytes_total", "Payload received on the path's subflows.", true, []string{"path", "device"}},
	{"path_retransmitted_bytes_total", "Payload retransmitted on the path's subflows.", true, []string{"path", "device"}},
	{"path_joins_total", "Subflows that joined.", true, []string{"path", "device"}},
	{"path_failed_joins_total", "Subflows that did not come to be.", true, []string{"path", "device"}},
	{"path_quota_used_bytes", "Bytes used of the path's quota.", false, []string{"path", "device"}},
	{"flows", "TCP flows now.", false, nil},
	{"flows_parked", "TCP flows that are idle and use no trunk.", false, nil},
	{"flows_opened_total", "TCP flows established.", true, nil},
	{"flows_failed_total", "TCP flows that were refused or did not reach their sink.", true, nil},
	{"flows_reset_total", "TCP flows that ended by a reset.", true, nil},
	{"flows_limited_total", "TCP flows refused for the limits of their client.", true, nil},
	{"payload_to_peer_bytes_total", "Payload of TCP flows from hosts to peers.", true, nil},
	{"payload_from_peer_bytes_total", "Payload of TCP flows from peers to hosts.", true, nil},
	{"buffered_bytes", "Payload held back in this process.", false, nil},
	{"trunks", "Trunks between gateways.", false, nil},
	{"trunks_idle", "Trunks that carry no flow.", false, nil},
	{"trunk_reuses_total", "Flows that took a trunk which had carried another.", true, nil},
	{"udp_flows", "UDP flows now.", false, nil},
	{"udp_up_packets_total", "UDP packets from client to sink.", true, nil},
	{"udp_down_packets_total", "UDP packets from sink to client.", true, nil},
	{"udp_dropped_total", "Datagrams dropped at the entrance to keep the delay short.", true, nil},
	{"tunnel_sent_packets_total", "Packets of other protocols sent to peers.", true, nil},
	{"tunnel_received_packets_total", "Packets of other protocols received from peers.", true, nil},
	{"accept_connections_total", "Connections from other gateways.", true, nil},
	{"accept_refused_total", "Of them, those that held no key.", true, nil},
	{"heap_bytes", "Objects on the heap of this process.", false, nil},
}

// metricsHandler serves the report of the moment to a few scrapers at once.
func metricsHandler(report func() status.Report) http.Handler {
	slots := make(chan struct{}, 4)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			http.Error(w, "too many scrapes at once: try again later", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(appendMetrics(nil, report())) // a scraper that has gone needs nothing more
	})
}

// appendMetrics appends the report in Prometheus's text exposition format,
// version 0.0.4, sorted by name. The format is written here, since the client
// library costs every start of every program of the device binary a
// millisecond of package initialisation, ten times that under emulation.
func appendMetrics(b []byte, r status.Report) []byte {
	table := slices.SortedFunc(slices.Values(metricTable), func(a, c metric) int { return strings.Compare(a.name, c.name) })
	samples := make([][]byte, len(table))
	collect(r, func(name string, v float64, labels ...string) {
		i, ok := slices.BinarySearchFunc(table, name, func(m metric, name string) int { return strings.Compare(m.name, name) })
		if !ok {
			panic("BUG: metric " + name + " is not in the table")
		}
		samples[i] = appendSample(samples[i], table[i], v, labels)
	})
	for i, m := range table {
		if len(samples[i]) == 0 {
			continue
		}
		kind := "gauge"
		if m.counter {
			kind = "counter"
		}
		b = fmt.Appendf(b, "# HELP mptcpproxy_%s %s\n# TYPE mptcpproxy_%[1]s %[3]s\n", m.name, m.help, kind)
		b = append(b, samples[i]...)
	}
	return b
}

func appendSample(b []byte, m metric, v float64, values []string) []byte {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	b = append(append(b, "mptcpproxy_"...), m.name...)
	for i, value := range values {
		b = fmt.Appendf(b, `%c%s="%s"`, "{,"[min(i, 1)], m.labels[i], escape.Replace(value))
	}
	if len(values) > 0 {
		b = append(b, '}')
	}
	return append(strconv.AppendFloat(append(b, ' '), v, 'g', -1, 64), '\n')
}

// collect calls put for every figure of the report.
func collect(r status.Report, put func(name string, v float64, labels ...string)) {
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	put("up", is(r.State == "running"))
	put("bypass", is(r.Bypass))
	for _, p := range r.Peers {
		side := "far"
		if p.Near {
			side = "near"
		}
		put("peer_up", is(p.Up), p.Name, side)
		put("peer_rtt_seconds", p.RTT/1000, p.Name, side)
		put("peer_trunks", float64(p.Trunks), p.Name, side)
		put("peer_fallbacks_total", float64(p.Fallbacks), p.Name, side)
	}
	for _, p := range r.Paths {
		put("path_up", is(p.State == "up"), p.Name, p.Device)
		put("path_stripped", is(p.Stripped), p.Name, p.Device)
		put("path_rtt_seconds", p.RTT/1000, p.Name, p.Device)
		put("path_subflows", float64(p.Subflows), p.Name, p.Device)
		put("path_sent_bytes_total", float64(p.Sent), p.Name, p.Device)
		put("path_received_bytes_total", float64(p.Received), p.Name, p.Device)
		put("path_retransmitted_bytes_total", float64(p.Retrans), p.Name, p.Device)
		put("path_joins_total", float64(p.Joins), p.Name, p.Device)
		put("path_failed_joins_total", float64(p.Failed), p.Name, p.Device)
		put("path_quota_used_bytes", float64(p.Used), p.Name, p.Device)
	}
	put("flows", float64(r.Flows.Open))
	put("flows_parked", float64(r.Flows.Parked))
	put("flows_opened_total", float64(r.Flows.Opened))
	put("flows_failed_total", float64(r.Flows.Failed))
	put("flows_reset_total", float64(r.Flows.Reset))
	put("flows_limited_total", float64(r.Flows.Limited))
	put("payload_to_peer_bytes_total", float64(r.Traffic.ToPeer))
	put("payload_from_peer_bytes_total", float64(r.Traffic.FromPeer))
	put("buffered_bytes", float64(r.Traffic.Buffered))
	put("trunks", float64(r.Trunks.Open))
	put("trunks_idle", float64(r.Trunks.Idle))
	put("trunk_reuses_total", float64(r.Trunks.Reused))
	put("udp_flows", float64(r.UDP.Flows))
	put("udp_up_packets_total", float64(r.UDP.Up))
	put("udp_down_packets_total", float64(r.UDP.Down))
	put("udp_dropped_total", float64(r.UDP.Dropped))
	put("tunnel_sent_packets_total", float64(r.Tunnel.Sent))
	put("tunnel_received_packets_total", float64(r.Tunnel.Received))
	put("accept_connections_total", float64(r.Accept.Connections))
	put("accept_refused_total", float64(r.Accept.Refused))
	put("heap_bytes", float64(r.Memory.Heap))
}
