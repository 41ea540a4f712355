// Package packaging finds RAFS images as they are packed for distribution: in a
// registry, or in a folder with an OCI layout.
//
//	reference ─▶ manifest ──────────────────────────▶ last layer: bootstrap ─▶ rafs.Bootstrap
//	              │ index: the platform's entry        other layers: blobs by digest
//	              └ no bootstrap: who refers to it? ─▶ the manifest of a RAFS image,
//	                                                   which may read this one's layers
//
// A manifest is that of a RAFS image if its last layer has the annotation
// containerd.io/snapshot/nydus-bootstrap. That layer is a tar, mostly gzipped,
// with the bootstrap as image/image.boot (or image.boot in old images). Blobs
// are named by their digest, so that a blob id is all it takes to fetch one.
//
// Trust: a manifest is what the reference led to, every further document is
// compared with the digest that led there, and a bootstrap is used only after
// its whole layer has been compared. Sizes are bounded before memory is taken.
package packaging
