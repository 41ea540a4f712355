// Package v6 reads the metadata of RAFS v6 images: an EROFS primary device of
// uncompressed, chunk-based files, extended by a blob table, a chunk table and
// a prefetch table.
//
//	0       1024        1152              1408           aligned to 4 KiB
//	│ zeros │ superblock │ extended superb.│ device slots … │ blob table │ prefetch table │
//	│ inodes (32-byte slots), directories, symlinks, xattrs, chunk addresses │ chunk table │
//
// An inode's number is its nid: its distance from the metadata area in units of
// 32 bytes. A regular file is an array of 8-byte addresses, each naming a blob,
// a chunk index and a place; the record with the digest and the stored range is
// in the chunk table, which is sorted by digest. The index from (blob, chunk
// index) to records is made when the first file is read.
//
// Files: super.go (both superblocks, tables, opening), blobs.go (blob table),
// inode.go, dir.go, xattr.go, chunk.go (file extents and chunk records),
// check.go (everything at once).
//
// The layout facts are those of the Linux EROFS on-disk format and of the
// nydus-image builder.
package v6
