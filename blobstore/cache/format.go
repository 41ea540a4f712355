package cache

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The map file, version 1, little-endian.
//
// Header, 4096 bytes:
//
//	  0   8  magic "rafsdmap"
//	  8   4  version
//	 12   4  size of a slot
//	 16  16  boot id, the UUID of the boot in which the epoch began
//	 32   4  epoch, 1 .. 2^30-1
//	 36   4  length of the entry's name
//	 40   8  inode number of the data file that this map speaks of
//	 48 112  name of the entry: the blob id, "+" and a digest for a separate one
//	160 3932 zero
//	4092   4  CRC-32C of all bytes before
//
// Slot i, 64 bytes at 4096 + 64*i:
//
//	 0   4  state: 0 absent; 2 durable; epoch<<2 | 1 ready in the boot of that epoch
//	 4   4  kind: 0 unclaimed, 1 in this entry's data file; 2 is reserved for a
//	        chunk that is in another blob's file
//	 8   8  offset in the data file
//	16   4  size
//	20   4  CRC-32C of bytes 4..20 and 24..64
//	24  32  digest of the chunk
//	56   4  extra, whatever else must be equal for two descriptions to be equal
//	60   4  zero
//
// The number of slots is what the file's size has room for; slots behind its
// end are absent. A slot lies in one sector, so that a mark and the description
// that it speaks of reach the disk together.
const (
	headerSize = 4096
	slotSize   = 64
	version    = 1
	maxName    = 112

	kindNone = 0
	kindHere = 1

	stateAbsent  = 0
	stateReady   = 1 // with the epoch above it
	stateDurable = 2

	maxEpoch = 1<<30 - 1
)

var magic = [8]byte{'r', 'a', 'f', 's', 'd', 'm', 'a', 'p'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type bootID [16]byte

// header is the decoded header of a map file.
type header struct {
	boot    bootID
	epoch   uint32
	dataIno uint64
	name    string
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(b, magic[:])
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], slotSize)
	copy(b[16:], h.boot[:])
	le.PutUint32(b[32:], h.epoch)
	le.PutUint32(b[36:], uint32(len(h.name)))
	le.PutUint64(b[40:], h.dataIno)
	copy(b[48:48+maxName], h.name)
	le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
	return b
}

// decodeHeader decodes the first bytes of a map file. It says what is wrong
// with a header that it does not accept.
func decodeHeader(b []byte) (h header, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) < headerSize:
		return h, fmt.Errorf("map of %d bytes has no header", len(b))
	case [8]byte(b) != magic:
		return h, fmt.Errorf("magic is %q", b[:8])
	case le.Uint32(b[8:]) != version:
		return h, fmt.Errorf("version is %d, this is %d", le.Uint32(b[8:]), version)
	case le.Uint32(b[headerSize-4:]) != crc32.Checksum(b[:headerSize-4], castagnoli):
		return h, fmt.Errorf("header checksum does not match")
	case le.Uint32(b[12:]) != slotSize:
		return h, fmt.Errorf("slots of %d bytes", le.Uint32(b[12:]))
	}
	h.boot = bootID(b[16:])
	h.epoch = le.Uint32(b[32:])
	h.dataIno = le.Uint64(b[40:])
	n := le.Uint32(b[36:])
	if n > maxName || h.epoch == 0 || h.epoch > maxEpoch {
		return h, fmt.Errorf("name of %d bytes, epoch %d", n, h.epoch)
	}
	h.name = string(b[48 : 48+n])
	return h, nil
}

// encodeSlot writes the claim of d into b, absent.
func encodeSlot(b []byte, d *Desc) {
	le := binary.LittleEndian
	clear(b[:slotSize])
	le.PutUint32(b[4:], kindHere)
	le.PutUint64(b[8:], d.Off)
	le.PutUint32(b[16:], d.Size)
	copy(b[24:56], d.Digest[:])
	le.PutUint32(b[56:], d.Extra)
	le.PutUint32(b[20:], slotCRC(b))
}

// slotCRC is the checksum of everything in a slot but its state and itself.
func slotCRC(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[4:20], castagnoli), castagnoli, b[24:slotSize])
}

// decodeSlot returns the description in a slot, and its kind and state. A slot
// whose checksum does not match (torn by a power cut) is as good as unclaimed.
func decodeSlot(b []byte, d *Desc) (kind, state uint32) {
	le := binary.LittleEndian
	kind = le.Uint32(b[4:])
	if kind == kindNone || le.Uint32(b[20:]) != slotCRC(b) {
		return kindNone, stateAbsent
	}
	d.Off = le.Uint64(b[8:])
	d.Size = le.Uint32(b[16:])
	d.Digest = [32]byte(b[24:56])
	d.Extra = le.Uint32(b[56:])
	return kind, le.Uint32(b)
}
