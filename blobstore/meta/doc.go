// Package meta reads what a blob of a v6 image says of its own chunks: the
// chunk information (CI) behind the chunk data, and the header behind that.
//
//	blob   │ chunk data │ … │ chunk information │ header, 4096 bytes │ …
//	                              │ stored                │
//	                              │            ParseHeader ▼
//	                              └──────────▶ Decode ◀─ Header ─▶ Contradictions
//	                                             │                 (with a blob table)
//	                                             ▼
//	                                           Table: 16 bytes a chunk
//
// It turns bytes into values; where the bytes come from is the caller's matter.
// Plain images are served without any of this, since the bootstrap has a record
// of every chunk; the information in the blob is a second opinion on it.
//
// Version 1 of the entries is read. Version 2 (24 bytes, with contexts of ZRAN
// and BATCH behind them) and what comes with it is recognised by ParseHeader and
// refused with ErrUnsupported; Header and Table are where it will join: nothing
// that uses them sees the size of an entry.
//
// # Trust
//
// All input is hostile. Sizes are bounded before anything is allocated: a Table
// takes 16 bytes a chunk and a blob has at most 1<<24; compressed information is
// decoded into a buffer of the declared size, of at most codec.MaxChunk, and a
// stream that yields anything else is refused. A Table that Decode returned is
// sound as a whole: each chunk lies within the bounds that were given, and no two
// share a byte of the uncompressed address space. Values are immutable and safe
// for concurrent use.
package meta
