package testimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// block is where a deflate block begins: in the stored stream, in bits, and in what
// the stream yields, in bytes.
type block struct {
	bit uint64
	out uint64
}

// deflateBlocks finds the blocks of a gzip stream of one member without a name or
// other optional fields, and one more that stands for the end. It decodes lengths
// alone: what a stream yields is known to who compressed it.
func deflateBlocks(gz []byte) ([]block, error) {
	const header = 10
	if len(gz) < header+8 || gz[0] != 0x1f || gz[1] != 0x8b || gz[3] != 0 {
		return nil, errors.New("not a plain gzip member")
	}
	r := &bitReader{b: gz, at: header * 8, end: uint64(len(gz)-8) * 8}
	var all []block
	var out uint64
	for {
		all = append(all, block{r.at, out})
		final, kind := r.bits(1), r.bits(2)
		n, err := r.block(kind)
		if err != nil {
			return nil, fmt.Errorf("deflate block %d at bit %d: %w", len(all)-1, all[len(all)-1].bit, err)
		}
		out += n
		if final == 1 {
			return append(all, block{r.at, out}), nil
		}
	}
}

// bitReader reads bits, lowest first.
type bitReader struct {
	b       []byte
	at, end uint64 // in bits
}

// peek returns the next bits, zeros behind the end.
func (r *bitReader) peek() uint64 {
	i := r.at / 8
	var b [8]byte
	if i < uint64(len(r.b)) {
		if uint64(len(r.b))-i >= 8 {
			return binary.LittleEndian.Uint64(r.b[i:]) >> (r.at % 8)
		}
		copy(b[:], r.b[i:])
	}
	return binary.LittleEndian.Uint64(b[:]) >> (r.at % 8)
}

func (r *bitReader) bits(n uint) uint32 {
	v := uint32(r.peek() & (1<<n - 1))
	r.at += uint64(n)
	return v
}

var errDeflate = errors.New("damaged")

// block passes over a block's body and returns how many bytes it yields.
func (r *bitReader) block(kind uint32) (n uint64, err error) {
	var lit, dist *codes
	switch kind {
	case 0:
		r.at = (r.at + 7) &^ 7
		length := r.bits(16)
		if r.bits(16) != ^length&0xFFFF {
			return 0, errDeflate
		}
		r.at += uint64(length) * 8
		if r.at > r.end {
			return 0, errDeflate
		}
		return uint64(length), nil
	case 1:
		lit, dist = fixedCodes()
	case 2:
		if lit, dist, err = r.dynamicCodes(); err != nil {
			return 0, err
		}
	default:
		return 0, errDeflate
	}
	for r.at <= r.end {
		switch s := lit.next(r); {
		case s < 256:
			n++
		case s == 256:
			return n, nil
		case s > 285:
			return 0, errDeflate
		default:
			n += uint64(lengthBase[s-257]) + uint64(r.bits(uint(lengthExtra[s-257])))
			d := dist.next(r)
			if d > 29 {
				return 0, errDeflate
			}
			if d >= 4 {
				r.at += uint64(d/2 - 1)
			}
		}
	}
	return 0, errDeflate
}

var (
	lengthBase  = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	codeOrder   = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// codes is a set of Huffman codes: by the next 15 bits, symbol and length.
type codes [1 << 15]struct {
	symbol uint16
	length uint8
}

func newCodes(lengths []uint8) *codes {
	var count, next [16]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	for n := 1; n < 16; n++ {
		next[n] = (next[n-1] + count[n-1]) << 1
	}
	c := new(codes)
	for symbol, n := range lengths {
		if n == 0 {
			continue
		}
		code := next[n]
		next[n]++
		if code >= 1<<n {
			continue // more codes than there is room for
		}
		for v := int(bits.Reverse16(uint16(code)) >> (16 - n)); v < len(c); v += 1 << n {
			c[v].symbol, c[v].length = uint16(symbol), n
		}
	}
	return c
}

// next returns the next symbol; what is no code is a symbol that nothing has.
func (c *codes) next(r *bitReader) uint16 {
	e := &c[r.peek()&(1<<15-1)]
	if e.length == 0 {
		return 1 << 15
	}
	r.at += uint64(e.length)
	return e.symbol
}

func fixedCodes() (lit, dist *codes) {
	lengths := make([]uint8, 288)
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	five := make([]uint8, 30)
	for i := range five {
		five[i] = 5
	}
	return newCodes(lengths), newCodes(five)
}

func (r *bitReader) dynamicCodes() (lit, dist *codes, err error) {
	nlit, ndist, ncode := int(r.bits(5))+257, int(r.bits(5))+1, int(r.bits(4))+4
	var first [19]uint8
	for _, at := range codeOrder[:ncode] {
		first[at] = uint8(r.bits(3))
	}
	code := newCodes(first[:])
	lengths := make([]uint8, 0, 320)
	for len(lengths) < nlit+ndist {
		s, repeat := code.next(r), 0
		var value uint8
		switch {
		case s < 16:
			value, repeat = uint8(s), 1
		case s == 16 && len(lengths) > 0:
			value, repeat = lengths[len(lengths)-1], 3+int(r.bits(2))
		case s == 17:
			repeat = 3 + int(r.bits(3))
		case s == 18:
			repeat = 11 + int(r.bits(7))
		default:
			return nil, nil, errDeflate
		}
		for range repeat {
			lengths = append(lengths, value)
		}
	}
	if len(lengths) > nlit+ndist || r.at > r.end {
		return nil, nil, errDeflate
	}
	return newCodes(lengths[:nlit]), newCodes(lengths[nlit:]), nil
}
