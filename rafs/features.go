package rafs

import "math/bits"

// Flags of a superblock: s_flags of v5, and of the extended superblock of v6.
const (
	FlagCompressionNone  = 1 << 0
	FlagCompressionLZ4   = 1 << 1
	FlagHashBlake3       = 1 << 2
	FlagHashSHA256       = 1 << 3
	FlagExplicitIDs      = 1 << 4
	FlagHasXattr         = 1 << 5
	FlagCompressionGzip  = 1 << 6
	FlagCompressionZstd  = 1 << 7
	FlagInlinedDigests   = 1 << 8
	FlagTarfs            = 1 << 9
	FlagEncryptionNone   = 1 << 24
	FlagEncryptionAESXTS = 1 << 25

	// FlagsKnown are the flags that may be set, the six reserved compatible
	// ones (bits 26 to 31) included.
	FlagsKnown = 0xFF00_03FF

	// FlagsCompression and FlagsHash are the algorithm bits.
	FlagsCompression = FlagCompressionNone | FlagCompressionLZ4 | FlagCompressionGzip | FlagCompressionZstd
	FlagsHash        = FlagHashBlake3 | FlagHashSHA256
)

var flagNames = [64]string{
	0: "COMPRESSION_NONE", 1: "COMPRESSION_LZ4", 2: "HASH_BLAKE3", 3: "HASH_SHA256",
	4: "EXPLICIT_UID_GID", 5: "HAS_XATTR", 6: "COMPRESSION_GZIP", 7: "COMPRESSION_ZSTD",
	8: "INLINED_CHUNK_DIGEST", 9: "TARTFS_MODE",
	24: "ENCRYPTION_NONE", 25: "ENCRYPTION_AES_128_XTS",
	26: "PRESERVED_COMPAT_5", 27: "PRESERVED_COMPAT_4", 28: "PRESERVED_COMPAT_3",
	29: "PRESERVED_COMPAT_2", 30: "PRESERVED_COMPAT_1", 31: "PRESERVED_COMPAT_0",
}

// FlagNames lists the names of the flags that are set, lowest bit first.
func FlagNames(flags uint64) []string {
	var names []string
	for ; flags != 0; flags &= flags - 1 {
		names = append(names, flagNames[bits.TrailingZeros64(flags)])
	}
	return names
}

// Features of a blob: the field of v6 blob tables and of v5 extended blob
// tables.
const (
	BlobAligned          = 1 << 0
	BlobInlinedFSMeta    = 1 << 1
	BlobChunkInfoV2      = 1 << 2
	BlobZran             = 1 << 3
	BlobSeparate         = 1 << 4
	BlobInlinedDigests   = 1 << 5
	BlobTarfs            = 1 << 6
	BlobBatch            = 1 << 7
	BlobEncrypted        = 1 << 8
	BlobChunkdict        = 1 << 9
	BlobPrefetchCopies   = 1 << 10
	BlobExternal         = 1 << 11
	BlobHasTarHeader     = 1 << 28
	BlobHasTOC           = 1 << 29
	BlobCapTarTOC        = 1 << 30
	BlobV5NoExtBlobTable = 1 << 31

	// blobIncompatible are the bits that a reader must know; of these the low
	// twelve are defined.
	blobIncompatible = 0xF000
)

var blobFeatureNames = [32]string{
	0: "aligned", 1: "fs-meta", 2: "chunk-v2", 3: "zran", 4: "separate", 5: "chunk-digest", 6: "tarfs",
	7: "batch", 8: "encrypted", 9: "chunkdict", 10: "prefetch-copies", 11: "external",
	28: "tar-header", 29: "toc", 30: "cap_toc",
}

// BlobFeatureNames lists the names of a blob's features, lowest bit first. Bits
// without a name are left out.
func BlobFeatureNames(features uint32) []string {
	var names []string
	for ; features != 0; features &= features - 1 {
		if name := blobFeatureNames[bits.TrailingZeros32(features)]; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// BlobByMeta are the features whose chunks are described by more than the
// bootstrap's own chunk records. v6 alone has them.
const BlobByMeta = BlobZran | BlobSeparate | BlobEncrypted | BlobBatch

// CheckBlobFeatures refuses the features of blob index that this reader does not
// serve, naming the first of them. allowed are features that the caller serves.
func CheckBlobFeatures(index int, features, allowed uint32) error {
	for _, f := range [...]struct {
		bit  uint32
		name string
	}{
		{BlobV5NoExtBlobTable, "_V5_NO_EXT_BLOB_TABLE, which has no place on disk"},
		{BlobZran, "ZRAN (an OCI tar.gz read at random)"},
		{BlobSeparate, "SEPARATE (data in an untouched OCI layer)"},
		{BlobEncrypted, "ENCRYPTED"},
		{BlobBatch, "BATCH (small chunks packed together)"},
		{BlobTarfs, "TARFS"},
		{BlobExternal, "EXTERNAL (data in a foreign object)"},
	} {
		if features&^allowed&f.bit != 0 {
			return Unsupported("blob %d: feature %s", index, f.name)
		}
	}
	if unknown := features & blobIncompatible; unknown != 0 {
		return Unsupported("blob %d: unknown features %#x", index, unknown)
	}
	return nil
}

// Compressors, numbered as in a v6 blob table.
const (
	CompressorNone = 0
	CompressorLZ4  = 1
	CompressorGzip = 2
	CompressorZstd = 3
)

// Digesters, numbered as in a v6 blob table.
const (
	DigesterBlake3 = 0
	DigesterSHA256 = 1
)

// CompressorOf returns the algorithm that superblock flags name. Images that are
// older than the choice have no bit and are LZ4.
func CompressorOf(flags uint64) uint8 {
	switch {
	case flags&FlagCompressionNone != 0:
		return CompressorNone
	case flags&FlagCompressionLZ4 != 0:
		return CompressorLZ4
	case flags&FlagCompressionGzip != 0:
		return CompressorGzip
	case flags&FlagCompressionZstd != 0:
		return CompressorZstd
	}
	return CompressorLZ4
}

// DigesterOf returns the algorithm that superblock flags name. Images that are
// older than the choice have no bit and are BLAKE3.
func DigesterOf(flags uint64) uint8 {
	if flags&FlagHashBlake3 == 0 && flags&FlagHashSHA256 != 0 {
		return DigesterSHA256
	}
	return DigesterBlake3
}

// Limits of the formats.
const (
	MinChunkSize = 4 << 10
	MaxChunkSize = 16 << 20
	MaxName      = 255
	// MaxXattr bounds the value of an extended attribute and the list of all
	// names of an inode.
	MaxXattr = 64 << 10
	// MaxExtents bounds the bytes that one call of Image.Extents describes.
	MaxExtents = 1 << 30
	// MaxChunks bounds the chunks of a blob: v6 has 24 bits for an index, and
	// the builder keeps to that for v5.
	MaxChunks = 1 << 24
	// MaxCompressedSize and MaxUncompressedSize bound the two address spaces of
	// a blob.
	MaxCompressedSize   = 1 << 40
	MaxUncompressedSize = 1 << 44
	// MaxPrefetch is how many entries of a prefetch table are looked at.
	MaxPrefetch = 1 << 20
	// MaxInode bounds inode numbers: node ids carry 44 bits of them.
	MaxInode = 1<<44 - 1
)

// ValidChunkSize tells whether the formats allow a chunk size.
func ValidChunkSize(n uint32) bool {
	return n >= MinChunkSize && n <= MaxChunkSize && n&(n-1) == 0
}

// File types of st_mode, and the DT_* value of each.
const (
	ModeType    = 0o170000
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
)

// DirentType returns the DT_* value of a mode, or 0 if its type is none of the
// seven.
func DirentType(mode uint32) uint8 {
	switch mode & ModeType {
	case ModeFIFO, ModeChar, ModeDir, ModeBlock, ModeRegular, ModeSymlink, ModeSocket:
		return uint8(mode & ModeType >> 12)
	}
	return 0
}
