package meta

import (
	"encoding/binary"
	"fmt"

	"github.com/rafsd/rafsd/blobstore/codec"
)

var le = binary.LittleEndian

// HeaderSize is the size of the header, which lies directly behind the stored
// chunk information.
const HeaderSize = 4096

// MaxChunks is the most chunks that a blob has: their indexes have 24 bits.
const MaxChunks = 1 << 24

// MaxSize bounds the uncompressed chunk information. The dictionaries of ZRAN are
// what makes it large: there is one of 32 KiB for some MiB of data.
const MaxSize = 2 << 30

const (
	magic         = 0xB10BB10B
	tarHeaderSize = 512

	// maxOffset bounds where chunk information begins: offsets of chunks have
	// 40 bits, and a tar header may follow the last.
	maxOffset = 1<<40 + tarHeaderSize
)

// Features of a blob that decide what its chunk information looks like.
const (
	featureAligned        = 1 << 0
	featureInlinedFSMeta  = 1 << 1
	featureChunkInfoV2    = 1 << 2
	featureZran           = 1 << 3
	featureSeparate       = 1 << 4
	featureTarfs          = 1 << 6
	featureBatch          = 1 << 7
	featureEncrypted      = 1 << 8
	featureChunkdict      = 1 << 9
	featurePrefetchCopies = 1 << 10
	featureExternal       = 1 << 11
	featureHasTarHeader   = 1 << 28
	featureV5NoExtTable   = 1 << 31

	featuresUnknown = 0xF000 // a reader must know bits 0 to 15; twelve are defined

	// featuresCompared must be the same in the header and in a blob table. Of
	// the other defined ones, INLINED_FS_META is taken out of the table when
	// layers are merged, and two are the business of a bootstrap alone.
	featuresCompared = 0x0FFF &^ (featureInlinedFSMeta | featureChunkdict | featurePrefetchCopies)
)

// Header says where the chunk information of a blob is and how it is stored.
// The blob table of an image says the same: its entry is a Header too.
type Header struct {
	Features   uint32
	Compressor codec.Algorithm // of the chunk information, not of the chunks
	Entries    uint32          // chunks of the blob
	Offset     uint64          // of the stored chunk information in the blob
	StoredSize uint64
	Size       uint64 // uncompressed

	Contexts     uint32 // of ZRAN or BATCH
	ContextsSize uint64 // of the contexts, which follow the entries, and of the dictionaries
}

// entrySize is the size of an entry.
func (h *Header) entrySize() uint64 {
	if h.Features&featureChunkInfoV2 != 0 {
		return entryV2
	}
	return entryV1
}

// ParseHeader reads a header from b, which holds HeaderSize bytes, and checks
// all that can be checked without another source. Layout: magic 0:4, features
// 4:4, compressor 8:4, entries 12:4, offset 16:8, stored size 24:8, uncompressed
// size 32:8, context table offset 40:8 and size 48:8, contexts 56:4, magic again
// 4092:4; the rest is reserved.
func ParseHeader(b []byte) (Header, error) {
	if len(b) != HeaderSize {
		return Header{}, badHeader(0, "%d bytes, want %d", len(b), HeaderSize)
	}
	for _, at := range [...]uint64{0, HeaderSize - 4} {
		if got := le.Uint32(b[at:]); got != magic {
			return Header{}, badHeader(at, "magic %#08x, want %#08x", got, uint32(magic))
		}
	}
	h := Header{
		Features: le.Uint32(b[4:]),
		Entries:  le.Uint32(b[12:]),
		Offset:   le.Uint64(b[16:]), StoredSize: le.Uint64(b[24:]), Size: le.Uint64(b[32:]),
		Contexts: le.Uint32(b[56:]), ContextsSize: le.Uint64(b[48:]),
	}
	if err := checkFeatures(h.Features); err != nil {
		return Header{}, err
	}
	compressor := le.Uint32(b[8:])
	exact := h.Features&featureChunkdict == 0 // a generated dictionary may have left entries out
	entries := uint64(h.Entries) * h.entrySize()
	want := entries
	if h.Features&(featureZran|featureBatch) != 0 && h.ContextsSize <= MaxSize {
		want += h.ContextsSize
	}
	switch {
	case compressor > uint32(codec.Zstd):
		return Header{}, badHeader(8, "compressor %d", compressor)
	case h.Entries > MaxChunks:
		return Header{}, badHeader(12, "%d chunks, at most %d are possible", h.Entries, MaxChunks)
	case h.Offset > maxOffset:
		return Header{}, badHeader(16, "chunk information at %d, chunks end at %d at the latest", h.Offset, uint64(maxOffset))
	case h.Features&(featureHasTarHeader|featureSeparate) == featureHasTarHeader && h.Offset < tarHeaderSize:
		return Header{}, badHeader(16, "chunk information at %d leaves no room for a tar header before it", h.Offset)
	case h.Size > MaxSize || h.Size < want || exact && h.Size != want:
		return Header{}, badHeader(32, "%d bytes of chunk information for %d chunks, want %d", h.Size, h.Entries, want)
	case h.StoredSize > h.Size || h.StoredSize == 0 && h.Size > 0:
		return Header{}, badHeader(24, "chunk information of %d bytes is stored in %d", h.Size, h.StoredSize)
	case compressor == uint32(codec.None) && h.StoredSize != h.Size:
		return Header{}, badHeader(24, "chunk information of %d bytes is stored as it is, in %d", h.Size, h.StoredSize)
	}
	h.Compressor = codec.Algorithm(compressor)
	if err := h.checkContexts(le.Uint64(b[40:]), entries); err != nil {
		return Header{}, err
	}
	return h, nil
}

// checkContexts checks how many contexts there are and how large they are; at is
// where they begin and end is the end of the entries.
func (h *Header) checkContexts(at, end uint64) error {
	list := uint64(h.Contexts) * contextSize
	switch {
	case h.Features&(featureZran|featureBatch) == 0:
		switch {
		case h.ContextsSize != 0:
			return badHeader(48, "%d bytes of contexts, which plain chunks have not", h.ContextsSize)
		case h.Contexts != 0:
			return badHeader(56, "%d contexts, which plain chunks have not", h.Contexts)
		}
		return nil
	case h.Contexts > h.Entries:
		return badHeader(56, "%d contexts for %d chunks", h.Contexts, h.Entries)
	case h.ContextsSize > h.Size || h.ContextsSize < list:
		return badHeader(48, "%d bytes for %d contexts", h.ContextsSize, h.Contexts)
	case h.ContextsSize > 0 && at != end:
		return badHeader(40, "contexts at %d, the entries end at %d", at, end)
	case h.Features&featureBatch != 0 && h.ContextsSize != list:
		return badHeader(48, "%d bytes for %d contexts of batches", h.ContextsSize, h.Contexts)
	case h.ContextsSize-list > uint64(h.Contexts)*codec.WindowSize:
		return badHeader(48, "%d bytes of dictionaries for %d contexts", h.ContextsSize-list, h.Contexts)
	}
	return nil
}

// checkFeatures refuses combinations that the format forbids.
func checkFeatures(f uint32) error {
	const at = 4
	const needV2 = featureZran | featureBatch | featureEncrypted
	has := func(bits uint32) bool { return f&bits == bits }
	switch {
	case f&featuresUnknown != 0:
		return unsupported("features %#x of the header, %#x of them unknown", f, f&featuresUnknown)
	case has(featureV5NoExtTable):
		return badHeader(at, "features %#x: _V5_NO_EXT_BLOB_TABLE has no place on disk", f)
	case has(featureAligned) == has(featureTarfs):
		return badHeader(at, "features %#x: want one of ALIGNED and TARFS", f)
	case f&needV2 != 0 && !has(featureChunkInfoV2):
		return badHeader(at, "features %#x: ZRAN, BATCH or ENCRYPTED without CHUNK_INFO_V2", f)
	case has(featureZran) && !has(featureSeparate):
		return badHeader(at, "features %#x: ZRAN without SEPARATE", f)
	case has(featureZran | featureBatch):
		return badHeader(at, "features %#x: both ZRAN and BATCH", f)
	case has(featureTarfs), has(featureExternal):
		return badHeader(at, "features %#x: blobs of TARFS and EXTERNAL images have no chunk information", f)
	}
	return nil
}

// Contradictions compares the header with what the blob table of an image says
// of the same blob, one error for each difference. They wrap ErrDamaged.
func (h Header) Contradictions(table Header) []error {
	var faults []error
	differ := func(differs bool, offset uint64, what string, got, want any) {
		if differs {
			faults = append(faults, badHeader(offset, "%s %v, the blob table says %v", what, got, want))
		}
	}
	differ((h.Features^table.Features)&featuresCompared != 0, 4,
		"features", hex(h.Features&featuresCompared), hex(table.Features&featuresCompared))
	differ(h.Compressor != table.Compressor, 8, "compressor", h.Compressor, table.Compressor)
	differ(h.Entries != table.Entries && table.Features&featureChunkdict == 0, 12, "chunks:", h.Entries, table.Entries)
	differ(h.Offset != table.Offset, 16, "offset", h.Offset, table.Offset)
	differ(h.StoredSize != table.StoredSize, 24, "stored size", h.StoredSize, table.StoredSize)
	differ(h.Size != table.Size, 32, "uncompressed size", h.Size, table.Size)
	return faults
}

// dataEnd is where chunk data of the same blob end at the latest: the chunk
// information follows, perhaps behind a tar header.
func (h Header) dataEnd() uint64 {
	if h.Features&featureHasTarHeader != 0 {
		return h.Offset - tarHeaderSize
	}
	return h.Offset
}

// hex prints as a hexadecimal number.
type hex uint32

func (x hex) String() string { return fmt.Sprintf("%#x", uint32(x)) }
