// Package blobstore gets chunks of blobs from where they lie, verifies them once,
// and keeps them where they can be read without a copy.
//
//	           rafs/fs
//	 Ready, Data │ Fetch(first, last)
//	             ▼
//	Store ─▶ Blob ──────────────────────────────┐ flights: one per run of
//	 │         │ hit: one load, a slice         │ neighbouring chunks
//	 │         ▼                                ▼
//	 │      cache.View ◀──Store── verify ◀── codec ◀── backend.Source
//	 │      (mapped data file and chunk map)          (localfs, registry)
//
// A chunk is served or marked ready only after its bytes were compared with its
// digest (with its CRC where the image has no digest). The one way around is
// Options.Verify, which says so in the log and uses a cache folder of its own.
//
// # Reading
//
// The hit path is Data: a slice of the mapped file, or false. It takes no lock,
// allocates nothing and waits for nothing; the first false of a blob may also
// mean that nobody opened its cache entry yet. Fetch, on a goroutine that may
// wait, opens the entry, has the missing chunks brought, and returns when they
// are ready; then Data succeeds. Data touches mapped files: whoever calls it and
// reads the slice runs under debug.SetPanicOnFault (cache.Guard is one way).
//
// # Fetching
//
// Missing chunks that are neighbours in the blob are brought by one request, of
// at most Amplification bytes unless one chunk is larger; what is left of that
// room behind the last chunk asked for is filled with the chunks that follow.
// That run is a flight. Each chunk is in at most one flight, whoever asks for it,
// and is ready as soon as it was decoded, while the body still streams. A flight
// ends when it has tried all of its chunks; it repeats what failed only for
// chunks that somebody still waits for, with back-off and jitter, and no sooner
// than the other side asked. It is cancelled when the last reader gives up.
// Bytes that do not verify, and answers that are not what was asked for, are
// asked for again at most twice in a row. Errors are *ChunkError; none is
// remembered: the next Fetch begins anew.
//
// # Ownership
//
// A Store owns its backend, its cache, and its flights; Close ends and awaits
// them. Blobs of one entry of the cache share a group, which holds the flights
// and ends those left when its last Blob is closed. A flight copies the
// descriptions of its chunks and holds its own reference on the view, so that
// the image of the reader that began it may go.
//
// Lock order: Store.mu, then group.mu. Neither is held across a wait for
// network or disk. Each flight is one goroutine.
//
// # Trust
//
// Backends are trusted with availability alone. Tables come from images: their
// structure is hostile, and may change while it is read. What a table says of a
// chunk is copied, checked, and compared with what the cache entry was opened
// for before anything is fetched by it. Memory is bounded by Options.Memory for
// stored and uncompressed bytes in flight, whatever sizes images declare.
package blobstore
