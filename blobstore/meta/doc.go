// Package meta reads what a blob of a v6 image says of its own chunks: the chunk
// information (CI) behind the chunk data, or in a second blob, and the header
// behind that.
//
//	blob   │ chunk data │ … │ chunk information │ header, 4096 bytes │ … │ TOC
//	                              │ stored                │                │
//	                  (decrypt)   │            ParseHeader ▼               │
//	                              └──────────▶ Decode ◀─ Header ─▶ Contradictions
//	                                             │                 (with a blob table)
//	                                             ▼
//	                   Table: entries of 16 (version 1) or 24 bytes (version 2),
//	                          contexts of 40 bytes, dictionaries of 32 KiB
//
// Place.Load does all of that; it is handed a Source to read ranges from. Plain
// images are served without any of this, since the bootstrap has a record of every
// chunk: the information in the blob is then a second opinion on it. Images whose
// chunks share stored bytes need it:
//
//   - BATCH packs small chunks together; a context says how large the pack is.
//   - ZRAN takes chunks out of an OCI layer as it is, a gzip stream; a context says
//     where an inflater may start: offset, bits of the byte before, and the last
//     32 KiB that were inflated (its dictionary). The information is in a second
//     blob (SEPARATE).
//
// What it says is used to find bytes; what the bytes must be is the bootstrap's
// word.
//
// # Trust
//
// All input is hostile. Sizes are bounded before anything is allocated, by MaxSize
// at most; memory for what is read grows with what arrives. A Table that Decode
// returned is sound as a whole: each chunk, and each context that a chunk has, lies
// within the bounds that were given and within the limits of package codec, and no
// two chunks share a byte of the uncompressed address space. Each use checks that
// anew, so that a Table may lie in a file that is mapped. Values are immutable and
// safe for concurrent use.
package meta
