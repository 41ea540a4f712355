// Package chunktable joins what an image says of a blob (rafs) to the store that
// fetches its chunks (blobstore).
//
//	rafs.Image ──records──▶ Table: what chunk i is        ┐
//	   │                                                  ├▶ blobstore.BlobDesc
//	   └──blob table──▶ MetaPlace ─load─▶ meta.Table:     ┘
//	                                      where it is stored
//
// Images whose chunks stand for themselves need the records alone. Where chunks
// share stored bytes (batch) or lie in an OCI layer (zran, tar-ref), the places come
// from the blob's chunk information, which is read when the first chunk is
// missing; the bootstrap's digests decide all the same.
package chunktable
