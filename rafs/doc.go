// Package rafs is the metadata of RAFS images: what a bootstrap says about the
// tree, and which chunks of which blobs make up its files. It opens no socket
// and reads no blob.
//
//	rafs/open ── what is this file? ──▶ rafs/v5 or rafs/v6 ──▶ Image
//	                                         │ decode on each use
//	                                         ▼
//	                                     Bootstrap: one read-only mapping,
//	                                     shared by every mount of the file
//
//	rafs/fs ── FUSE requests ──▶ Image (where) and blobstore (bytes)
//
// This package holds what both versions share: the Image interface, the mapped
// Bootstrap, the bits of the formats, the errors, and Walk. The two versions
// are rafs/v5 and rafs/v6, with files of the same names; rafs/open chooses.
//
// Nothing is decoded ahead of use and no heap is spent on inodes: an open image
// costs its blob table and, once a file was read, four bytes for each chunk.
//
// Ownership: who opened an Image closes it, once. The mapping goes with the last
// holder. Images are immutable, so there are no locks but two leaves: the one
// around the table of shared mappings, and the one that makes the chunk index
// be built once.
//
// Trust: a bootstrap's content is believed because of its digest, which the
// caller may pin; its structure is never believed. Tables are checked when an
// image is opened, everything else each time it is used, because the file can
// change under the mapping. Arithmetic on its numbers is done in 64 bits after
// the operands were bounded, every byte is reached through a bounds check, and
// a page that is gone (the file was truncated) is ErrFault of that one call.
package rafs
