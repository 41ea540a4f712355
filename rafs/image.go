package rafs

import (
	"errors"
	"fmt"
)

// Image is the metadata of one RAFS image, version 5 or 6: a mapped bootstrap
// whose structures are decoded on demand. Nobody above this interface sees
// which version it is.
//
// Inodes are named by numbers that are functions of the image alone (v5: the
// inode number, v6: the nid), below 1<<44, never 0. Hard links of one file share
// one number.
//
// All methods are safe for concurrent use and, Check and the first use of the
// chunk index apart, do not allocate when the caller's buffers have room. The
// file may change or shrink under the map: every accessor
// checks its bounds on each use, and a page that faults is ErrFault of that call,
// never a crash. An inode whose record is damaged answers an error that wraps
// ErrDamaged; other inodes go on.
type Image interface {
	Info() *Info // immutable
	// Digest returns the SHA-256 of the bootstrap as it is mapped, which it reads
	// whole.
	Digest() ([32]byte, error)
	Root() uint64

	// Attr fills a with the attributes of ino.
	Attr(ino uint64, a *Attr) error
	// Lookup finds name in the directory dir: its inode, or ErrNotExist. "." and
	// ".." are not looked up here: see Parent.
	Lookup(dir uint64, name []byte) (uint64, error)
	// Parent returns the parent of a directory (the root's parent is the root).
	Parent(dir uint64) (uint64, error)
	// ReadDir places c before the entry at pos of directory dir, 0 being the
	// beginning and other values Dirent.Next of an earlier entry. "." and ".."
	// are never among the entries. Damaged entries are left out of the listing,
	// which then ends with an error that wraps ErrDamaged instead of a plain end.
	ReadDir(dir uint64, pos uint64, c *Cursor) error
	// Readlink appends the target of a symbolic link to dst.
	Readlink(ino uint64, dst []byte) ([]byte, error)
	// XattrNames appends the full names of ino's extended attributes, each
	// ended by a NUL, to dst. Lists and values that are longer than Linux can
	// ask for are ErrTooLong.
	XattrNames(ino uint64, dst []byte) ([]byte, error)
	// Xattr appends the value of the attribute of that full name to dst, or
	// returns ErrNoXattr.
	Xattr(ino uint64, name []byte, dst []byte) ([]byte, error)

	// Extents appends to dst the pieces of blobs that make up the bytes
	// [off, off+n) of the regular file ino, in file order, clipped at the end of
	// the file and at MaxExtents bytes. A file's hole is an Extent with Blob < 0. Every extent is checked
	// against the description that Chunk gives of its chunk: both name the same
	// place of the blob's uncompressed address space.
	//
	// The first call builds the index from (blob, chunk index) to descriptions,
	// in time linear in the metadata; ChunksIndexed tells whether that is done.
	Extents(ino, off uint64, n uint64, dst []Extent) ([]Extent, error)

	ChunksIndexed() bool

	// Blobs describes the blobs of the image, by blob index. Immutable.
	Blobs() []Blob
	// ChunkCount is one more than the highest chunk index of a blob that this
	// image knows.
	ChunkCount(blob int) (uint32, error)
	// Chunk fills c with the description of a chunk, or returns ErrNoChunk for
	// an index of which the image knows nothing.
	Chunk(blob int, index uint32, c *Chunk) error

	// Tables tells where the tables of the bootstrap are.
	Tables() []Table

	// Prefetch returns the inodes of the prefetch table, in order of priority,
	// without the entries that name no inode. The slice is the caller's.
	Prefetch() []uint64

	// Check verifies every structure that can be verified and hands each fault
	// to report (structure, offset in the bootstrap, what is wrong); it stops
	// when report returns false. It is linear in the size of the metadata.
	Check(report func(Fault) bool) error

	// Close gives back the image; the last one to do so unmaps the bootstrap.
	// No other method of this holder may run during or after it.
	Close() error
}

// Info is what the superblock says.
type Info struct {
	Version   int    // 5 or 6
	Flags     uint64 // s_flags
	FlagNames []string
	ChunkSize uint32
	Inodes    uint64 // as the superblock counts them
	HasXattr  bool
	// ExplicitIDs: the owners in the image are real. If not, every file belongs
	// to the user and group that the server runs as.
	ExplicitIDs bool
	Path        string   // where the bootstrap was opened, for messages
	Size        int64    // of the bootstrap in bytes
	Digest      [32]byte // sha256 of the bootstrap, if Options asked for it
	Compressor  uint8    // as in the blob table of v6: 0 none 1 lz4_block 2 gzip 3 zstd
	Digester    uint8    // 0 blake3 1 sha256
	Super       Super
}

// Super is where the superblock says that the structures of the bootstrap are.
// What a version of the format does not have is zero.
type Super struct {
	Magic, Version, Size             uint32 // Size of the superblock in bytes
	RootInode                        uint64
	InodeTableEntries                uint32
	InodeTableOffset                 uint64
	BlobTableSize                    uint32
	BlobTableOffset                  uint64
	ExtendedBlobTableEntries         uint32
	ExtendedBlobTableOffset          uint64
	BlobDeviceTableCount             uint32
	BlobDeviceTableOffset            uint64
	PrefetchTableEntries             uint32
	PrefetchTableOffset              uint64
	MetaBlock                        uint32 // meta_blkaddr
	ChunkTableOffset, ChunkTableSize uint64
}

// Attr is what stat(2) shows of an inode.
type Attr struct {
	Ino       uint64
	Size      uint64
	Blocks    uint64 // of 512 bytes
	Mtime     int64  // seconds; may be negative
	MtimeNsec uint32 // < 1e9
	Mode      uint32 // type and permission bits, st_mode
	Nlink     uint32
	UID, GID  uint32
	Rdev      uint32 // device nodes: the kernel's new_encode_dev form; else 0
}

// Dirent is one entry of a directory. Name is a copy in the cursor's own buffer,
// valid until the next call on the cursor.
type Dirent struct {
	Name []byte
	Ino  uint64
	Next uint64 // position behind this entry: non-zero, below 1<<31 - 2
	Type uint8  // DT_* value, never DT_UNKNOWN
}

// Extent is a piece of a regular file: Length bytes at FileOffset come from
// chunk Chunk of blob Blob, beginning ChunkOffset bytes into the uncompressed
// chunk.
type Extent struct {
	FileOffset         uint64
	UncompressedOffset uint64 // of the piece (not of the chunk) in the blob's uncompressed address space
	Blob               int32  // -1: a hole, reads as zeros
	Chunk              uint32
	ChunkOffset        uint32
	Length             uint32
}

// Chunk describes one stored chunk. The flags are those of the 80-byte chunk
// record.
type Chunk struct {
	CompressedOffset   uint64
	UncompressedOffset uint64
	CompressedSize     uint32
	UncompressedSize   uint32
	Flags              uint32
	CRC32C             uint32
	Digest             [32]byte
}

// Flags of a chunk record.
const (
	ChunkCompressed = 1 << 0
	ChunkHole       = 1 << 1
	ChunkEncrypted  = 1 << 2
	ChunkBatch      = 1 << 3
	ChunkHasCRC     = 1 << 4
)

// Blob is one entry of the image's blob table.
type Blob struct {
	ID               string
	Features         uint32
	ChunkCount       uint32 // as the table says; 0 = unknown
	Compressor       uint8
	Digester         uint8
	CompressedSize   uint64 // upper bound of chunk data in the blob; 0 = unknown
	RecordedSize     uint64 // stored bytes as the table says: since 2.2 those of the whole blob
	Readahead        Range  // of the blob, meant to be fetched at mount; v5 only, and no reader does it
	UncompressedSize uint64 // 0 = unknown
	ChunkInfo        ChunkInfo
	// Cipher is what the blob's chunks and its chunk information are encrypted
	// with; nil if they are not.
	Cipher *Cipher
}

// Range is a part of a file.
type Range struct{ Offset, Size uint64 }

// Table is one of the tables of a bootstrap, for tools that show where things
// are.
type Table struct {
	Name string
	Range
}

// StoredByMeta tells whether the places of the blob's chunks are in its chunk
// information alone: the image's own records of them name the uncompressed
// bytes and no more.
func (b *Blob) StoredByMeta() bool {
	return b.Features&(BlobZran|BlobBatch|BlobSeparate) != 0
}

// ChunkInfo says where a v6 blob keeps what it says of its own chunks. Images
// whose chunks stand for themselves are read without it; it is there to be
// compared. It is all zero for v5, and for blobs that have none.
type ChunkInfo struct {
	Offset     uint64 // in the blob that holds it
	StoredSize uint64 // a header of 4096 bytes follows
	Size       uint64 // uncompressed; never below StoredSize
	Compressor uint8

	// BlobID is the blob that holds it: the blob itself, or a second one
	// (SEPARATE). BlobSize is the size of that one's file, 0 = unknown, and
	// BlobDigest of a second one its sha256, without its digests of chunks if it
	// has such; zero = unknown.
	BlobID     string
	BlobSize   uint64
	BlobDigest [32]byte
	// TOCSize is the size of the table of contents at the end of that file, its
	// tar header included, and TOCDigest the sha256 of both; 0 and zero if there
	// is none or it is not known.
	TOCSize   uint32
	TOCDigest [32]byte
}

// Cipher is the key of an encrypted blob: AES-128-XTS, 16 bytes for the data and
// 16 for the tweak, and the tweak of every unit. It is secret: printed in any way
// it shows nothing.
type Cipher struct {
	key [32]byte
	iv  [16]byte
}

// NewCipher makes a Cipher.
func NewCipher(key [32]byte, iv [16]byte) *Cipher { return &Cipher{key, iv} }

// Reveal returns key and tweak, for who decrypts.
func (c *Cipher) Reveal() (key [32]byte, iv [16]byte) { return c.key, c.iv }

// Format implements fmt.Formatter, for all verbs.
func (*Cipher) Format(f fmt.State, _ rune) { fmt.Fprint(f, "AES-128-XTS") }

// MarshalText implements encoding.TextMarshaler.
func (*Cipher) MarshalText() ([]byte, error) { return []byte("AES-128-XTS"), nil }

// Fault is one thing that is wrong with a bootstrap.
type Fault struct {
	Structure string // "superblock", "inode", "directory", "chunk table", …
	Offset    int64  // in the bootstrap
	Path      string // of the file concerned, if known
	Err       error
}

// Errors of an Image. ErrNotExist and the like are what a caller turns into an
// errno; everything else is EIO.
var (
	ErrNotExist   = errors.New("no such entry")
	ErrNotDir     = errors.New("not a directory")
	ErrIsDir      = errors.New("is a directory")
	ErrNotSymlink = errors.New("not a symbolic link")
	ErrNotRegular = errors.New("not a regular file")
	ErrTooLong    = errors.New("longer than Linux can ask for")
	ErrNoXattr    = errors.New("no such attribute")
	ErrNoChunk    = errors.New("no such chunk in the image")
	ErrStale      = errors.New("no such inode in the image")
	ErrDamaged    = errors.New("damaged metadata")
	ErrFault      = errors.New("the bootstrap shrank under its mapping")
	ErrNotRAFS    = errors.New("not a RAFS bootstrap")
	// ErrUnsupported wraps the name of a feature that is recognised and refused.
	ErrUnsupported = errors.New("unsupported image feature")
)
