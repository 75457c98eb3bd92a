// Package labtest runs the topologies that ship, as tests: the seed one in QEMU with images, all in network namespaces.
// What each must reach stands in its file.
package labtest
