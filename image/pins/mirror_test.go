package pins

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// aptDir makes a folder like /etc/apt.
func aptDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := makeDir(filepath.Dir(filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

func TestAptSources(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  []aptSource
	}{
		{"none", nil, nil},
		{"one-line", map[string]string{"sources.list": `
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib # with a comment
deb-src http://sources.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] https://other.example/debian bookworm-updates main
deb http://security.example/debian-security bookworm-security main
`}, []aptSource{{mainArchive, "http://mirror.example/debian"}, {mainArchive, "https://other.example/debian"}, {securityArchive, "http://security.example/debian-security"}}},
		{"old security", map[string]string{"sources.list": "deb http://security.example/debian-security buster/updates main\n"},
			[]aptSource{{securityArchive, "http://security.example/debian-security"}}},
		{"deb822", map[string]string{"sources.list.d/debian.sources": `Types: deb deb-src
URIs: http://one.example/debian
 http://two.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://three.example/debian-security
Suites: trixie-security
Components: main non-free

# Off:
Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: trixie
Components: main
`}, []aptSource{{mainArchive, "http://one.example/debian"}, {mainArchive, "http://two.example/debian"}, {securityArchive, "http://three.example/debian-security"}}},
		{"not Debian's", map[string]string{
			"sources.list": `deb http://archive.example/ubuntu noble main
deb http://raspbian.example/raspbian bookworm main
deb https://packages.example/apt cloud-sdk-bookworm main
deb https://download.example/linux/debian bookworm stable
deb cdrom:[Debian]/ bookworm main
deb mirror+file:/etc/apt/mirrors/debian.list bookworm main
deb tor+http://onion.example/debian bookworm main
deb http://short.example/debian
deb [ http://unclosed.example/debian bookworm main
`, "sources.list.d/x.sources": "URIs: http://typeless.example/debian\nSuites: trixie\nComponents: main\n",
			"sources.list.d/broken.sources": " no field\n",
		}, nil},
		{"lists and a disk", map[string]string{"sources.list.d/a.list": "deb file:///srv/mirror/debian trixie main\n", "sources.list.d/b.txt": "deb http://ignored.example/debian trixie main\n"},
			[]aptSource{{mainArchive, "file:///srv/mirror/debian"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := aptSources(aptDir(t, tt.files))
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(aptSource{})); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestAptProxies(t *testing.T) {
	dir := aptDir(t, map[string]string{
		"apt.conf.d/10first": `Acquire::http::Proxy "http://first.example:3128"; // replaced below`,
		"apt.conf.d/20second": `
/* a block
   comment */
APT { NeverAutoRemove { "^linux-firmware$"; }; };
Acquire {
	# another comment
	http { Proxy "http://second.example:3128/"; Pipeline-Depth "0"; };
	HTTPS::Proxy "DIRECT";
};`,
	})
	want := map[string]string{"http": "http://second.example:3128/", "https": "DIRECT"}
	if d := cmp.Diff(want, aptProxies(dir)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := aptProxies(t.TempDir()); len(got) != 0 {
		t.Errorf("without any configuration: %v", got)
	}
}

func TestChooseProxy(t *testing.T) {
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"} {
		t.Setenv(name, "")
	}
	tests := []struct {
		url  string
		apt  map[string]string
		want string
	}{
		{"http://mirror.example/x", nil, ""},
		{"http://mirror.example/x", map[string]string{"http": "http://proxy.example:1"}, "http://proxy.example:1"},
		{"https://mirror.example/x", map[string]string{"http": "http://proxy.example:1"}, "http://proxy.example:1"},
		{"https://mirror.example/x", map[string]string{"http": "http://proxy.example:1", "https": "DIRECT"}, ""},
		{"http://127.0.0.1:80/x", map[string]string{"http": "http://proxy.example:1"}, ""},
		{"http://[::1]/x", map[string]string{"http": "http://proxy.example:1"}, ""},
		{"http://localhost/x", map[string]string{"http": "http://proxy.example:1"}, ""},
		{"file:///x", map[string]string{"http": "http://proxy.example:1"}, ""},
		{"http://mirror.example/x", map[string]string{"http": "nonsense"}, "error"},
	}
	for _, tt := range tests {
		r, err := http.NewRequest(http.MethodGet, tt.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := chooseProxy(r, func() map[string]string { return tt.apt })
		got := ""
		switch {
		case err != nil:
			got = "error"
		case u != nil:
			got = u.String()
		}
		if got != tt.want {
			t.Errorf("%s with %v: got %q, want %q", tt.url, tt.apt, got, tt.want)
		}
	}
}

func TestMachineMirrors(t *testing.T) {
	t.Setenv("WEFT_MIRROR", "https://first.example/debian/ file:///srv/debian")
	got := machineMirrors()
	for archive, want := range map[string][]string{
		mainArchive:     {"https://first.example/debian", "file:///srv/debian"},
		securityArchive: {"https://first.example/debian-security", "file:///srv/debian-security"},
	} {
		if len(got[archive]) < 3 || !slices.Equal(got[archive][:2], want) {
			t.Errorf("%s: got %q, want %q first", archive, got[archive], want)
		}
		if !slices.Contains(got[archive], publicMirrors[archive][0]) {
			t.Errorf("%s: Debian's own is not among %q", archive, got[archive])
		}
		seen := map[string]bool{}
		for _, m := range got[archive] {
			if seen[m] || strings.HasSuffix(m, "/") {
				t.Errorf("%s: %q twice or with a slash at its end", archive, m)
			}
			seen[m] = true
		}
	}
}

func TestMirrorOnDisk(t *testing.T) {
	a := newArchive(t).add(hello())
	o := a.options(t)
	s := a.locked(t, o, helloRequest)
	a.server.Close()
	disk := t.TempDir()
	for name, data := range a.files {
		if err := writeAtomic(filepath.Join(disk, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("WEFT_MIRROR", "file://"+disk+"/debian")
	s.mirrors = machineMirrors
	if err := s.Fetch(t.Context(), "hello"); err != nil {
		t.Error(err)
	}
}
