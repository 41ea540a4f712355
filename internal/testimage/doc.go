// Package testimage writes small RAFS v5 and v6 images for tests: a tree
// described in code, or copied from a host directory, becomes a bootstrap and
// data blobs on disk.
//
//	Tree ──number──▶ plan ──chunk──▶ blobs/ID   (chunker, codec, blobmeta)
//	                   │                │
//	                   └──── v5 | v6 ◀──┘ chunk records
//	                           │
//	                           ▼
//	                       bootstrap
//
// In a test:
//
//	tree := testimage.NewTree()
//	tree.File("/etc/hosts", []byte("..."), testimage.Mode(0o600), testimage.Xattr("user.a", "b"))
//	tree.SizedFile("/big", 5<<30, 1)
//	img, err := tree.Write(t.TempDir(), testimage.Options{Version: testimage.V5, Compressor: testimage.LZ4})
//
// Then img.Bootstrap and img.BlobDir are what a reader opens, img.Manifest is
// what it must show, img.Layout and img.Inode say what is where in the
// bootstrap, img.Chunks and img.Blobs what is where in the blobs. Sample and
// Wide are ready-made trees.
//
// What comes out depends on the tree and the options alone: the same input
// gives the same bytes, names of blobs included. Structure and values follow
// what the reference builder writes; where the format leaves a choice (places
// of v6 inodes, order of extended attributes) the choice here is the simple one.
//
// Scale: a tree holds a few hundred bytes per inode and never the content of
// generated files; bootstraps and blobs are streamed to disk. A million inodes
// take seconds, a file of many GiB takes one pass over its distinct chunks.
//
// Errors: the methods of Tree that add files remember the first mistake, and
// Write reports it. A Tree may be written several times, also concurrently; it
// must not be changed meanwhile.
//
// Trust: the input is a test's own. Nothing here is meant for foreign bytes.
package testimage
