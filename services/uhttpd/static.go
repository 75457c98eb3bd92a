package uhttpd

import (
	"errors"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxListed bounds the entries of a folder that are listed.
const maxListed = 1000

// files serves a folder.
type files struct {
	i *instance
}

// open opens what a URL's path names below the home folder.
func (f *files) open(name string) (*os.File, fs.FileInfo, error) {
	name = path.Clean("/" + name)
	var file *os.File
	var err error
	if f.i.noLinks {
		// Links must not lead out of the folder.
		var root *os.Root
		if root, err = os.OpenRoot(f.i.home); err == nil {
			defer root.Close()
			file, err = root.OpenFile(path.Join(".", name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		}
	} else {
		file, err = os.OpenFile(filepath.Join(f.i.home, filepath.FromSlash(name)), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, nil, err
	}
	fi, err := file.Stat()
	if err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		err = fs.ErrPermission // a device or a pipe
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, fi, nil
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	name := r.URL.Path
	if strings.IndexByte(name, 0) >= 0 {
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	}
	file, fi, err := f.open(name)
	if err != nil {
		f.fail(w, r, err)
		return
	}
	defer file.Close()
	if !fi.IsDir() {
		if strings.HasSuffix(name, "/") {
			f.fail(w, r, fs.ErrNotExist)
			return
		}
		f.send(w, r, file, fi, http.StatusOK)
		return
	}
	if !strings.HasSuffix(name, "/") {
		// Relative, and cleaned: "//host" would lead to another site.
		to := &url.URL{Path: path.Clean("/"+name) + "/", RawQuery: r.URL.RawQuery}
		http.Redirect(w, r, to.String(), http.StatusFound)
		return
	}
	for _, page := range f.i.index {
		ifile, ifi, err := f.open(path.Join(name, path.Base(page)))
		if err != nil {
			continue
		}
		defer ifile.Close()
		if !ifi.IsDir() {
			f.send(w, r, ifile, ifi, http.StatusOK)
			return
		}
	}
	if f.i.noDirs {
		f.fail(w, r, fs.ErrPermission)
		return
	}
	f.list(w, name, file)
}

// send sends a regular file.
func (f *files) send(w http.ResponseWriter, r *http.Request, file *os.File, fi fs.FileInfo, status int) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x-%x"`, st.Ino, fi.Size(), fi.ModTime().Unix()))
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if status != http.StatusOK {
		// ServeContent would say 200, or answer a condition.
		w = &withStatus{w, status}
		r = r.Clone(r.Context())
		for _, h := range []string{"Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"} {
			r.Header.Del(h)
		}
	}
	http.ServeContent(w, r, fi.Name(), fi.ModTime(), file)
}

type withStatus struct {
	http.ResponseWriter
	status int
}

func (w *withStatus) WriteHeader(int) { w.ResponseWriter.WriteHeader(w.status) }

// fail answers with the page for errors if there is one.
func (f *files) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusNotFound
	if errors.Is(err, fs.ErrPermission) {
		status = http.StatusForbidden
	}
	if f.i.errorPage != "" {
		if file, fi, err := f.open(f.i.errorPage); err == nil {
			defer file.Close()
			if !fi.IsDir() {
				f.send(w, r, file, fi, status)
				return
			}
		}
	}
	http.Error(w, http.StatusText(status), status)
}

// list shows a folder.
func (f *files) list(w http.ResponseWriter, name string, dir *os.File) {
	entries, err := dir.ReadDir(maxListed)
	if err != nil && len(entries) == 0 {
		entries = nil // an empty folder
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	title := html.EscapeString("Index of " + path.Clean("/"+name))
	var b strings.Builder
	fmt.Fprintf(&b, "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>%s</title></head><body><h1>%[1]s</h1><ul>\n<li><a href=\"../\">../</a></li>\n", title)
	for _, e := range entries {
		n := e.Name()
		if strings.HasPrefix(n, ".") {
			continue
		}
		if e.IsDir() {
			n += "/"
		}
		fmt.Fprintf(&b, "<li><a href=\"%s\">%s</a></li>\n", html.EscapeString((&url.URL{Path: "./" + n}).String()), html.EscapeString(n))
	}
	b.WriteString("</ul></body></html>\n")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write([]byte(b.String()))
}
