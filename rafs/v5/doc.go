// Package v5 reads the metadata of RAFS v5 images.
//
//	0            8192
//	│ superblock │ inode table │ prefetch table │ blob table │ extended blob table │
//	│ inode: 128 bytes, name, symlink target, xattrs, chunk records of 80 bytes │ …
//
// The inode table leads from an index to an inode's record, in units of 8 bytes.
// Every name has an index and a record; the children of a directory have
// consecutive indexes in the order of their names. An inode's number is the
// index of its first name, so a record whose number is another index is a
// further name of a hard link, and all that is served of it besides its name
// comes from the first record.
//
// Chunks are described where they are used, once for each file that holds them.
// The index from (blob, chunk index) to one describing record is made when the
// first file is read, and each use is checked against that record. Images
// older than the chunk index (1.1) get indexes here: the rank of a chunk's
// stored offset in its blob.
//
// There are images whose table leads to wrong places (a fault of an old tar
// builder). A record is therefore believed only if its own number, its parent
// and its sizes fit where it was found; what does not fit is ErrDamaged, and
// everything else is served.
//
// Files: super.go (superblock, opening), blobs.go (both blob tables), inode.go,
// dir.go, xattr.go, chunk.go (file extents and chunk records), check.go
// (everything at once). Layout facts are those of the nydus-image builder.
package v5
