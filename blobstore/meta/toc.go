package meta

import (
	"bytes"
	"crypto/sha256"
)

// MaxTOC bounds a table of contents with its tar header.
const MaxTOC = 1 << 20

const tocEntrySize = 128

// Section is one entry of a table of contents: a part of the blob.
type Section struct {
	Name       string
	Compressor uint32   // 1 none, 2 zstd, 4 lz4_block
	Digest     [32]byte // sha256 of the uncompressed content; zero = not known
	Offset     uint64   // of the stored content in the blob
	StoredSize uint64
	Size       uint64 // uncompressed
}

// Names of sections.
const (
	SectionData       = "image.blob"
	SectionMeta       = "blob.meta"
	SectionMetaHeader = "blob.meta.header"
	SectionDigests    = "blob.digest"
	SectionBootstrap  = "image.boot"
)

// ParseTOC reads a table of contents, b being its entries with the tar header
// that follows them and end their offset in the blob. If want is not zero it is
// the sha256 of b. Entries of unknown names are left out. Layout of an entry:
// flags 0:4 (low four bits: compressor), name 8:16, digest 24:32, offset 56:8,
// stored size 64:8, size 72:8; the rest is reserved.
func ParseTOC(b []byte, at uint64, want [32]byte) ([]Section, error) {
	bad := func(off int, format string, args ...any) error {
		e := badTable(nil, format, args...).(*Error)
		e.Structure, e.Offset = structTOC, uint64(off)
		return e
	}
	n := len(b) - tarHeaderSize
	if len(b) > MaxTOC || n < 0 || n%tocEntrySize != 0 {
		return nil, bad(0, "%d bytes, want entries of %d and a tar header of %d, at most %d", len(b), tocEntrySize, tarHeaderSize, MaxTOC)
	}
	if want != [32]byte{} {
		if got := sha256.Sum256(b); got != want {
			return nil, bad(0, "sha256 %x, the blob table says %x", got[:], want[:])
		}
	}
	var sections []Section
	for off := 0; off < n; off += tocEntrySize {
		e := b[off:][:tocEntrySize]
		name, _, _ := bytes.Cut(e[8:24], []byte{0})
		s := Section{
			Name: string(name), Compressor: le.Uint32(e) & 0xF, Digest: [32]byte(e[24:56]),
			Offset: le.Uint64(e[56:]), StoredSize: le.Uint64(e[64:]), Size: le.Uint64(e[72:]),
		}
		switch s.Name {
		case SectionData, SectionMeta, SectionMetaHeader, SectionDigests, SectionBootstrap:
		default:
			continue
		}
		if s.Offset > at || s.StoredSize > at-s.Offset {
			return nil, bad(off+56, "%s at %d+%d, the table of contents begins at %d", s.Name, s.Offset, s.StoredSize, at)
		}
		if s.Compressor == 1 && s.Name != SectionData && s.StoredSize != s.Size {
			return nil, bad(off+64, "%s has %d bytes, stored as they are in %d", s.Name, s.Size, s.StoredSize)
		}
		sections = append(sections, s)
	}
	return sections, nil
}
