// Package fs serves a RAFS image as a read-only FUSE file system: where things
// are comes from a rafs.Image, bytes come from blobs.
//
//	fuseproto ─▶ FS.Read ─▶ Image.Extents ─▶ Blob.Ready? ─ yes ─▶ copy from the mapped cache
//	                                            │ no                 to the reply
//	                                            ▼
//	                              ErrWouldBlock; on the other goroutine:
//	                              Blob.Fetch of all that is missing, then the copy
//
// Nodes are the image's inode numbers, so they are functions of the image alone:
// nothing is counted, nothing is remembered between requests, and after a
// restart every node means what it meant before. The guest may keep everything
// for ever, absent names included.
//
// Attributes: atime, ctime and mtime are the image's mtime, 0 is shown as 0, and
// the mode of the root is the image's. Owners of an image that has none are the
// user and group of the server.
//
// Hot path: requests for what is ready take no lock and allocate nothing; what a
// request needs besides its Op is in a pool.
//
// Trust: node numbers, offsets and names come from the guest and may be any; the
// image answers for each of them. An inode whose metadata are damaged fails by
// itself with EIO, once in the log with the structure and its offset.
package fs
