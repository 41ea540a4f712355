package vhostuser

import (
	"errors"
	"fmt"
	"time"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
)

// ErrGone is wrapped by errors that say that nobody waits for a reply any more:
// the device was reset, the front-end or the request's memory is gone.
var ErrGone = errors.New("request is gone")

// Request is one request of the guest. It belongs to the Handler during a call
// of Serve or ServeBlocking and not longer. Requests are used again for others.
type Request struct {
	// State is the Handler's, for scratch of its own. It is nil at first and
	// stays with the Request when that is used again, so that a Handler need
	// not allocate for each request. Between Serve and ServeBlocking of the same
	// request nobody touches it.
	State any

	vring    *vring
	chain    virtqueue.Chain
	started  *epoch                   // while it waits: what it belongs to
	attached bool                     // guest memory may be touched
	rerun    bool                     // another process had taken it
	taken    time.Time                // when, if it is timed
	note     [virtqueue.NoteSize]byte // what Note returned
	// While it waits: where the segments were, readable ones first.
	spans    []span
	readable int
}

// span is a piece of guest memory by its address, which stays meaningful when
// the memory is mapped anew.
type span struct {
	addr guestmem.GPA
	len  uint64
}

// keptSpans is how large the list of spans may stay between two uses.
const keptSpans = 1024

// Queue returns the index of the request's vring.
func (r *Request) Queue() int { return r.vring.index }

// Readable returns what the guest wrote: segments of guest memory, none empty,
// in order. Their content may change at any time.
func (r *Request) Readable() [][]byte { return r.chain.Readable }

// Writable returns the room for the reply: segments of guest memory, none empty,
// in order. The guest sees the bytes at once, and takes as many of them for the
// reply as Serve or ServeBlocking returned.
func (r *Request) Writable() [][]byte { return r.chain.Writable }

// Attach makes the segments of a request that had to wait valid again, until
// ServeBlocking returns; it may take as long as the vring is stopped. It returns
// an error that wraps ErrGone if no reply can be delivered any more. In Serve it
// does nothing.
func (r *Request) Attach() error {
	if r.attached {
		return nil
	}
	table, err := r.vring.enter(r.started)
	if err != nil {
		return err
	}
	r.attached = true
	if err := r.translate(table); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

// Rerun tells whether another process had taken the request when it ended, and maybe
// served some of it.
func (r *Request) Rerun() bool { return r.rerun }

// Note returns what was noted last about the request; phase 0 is nothing. note is
// valid until the next SetNote.
func (r *Request) Note() (phase uint8, errno int32, note []byte) {
	f := r.vring.inflight
	if f == nil {
		return 0, 0, nil
	}
	// A copy: the front-end may have the table's memory too.
	phase, errno, note = f.Note(r.chain.Head)
	copy(r.note[:], note)
	return phase, errno, r.note[:]
}

// SetNote notes how far the request has come, for another process that has to serve
// it again: at most virtqueue.NoteSize bytes, in place of the note before, wholly or
// not at all. It does nothing if requests end with this process.
func (r *Request) SetNote(phase uint8, errno int32, note []byte) {
	if f := r.vring.inflight; f != nil {
		f.SetNote(r.chain.Head, phase, errno, note)
	}
}

// detach gives up the segments and remembers where they were.
func (r *Request) detach(table *guestmem.Table, e *epoch) {
	r.started, r.attached = e, false
	if cap(r.spans) > keptSpans {
		r.spans = nil
	}
	r.spans = r.spans[:0]
	r.addSpans(table, r.chain.Readable)
	r.readable = len(r.spans)
	r.addSpans(table, r.chain.Writable)
	r.chain.Readable, r.chain.Writable = r.chain.Readable[:0], r.chain.Writable[:0]
}

func (r *Request) addSpans(table *guestmem.Table, segs [][]byte) {
	for _, seg := range segs {
		addr, ok := table.Locate(seg)
		if !ok {
			panic("vhostuser: a segment that was just translated is not in guest memory")
		}
		r.spans = append(r.spans, span{addr: addr, len: uint64(len(seg))})
	}
}

func (r *Request) translate(table *guestmem.Table) (err error) {
	view := guestmem.NewView(table)
	for i, s := range r.spans {
		segs := &r.chain.Writable
		if i < r.readable {
			segs = &r.chain.Readable
		}
		if *segs, err = view.Append(*segs, s.addr, s.len); err != nil {
			r.chain.Readable, r.chain.Writable = r.chain.Readable[:0], r.chain.Writable[:0]
			r.chain.WriteLen = 0
			return err
		}
	}
	return nil
}
