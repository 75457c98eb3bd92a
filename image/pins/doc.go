// Package pins holds what the builder takes from outside: Debian packages,
// each locked by its SHA-256 in pins.toml.
//
// A [Store] downloads the locked packages into the user's cache, verifies and
// unpacks them there, and hands out three things: package trees
// ([Store.Unpack]), programs that run from the cache with their own loader and
// libraries ([Store.Tool]), and files for images together with the shared
// libraries that they need ([Store.Files]).
//
// pins.toml has two parts. The first is written by hand and says what is wanted
// and why; the second is written by [Update], which resolves the newest
// versions through the release's signed index. Nothing is taken from the build
// machine: not its tools, not its libraries, not its keyring.
//
// The cache (WEFT_CACHE, else weft in the user's cache folder):
//
//	deb/<sha256>.deb          a verified package; its name is the proof
//	tree/<sha256>/            its files, unpacked once: owners and special bits dropped
//	tool/<name>-<key>/        a program merged with all that it needs
//	drift/<lock>.json         newer versions taken in place of vanished ones
//
// Each is made beside its place and renamed into it, so what is there is whole.
// Locks (flock) keep two processes from doing the same work twice.
package pins
