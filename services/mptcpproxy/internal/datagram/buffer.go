package datagram

import "sync"

// Buffers of packets. bufferSize holds any packet of an MTU of 1500 bytes with
// room to spare; larger ones are allocated as they come.
const bufferSize = 2048

var bufferPool = sync.Pool{New: func() any { b := new([bufferSize]byte); return b }}

// takeBuffer returns an empty slice of bufferSize capacity.
func takeBuffer() []byte { return bufferPool.Get().(*[bufferSize]byte)[:0] }

// giveBuffer takes back a slice that takeBuffer made, in whatever length; it
// leaves others to the garbage collector.
func giveBuffer(b []byte) {
	if cap(b) == bufferSize {
		bufferPool.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}
