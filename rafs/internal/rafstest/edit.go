package rafstest

import (
	"bytes"
	"encoding/binary"
)

// Edit returns a copy of b with edits applied, for fuzzing structures that a
// change of single bytes seldom reaches. An edit has eight bytes: place 0:3
// (taken modulo the length), what to do 3:1 (low two bits: log2 of the width;
// next two: set, add, flip, set negative), value 4:4.
func Edit(b, edits []byte) []byte {
	b = bytes.Clone(b)
	for ; len(edits) >= 8 && len(b) >= 8; edits = edits[8:] {
		at := int(edits[0]) | int(edits[1])<<8 | int(edits[2])<<16
		width := 1 << (edits[3] & 3)
		at = at % (len(b) - 7) &^ (width - 1)
		var field [8]byte
		copy(field[:], b[at:at+width])
		old, value := binary.LittleEndian.Uint64(field[:]), uint64(binary.LittleEndian.Uint32(edits[4:]))
		switch edits[3] >> 2 & 3 {
		case 1:
			value += old
		case 2:
			value ^= old
		case 3:
			value = -value
		}
		binary.LittleEndian.PutUint64(field[:], value)
		copy(b[at:at+width], field[:width])
	}
	return b
}
