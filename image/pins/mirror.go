package pins

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The archives that Debian's suites come from.
const (
	mainArchive     = "debian"
	securityArchive = "debian-security"
	snapshotArchive = "snapshot" // every version that ever was
)

// archiveOf names the archive that a suite lies in.
func archiveOf(suite string) string {
	if strings.HasSuffix(suite, "-security") {
		return securityArchive
	}
	return mainArchive
}

// Debian's public addresses, tried after the environment's and the machine's.
var publicMirrors = map[string][]string{
	mainArchive:     {"https://deb.debian.org/debian", "http://ftp.debian.org/debian"},
	securityArchive: {"https://deb.debian.org/debian-security", "http://security.debian.org/debian-security"},
}

// snapshotMirror is where Debian keeps all versions: below it archive, time and
// path (snapshot.debian.org).
const snapshotMirror = "https://snapshot.debian.org/archive"

// machineMirrors lists the base addresses for each archive in the order in
// which they are tried: WEFT_MIRROR (one or more Debian archives, blanks
// between; the security archive is looked for beside each), the machine's apt
// configuration, Debian's public ones.
func machineMirrors() map[string][]string {
	out := map[string][]string{}
	add := func(archive, base string) {
		base = strings.TrimRight(base, "/")
		if !slices.Contains(out[archive], base) {
			out[archive] = append(out[archive], base)
		}
	}
	for _, base := range strings.Fields(os.Getenv("WEFT_MIRROR")) {
		add(mainArchive, base)
		add(securityArchive, strings.TrimRight(base, "/")+"-security")
	}
	for _, src := range aptSources("/etc/apt") {
		add(src.archive, src.base)
	}
	for _, archive := range []string{mainArchive, securityArchive} {
		for _, base := range publicMirrors[archive] {
			add(archive, base)
		}
	}
	out[snapshotArchive] = []string{snapshotMirror}
	return out
}

// mirrorURL tells whether a base address is one that we can fetch from.
func mirrorURL(base string) (*url.URL, bool) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, false
	}
	switch u.Scheme {
	case "http", "https":
		return u, u.Host != ""
	case "file":
		return u, u.Path != ""
	}
	return nil, false
}

// aptSource is one archive that apt is told to use.
type aptSource struct{ archive, base string }

// aptSources reads what apt under dir (/etc/apt) is told to use, as far as it
// is a Debian archive: sources.list, sources.list.d/*.list and *.sources. What
// cannot be read is left out: there are always the public mirrors.
func aptSources(dir string) []aptSource {
	var out []aptSource
	lists, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.list"))
	for _, name := range append([]string{filepath.Join(dir, "sources.list")}, lists...) {
		withFile(name, func(r io.Reader) { out = append(out, parseSourcesList(r)...) })
	}
	deb822, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.sources"))
	for _, name := range deb822 {
		withFile(name, func(r io.Reader) { out = append(out, parseSources822(r)...) })
	}
	return out
}

// maxConfig bounds how much of a file of the machine's apt configuration is
// read, in bytes.
const maxConfig = 1 << 20

func withFile(name string, f func(io.Reader)) {
	file, err := os.Open(name)
	if err != nil {
		return
	}
	defer file.Close()
	f(io.LimitReader(file, maxConfig))
}

// parseSourcesList reads the one-line form (sources.list(5)):
// deb [options] uri suite component…
func parseSourcesList(r io.Reader) []aptSource {
	var out []aptSource
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if kind != "deb" {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, after, ok := strings.Cut(rest, "]")
			if !ok {
				continue
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		out = appendSource(out, f[0], f[1:2], f[2:])
	}
	return out
}

// parseSources822 reads the deb822 form (sources.list(5)).
func parseSources822(r io.Reader) []aptSource {
	var out []aptSource
	for p, err := range paragraphs(r, nil) {
		if err != nil {
			break
		}
		if !slices.Contains(strings.Fields(p["types"]), "deb") || strings.EqualFold(p["enabled"], "no") {
			continue
		}
		for _, uri := range strings.Fields(p["uris"]) {
			out = appendSource(out, uri, strings.Fields(p["suites"]), strings.Fields(p["components"]))
		}
	}
	return out
}

// appendSource adds the archive at uri if it is one of Debian's.
func appendSource(out []aptSource, uri string, suites, components []string) []aptSource {
	u, ok := mirrorURL(uri)
	if !ok || !slices.Contains(components, "main") {
		return out
	}
	if !strings.Contains(strings.ToLower(u.Host+u.Path), "debian") {
		return out
	}
	for _, suite := range suites {
		code, security := suite, false
		for _, suffix := range []string{"-updates", "-backports", "-proposed-updates", "-security", "/updates"} {
			if base, ok := strings.CutSuffix(code, suffix); ok {
				code, security = base, suffix == "-security" || suffix == "/updates"
				break
			}
		}
		if !debianSuite(code) {
			continue
		}
		src := aptSource{mainArchive, strings.TrimRight(uri, "/")}
		if security {
			src.archive = securityArchive
		}
		if !slices.Contains(out, src) {
			out = append(out, src)
		}
	}
	return out
}

// debianSuite tells whether a name is a suite of Debian, as opposed to those
// of its derivatives.
func debianSuite(name string) bool {
	return slices.Contains([]string{
		"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
		"oldoldstable", "oldstable", "stable", "testing", "unstable",
	}, name)
}

// aptProxies reads Acquire::http::Proxy and Acquire::https::Proxy from apt's
// configuration under dir (/etc/apt), by scheme.
func aptProxies(dir string) map[string]string {
	out := map[string]string{}
	parts, _ := filepath.Glob(filepath.Join(dir, "apt.conf.d", "*"))
	for _, name := range append(parts, filepath.Join(dir, "apt.conf")) { // the last one wins, as in apt
		withFile(name, func(r io.Reader) {
			text, err := io.ReadAll(r)
			if err != nil {
				return
			}
			parseAptConf(string(text), func(key, value string) {
				switch strings.ToLower(key) {
				case "acquire::http::proxy":
					out["http"] = value
				case "acquire::https::proxy":
					out["https"] = value
				}
			})
		})
	}
	return out
}

// maxAptDepth bounds how deep scopes of apt.conf may nest.
const maxAptDepth = 32

// parseAptConf walks the values of an apt.conf(5) text: "A::B "v";" and
// "A { B "v"; };" both give set("A::B", "v"). Comments are //, # and /* */.
func parseAptConf(text string, set func(key, value string)) {
	var scope []string
	var words []string // of the statement so far
	key := func() string { return strings.Join(append(slices.Clone(scope), words[:1]...), "::") }
	for len(text) > 0 {
		switch c := text[0]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			text = text[1:]
		case c == '#' || strings.HasPrefix(text, "//"):
			_, text, _ = strings.Cut(text, "\n")
		case strings.HasPrefix(text, "/*"):
			_, text, _ = strings.Cut(text[2:], "*/")
		case c == '"':
			var word string
			word, text, _ = strings.Cut(text[1:], `"`)
			words = append(words, word)
		case c == ';':
			if len(words) >= 2 {
				set(key(), words[1])
			}
			words, text = nil, text[1:]
		case c == '{':
			if len(scope) == maxAptDepth {
				return
			}
			name := ""
			if len(words) > 0 {
				name = words[0]
			}
			scope, words, text = append(scope, name), nil, text[1:]
		case c == '}':
			if len(scope) > 0 {
				scope = scope[:len(scope)-1]
			}
			words, text = nil, text[1:]
		default:
			end := strings.IndexAny(text, " \t\r\n\"{};")
			if end < 0 {
				end = len(text)
			}
			words, text = append(words, text[:end]), text[end:]
		}
	}
}

// newClient makes the client for all downloads: the environment's proxy, else
// apt's; file: addresses too, for a mirror on a disk.
func newClient() *http.Client {
	proxies := sync.OnceValue(func() map[string]string { return aptProxies("/etc/apt") })
	t := &http.Transport{
		Proxy:                 func(r *http.Request) (*url.URL, error) { return chooseProxy(r, proxies) },
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   maxDownloads,
		DisableCompression:    true, // what is pinned are the bytes as they lie there
		ForceAttemptHTTP2:     true,
	}
	t.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	return &http.Client{Transport: t}
}

// chooseProxy gives the environment's proxy (http_proxy, https_proxy,
// no_proxy); where the environment names none, apt's.
func chooseProxy(r *http.Request, apt func() map[string]string) (*url.URL, error) {
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"} {
		if os.Getenv(name) != "" {
			return http.ProxyFromEnvironment(r)
		}
	}
	host := r.URL.Hostname()
	if ip := net.ParseIP(host); host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil, nil
	}
	proxy := apt()[r.URL.Scheme]
	if proxy == "" && r.URL.Scheme == "https" {
		proxy = apt()["http"] // as apt does
	}
	if proxy == "" || strings.EqualFold(proxy, "DIRECT") {
		return nil, nil
	}
	u, err := url.Parse(proxy)
	if err != nil || u.Host == "" {
		return nil, errors.New("apt's Acquire::" + r.URL.Scheme + "::Proxy is not an address: set http_proxy and https_proxy instead")
	}
	return u, nil
}
