package v5

import (
	"encoding/binary"
	"math/bits"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/rafs"
)

const (
	// Magic is the first word of a v5 bootstrap, Version the second.
	Magic   = 0x52414653
	Version = 0x500

	superSize      = 8192
	tableAlignment = 8
	tableEntrySize = 4
	recordUnit     = 8 // of the inode table's values

	rootIndex = 1
)

var le = binary.LittleEndian

// Image is a v5 image. It implements rafs.Image.
type Image struct {
	b     *rafs.Bootstrap
	data  []byte // of b
	info  rafs.Info
	blobs []rafs.Blob

	chunkBits uint // log2 of the chunk size
	inodes    table
	prefetch  table
	blobTable table
	extBlobs  table

	index   atomic.Pointer[chunkIndex] // nil until the first file was read
	indexMu sync.Mutex                 // held while the index is made
}

// table is a range of the bootstrap that was checked when the image was opened.
type table struct{ off, size uint64 }

func (t table) end() uint64 { return t.off + t.size }

func (t table) overlaps(u table) bool {
	return t.size != 0 && u.size != 0 && t.off < u.end() && u.off < t.end()
}

// Open reads the superblock and all tables of a bootstrap that has the magic and
// version of v5. On success the image holds b and Close gives it back; on
// failure b stays with the caller.
func Open(b *rafs.Bootstrap) (_ *Image, err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	im := &Image{b: b, data: b.Data()}
	if err := im.readSuper(); err != nil {
		return nil, err
	}
	if err := im.readBlobs(); err != nil {
		return nil, err
	}
	if err := im.checkRoot(); err != nil {
		return nil, err
	}
	return im, nil
}

// readSuper reads the superblock: magic 0:4, version 4:4, size 8:4, chunk size
// 12:4, flags 16:8, inodes 24:8, inode table offset 32:8, prefetch table offset
// 40:8, blob table offset 48:8, inode table entries 56:4, prefetch table entries
// 60:4, blob table size 64:4, extended blob table entries 68:4 and offset 72:8.
func (im *Image) readSuper() error {
	size := uint64(len(im.data))
	if size <= superSize || size > rafs.MaxBootstrapSize || size%tableAlignment != 0 {
		return rafs.Damaged("superblock", 0, "the bootstrap has %d bytes, want a multiple of %d, more than %d and at most %d",
			size, tableAlignment, superSize, uint64(rafs.MaxBootstrapSize))
	}
	sb := im.data[:superSize]
	flags := le.Uint64(sb[16:])
	switch {
	case le.Uint32(sb) != Magic:
		return rafs.ErrNotRAFS
	case le.Uint32(sb[4:]) != Version:
		return rafs.Unsupported("superblock: RAFS version %#x, want %#x", le.Uint32(sb[4:]), Version)
	case flags&^uint64(rafs.FlagsKnown) != 0:
		return rafs.Unsupported("superblock flags %#x", flags&^uint64(rafs.FlagsKnown))
	case flags&rafs.FlagTarfs != 0:
		return rafs.Unsupported("superblock flag TARTFS_MODE in a v5 image")
	case flags&rafs.FlagEncryptionAESXTS != 0:
		return rafs.Unsupported("superblock flag ENCRYPTION_AES_128_XTS in a v5 image")
	case le.Uint32(sb[8:]) != superSize:
		return rafs.Damaged("superblock", 8, "a superblock of %d bytes, want %d", le.Uint32(sb[8:]), superSize)
	case !rafs.ValidChunkSize(le.Uint32(sb[12:])):
		return rafs.Damaged("superblock", 12, "chunk size %d", le.Uint32(sb[12:]))
	}
	entries := uint64(le.Uint32(sb[56:]))
	inodes := le.Uint64(sb[24:])
	if inodes > entries {
		return rafs.Damaged("superblock", 24, "%d inodes in a table of %d", inodes, entries)
	}
	im.inodes = table{le.Uint64(sb[32:]), entries * tableEntrySize}
	im.prefetch = table{le.Uint64(sb[40:]), uint64(le.Uint32(sb[60:])) * tableEntrySize}
	im.blobTable = table{le.Uint64(sb[48:]), uint64(le.Uint32(sb[64:]))}
	im.extBlobs = table{le.Uint64(sb[72:]), uint64(le.Uint32(sb[68:])) * extEntrySize}
	tables := [...]struct {
		name  string
		field uint64 // offset of the table's offset in the superblock
		table table
	}{
		{"inode table", 32, im.inodes},
		{"prefetch table", 40, im.prefetch},
		{"blob table", 48, im.blobTable},
		{"extended blob table", 72, im.extBlobs},
	}
	for i, t := range tables {
		off, n := t.table.off, t.table.size
		if n == 0 {
			continue
		}
		if off < superSize || off%tableAlignment != 0 || off > size || n > size-off {
			return rafs.Damaged("superblock", t.field, "%s of %d bytes at %#x in a bootstrap of %d bytes", t.name, n, off, size)
		}
		for _, u := range tables[:i] {
			if t.table.overlaps(u.table) {
				return rafs.Damaged("superblock", t.field, "%s and %s overlap", u.name, t.name)
			}
		}
	}
	chunkSize := le.Uint32(sb[12:])
	im.chunkBits = uint(bits.TrailingZeros32(chunkSize))
	im.info = rafs.Info{
		Version:     5,
		Flags:       flags,
		FlagNames:   rafs.FlagNames(flags),
		ChunkSize:   chunkSize,
		Inodes:      inodes,
		HasXattr:    flags&rafs.FlagHasXattr != 0,
		ExplicitIDs: flags&rafs.FlagExplicitIDs != 0,
		Path:        im.b.Path(),
		Size:        int64(size),
		Compressor:  rafs.CompressorOf(flags),
		Digester:    rafs.DigesterOf(flags),
		Super: rafs.Super{
			Magic: Magic, Version: Version, Size: superSize, RootInode: rootIndex,
			InodeTableEntries: uint32(entries), InodeTableOffset: im.inodes.off,
			BlobTableSize: uint32(im.blobTable.size), BlobTableOffset: im.blobTable.off,
			ExtendedBlobTableEntries: uint32(im.extBlobs.size / extEntrySize), ExtendedBlobTableOffset: im.extBlobs.off,
			PrefetchTableEntries: uint32(im.prefetch.size / tableEntrySize), PrefetchTableOffset: im.prefetch.off,
		},
	}
	return nil
}

// checkRoot refuses an image whose root cannot be read. The prototype of 2020
// has the same superblock and another inode, whose bytes read here as no mode
// and no name.
func (im *Image) checkRoot() error {
	if im.entries() == 0 {
		return rafs.Damaged("superblock", 56, "no inodes")
	}
	off := uint64(le.Uint32(im.data[im.inodes.off:])) * recordUnit
	if size := uint64(len(im.data)); off > superSize && off <= size && size-off >= recordSize {
		rec := im.data[off:]
		if le.Uint32(rec[60:]) == 0 && le.Uint16(rec[100:]) == 0 {
			return rafs.Unsupported("root inode at %#x is no directory: a pre-release v5 layout", off)
		}
	}
	var root inode
	if err := im.first(rootIndex, &root); err != nil {
		return rafs.Damaged("root inode", off, "%v", err)
	}
	if !root.isDir() {
		return rafs.Damaged("root inode", off, "mode %#o is not a directory", root.mode)
	}
	return nil
}

// entries is the number of entries of the inode table, which is the highest
// index.
func (im *Image) entries() uint64 { return im.inodes.size / tableEntrySize }

// Info returns what the superblock says.
func (im *Image) Info() *rafs.Info { return &im.info }

// Digest returns the SHA-256 of the bootstrap.
func (im *Image) Digest() ([32]byte, error) { return im.b.SHA256() }

// Root returns the number of the root directory.
func (im *Image) Root() uint64 { return rootIndex }

// Blobs returns the blob table.
func (im *Image) Blobs() []rafs.Blob { return im.blobs }

// Tables tells where the tables are.
func (im *Image) Tables() []rafs.Table {
	return []rafs.Table{
		{Name: "inode table", Range: rafs.Range{Offset: im.inodes.off, Size: im.inodes.size}},
		{Name: "prefetch table", Range: rafs.Range{Offset: im.prefetch.off, Size: im.prefetch.size}},
		{Name: "blob table", Range: rafs.Range{Offset: im.blobTable.off, Size: im.blobTable.size}},
		{Name: "extended blob table", Range: rafs.Range{Offset: im.extBlobs.off, Size: im.extBlobs.size}},
	}
}

// Close gives back the bootstrap.
func (im *Image) Close() error { return im.b.Close() }

// Prefetch returns the numbers of the prefetch table. Zero ends the table early;
// a hint that names no inode must not fail anything, so it is left out.
func (im *Image) Prefetch() (inos []uint64) {
	var err error
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	end := min(im.prefetch.end(), im.prefetch.off+rafs.MaxPrefetch*tableEntrySize)
	for off := im.prefetch.off; off < end; off += tableEntrySize {
		ino := uint64(le.Uint32(im.data[off:]))
		if ino == 0 {
			break
		}
		if im.first(ino, &n) == nil {
			inos = append(inos, ino)
		}
	}
	return inos
}

var _ rafs.Image = (*Image)(nil)
