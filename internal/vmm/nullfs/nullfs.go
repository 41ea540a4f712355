// Package nullfs is a back-end that does as little as a back-end can: a file system
// of one file, and of 10,000 names for it in each listing, served from constants on the vhostuser library. It is the floor that
// other back-ends are measured against: what the front-end, the wake-ups and the
// ring cost without any file system behind them. READ copies into the guest's pages
// once, from memory that stays in the cache, as any back-end must at least.
//
// It runs in the caller's process (Handler) or in one of its own (Start), so that
// its processor time can be told from the front-end's.
package nullfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/rafsd/rafsd/vhostuser"
)

// The file system: one file in the root, Name and any longer name that begins so. A
// listing has Entries of these.
const (
	Name     = "file"
	NodeID   = 2
	FileSize = 64 << 20
	Entries  = 10_000
)

const (
	inHeader  = 40
	outHeader = 16

	opLookup  = 1
	opForget  = 2
	opGetattr = 3
	opRead    = 15
	opInit    = 26
	opDestroy = 38
	opForgets = 42
	opListing = 44

	enoent = -2
	eio    = -5
	einval = -22
	enosys = -38
)

// Handler implements vhostuser.Handler. Its zero value is ready for use.
type Handler struct {
	// Hollow leaves the pages of a READ alone: what is left is the way to the
	// back-end and back, to which a copy of the data can be added.
	Hollow bool
}

// scratch stays with a request of the library, so that none is allocated.
type scratch struct {
	in  [inHeader + 64]byte
	out [outHeader + 128]byte
}

// content is what every piece of the file holds: 1 MiB of it.
var content = func() []byte {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i)
	}
	return b
}()

// record is the size of an entry of READDIRPLUS with a name of 13 bytes.
const record = 128 + 24 + 16

// listing is all entries, one behind the other.
var listing = sync.OnceValue(func() []byte {
	b := make([]byte, Entries*record)
	le := binary.LittleEndian
	for i := range Entries {
		e := b[i*record:][:record]
		entry(e)
		le.PutUint64(e[128:], NodeID)
		le.PutUint64(e[136:], uint64(i+1)*record)
		le.PutUint32(e[144:], 13)
		le.PutUint32(e[148:], 8) // DT_REG
		copy(e[152:], fmt.Sprintf("%s-%08d", Name, i))
	}
	return b
})

// Content is the byte of the file at off.
func Content(off uint64) byte { return content[off%uint64(len(content))] }

// Serve implements vhostuser.Handler.
func (h Handler) Serve(r *vhostuser.Request) (written uint32, done bool) {
	s, ok := r.State.(*scratch)
	if !ok {
		s = new(scratch)
		r.State = s
	}
	n := 0
	for _, seg := range r.Readable() {
		if n += copy(s.in[n:], seg); n == len(s.in) {
			break
		}
	}
	if n < inHeader || len(r.Writable()) == 0 {
		return 0, true
	}
	le := binary.LittleEndian
	in := s.in[inHeader:n]
	body, errno := s.out[outHeader:outHeader], int32(0)
	switch op := le.Uint32(s.in[4:]); op {
	case opForget, opForgets:
		return 0, true
	case opRead:
		if len(in) < 20 {
			errno = einval
			break
		}
		off, size := le.Uint64(in[8:]), le.Uint32(in[16:])
		if h.Hollow && off+uint64(size) <= FileSize {
			putHeader(s, outHeader+size, 0)
			copy(r.Writable()[0], s.out[:outHeader])
			return outHeader + size, true
		}
		return read(s, r.Writable(), off, FileSize, size, content), true
	case opListing:
		if len(in) < 20 {
			errno = einval
			break
		}
		all := listing()
		return read(s, r.Writable(), le.Uint64(in[8:]), uint64(len(all)), le.Uint32(in[16:])/record*record, all), true
	case opGetattr:
		body = body[:104]
		clear(body)
		le.PutUint64(body, 1<<32)
		attr(body[16:], le.Uint64(s.in[16:]))
	case opLookup:
		if string(in[:min(len(in), len(Name))]) != Name {
			errno = enoent
			break
		}
		body = body[:128]
		clear(body)
		entry(body)
	case opInit:
		if len(in) < 16 {
			errno = einval
			break
		}
		const grant = 1<<0 | 1<<5 | 1<<22 // ASYNC_READ, BIG_WRITES, MAX_PAGES
		body = body[:64]
		clear(body)
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], min(38, le.Uint32(in[4:])))
		le.PutUint32(body[8:], le.Uint32(in[8:]))
		le.PutUint32(body[12:], le.Uint32(in[12:])&grant)
		le.PutUint16(body[16:], 1024)
		le.PutUint16(body[18:], 768)
		le.PutUint32(body[20:], 1<<20)
		le.PutUint32(body[24:], 1)
		le.PutUint16(body[28:], 256)
	case opDestroy:
	default: // OPEN and OPENDIR too: handles are 0
		errno = enosys
	}
	if errno != 0 {
		body = body[:0]
	}
	return reply(s, r.Writable(), errno, len(body)), true
}

// reply writes the header, in front of n bytes of body in s.out, to the segments.
func reply(s *scratch, segs [][]byte, errno int32, n int) uint32 {
	room := 0
	for _, seg := range segs {
		room += len(seg)
	}
	if room < outHeader+n {
		n, errno = 0, eio
	}
	if room < outHeader {
		return 0 // the guest's own fault, and nothing can be said about it
	}
	out := s.out[:outHeader+n]
	putHeader(s, uint32(len(out)), errno)
	for _, seg := range segs {
		if out = out[copy(seg, out):]; len(out) == 0 {
			break
		}
	}
	return uint32(outHeader + n)
}

func putHeader(s *scratch, length uint32, errno int32) {
	le := binary.LittleEndian
	le.PutUint32(s.out[:], length)
	le.PutUint32(s.out[4:], uint32(errno))
	copy(s.out[8:16], s.in[8:16])
}

// read answers READ and READDIRPLUS: of total bytes, which are content again and
// again, those at off straight into the segments, behind the header.
func read(s *scratch, segs [][]byte, off, total uint64, size uint32, content []byte) uint32 {
	if off >= total {
		return reply(s, segs, 0, 0)
	}
	left := min(uint64(size), total-off)
	head := s.out[:outHeader]
	written := uint64(outHeader)
	for i, seg := range segs {
		if i == 0 && len(seg) < outHeader {
			return reply(s, segs, einval, 0)
		}
		if i == 0 {
			seg = seg[outHeader:]
		}
		for len(seg) > 0 && left > 0 {
			n := copy(seg[:min(uint64(len(seg)), left)], content[off%uint64(len(content)):])
			seg, off, left, written = seg[n:], off+uint64(n), left-uint64(n), written+uint64(n)
		}
	}
	putHeader(s, uint32(written), 0)
	copy(segs[0], head)
	return uint32(written)
}

func entry(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b, NodeID)
	le.PutUint64(b[16:], 1<<32)
	le.PutUint64(b[24:], 1<<32)
	attr(b[40:], NodeID)
}

func attr(b []byte, node uint64) {
	le := binary.LittleEndian
	le.PutUint64(b, node)
	le.PutUint32(b[64:], 1)
	le.PutUint32(b[80:], 4096)
	if node == NodeID {
		le.PutUint64(b[8:], FileSize)
		le.PutUint64(b[16:], FileSize/512)
		le.PutUint32(b[60:], 0o100644)
	} else {
		le.PutUint32(b[60:], 0o40755)
		le.PutUint32(b[64:], 2)
	}
}

// ServeBlocking implements vhostuser.Handler; Serve finishes everything.
func (h Handler) ServeBlocking(_ context.Context, r *vhostuser.Request) (uint32, error) {
	if err := r.Attach(); err != nil {
		return 0, err
	}
	n, _ := h.Serve(r)
	return n, nil
}

// Reset implements vhostuser.Handler.
func (Handler) Reset() {}

// Snapshot implements vhostuser.Handler.
func (Handler) Snapshot() ([]byte, error) { return nil, nil }

// Restore implements vhostuser.Handler.
func (Handler) Restore([]byte) error { return nil }
