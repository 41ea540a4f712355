package v6

import "github.com/rafsd/rafsd/rafs"

// Images of tar files (TARTFS_MODE) have blocks of 512 bytes, and their blobs are
// the tars themselves: a chunk address is a place in the tar, a chunk ends where
// its file does, and nothing else describes it. There are no digests, and the
// chunk table holds one useless record for each blob.

// tarChunk is a chunk of a tar: what one address of one file says.
type tarChunk struct{ blob, index, block, size uint32 }

func (c *tarChunk) off() uint64 { return uint64(c.block) << tarBits }

// describe fills c: a chunk is stored as it is, at its place in the tar.
func (t *tarChunk) describe(c *rafs.Chunk) {
	*c = rafs.Chunk{
		CompressedOffset: t.off(), UncompressedOffset: t.off(),
		CompressedSize: t.size, UncompressedSize: t.size,
	}
}

func (im *Image) isTar() bool { return im.blockBits == tarBits }

// tarIndex collects the chunks of all files. Those that reach out of their tar
// are left out: they are damage where they are used. The address lists of a
// sound image do not overlap, which bounds the work and the memory.
func (im *Image) tarIndex() (*chunkIndex, error) {
	var (
		x      chunkIndex
		n      inode
		linked = map[uint64]struct{}{} // files of several names that were seen
		budget = uint64(len(im.data)) / chunkAddressSize
	)
	err := rafs.Walk(im, func(e *rafs.WalkEntry) error {
		if e.Err != nil || e.Attr.Mode&rafs.ModeType != rafs.ModeRegular || im.inode(e.Ino, &n) != nil {
			return nil
		}
		if n.nlink > 1 {
			if _, twice := linked[n.nid]; twice {
				return nil
			}
			linked[n.nid] = struct{}{}
		}
		count := im.chunks(&n)
		if count > budget {
			return rafs.Damaged("inode", n.off, "chunk addresses of several inodes overlap")
		}
		budget -= count
		for i := range count {
			addr, err := im.address(&n, i)
			size := min(n.size-i<<im.chunkBits, uint64(im.info.ChunkSize))
			if err != nil || addr.off+size > im.blobs[addr.blob].UncompressedSize {
				continue
			}
			x.tar = append(x.tar, tarChunk{addr.blob, addr.index, uint32(addr.off >> tarBits), uint32(size)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	x.refs, err = rafs.BuildChunkIndex(len(im.blobs), func(yield func(blob, index, ref uint32)) error {
		for ref, c := range x.tar {
			yield(c.blob, c.index, uint32(ref))
		}
		return nil
	})
	return &x, err
}
