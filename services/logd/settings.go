package logd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"weft/init/uci"
)

// settings are the log_* options of the first system section.
type settings struct {
	ringKiB   int
	file      string // "" none
	fileKiB   int
	remote    string // host:port; "" none
	tcp       bool
	nul       bool // TCP lines end in NUL rather than newline
	prefix    string
	hostname  string
	consoleTo int // console log level; 0: leave it
}

const (
	defaultRingKiB = 128
	maxRingKiB     = 16 * 1024
)

// loadSettings reads the options. A faulty one is named in the error and keeps
// its default: a log with a typo in its configuration is better than none.
func loadSettings(dir string) (settings, error) {
	s := settings{ringKiB: defaultRingKiB, fileKiB: defaultRingKiB}
	pkg, err := (&uci.Tree{ConfDir: dir}).Load("system")
	if errors.Is(err, uci.ErrNotFound) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the log's settings: %w", err)
	}
	sec := pkg.Section("@system[0]")
	if sec == nil {
		return s, nil
	}
	var faults []error
	number := func(name string, def, least, most int) int {
		v, ok := sec.Get(name)
		if !ok || v == "" {
			return def
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			faults = append(faults, fmt.Errorf("system.@system[0].%s is %q: a number from %d to %d is expected; using %d", name, v, least, most, def))
			return def
		}
		return n
	}
	s.ringKiB = number("log_size", defaultRingKiB, 1, maxRingKiB)
	s.fileKiB = s.ringKiB
	if n := number("log_buffer_size", 0, 0, maxRingKiB); n > 0 {
		s.ringKiB = n // LEDE: then log_size is the file's
	}
	s.file = sec.String("log_file", "")
	s.consoleTo = number("conloglevel", 0, 0, 8)
	if ip := sec.String("log_ip", ""); ip != "" && sec.Bool("log_remote", true) {
		s.remote = net.JoinHostPort(ip, strconv.Itoa(number("log_port", 514, 1, 65535)))
	}
	switch p := sec.String("log_proto", "udp"); p {
	case "udp":
	case "tcp":
		s.tcp = true
	default:
		faults = append(faults, fmt.Errorf("system.@system[0].log_proto is %q: udp or tcp is expected; using udp", p))
	}
	s.nul = sec.Bool("log_trailer_null", false)
	s.prefix = printable(sec.String("log_prefix", ""))
	s.hostname = printable(sec.String("log_hostname", ""))
	if s.hostname == "" {
		s.hostname = sec.String("hostname", "")
	}
	if s.hostname == "" {
		s.hostname, _ = os.Hostname() // without any name the field stays empty
	}
	return s, errors.Join(faults...)
}
