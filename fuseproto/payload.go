package fuseproto

// Payload is the data of a WRITE. It stays in the guest's memory, which may
// change at any time: no decision may be taken on its content twice.
type Payload struct {
	op     *Op    // nil for one that stands alone
	offset int    // in the request's readable bytes
	n      int    // bytes
	data   []byte // if it stands alone
}

// NewPayload returns a Payload of data, for callers without a guest.
func NewPayload(data []byte) Payload { return Payload{n: len(data), data: data} }

// Len returns the number of bytes.
func (p Payload) Len() int { return p.n }

// Segments appends the places of the data to dst: the buffers of a pwritev(2).
// Off the queue's goroutine it attaches the guest's memory, and the method must
// not wait for anything slow from then on. They are valid during the method only.
func (p Payload) Segments(dst [][]byte) ([][]byte, error) {
	if p.op == nil {
		return append(dst, p.data), nil
	}
	if err := p.op.attach(); err != nil {
		return dst, err
	}
	at := cursor{segs: p.op.msg.Readable()}
	at.skip(p.offset)
	off, left := at.off, p.n
	for i := at.seg; left > 0 && i < len(at.segs); i++ {
		s := at.segs[i][off:]
		off = 0
		if len(s) > left {
			s = s[:left]
		}
		if len(s) > 0 {
			dst = append(dst, s)
			left -= len(s)
		}
	}
	if left > 0 {
		p.op.gone = errMessageChanged
		return dst, errMessageChanged
	}
	return dst, nil
}
