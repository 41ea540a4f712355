package blobstore

import (
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/blobstore/codec"
)

// errNoKey reports encrypted bytes of a blob for which the image has no key.
var errNoKey = errors.New("the chunk is encrypted, and the image has no key for its blob")

// Decode turns the stored bytes of chunk c, which does not share them, into
// plain ones: decrypts, decompresses, not yet verified. plain and stored may be
// the same bytes, if their lengths are and the chunk is not compressed; stored is
// overwritten. On error, op names the step that failed.
func (d *BlobDesc) Decode(c *Chunk, plain, stored []byte) (op string, err error) {
	forms, err := d.open(c, stored)
	if err != nil {
		return "decrypt", err
	}
	algorithm := codec.None
	if c.Flags&ChunkCompressed != 0 {
		algorithm = codec.Algorithm(d.Compressor)
	}
	for _, form := range forms {
		if form == nil {
			break
		}
		if err = codec.Decode(algorithm, plain, form); err == nil {
			return "", nil
		}
	}
	return "decompress", err
}

// SharedBuffer is the size of a buffer for DecodeShared of n stored bytes, and
// SharedBytes is where in it they belong.
func SharedBuffer(n uint32) int { return codec.Headroom + int(n) + codec.Tailroom }

// SharedBytes returns the part of a SharedBuffer that is for the stored bytes.
func SharedBytes(buf []byte) []byte { return buf[codec.Headroom : len(buf)-codec.Tailroom] }

// DecodeShared turns the stored bytes of context x, which c is a chunk of, into
// plain ones. buf is of SharedBuffer bytes, and SharedBytes of it are the stored
// ones; it is overwritten. Of a context that is inflated, out may be the first part.
func (d *BlobDesc) DecodeShared(c *Chunk, x *Context, out, buf []byte) (op string, err error) {
	if x.Inflate {
		if err := codec.InflateAt(out, buf, x.Window); err != nil {
			return "decompress", err
		}
		return "", nil
	}
	forms, err := d.open(c, SharedBytes(buf))
	if err != nil {
		return "decrypt", err
	}
	for _, form := range forms {
		if form == nil {
			break
		}
		algorithm := codec.Algorithm(d.Compressor)
		if len(form) == len(out) {
			algorithm = codec.None
		}
		if err = codec.Decode(algorithm, out, form); err == nil {
			return "", nil
		}
	}
	return "decompress", err
}

// open decrypts stored bytes, if they are encrypted. Where that leaves more than
// one form that they may have, the likelier one is first: data that ends like
// padding and is of its size by chance.
func (d *BlobDesc) open(c *Chunk, stored []byte) (forms [2][]byte, err error) {
	forms[0] = stored
	if c.Flags&ChunkEncrypted == 0 {
		return forms, nil
	}
	if d.Cipher == nil {
		return forms, errNoKey
	}
	if err := d.Cipher.Decrypt(stored); err != nil {
		return forms, err
	}
	if short, ok := codec.Unpad(stored); ok {
		forms = [2][]byte{short, stored}
	}
	return forms, nil
}

// Verify compares the uncompressed bytes of a chunk with what the image
// promises: the digest, or the CRC where there is none.
func (d *BlobDesc) Verify(c *Chunk, p []byte) error {
	switch {
	case c.Flags&ChunkNoDigest == 0:
		if got := codec.Sum(codec.Digester(d.Digester), p); got != c.Digest {
			return fmt.Errorf("%w: %x, the image says %x", ErrDigestMismatch, got[:], c.Digest[:])
		}
	case c.Flags&ChunkHasCRC != 0:
		if got := codec.CRC32C(p); got != c.CRC32C {
			return fmt.Errorf("%w: CRC-32C %#08x, the image says %#08x", ErrDigestMismatch, got, c.CRC32C)
		}
	}
	return nil
}

// Merge completes the description c of chunk i, which the image's table gave, by
// where places say that it is stored. They must speak of the same bytes.
func (d *BlobDesc) Merge(places Places, i uint32, c *Chunk) error {
	var p Chunk
	if err := places.Chunk(i, &p); err != nil {
		return err
	}
	switch {
	case p.UncompressedOffset != c.UncompressedOffset || p.UncompressedSize != c.UncompressedSize:
		return fmt.Errorf("%w: the blob has the uncompressed place %d+%d for it, the bootstrap %d+%d", errContradiction,
			p.UncompressedOffset, p.UncompressedSize, c.UncompressedOffset, c.UncompressedSize)
	case p.Flags&c.Flags&ChunkHasCRC != 0 && p.CRC32C != c.CRC32C:
		return fmt.Errorf("%w: the blob has the CRC-32C %#08x for it, the bootstrap %#08x", errContradiction, p.CRC32C, c.CRC32C)
	}
	p.Digest, p.Flags = c.Digest, p.Flags&^(ChunkNoDigest|ChunkHasCRC)|c.Flags&(ChunkNoDigest|ChunkHasCRC)
	p.CRC32C = c.CRC32C
	*c = p
	return nil
}

var errContradiction = errors.New("blob and bootstrap contradict each other")
