package fuseproto

// Message is one request in the memory of its transport. A *vhostuser.Request
// is one.
//
// Both lists are streams cut anywhere: no meaning lies in the borders. The bytes
// are the guest's and may change at any time. The total length of each list
// stays the same for the whole life of the request.
type Message interface {
	// Readable returns what the guest sent.
	Readable() [][]byte
	// Writable returns the room for the reply.
	Writable() [][]byte
	// Attach makes both lists valid again off the queue's goroutine; they must be
	// asked for anew. After it nothing slow may be waited for. An error means
	// that no reply can be delivered any more. Attaching twice is harmless.
	Attach() error
}

// cursor is a place in a list of segments.
type cursor struct {
	segs [][]byte
	seg  int // index of the current segment
	off  int // offset in it
}

// read copies the next bytes to dst and returns how many there were.
func (c *cursor) read(dst []byte) int {
	n := 0
	for n < len(dst) && c.seg < len(c.segs) {
		k := copy(dst[n:], c.segs[c.seg][c.off:])
		n += k
		c.advance(k)
	}
	return n
}

// write copies p to the next bytes and returns how many there were.
func (c *cursor) write(p []byte) int {
	n := 0
	for n < len(p) && c.seg < len(c.segs) {
		k := copy(c.segs[c.seg][c.off:], p[n:])
		n += k
		c.advance(k)
	}
	return n
}

// advance moves on by k bytes, at most to the end of the current segment.
func (c *cursor) advance(k int) {
	c.off += k
	if c.off == len(c.segs[c.seg]) {
		c.seg, c.off = c.seg+1, 0
	}
}

// skip moves on by n bytes.
func (c *cursor) skip(n int) {
	for c.seg < len(c.segs) {
		k := min(n, len(c.segs[c.seg])-c.off)
		n -= k
		c.advance(k)
		if n == 0 {
			return
		}
	}
}

// room is the most bytes of either direction that a request may have: lengths
// in replies are 32 bits, and no honest guest comes near.
const maxMessage = 1 << 30

// total returns the sum of the lengths of segs, at most maxMessage.
func total(segs [][]byte) int {
	n := 0
	for _, s := range segs {
		if len(s) >= maxMessage-n {
			return maxMessage
		}
		n += len(s)
	}
	return n
}
