package meta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/blobstore/codec"
)

// Source gives ranges of one blob.
type Source interface {
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Place is what an image says of a blob's chunk information: where it is, and
// all that it must be.
type Place struct {
	Header Header // as the blob table has it, contexts apart
	Bounds Bounds
	Cipher *codec.Cipher // of the blob, nil if it is not encrypted

	// Of the blob that holds the information; 0 and zero = not known.
	BlobSize   uint64
	BlobDigest [32]byte // sha256, if the blob holds nothing else
	TOCSize    uint32
	TOCDigest  [32]byte
}

// Load reads chunk information and its header from src and returns the table, or
// all that is wrong with it. An information whose header contradicts the image is
// not decoded. Everything that pins it is compared: the blob table, the sha256 of
// the blob, the sha256 in the table of contents, whose own is in the blob table.
//
// alloc returns memory of n bytes that the table keeps; it is asked for no more
// than the image and the header say, within MaxSize.
func (p *Place) Load(ctx context.Context, src Source, alloc func(n uint64) ([]byte, error)) (*Table, []error) {
	one := func(err error) []error { return []error{err} }
	h := &p.Header
	if h.StoredSize > h.Size || h.Size > MaxSize || h.Offset > maxOffset || h.StoredSize == 0 {
		return nil, one(badTable(nil, "%d bytes stored in %d at %d, the limit is %d", h.Size, h.StoredSize, h.Offset, uint64(MaxSize)))
	}
	// Chunks begin at multiples of 4 KiB, so their number, and with it the number of
	// contexts, is bounded by the size of what they are chunks of.
	if space := p.Bounds.Uncompressed; space != 0 && h.Features&featureChunkdict == 0 && uint64(h.Entries) > (space+4095)/4096 {
		return nil, one(badTable(nil, "%d chunks in %d bytes", h.Entries, space))
	}
	stored, err := p.read(ctx, src, h.Offset, h.StoredSize+HeaderSize)
	if err != nil {
		return nil, one(err)
	}
	if err := p.checkBlob(stored); err != nil {
		return nil, one(err)
	}
	stored, head := stored[:h.StoredSize], stored[h.StoredSize:]
	if p.Cipher != nil {
		if err := errors.Join(p.Cipher.Decrypt(head), p.Cipher.Decrypt(stored)); err != nil {
			return nil, one(badTable(err, "%d stored bytes", h.StoredSize))
		}
	}
	own, err := ParseHeader(head)
	if err != nil {
		return nil, one(err)
	}
	if faults := own.Contradictions(*h); len(faults) > 0 {
		return nil, faults
	}
	var dst []byte
	if own.Compressor != codec.None || own.Contexts > 0 { // dictionaries are large, and kept
		if dst, err = alloc(own.Size); err != nil {
			return nil, one(err)
		}
	}
	plain := stored
	t, err := Decode(own, p.Bounds, dst, stored)
	if err != nil {
		return nil, one(err)
	}
	if dst != nil {
		plain = dst
	}
	if err := p.checkTOC(ctx, src, plain, head); err != nil {
		return nil, one(err)
	}
	return t, nil
}

// read reads a range of the blob. Memory grows with what arrives, not with what
// the image says.
func (p *Place) read(ctx context.Context, src Source, off, n uint64) ([]byte, error) {
	r, err := src.ReadRange(ctx, int64(off), int64(n))
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	_, err = io.CopyN(&buf, r, int64(n))
	// Nothing was written: a failure to close changes nothing.
	_ = r.Close()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// checkBlob compares the digest of a blob that holds chunk information and
// nothing else.
func (p *Place) checkBlob(whole []byte) error {
	if p.BlobDigest == [32]byte{} || p.Header.Offset != 0 || p.BlobSize != uint64(len(whole)) {
		return nil
	}
	if got := sha256.Sum256(whole); got != p.BlobDigest {
		return badTable(nil, "sha256 %x of its blob, the blob table says %x", got[:], p.BlobDigest[:])
	}
	return nil
}

// checkTOC compares the information with the table of contents, if the blob has
// one that the image knows.
func (p *Place) checkTOC(ctx context.Context, src Source, plain, head []byte) error {
	if p.TOCSize == 0 || p.TOCDigest == [32]byte{} || p.BlobSize < uint64(p.TOCSize) {
		return nil
	}
	if p.TOCSize > MaxTOC {
		return badTable(nil, "table of contents of %d bytes, the limit is %d", p.TOCSize, MaxTOC)
	}
	at := p.BlobSize - uint64(p.TOCSize)
	b, err := p.read(ctx, src, at, uint64(p.TOCSize))
	if err != nil {
		return err
	}
	sections, err := ParseTOC(b, at, p.TOCDigest)
	if err != nil {
		return err
	}
	for _, s := range sections {
		var content []byte
		switch s.Name {
		case SectionMeta:
			content = plain
			if s.Offset != p.Header.Offset || s.StoredSize != p.Header.StoredSize || s.Size != p.Header.Size {
				return badTable(nil, "%d bytes stored at %d+%d, the table of contents says %d at %d+%d",
					p.Header.Size, p.Header.Offset, p.Header.StoredSize, s.Size, s.Offset, s.StoredSize)
			}
		case SectionMetaHeader:
			content = head
		default:
			continue
		}
		if got := sha256.Sum256(content); s.Digest != [32]byte{} && got != s.Digest {
			return badTable(nil, "sha256 %x of %s, the table of contents says %x", got[:], s.Name, s.Digest[:])
		}
	}
	return nil
}

// FromCache reads chunk information in the form in which nydusd keeps it beside
// its cache, and bootstrap layers carry it: decrypted and uncompressed, filled up
// to 4 KiB, then the header. size is that of the file; alloc is as for Load.
func (p *Place) FromCache(r io.ReaderAt, size int64, alloc func(n uint64) ([]byte, error)) (*Table, error) {
	h := p.Header
	at := (h.Size + HeaderSize - 1) &^ (HeaderSize - 1)
	if h.Size == 0 || h.Size > MaxSize || uint64(size) != at+HeaderSize {
		return nil, badTable(nil, "file of %d bytes for %d bytes of chunk information", size, h.Size)
	}
	head := make([]byte, HeaderSize)
	if _, err := r.ReadAt(head, int64(at)); err != nil {
		return nil, err
	}
	own, err := ParseHeader(head)
	if err != nil {
		return nil, err
	}
	if faults := own.Contradictions(h); len(faults) > 0 {
		return nil, faults[0]
	}
	plain, err := alloc(h.Size)
	if err != nil {
		return nil, err
	}
	if _, err := r.ReadAt(plain, 0); err != nil {
		return nil, fmt.Errorf("chunk information: %w", err)
	}
	own.Compressor, own.StoredSize = codec.None, own.Size // as it is here
	return Decode(own, p.Bounds, nil, plain)
}
