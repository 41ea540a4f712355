package fuseproto

import (
	"errors"
	"fmt"
)

// ErrNoRoom is what Out.Write returns when a reply does not fit the room that
// the guest gave it. The server answers ERANGE to GETXATTR and LISTXATTR, EIO to
// everything else.
var ErrNoRoom = errors.New("reply does not fit")

var errMessageChanged = errors.New("the reply's room has changed while the request waited")

// Out takes the variable part of a reply: file data, a link's target, the value
// of an attribute. What is written goes straight to the guest's memory, behind
// the place of the reply's header, which is written last; if the method fails
// after all, nothing of it counts.
//
// Off the queue's goroutine (Op.MayBlock) the first Write, Zero or Segments
// attaches the guest's memory, and the method must not wait for anything from
// then on: get the data first, then write all of it.
type Out struct {
	at     cursor
	op     *Op // nil for one that stands alone
	before int // bytes of header and fixed part in front
	opened bool
	n      int // bytes written
	limit  int // the most that may be written
	// measure counts what does not fit instead of refusing it (needed then), for
	// values that are asked for by size.
	measure bool
	needed  int
	iov     [][]byte // of Segments
}

// keptSegments is how long the list of segments may stay between two requests:
// as long as 1 MiB of pages needs.
const keptSegments = 264

// NewOut returns an Out that writes to segs, for callers without a guest.
func NewOut(segs ...[]byte) *Out {
	return &Out{at: cursor{segs: segs}, opened: true, limit: total(segs)}
}

// start prepares o for a reply of op.
func (o *Out) start(op *Op, before, limit int) {
	o.at = cursor{}
	o.op, o.before, o.limit = op, before, max(0, min(limit, op.room-before))
	o.opened, o.measure = false, false
	o.n, o.needed = 0, 0
}

// open finds the first byte behind the header.
func (o *Out) open() error {
	if err := o.op.attach(); err != nil {
		return err
	}
	o.at = cursor{segs: o.op.msg.Writable()}
	o.at.skip(o.before)
	o.opened = true
	return nil
}

// Room returns how many bytes may still be written.
func (o *Out) Room() int { return o.limit - o.n }

// Len returns how many bytes were written.
func (o *Out) Len() int { return o.n }

// Write copies p to the reply. If p does not fit, it writes what does and
// returns ErrNoRoom; the value of an extended attribute counts as written then,
// since the guest may only have asked for its size.
func (o *Out) Write(p []byte) (int, error) {
	if o.measure {
		o.needed += len(p)
		if len(p) > o.limit-o.n {
			return len(p), nil
		}
	}
	var err error
	whole := len(p)
	if whole > o.limit-o.n {
		p = p[:o.limit-o.n]
		err = fmt.Errorf("%d bytes into %d: %w", whole, len(p), ErrNoRoom)
	}
	if !o.opened && len(p) > 0 {
		if err := o.open(); err != nil {
			return 0, err
		}
	}
	n := o.at.write(p)
	o.n += n
	return n, err
}

// Zero writes n zero bytes.
func (o *Out) Zero(n int) error {
	if n > o.limit-o.n {
		return fmt.Errorf("%d zero bytes into %d: %w", n, o.limit-o.n, ErrNoRoom)
	}
	if !o.opened && n > 0 {
		if err := o.open(); err != nil {
			return err
		}
	}
	o.n += n
	for n > 0 {
		s := o.at.segs[o.at.seg][o.at.off:]
		k := min(n, len(s))
		clear(s[:k])
		o.at.advance(k)
		n -= k
	}
	return nil
}

// Segments returns the places of the next n bytes, or of Room if that is less:
// the buffers of a preadv(2). They count as written only by Advance, and are
// valid until the next call on o.
func (o *Out) Segments(n int) ([][]byte, error) {
	n = min(n, o.limit-o.n)
	if n <= 0 {
		return nil, nil
	}
	if !o.opened {
		if err := o.open(); err != nil {
			return nil, err
		}
	}
	// At once as long as it gets: append's doubling would end above keptSegments.
	if want := min(len(o.at.segs)-o.at.seg, n, keptSegments); cap(o.iov) < want {
		o.iov = make([][]byte, 0, want)
	}
	o.iov = o.iov[:0]
	off := o.at.off
	for i := o.at.seg; n > 0 && i < len(o.at.segs); i++ {
		s := o.at.segs[i][off:]
		if len(s) > n {
			s = s[:n]
		}
		off = 0
		if len(s) == 0 {
			continue
		}
		o.iov = append(o.iov, s)
		n -= len(s)
	}
	return o.iov, nil
}

// Advance counts the next n bytes of Segments, all of which must be filled, as
// written.
func (o *Out) Advance(n int) {
	if n < 0 || n > o.limit-o.n {
		panic(fmt.Sprintf("fuseproto: advance by %d with room for %d", n, o.limit-o.n))
	}
	o.at.skip(n)
	o.n += n
}

// contiguous returns the next n bytes if they are in one segment, else nil.
func (o *Out) contiguous(n int) []byte {
	if o.at.seg >= len(o.at.segs) {
		return nil
	}
	if s := o.at.segs[o.at.seg][o.at.off:]; len(s) >= n {
		return s[:n:n]
	}
	return nil
}

// drop forgets every slice of the guest's memory.
func (o *Out) drop() {
	o.at, o.opened = cursor{}, false
	clear(o.iov)
	if o.iov = o.iov[:0]; cap(o.iov) > keptSegments {
		o.iov = nil
	}
}
