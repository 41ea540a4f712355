package v6

import (
	"encoding/binary"
	"math/bits"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/rafs"
)

// Places and sizes of the fixed structures.
const (
	superOffset    = 1024
	superSize      = 128
	extOffset      = superOffset + superSize // 1152
	extSize        = 256
	deviceOffset   = extOffset + extSize // 1408
	deviceSize     = 128
	deviceSlotUnit = 128

	// Magic is the first word of the EROFS superblock, at MagicOffset.
	Magic       = 0xE0F5E1E2
	MagicOffset = superOffset
	// Version is what RAFS calls this version of its format; no field holds it.
	Version = 0x600

	blockBits = 12 // of all images but those of tar files
	tableUnit = 1 << blockBits
	tarBits   = 9 // of images of tar files

	compatRAFS        = 0x4000_0000
	incompatRequired  = 0xC // CHUNKED_FILE | DEVICE_TABLE
	deviceSlotOffset  = deviceOffset / deviceSlotUnit
	legacyEmptyBlocks = 4096 // builders before 2.2 wrote this for images without blobs
)

var le = binary.LittleEndian

// Image is a v6 image. It implements rafs.Image.
type Image struct {
	b      *rafs.Bootstrap
	data   []byte // of b
	info   rafs.Info
	blobs  []rafs.Blob
	root   uint64
	meta   uint64 // offset of nid 0
	blocks uint32 // as the superblock counts them, all devices together

	blockBits  uint   // log2 of the block size
	chunkBits  uint   // log2 of the chunk size
	xattrs     uint64 // offset of the shared xattrs, 0 = none
	blobTable  table
	chunkTable table // of 80-byte records
	prefetch   table // of 4-byte nids

	index     atomic.Pointer[chunkIndex] // nil until the first file was read
	indexMu   sync.Mutex                 // held while the index is made
	deviceEnd uint64                     // end of the device slots
}

// table is a range of the bootstrap that was checked when the image was opened.
type table struct{ off, size uint64 }

func (t table) end() uint64 { return t.off + t.size }

func (t table) overlaps(u table) bool {
	return t.size != 0 && u.size != 0 && t.off < u.end() && u.off < t.end()
}

// Open reads the superblocks and all tables of a bootstrap that has the magic of
// EROFS. On success the image holds b and Close gives it back; on failure b
// stays with the caller.
func Open(b *rafs.Bootstrap) (_ *Image, err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	im := &Image{b: b, data: b.Data()}
	if err := im.readSuper(); err != nil {
		return nil, err
	}
	if err := im.readBlobs(); err != nil {
		return nil, err
	}
	var root inode
	if err := im.inode(im.root, &root); err != nil {
		return nil, rafs.Damaged("root inode", im.offset(im.root), "%v", err)
	}
	if !root.isDir() {
		return nil, rafs.Damaged("root inode", root.off, "mode %#o is not a directory", root.mode)
	}
	return im, nil
}

// readSuper reads both superblocks and places the tables.
//
// EROFS superblock, at 1024: magic 0:4, checksum 4:4, feature_compat 8:4,
// blkszbits 12:1, extslots 13:1, root_nid 14:2, inos 16:8, blocks 36:4,
// meta_blkaddr 40:4, xattr_blkaddr 44:4, feature_incompat 80:4, extra_devices
// 86:2, devt_slotoff 88:2.
//
// Extended superblock, at 1152: flags 0:8, blob table offset 8:8 and size 16:4,
// chunk size 20:4, chunk table offset 24:8 and size 32:8, prefetch table offset
// 40:8 and size 48:4.
func (im *Image) readSuper() error {
	size := uint64(len(im.data))
	if size < 2*tableUnit {
		return rafs.Damaged("superblock", superOffset, "the bootstrap has %d bytes, want at least %d", size, 2*tableUnit)
	}
	sb, ext := im.data[superOffset:], im.data[extOffset:]
	bad := func(off uint64, format string, args ...any) error {
		return rafs.Damaged("superblock", superOffset+off, format, args...)
	}

	flags := le.Uint64(ext)
	switch {
	case le.Uint32(sb) != Magic:
		return rafs.ErrNotRAFS
	case le.Uint32(sb[8:])&compatRAFS == 0:
		return rafs.ErrNotRAFS
	case flags&^uint64(rafs.FlagsKnown) != 0:
		return rafs.Unsupported("superblock flags %#x", flags&^uint64(rafs.FlagsKnown))
	}
	im.blockBits = blockBits
	if flags&rafs.FlagTarfs != 0 {
		im.blockBits = tarBits
	}
	switch incompat := le.Uint32(sb[80:]); {
	case incompat != incompatRequired:
		return rafs.Unsupported("EROFS incompatible features %#x, a RAFS v6 image has exactly %#x", incompat, incompatRequired)
	case uint(sb[12]) != im.blockBits:
		return rafs.Unsupported("block size of %d bits, want %d", sb[12], im.blockBits)
	case size%im.blockSize() != 0:
		return bad(12, "the bootstrap has %d bytes, want a multiple of %d", size, im.blockSize())
	}

	devices := uint64(le.Uint16(sb[86:]))
	im.root = uint64(le.Uint16(sb[14:]))
	im.meta = uint64(le.Uint32(sb[40:])) << im.blockBits
	im.xattrs = uint64(le.Uint32(sb[44:])) << im.blockBits
	im.blocks = le.Uint32(sb[36:])
	im.deviceEnd = deviceOffset + devices*deviceSize
	inodes := le.Uint64(sb[16:])
	switch {
	case le.Uint32(sb[4:]) != 0:
		return bad(4, "checksum %#x, want 0", le.Uint32(sb[4:]))
	case sb[13] != 0:
		return bad(13, "%d extension slots, want 0", sb[13])
	case inodes == 0:
		return bad(16, "no inodes")
	case devices == 0 && im.blocks != 0 && im.blocks != legacyEmptyBlocks:
		return bad(36, "%d blocks without a device", im.blocks)
	case im.meta > size:
		return bad(40, "the metadata area begins at %#x, behind the end %#x", im.meta, size)
	case im.xattrs >= size:
		return bad(44, "the shared xattrs begin at %#x, behind the end %#x", im.xattrs, size)
	case le.Uint16(sb[88:]) != deviceSlotOffset:
		return bad(88, "device slots at %d, want %d", le.Uint16(sb[88:]), deviceSlotOffset)
	case im.deviceEnd > size:
		return bad(86, "%d device slots end behind the file", devices)
	}

	compression, hash := flags&rafs.FlagsCompression, flags&rafs.FlagsHash
	if bits.OnesCount64(compression) != 1 || bits.OnesCount64(hash) != 1 {
		return rafs.Damaged("superblock", extOffset, "flags %#x name not exactly one compression and one digest", flags)
	}
	chunkSize := le.Uint32(ext[20:])
	if !rafs.ValidChunkSize(chunkSize) {
		return rafs.Damaged("superblock", extOffset+20, "chunk size %d", chunkSize)
	}
	im.chunkBits = uint(bits.TrailingZeros32(chunkSize))
	if err := im.placeTables(ext, devices); err != nil {
		return err
	}
	im.info = rafs.Info{
		Version:     6,
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
			Magic: Magic, Version: Version, Size: superSize, RootInode: im.root,
			BlobTableSize: uint32(im.blobTable.size), BlobTableOffset: im.blobTable.off,
			BlobDeviceTableCount: uint32(devices), BlobDeviceTableOffset: deviceOffset,
			PrefetchTableEntries: uint32(im.prefetch.size / 4), PrefetchTableOffset: im.prefetch.off,
			MetaBlock: le.Uint32(sb[40:]), ChunkTableOffset: im.chunkTable.off, ChunkTableSize: im.chunkTable.size,
		},
	}
	return nil
}

// placeTables finds and bounds the tables of the extended superblock.
func (im *Image) placeTables(ext []byte, devices uint64) error {
	size := uint64(len(im.data))
	blobTable := table{le.Uint64(ext[8:]), uint64(le.Uint32(ext[16:]))}
	im.chunkTable = table{le.Uint64(ext[24:]), le.Uint64(ext[32:])}
	im.prefetch = table{le.Uint64(ext[40:]), uint64(le.Uint32(ext[48:]))}
	if im.prefetch.off == 0 {
		// Old builders wrote a size without an offset for images without blobs.
		im.prefetch.size = 0
	}
	for _, t := range []struct {
		name        string
		field       uint64 // offset of the table's offset in the extended superblock
		table       table
		align, unit uint64
	}{
		{"blob table", 8, blobTable, tableUnit, blobEntrySize},
		{"chunk table", 24, im.chunkTable, tableUnit, rafs.ChunkRecordSize},
		{"prefetch table", 40, im.prefetch, 8, 4},
	} {
		if t.table.size == 0 {
			continue
		}
		off, n := t.table.off, t.table.size
		if off < tableUnit || off%t.align != 0 || off > size || n > size-off || n%t.unit != 0 {
			return rafs.Damaged("superblock", extOffset+t.field,
				"%s of %d bytes at %#x in a bootstrap of %d bytes (entries of %d, aligned to %d)",
				t.name, n, off, size, t.unit, t.align)
		}
	}
	switch {
	case blobTable.size/blobEntrySize != devices:
		return rafs.Damaged("superblock", extOffset+16, "%d entries in the blob table for %d device slots",
			blobTable.size/blobEntrySize, devices)
	case devices > maxBlobs:
		return rafs.Damaged("superblock", superOffset+86, "%d blobs, an image has at most %d", devices, maxBlobs)
	case devices > 0 && blobTable.off < im.deviceEnd:
		return rafs.Damaged("superblock", extOffset+8, "the blob table at %#x lies on the device slots, which end at %#x",
			blobTable.off, im.deviceEnd)
	case blobTable.overlaps(im.chunkTable), blobTable.overlaps(im.prefetch), im.chunkTable.overlaps(im.prefetch):
		return rafs.Damaged("superblock", extOffset+8, "blob, chunk and prefetch table overlap")
	}
	im.blobs = make([]rafs.Blob, devices)
	im.blobTable = blobTable
	return nil
}

// Info returns what the superblocks say.
func (im *Image) Info() *rafs.Info { return &im.info }

// Digest returns the SHA-256 of the bootstrap.
func (im *Image) Digest() ([32]byte, error) { return im.b.SHA256() }

// Root returns the nid of the root directory.
func (im *Image) Root() uint64 { return im.root }

// Blobs returns the blob table.
func (im *Image) Blobs() []rafs.Blob { return im.blobs }

// Tables tells where the tables are.
func (im *Image) Tables() []rafs.Table {
	return []rafs.Table{
		{Name: "device table", Range: rafs.Range{Offset: deviceOffset, Size: im.deviceEnd - deviceOffset}},
		{Name: "blob table", Range: rafs.Range{Offset: im.blobTable.off, Size: im.blobTable.size}},
		{Name: "prefetch table", Range: rafs.Range{Offset: im.prefetch.off, Size: im.prefetch.size}},
		{Name: "chunk table", Range: rafs.Range{Offset: im.chunkTable.off, Size: im.chunkTable.size}},
	}
}

// Close gives back the bootstrap.
func (im *Image) Close() error { return im.b.Close() }

// Prefetch returns the nids of the prefetch table. Zero ends the table early; a
// hint that names no inode must not fail anything, so it is left out.
func (im *Image) Prefetch() (nids []uint64) {
	var err error
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	var n inode
	end := min(im.prefetch.end(), im.prefetch.off+rafs.MaxPrefetch*4)
	for off := im.prefetch.off; off < end; off += 4 {
		nid := uint64(le.Uint32(im.data[off:]))
		if nid == 0 {
			break
		}
		if im.inode(nid, &n) == nil {
			nids = append(nids, nid)
		}
	}
	return nids
}

var _ rafs.Image = (*Image)(nil)
