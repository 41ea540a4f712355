package rafs

import "slices"

// ChunkIndex leads from (blob, chunk index) to the place of a chunk's record.
// It is immutable once built and takes four bytes for each chunk, eight where
// the image knows few of a blob's chunks (merged images name what is left of a
// layer).
type ChunkIndex struct {
	blobs []blobChunks
}

// blobChunks holds the references of one blob in one of two ways. References
// are stored plus one, so that 0 is "no such chunk".
type blobChunks struct {
	dense  []uint32      // by chunk index
	sparse []sparseChunk // by ascending chunk index, each once
}

type sparseChunk struct{ index, ref uint32 }

// BuildChunkIndex makes an index over blobs blobs. each calls its argument for
// every chunk record with the record's blob, chunk index and a reference below
// 1<<32 - 1 by which the caller finds it again; it is called twice, and calls
// with a blob beyond the image or an index beyond MaxChunks are ignored. Where several records describe one
// chunk, the first one counts.
//
// The memory used is bounded by the number of records, whatever they say.
func BuildChunkIndex(blobs int, each func(func(blob, index, ref uint32)) error) (*ChunkIndex, error) {
	type extent struct{ records, len uint64 }
	sizes := make([]extent, blobs)
	if err := each(func(blob, index, _ uint32) {
		if uint64(blob) < uint64(blobs) && index < MaxChunks {
			s := &sizes[blob]
			s.records++
			s.len = max(s.len, uint64(index)+1)
		}
	}); err != nil {
		return nil, err
	}

	x := &ChunkIndex{blobs: make([]blobChunks, blobs)}
	for i, s := range sizes {
		if s.len <= 4*s.records+1024 && s.records > 0 {
			x.blobs[i].dense = make([]uint32, s.len)
		}
	}
	// The records may have changed since they were counted: bounds are checked
	// again, and no more is kept than was counted.
	if err := each(func(blob, index, ref uint32) {
		if uint64(blob) >= uint64(blobs) || index >= MaxChunks {
			return
		}
		b := &x.blobs[blob]
		switch {
		case b.dense == nil:
			if uint64(len(b.sparse)) < sizes[blob].records {
				b.sparse = append(b.sparse, sparseChunk{index, ref + 1})
			}
		case uint64(index) < uint64(len(b.dense)) && b.dense[index] == 0:
			b.dense[index] = ref + 1
		}
	}); err != nil {
		return nil, err
	}
	for i := range x.blobs {
		b := &x.blobs[i]
		slices.SortStableFunc(b.sparse, func(a, c sparseChunk) int { return int(int64(a.index) - int64(c.index)) })
		b.sparse = slices.Clip(slices.CompactFunc(b.sparse, func(a, c sparseChunk) bool { return a.index == c.index }))
	}
	return x, nil
}

// Lookup returns the reference of a chunk's record, and whether there is one.
func (x *ChunkIndex) Lookup(blob, index uint32) (ref uint32, ok bool) {
	if uint64(blob) >= uint64(len(x.blobs)) {
		return 0, false
	}
	b := &x.blobs[blob]
	if b.dense != nil {
		if uint64(index) >= uint64(len(b.dense)) {
			return 0, false
		}
		ref = b.dense[index]
		return ref - 1, ref != 0
	}
	lo, hi := 0, len(b.sparse)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if b.sparse[mid].index < index {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(b.sparse) || b.sparse[lo].index != index {
		return 0, false
	}
	return b.sparse[lo].ref - 1, true
}

// Len is one more than the highest chunk index of a blob.
func (x *ChunkIndex) Len(blob int) uint32 {
	if blob < 0 || blob >= len(x.blobs) {
		return 0
	}
	b := &x.blobs[blob]
	if b.dense != nil {
		return uint32(len(b.dense))
	}
	if n := len(b.sparse); n > 0 {
		return b.sparse[n-1].index + 1
	}
	return 0
}
