package v6

import (
	"bytes"
	"encoding/hex"

	"github.com/rafsd/rafsd/rafs"
)

const (
	blobEntrySize = 256
	maxBlobs      = 254 // a chunk address has eight bits for the index plus one

	tarHeaderSize = 512

	chunkInfoV1Size = 16
	chunkInfoV2Size = 24
)

// readBlobs reads the blob table together with the device slots.
func (im *Image) readBlobs() error {
	ids := make(map[string]int, len(im.blobs))
	for i := range im.blobs {
		if err := im.readBlob(i); err != nil {
			return err
		}
		id := im.blobs[i].ID
		if first, twice := ids[id]; twice {
			return rafs.Damaged("blob table", im.blobOffset(i), "blobs %d and %d have the id %s", first, i, id)
		}
		ids[id] = i
	}
	if im.chunkTable.size == 0 && !im.isTar() {
		for i := range im.blobs {
			if im.blobs[i].ChunkCount != 0 {
				return rafs.Unsupported("no chunk table in the bootstrap: blob %d is described by its own meta alone", i)
			}
		}
	}
	return nil
}

func (im *Image) blobOffset(i int) uint64 { return im.blobTable.off + uint64(i)*blobEntrySize }

// readBlob reads entry i of the blob table: id 0:64, index 64:4, chunk size
// 68:4, chunk count 72:4, compression 76:4, digest 80:4, features 84:4,
// compressed size 88:8, uncompressed size 96:8, CI compressor 108:4, CI offset
// 112:8, CI compressed size 120:8 and uncompressed size 128:8, cipher 216:4.
// Slot i of the device table has: id 0:64, blocks 64:4.
func (im *Image) readBlob(i int) error {
	off := im.blobOffset(i)
	e := im.data[off : off+blobEntrySize]
	slot := im.data[deviceOffset+i*deviceSize:][:deviceSize]
	bad := func(field uint64, format string, args ...any) error {
		return rafs.Damaged("blob table", off+field, format, args...)
	}

	features := le.Uint32(e[84:])
	if err := rafs.CheckBlobFeatures(i, features, rafs.BlobByMeta|im.ownFeatures()); err != nil {
		return err
	}
	var (
		count, chunkSize     = le.Uint32(e[72:]), le.Uint32(e[68:])
		compressor, digester = le.Uint32(e[76:]), le.Uint32(e[80:])
		compressed           = le.Uint64(e[88:])
		uncompressed         = le.Uint64(e[96:])
		ciOffset             = le.Uint64(e[112:])
		ciStored, ciSize     = le.Uint64(e[120:]), le.Uint64(e[128:])
		tableID, deviceID    = trimNUL(e[:64]), trimNUL(slot[:64])
	)
	switch {
	case le.Uint32(e[64:]) != uint32(i):
		return bad(64, "entry %d has the index %d", i, le.Uint32(e[64:]))
	case chunkSize != im.info.ChunkSize:
		return bad(68, "blob %d has chunks of %d bytes, the image of %d", i, chunkSize, im.info.ChunkSize)
	case count > rafs.MaxChunks:
		return bad(72, "blob %d has %d chunks, at most %d are possible", i, count, rafs.MaxChunks)
	case compressor > rafs.CompressorZstd:
		return bad(76, "blob %d has the compression %d", i, compressor)
	case digester > rafs.DigesterSHA256:
		return bad(80, "blob %d has the digest %d", i, digester)
	case (features&rafs.BlobTarfs != 0) != im.isTar():
		return bad(84, "blob %d: features %#x in an image of blocks of %d bytes", i, features, im.blockSize())
	case features&(rafs.BlobAligned|rafs.BlobExternal|rafs.BlobTarfs) == 0:
		return bad(84, "blob %d: features %#x without ALIGNED", i, features)
	case features&rafs.BlobTarfs != 0 && features&(rafs.BlobAligned|rafs.BlobExternal) != 0:
		return bad(84, "blob %d: features %#x: a tar is neither ALIGNED nor EXTERNAL", i, features)
	case compressed > rafs.MaxCompressedSize:
		return bad(88, "blob %d has %d stored bytes", i, compressed)
	case uncompressed > rafs.MaxUncompressedSize:
		return bad(96, "blob %d has %d bytes", i, uncompressed)
	case le.Uint32(e[108:]) > rafs.CompressorZstd:
		return bad(108, "blob %d has the chunk information compression %d", i, le.Uint32(e[108:]))
	case ciStored > ciSize:
		return bad(120, "blob %d has chunk information of %d bytes in %d", i, ciSize, ciStored)
	case tableID != deviceID:
		return rafs.Damaged("device table", uint64(deviceOffset+i*deviceSize),
			"slot %d names the blob %q, the blob table %q", i, deviceID, tableID)
	case le.Uint32(slot[64:]) == 0:
		return rafs.Damaged("device table", uint64(deviceOffset+i*deviceSize+64), "blob %d has no blocks", i)
	}
	cipher, err := readCipher(i, off, features, e)
	if err != nil {
		return err
	}
	if err := checkKinds(i, off, features); err != nil {
		return err
	}
	entry := uint64(chunkInfoV1Size)
	if features&rafs.BlobChunkInfoV2 != 0 {
		entry = chunkInfoV2Size
	}
	// Contexts follow the entries of batch and ZRAN.
	more := features&(rafs.BlobZran|rafs.BlobBatch|rafs.BlobEncrypted) != 0
	if want := entry * uint64(count); (ciSize < want || ciSize != want && !more) && features&(rafs.BlobChunkdict|rafs.BlobExternal|rafs.BlobTarfs) == 0 {
		if i > 0 && ciOffset == 0 && ciSize == chunkInfoV2Size*uint64(count) {
			return rafs.Unsupported("optimized image with inconsistent prefetch blob:"+
				" blob %d has %d bytes of chunk information for %d chunks, want %d", i, ciSize, count, want)
		}
		return bad(128, "blob %d has %d bytes of chunk information for %d chunks, want %d", i, ciSize, count, want)
	}

	// Since 2.2 the recorded size is that of the whole file; chunks end where
	// the chunk information begins.
	data := compressed
	if features&rafs.BlobCapTarTOC != 0 && features&rafs.BlobSeparate == 0 {
		if ciStored != 0 && ciSize != 0 {
			data = ciOffset
		}
		if features&rafs.BlobHasTarHeader != 0 {
			if data < tarHeaderSize {
				return bad(112, "blob %d: no room for a tar header before %d", i, data)
			}
			data -= tarHeaderSize
		}
		if data > rafs.MaxCompressedSize {
			return bad(112, "blob %d has %d bytes of chunks", i, data)
		}
	}
	id, err := rafs.ResolveBlobID(i, off, tableID, features, im.b.Path())
	if err != nil {
		return err
	}
	im.blobs[i] = rafs.Blob{
		ID: id, Features: features, ChunkCount: count,
		Compressor: uint8(compressor), Digester: uint8(digester),
		CompressedSize: data, RecordedSize: compressed, UncompressedSize: uncompressed, Cipher: cipher,
	}
	if ciStored != 0 && ciSize != 0 {
		ci := rafs.ChunkInfo{
			Offset: ciOffset, StoredSize: ciStored, Size: ciSize, Compressor: uint8(le.Uint32(e[108:])),
			BlobID: id, BlobSize: compressed,
			TOCSize: le.Uint32(e[104:]), TOCDigest: [32]byte(e[136:168]),
		}
		if features&rafs.BlobSeparate != 0 {
			if ci.BlobID, err = metaBlobID(i, features, e, im.b.Path()); err != nil {
				return err
			}
			ci.BlobSize, ci.BlobDigest = le.Uint64(e[200:]), [32]byte(e[168:200])
		}
		im.blobs[i].ChunkInfo = ci
	} else if im.blobs[i].StoredByMeta() && count > 0 {
		return bad(120, "blob %d has %d chunks that its chunk information describes, and no such information", i, count)
	}
	return nil
}

// ownFeatures are the kinds of blobs that the bootstrap describes otherwise than
// by records of chunks in a blob of ours.
func (im *Image) ownFeatures() uint32 {
	if im.isTar() {
		return rafs.BlobTarfs
	}
	return rafs.BlobExternal
}

// readCipher reads the cipher of an encrypted blob: algorithm 216:4, key in the
// place of the second blob's digest 168:32, tweak 200:16.
func readCipher(i int, off uint64, features uint32, e []byte) (*rafs.Cipher, error) {
	cipher := le.Uint32(e[216:])
	switch {
	case cipher > cipherAES128XTS:
		return nil, rafs.Unsupported("blob %d: cipher %d, which no reader has", i, cipher)
	case (cipher == cipherAES128XTS) != (features&rafs.BlobEncrypted != 0):
		return nil, rafs.Damaged("blob table", off+216, "blob %d: cipher %d and features %#x", i, cipher, features)
	case cipher == 0:
		return nil, nil
	case features&rafs.BlobSeparate != 0:
		return nil, rafs.Unsupported("blob %d: both ENCRYPTED and SEPARATE, which share a field", i)
	case bytes.Equal(e[168:184], e[184:200]):
		return nil, rafs.Damaged("blob table", off+168, "blob %d: both halves of its key are equal", i)
	}
	return rafs.NewCipher([32]byte(e[168:200]), [16]byte(e[200:216])), nil
}

const cipherAES128XTS = 1

// checkKinds refuses kinds of chunks that contradict each other.
func checkKinds(i int, off uint64, features uint32) error {
	has := func(bits uint32) bool { return features&bits == bits }
	const needV2 = rafs.BlobZran | rafs.BlobBatch | rafs.BlobEncrypted
	switch {
	case features&needV2 != 0 && !has(rafs.BlobChunkInfoV2):
		return rafs.Damaged("blob table", off+84, "blob %d: features %#x: ZRAN, BATCH or ENCRYPTED without CHUNK_INFO_V2", i, features)
	case has(rafs.BlobZran) && !has(rafs.BlobSeparate):
		return rafs.Damaged("blob table", off+84, "blob %d: features %#x: ZRAN without SEPARATE", i, features)
	case has(rafs.BlobZran | rafs.BlobBatch):
		return rafs.Damaged("blob table", off+84, "blob %d: features %#x: both ZRAN and BATCH", i, features)
	case has(rafs.BlobZran | rafs.BlobEncrypted):
		return rafs.Damaged("blob table", off+84, "blob %d: features %#x: both ZRAN and ENCRYPTED", i, features)
	}
	return nil
}

// metaBlobID returns the id of the blob that holds the chunk information of a
// blob with SEPARATE: the digest in the table, or, where the bootstrap was cut
// out of that blob, the name of the bootstrap's file.
func metaBlobID(i int, features uint32, e []byte, path string) (string, error) {
	if digest := e[168:200]; !allZero(digest) && features&rafs.BlobInlinedFSMeta == 0 {
		return hex.EncodeToString(digest), nil
	}
	return rafs.NameOfBlob(i, "that has its chunk information", path)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// trimNUL cuts the padding of a fixed-size string and makes a copy.
func trimNUL(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
