// Package export turns whole images into something else: a tar archive, a
// manifest (one line a path), a list of faults. It is what the rafs tool is made
// of.
//
//	rafs.Image ──Walk──▶ Tar, Manifest ──▶ w
//	                        │
//	blobs ──verified──▶ Content (bytes of regular files)
//	  └────────────────▶ VerifyData (chunks, and the blob's own word on them)
//
// Everything here reads one image in one goroutine; the Content may fetch ahead.
// The image is untrusted: a damaged entry ends the export with an error that
// names the path.
package export
