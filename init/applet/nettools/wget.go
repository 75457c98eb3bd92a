package nettools

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path"
	"strings"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"weft/init/applet/options"
	"weft/init/unit"
)

const wgetUsage = `[-q] [-c] [-S] [-O FILE] [-P DIR] [-T SECONDS] [-U AGENT] [--header 'NAME: VALUE'] [--post-data TEXT] [--no-check-certificate] URL...
Fetch files over HTTP and HTTPS.
  -O FILE  write to FILE, - is standard output     -P DIR  folder for the files
  -c       go on with a part that is there         -q      print errors alone
  -T SECS  give up when nothing comes for so long (default 60)
A file is complete or has the name FILE.part; wget -c goes on with it.
Exit code 0; 1 network or server; 3 file; 5 certificate; 8 the server's answer.
Example: wget -O /tmp/a.img https://example.org/a.img`

// Exit codes, those of GNU wget.
const (
	wgetNetwork = 1
	wgetFile    = 3
	wgetTLS     = 5
	wgetServer  = 8
)

// Wget is wget and uclient-fetch.
func Wget(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "qcSO:P:T:U:H:D:N header=H post-data=D no-check-certificate=N user-agent=U output-document=O quiet=q continue=c timeout=T", wgetUsage)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	timeout, err := seconds(o.Value('T', "60"))
	if err != nil {
		return o.Fail("-T: %v", err)
	}
	header := http.Header{"User-Agent": {o.Value('U', "weft-wget")}}
	for _, h := range o.Values('H') {
		k, v, ok := strings.Cut(h, ":")
		if !ok {
			return o.Fail("--header: %q has no colon (expected 'NAME: VALUE')", h)
		}
		header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	g := &getter{call: c, opts: o, header: header, timeout: timeout, client: client(o.Has('N'))}
	for _, u := range o.Args {
		if !strings.Contains(u, "://") {
			u = "http://" + u
		}
		if code := g.get(ctx, u); code != 0 {
			return code
		}
	}
	return 0
}

// client trusts the roots of the system or, where there are none, those that
// Mozilla trusts, as built into this program.
func client(insecure bool) *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	conf := &tls.Config{InsecureSkipVerify: insecure}
	if !insecure {
		pool, err := x509.SystemCertPool()
		if err != nil || pool.Equal(x509.NewCertPool()) {
			pool = x509.NewCertPool()
			for root := range bundle.Roots() {
				if cert, err := x509.ParseCertificate(root.Certificate); err == nil {
					pool.AddCertWithConstraint(cert, root.Constraint)
				}
			}
		}
		conf.RootCAs = pool
	}
	t.TLSClientConfig = conf
	t.DisableCompression = true // sizes and ranges are those of the file
	return &http.Client{Transport: t}
}

type getter struct {
	call    *unit.Call
	opts    *options.Set
	header  http.Header
	timeout time.Duration
	client  *http.Client
}

func (g *getter) fail(code int, format string, args ...any) int {
	fmt.Fprintf(g.call.Stderr, "wget: "+format+"\n", args...)
	return code
}

func (g *getter) say(format string, args ...any) {
	if !g.opts.Has('q') {
		fmt.Fprintf(g.call.Stderr, format+"\n", args...)
	}
}

func (g *getter) get(ctx context.Context, address string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(g.timeout, func() { cancel(fmt.Errorf("nothing came for %s", g.timeout)) })
	defer idle.Stop()

	name := g.opts.Value('O', "")
	if name == "" {
		u, err := url.Parse(address)
		if err != nil {
			return g.fail(wgetNetwork, "%v", err)
		}
		name = path.Base(u.Path)
		if name == "/" || name == "." || name == ".." {
			name = "index.html"
		}
		name = path.Join(g.opts.Value('P', "."), name)
	}
	toStdout := name == "-"
	target := g.call.Path(name)
	part := target + ".part"

	method, body := http.MethodGet, io.Reader(nil)
	if g.opts.Has('D') {
		method, body = http.MethodPost, strings.NewReader(g.opts.Value('D', ""))
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return g.fail(wgetNetwork, "%v", err)
	}
	req.Header = g.header.Clone()
	if g.opts.Has('D') && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	var have int64
	if st, err := os.Stat(part); err == nil && g.opts.Has('c') && !toStdout {
		have = st.Size()
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	resp, err := g.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		code := wgetNetwork
		var tlsErr *tls.CertificateVerificationError
		if errors.As(err, &tlsErr) {
			return g.fail(wgetTLS, "%v (is the clock right? --no-check-certificate skips the check)", err)
		}
		return g.fail(code, "%v", err)
	}
	defer resp.Body.Close()
	if g.opts.Has('S') {
		fmt.Fprintf(g.call.Stderr, "  %s %s\n", resp.Proto, resp.Status)
		resp.Header.Write(g.call.Stderr)
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	switch {
	case have > 0 && resp.StatusCode == http.StatusPartialContent:
		flags = os.O_WRONLY | os.O_APPEND
	case have > 0 && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return g.fail(wgetServer, "the server has no more than the %d bytes of %s; remove it to start again", have, part)
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		have = 0
	default:
		return g.fail(wgetServer, "%s: the server answers %s", address, resp.Status)
	}
	out := io.Writer(g.call.Stdout)
	if !toStdout {
		f, err := os.OpenFile(part, flags, 0o644)
		if err != nil {
			return g.fail(wgetFile, "%v", err)
		}
		defer f.Close()
		out = f
	}
	pr := &progress{g: g, idle: idle, have: have, total: -1, name: name}
	if resp.ContentLength >= 0 {
		pr.total = have + resp.ContentLength
	}
	_, err = io.Copy(out, io.TeeReader(resp.Body, pr))
	pr.end()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the connection ended after %d of %d bytes", pr.have, pr.total)
		}
		return g.fail(wgetNetwork, "%s: %v%s", address, err, hint(toStdout))
	}
	if toStdout {
		return 0
	}
	f := out.(*os.File)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return g.fail(wgetFile, "write %s: %v", part, err)
	}
	if err := os.Rename(part, target); err != nil {
		return g.fail(wgetFile, "%v", err)
	}
	g.say("%s: %d bytes saved", name, pr.have)
	return 0
}

func hint(toStdout bool) string {
	if toStdout {
		return ""
	}
	return "; wget -c goes on with what is there"
}

// progress counts what comes, keeps the idle timer from firing and, on a
// terminal, shows how far it is.
type progress struct {
	g           *getter
	idle        *time.Timer
	have, total int64
	name        string
	shown       time.Time
	drawn       bool
}

func (p *progress) Write(b []byte) (int, error) {
	p.idle.Reset(p.g.timeout)
	p.have += int64(len(b))
	f, ok := p.g.call.Stderr.(*os.File)
	if p.g.opts.Has('q') || !ok || time.Since(p.shown) < 200*time.Millisecond {
		return len(b), nil
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return len(b), nil
	}
	p.shown, p.drawn = time.Now(), true
	if p.total > 0 {
		fmt.Fprintf(f, "\r%s %3d%% %d KiB", p.name, 100*p.have/p.total, p.have>>10)
	} else {
		fmt.Fprintf(f, "\r%s %d KiB", p.name, p.have>>10)
	}
	return len(b), nil
}

func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.g.call.Stderr, "\r\n")
	}
}
