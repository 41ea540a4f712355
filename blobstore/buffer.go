package blobstore

import (
	"math/bits"
	"sync"

	"github.com/rafsd/rafsd/blobstore/codec"
)

// Buffers of chunks are pooled by powers of two: 1<<minClass bytes and up. Their
// number is bounded by Options.Memory; what is idle is the garbage collector's.
const (
	minClass = 12
	maxClass = 25 // holds maxBuffer

	maxBuffer = MaxStoredSize + codec.Headroom + codec.Tailroom
)

var buffers [maxClass - minClass + 1]sync.Pool // of *[]byte

// getBuffer returns a buffer of n bytes, 0 < n <= maxBuffer.
func getBuffer(n int) *[]byte {
	class := max(bits.Len(uint(n-1)), minClass)
	if p, _ := buffers[class-minClass].Get().(*[]byte); p != nil {
		*p = (*p)[:n]
		return p
	}
	b := make([]byte, n, min(1<<class, maxBuffer))
	return &b
}

// putBuffer gives a buffer of getBuffer back.
func putBuffer(p *[]byte) {
	c := cap(*p)
	class := bits.Len(uint(c - 1))
	if class >= minClass && class <= maxClass && (c == 1<<class || class == maxClass) {
		buffers[class-minClass].Put(p)
	}
}
