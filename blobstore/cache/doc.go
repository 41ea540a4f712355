// Package cache keeps uncompressed chunks of blobs on disk, shared by all
// processes of the machine that use the same folder.
//
//	work_dir/rafsd-v1/            0700, ours, or refused
//	    lock                      flock: held to open, claim and reset, never to read or fill
//	    BLOB.data                 sparse, chunks at their uncompressed addresses
//	    BLOB.map                  header 4 KiB, then 64 bytes per chunk
//	    BLOB+DIGEST.data, .map    of an image that tells another story of BLOB
//
//	       Attach                 Ready, Data            Store
//	table ───────▶ View ─────────────▶ mapped bytes    ◀──────── verified chunk
//	                │ one load of a state word in the shared map
//	                ▼
//	absent ──Store──▶ ready in this boot ──syncer: fdatasync(data)──▶ durable
//
// # One entry for all images of a blob
//
// Images that share a layer name different subsets of its chunks. They share
// one entry: at Attach each chunk that the image's table names is compared with
// what the map says of it. Nothing there: the description is claimed. The same:
// fine. Another one, or one whose place overlaps that of a neighbour: this image
// gets an entry of its own, keyed by the digest of its table. So a state word
// never speaks of a description that differs from that of the View that reads
// it, and no chunk of one image is ever written over a chunk of another. All
// descriptions are compared and claimed at once, so that Ready stays one load.
//
// # What a mark is worth
//
// A chunk is marked ready after its bytes were written, for every process that
// has the map mapped. It is marked durable only after fdatasync of the data file
// returned, by the one goroutine of the Cache that does this in batches. A ready
// mark carries the number of the boot in which it was made (the map's epoch, which
// rises with the first opening in each boot, before any mark is made); after an
// unclean end of the machine old ready marks therefore mean nothing, and only
// durable chunks count. If fdatasync fails, the batch is absent again. Chunks whose
// process ended before it could make them durable are taken over by whoever
// attaches to the entry next.
//
// # Concurrency
//
// Ready and Data take no lock and allocate nothing. Attach is serialised in the
// process by a token and between processes by flock on the file "lock", which is
// polled, so that a stopped process cannot hold others beyond their context.
// Lock order: the token, the flock, Cache.mu, View.mu; the last two are leaves held for
// a few instructions. One goroutine (the syncer) belongs to the Cache and ends
// in Close.
//
// # Trust
//
// The folder's content is believed because only our user can write it; still a
// header that is damaged or foreign, or a pair of files that do not belong
// together, is replaced by an empty entry, a torn description is as good as
// none, and a mark whose bytes lie behind the end of the data file is reset.
// Whoever truncates a mapped file makes reads of it fault: see View.
//
// Nothing is evicted here yet. What will: every data file can be punched extent
// by extent once the states of its chunks are absent, and Drop is the verb.
package cache
