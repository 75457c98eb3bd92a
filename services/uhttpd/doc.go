// Package uhttpd is the web server of the device. It follows /etc/config/uhttpd:
// static files from a folder, and the bus as JSON-RPC at /ubus with the sessions,
// grants and errors of LEDE's uhttpd, over HTTP and HTTPS.
//
// It starts as root to open its sockets and to read, or make, its key; then it is
// the user uhttpd without any capability, and to the bus a client like others,
// which /usr/share/acl.d/uhttpd.json lets in.
//
// Not here: CGI, Lua and ucode handlers, basic authentication, HTTP/2.
package uhttpd
