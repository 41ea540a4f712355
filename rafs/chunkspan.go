package rafs

import (
	"cmp"
	"slices"
)

// ChunkSpan is what a chunk occupies in the uncompressed address space of its
// blob. Ref is the caller's way back to the record.
type ChunkSpan struct {
	Off              uint64
	Size             uint32
	Blob, Index, Ref uint32
}

// Overlapping sorts spans and calls report for each that overlaps one before it
// in the same blob: writing one into a cache would damage the other. It stops
// when report returns false.
func Overlapping(spans []ChunkSpan, report func(a, b ChunkSpan) bool) {
	slices.SortFunc(spans, func(a, b ChunkSpan) int {
		return cmp.Or(cmp.Compare(a.Blob, b.Blob), cmp.Compare(a.Off, b.Off), cmp.Compare(a.Index, b.Index))
	})
	var far ChunkSpan // the one that reaches farthest so far
	for i, s := range spans {
		if i > 0 && far.Blob == s.Blob {
			if end := far.Off + uint64(far.Size); end > s.Off && !report(far, s) {
				return
			} else if end >= s.Off+uint64(s.Size) {
				continue
			}
		}
		far = s
	}
}
