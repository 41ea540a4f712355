package testimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"github.com/klauspost/compress/gzip"
)

// The chunk information of an OCI layer, version 2.
const (
	ciEntrySizeV2   = 24
	zranContextSize = 40
	zranDictSize    = 32 << 10

	featureChunkInfoV2 = 0x4
	featureZran        = 0x8
	featureSeparate    = 0x10

	featuresZran = featureAligned | featureChunkInfoV2 | featureZran | featureSeparate | featureCapTarTOC

	// A context ends with the chunk that reaches one of these.
	zranMaxStored = 1 << 20
	zranMaxPlain  = 2 << 20
)

// zranContext is where an inflater may start.
type zranContext struct {
	from block
	end  uint64 // of the stored bytes that it takes, in bytes
	to   uint64 // end of what they yield
}

// ZranContext is one context of an image that Options.Zran asked for.
type ZranContext struct {
	Stored Range // in the data blob
	Size   uint32
	Bits   uint8
	Dict   bool
}

// tarFile begins a file of the layer.
func (c *chunker) tarFile(name string, size int64) error {
	if c.tar == nil {
		b, err := createBlob(c.dir, 0)
		if err != nil {
			return err
		}
		c.blobs = append(c.blobs, b)
		c.tar = tar.NewWriter(b)
	}
	return c.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Format: tar.FormatPAX})
}

// Write makes a blob what a tar is written to.
func (b *blobWriter) Write(p []byte) (int, error) { return len(p), b.write(p) }

// finishZran compresses the layer that b holds as a tar, finds places where an
// inflater may start, and writes the second blob, which describes them and the
// chunks.
func (img *Image) finishZran(c *chunker, b *blobWriter, chunks []*Chunk) (Blob, error) {
	if err := c.tar.Close(); err != nil {
		return Blob{}, err
	}
	if err := b.buf.Flush(); err != nil {
		return Blob{}, err
	}
	plain, err := os.ReadFile(b.file.Name())
	if err != nil {
		return Blob{}, err
	}
	var gz bytes.Buffer
	w, err := gzip.NewWriterLevel(&gz, 5) // fewer and longer blocks than the quickest
	if err != nil {
		return Blob{}, err
	}
	if _, err := w.Write(plain); err != nil {
		return Blob{}, err
	}
	if err := w.Close(); err != nil {
		return Blob{}, err
	}
	blocks, err := deflateBlocks(gz.Bytes())
	if err != nil {
		return Blob{}, err
	}
	if end := blocks[len(blocks)-1].out; end != uint64(len(plain)) {
		return Blob{}, fmt.Errorf("blocks of %d bytes in a stream of %d", end, len(plain))
	}

	blob := Blob{ChunkCount: b.count, DataSize: uint64(gz.Len()), Size: uint64(gz.Len()), UncompressedSize: b.addresses}
	sum := sha256.Sum256(gz.Bytes())
	blob.ID = hex.EncodeToString(sum[:])
	blob.Path = filepath.Join(c.dir, blob.ID)
	if err := os.WriteFile(blob.Path, gz.Bytes(), 0o644); err != nil {
		return Blob{}, err
	}
	contexts, entries := zranContexts(blocks, chunks)
	info := entries
	var dicts []byte
	for _, x := range contexts {
		var e [zranContextSize]byte
		in := (x.from.bit + 7) / 8
		le.PutUint64(e[0:], in)
		le.PutUint64(e[8:], x.from.out)
		le.PutUint64(e[16:], uint64(len(dicts)))
		le.PutUint32(e[24:], uint32(x.end-in))
		le.PutUint32(e[28:], uint32(x.to-x.from.out))
		if x.from.out >= zranDictSize {
			le.PutUint32(e[32:], zranDictSize)
			dicts = append(dicts, plain[x.from.out-zranDictSize:x.from.out]...)
		}
		if rest := x.from.bit % 8; rest != 0 {
			e[36], e[37] = gz.Bytes()[in-1], uint8(8-rest)
		}
		info = append(info, e[:]...)
		blob.Contexts = append(blob.Contexts, ZranContext{
			Stored: Range{int64(in), int64(x.end - in)}, Size: uint32(x.to - x.from.out), Bits: e[37], Dict: x.from.out >= zranDictSize,
		})
	}
	info = append(info, dicts...)
	return blob, img.writeZranInfo(c, &blob, info, len(contexts), len(dicts))
}

// writeZranInfo writes the second blob.
func (img *Image) writeZranInfo(c *chunker, blob *Blob, info []byte, contexts, dicts int) error {
	enc, err := newEncoder(Zstd)
	if err != nil {
		return err
	}
	stored, compressed, err := enc.encode(info)
	if err != nil {
		return err
	}
	if compressed {
		blob.ChunkInfoCompressor = Zstd
	}
	b, err := createBlob(c.dir, 1)
	if err != nil {
		return err
	}
	defer b.discard()
	var h [ciHeaderSize]byte
	le.PutUint32(h[0:], ciMagic)
	le.PutUint32(h[4:], featuresZran)
	le.PutUint32(h[8:], uint32(blob.ChunkInfoCompressor))
	le.PutUint32(h[12:], blob.ChunkCount)
	le.PutUint64(h[24:], uint64(len(stored)))
	le.PutUint64(h[32:], uint64(len(info)))
	le.PutUint64(h[40:], uint64(blob.ChunkCount)*ciEntrySizeV2)
	le.PutUint64(h[48:], uint64(contexts*zranContextSize+dicts))
	le.PutUint32(h[56:], uint32(contexts))
	le.PutUint32(h[4092:], ciMagic)
	if err := b.write(stored); err != nil {
		return err
	}
	if err := b.write(h[:]); err != nil {
		return err
	}
	blob.ChunkInfo, blob.ChunkInfoSize = Range{0, int64(len(stored))}, uint64(len(info))
	blob.ChunkInfoHeader = Range{int64(len(stored)), ciHeaderSize}
	blob.MetaSize = b.size
	blob.MetaID, blob.MetaPath, err = b.finish()
	return err
}

// zranContexts cuts the stream into contexts, and makes the entries of the chunks,
// which are in the order of the stream. A context begins with the block that its
// first chunk begins in, and takes whole blocks.
func zranContexts(blocks []block, chunks []*Chunk) (contexts []zranContext, entries []byte) {
	blockOf := func(out uint64) int { // the last one that begins at out or before
		return sort.Search(len(blocks), func(i int) bool { return blocks[i].out > out }) - 1
	}
	for _, c := range chunks {
		begin, end := c.CompressedOffset, c.CompressedOffset+uint64(c.UncompressedSize)
		first, behind := blockOf(begin), min(blockOf(end-1)+1, len(blocks)-1)
		stored := (blocks[behind].bit + 7) / 8
		n := len(contexts)
		if n == 0 || end-contexts[n-1].from.out > zranMaxPlain || stored-contexts[n-1].from.bit/8 > zranMaxStored {
			contexts = append(contexts, zranContext{from: blocks[first]})
			n++
		}
		x := &contexts[n-1]
		x.end, x.to = max(x.end, stored), max(x.to, end)

		at := blocks[first].bit / 8
		c.CompressedOffset, c.CompressedSize, c.Compressed = at, uint32(stored-at), true
		const compressed, zran = 1, 2
		entries = le.AppendUint64(entries, c.UncompressedOffset>>12|uint64(c.UncompressedSize-1)<<32|(compressed|zran)<<56)
		entries = le.AppendUint64(entries, at|uint64(c.CompressedSize)<<40)
		entries = le.AppendUint64(entries, uint64(n-1)<<32|(begin-x.from.out))
	}
	return contexts, entries
}
