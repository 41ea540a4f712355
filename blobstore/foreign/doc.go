// Package foreign reads the files in which nydusd keeps uncompressed chunks, as a
// source of bytes that are verified like any other.
//
//	work_dir/ID.blob.data            chunks at their uncompressed addresses, sparse
//	work_dir/ID.blob.data.chunk_map  which of them are there: not believed, not read
//	work_dir/ID.blob.meta            chunk information, plain: package meta reads it
//	work_dir/rafsd-v1/               ours: package cache
//
// nydusd marks a chunk ready without a sync of its bytes and, of most v6 images,
// without having verified them, so its marks are worth nothing. Whether a chunk is
// there is asked of the file itself: what is a hole was never written, and what was
// has the right digest or has not.
//
// Nothing is ever written. The files may change, grow, or go while they are read:
// what was read is a copy.
package foreign
