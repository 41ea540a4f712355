package testimage

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
)

// Version is the generation of the metadata format.
type Version int

const (
	V5 Version = 5
	V6 Version = 6
)

const blockSize = 4096

// Options says how a tree is written. The zero value is v6, uncompressed,
// BLAKE3, chunks of 1 MiB, one blob.
type Options struct {
	Version    Version // default V6
	Compressor Compressor
	Digest     Digest
	ChunkSize  uint32   // a power of two, 4 KiB to 16 MiB; default 1 MiB
	Blobs      int      // most blobs to spread the files over; default 1
	Prefetch   []string // paths for the prefetch table; their data comes first

	// Compact, of v6, writes 32-byte inodes where the values fit. They have no
	// mtime: it reads as 0.
	Compact bool
	// Aligned, of v5, starts chunks at multiples of 4 KiB of the uncompressed
	// address space.
	Aligned bool
	// NoExtBlobTable, of v5, writes what builders before 1.1 did: no extended
	// blob table, no chunk index, no CRC, no mtime (it reads as 0).
	NoExtBlobTable bool
	// OldFlags, of v5, leaves the bits of the algorithms out of the superblock,
	// which means lz4 and BLAKE3.
	OldFlags bool
	// Zran, of v6, stores the files as an OCI layer, one tar.gz, and in a second
	// blob where an inflater may start in it. The compressor is gzip then, and
	// WriteUncompressed does not know such blobs.
	Zran bool
}

func (o *Options) complete() error {
	if o.Version == 0 {
		o.Version = V6
	}
	if o.ChunkSize == 0 {
		o.ChunkSize = 1 << 20
	}
	if o.Blobs == 0 {
		o.Blobs = 1
	}
	if o.Zran && o.Compressor == None {
		o.Compressor = Gzip
	}
	maxBlobs := map[Version]int{V5: 256, V6: 254}[o.Version]
	switch {
	case o.Version != V5 && o.Version != V6:
		return fmt.Errorf("version %d: not 5 or 6", o.Version)
	case bits.OnesCount32(o.ChunkSize) != 1 || o.ChunkSize < 1<<12 || o.ChunkSize > 1<<24:
		return fmt.Errorf("chunk size %d: not a power of two from 4 KiB to 16 MiB", o.ChunkSize)
	case o.Blobs < 1 || o.Blobs > maxBlobs:
		return fmt.Errorf("%d blobs: not 1 to %d", o.Blobs, maxBlobs)
	case o.Digest != Blake3 && o.Digest != SHA256:
		return fmt.Errorf("unknown digest %d", o.Digest)
	case o.Version == V5 && o.Compact:
		return fmt.Errorf("compact inodes are of v6")
	case o.Version == V6 && (o.Aligned || o.NoExtBlobTable || o.OldFlags):
		return fmt.Errorf("options of v5 alone: Aligned, NoExtBlobTable, OldFlags")
	case o.Zran && (o.Version != V6 || o.Blobs != 1 || o.Compressor != Gzip):
		return fmt.Errorf("option Zran is of one blob of v6, with gzip")
	case o.OldFlags && (o.Compressor != LZ4 || o.Digest != Blake3):
		return fmt.Errorf("OldFlags means lz4 and blake3, not %v and %v", o.Compressor, o.Digest)
	}
	return nil
}

// Superblock flags, common to v5 and v6.
const (
	flagNone           = 0x1
	flagLZ4            = 0x2
	flagBlake3         = 0x4
	flagSHA256         = 0x8
	flagExplicitOwners = 0x10
	flagHasXattr       = 0x20
	flagGzip           = 0x40
	flagZstd           = 0x80
	flagNotEncrypted   = 0x01000000 // v6
)

// superFlags returns the superblock flags of an image.
func (o *Options) superFlags(hasXattr bool) uint64 {
	flags := uint64(flagExplicitOwners)
	if !o.OldFlags {
		flags |= map[Compressor]uint64{None: flagNone, LZ4: flagLZ4, Gzip: flagGzip, Zstd: flagZstd}[o.Compressor]
		flags |= map[Digest]uint64{Blake3: flagBlake3, SHA256: flagSHA256}[o.Digest]
	}
	if hasXattr {
		flags |= flagHasXattr
	}
	if o.Version == V6 {
		flags |= flagNotEncrypted
	}
	return flags
}

// Image is what Write left on disk.
type Image struct {
	Options   Options // as used, defaults filled in
	Bootstrap string  // path of the bootstrap
	BlobDir   string  // folder with one file per blob, named by its id
	Blobs     []Blob  // by index
	Chunks    []Chunk // all of them, in the order in which they were stored
	Layout    Layout

	plan   *plan
	places places
}

// Blob is one data blob of an image.
type Blob struct {
	ID               string // sha256 of the file
	Path             string
	ChunkCount       uint32
	DataSize         uint64 // chunk data at the start of the file
	Size             uint64 // of the file
	UncompressedSize uint64 // of the address space; that of a full cache file

	// Chunk information of v6; zero in v5. ChunkInfo.Offset is DataSize.
	ChunkInfo           Range
	ChunkInfoSize       uint64 // uncompressed
	ChunkInfoCompressor Compressor
	ChunkInfoHeader     Range

	// Of Options.Zran: the second blob, which holds the chunk information.
	MetaID, MetaPath string
	MetaSize         uint64
	Contexts         []ZranContext
}

// Write writes the tree as dir/bootstrap and dir/blobs/ID. dir is made if it is
// missing and should hold nothing else.
func (t *Tree) Write(dir string, opt Options) (*Image, error) {
	img, err := t.write(dir, opt)
	if err != nil {
		return nil, fmt.Errorf("write test image in %s: %w", dir, err)
	}
	return img, nil
}

func (t *Tree) write(dir string, opt Options) (_ *Image, err error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	p, err := newPlan(t)
	if err != nil {
		return nil, err
	}
	prefetch := make([]uint32, 0, len(opt.Prefetch))
	for _, path := range opt.Prefetch {
		nr := p.find(path)
		if nr == 0 {
			return nil, fmt.Errorf("prefetch path %q is not in the tree", path)
		}
		prefetch = append(prefetch, p.at(nr).first)
	}
	img := &Image{
		Options:   opt,
		Bootstrap: filepath.Join(dir, "bootstrap"),
		BlobDir:   filepath.Join(dir, "blobs"),
		plan:      p,
	}
	if err := os.MkdirAll(img.BlobDir, 0o755); err != nil {
		return nil, err
	}
	if err := img.writeBlobs(prefetch); err != nil {
		return nil, err
	}
	f, err := os.Create(img.Bootstrap)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if opt.Version == V5 {
		return img, writeV5(f, img, prefetch)
	}
	return img, writeV6(f, img, prefetch)
}

// writeBlobs stores the content of all files and fills Chunks and Blobs, and
// the chunk lists of the plan.
func (img *Image) writeBlobs(prefetch []uint32) error {
	p := img.plan
	c, err := newChunker(&img.Options, img.BlobDir)
	if err != nil {
		return err
	}
	defer func() {
		for _, b := range c.blobs {
			b.discard()
		}
	}()
	for _, nr := range p.files(prefetch) {
		e := p.at(nr)
		at := len(p.refs)
		if img.Options.Zran {
			if err := c.tarFile(strings.TrimPrefix(p.path(nr), "/"), e.node.content.Size()); err != nil {
				return fmt.Errorf("%s: %w", p.path(nr), err)
			}
		}
		if p.refs, err = c.file(e.node.content, p.refs); err != nil {
			return fmt.Errorf("%s: %w", p.path(nr), err)
		}
		e.refAt, e.refCount = uint32(at), uint32(len(p.refs)-at)
	}
	if uint64(len(p.refs)) >= 1<<32 {
		return fmt.Errorf("%d chunks in all files, more than 2^32", len(p.refs))
	}
	for nr := range p.entries { // further names share the list
		e := &p.entries[nr]
		first := p.at(e.first)
		e.refAt, e.refCount = first.refAt, first.refCount
		for i, ref := range p.chunks(e) {
			c.chunks[ref].FileOffset = uint64(i) * uint64(img.Options.ChunkSize)
		}
	}
	img.Chunks = c.chunks
	ofBlob := make([][]*Chunk, len(c.blobs))
	for i := range c.chunks {
		ch := &c.chunks[i]
		ofBlob[ch.Blob] = append(ofBlob[ch.Blob], ch)
	}
	for i, b := range c.blobs {
		if img.Options.Zran {
			blob, err := img.finishZran(c, b, ofBlob[i])
			if err != nil {
				return err
			}
			img.Blobs = append(img.Blobs, blob)
			continue
		}
		blob := Blob{ChunkCount: b.count, DataSize: b.size, UncompressedSize: b.addresses}
		if img.Options.Version == V6 {
			ci, err := writeChunkInfo(b, ofBlob[i], c.enc)
			if err != nil {
				return err
			}
			blob.ChunkInfo = Range{int64(ci.offset), int64(ci.compressedSize)}
			blob.ChunkInfoSize = ci.uncompressedSize
			blob.ChunkInfoCompressor = ci.compressor
			blob.ChunkInfoHeader = Range{blob.ChunkInfo.End(), ciHeaderSize}
		}
		blob.Size = b.size
		if blob.ID, blob.Path, err = b.finish(); err != nil {
			return err
		}
		img.Blobs = append(img.Blobs, blob)
	}
	return nil
}

// appendChunkRecord appends the 80-byte record of v5 chunk lists and of the v6
// chunk table.
func (o *Options) appendChunkRecord(b []byte, c *Chunk, fileOffset uint64) []byte {
	const compressed, hasCRC = 0x1, 0x10
	flags, index, crc := uint32(hasCRC), c.Index, c.CRC32C
	if o.NoExtBlobTable {
		flags, index, crc = 0, 0, 0
	}
	if c.Compressed {
		flags |= compressed
	}
	b = append(b, c.Digest[:]...)
	b = le.AppendUint32(b, c.Blob)
	b = le.AppendUint32(b, flags)
	b = le.AppendUint32(b, c.CompressedSize)
	b = le.AppendUint32(b, c.UncompressedSize)
	b = le.AppendUint64(b, c.CompressedOffset)
	b = le.AppendUint64(b, c.UncompressedOffset)
	b = le.AppendUint64(b, fileOffset)
	b = le.AppendUint32(b, index)
	return le.AppendUint32(b, crc)
}

const chunkRecordSize = 80

func roundUp[T ~int | ~int64 | ~uint32 | ~uint64](x, n T) T { return (x + n - 1) / n * n }

func compareNames(a, b string) int { return strings.Compare(a, b) }

func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
