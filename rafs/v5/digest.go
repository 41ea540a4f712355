package v5

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"runtime/debug"

	"github.com/zeebo/blake3"

	"github.com/rafsd/rafsd/rafs"
)

// The digest of an inode covers what is below it: of a regular file the digests
// of its chunks, of a symbolic link the target, of a directory the digests of
// its children in their order, of anything else nothing. So the root's digest
// pins all content, but no name, mode, owner or time.

// VerifyTree recomputes the digest of every inode, up to the root's. It returns
// the first that does not match, or the first inode that cannot be read; time is
// linear in the metadata.
func (im *Image) VerifyTree() (err error) {
	defer im.b.Guard(debug.SetPanicOnFault(true), &err)
	im.eachDigest(func(_ *inode, fault error) bool {
		err = fault
		return false
	})
	if err != nil {
		return fmt.Errorf("%s: %w", im.b.Path(), err)
	}
	return nil
}

// eachDigest calls report for each inode whose digest is wrong, until it returns
// false; n is nil where the digest cannot be computed.
func (im *Image) eachDigest(report func(n *inode, err error) bool) {
	h := im.newHash()
	var n, child inode
	// Children of several directories, and chunk lists of several files, do not
	// overlap in a sound image: that bounds the work.
	budget := im.entries() + uint64(len(im.data))/rafs.ChunkRecordSize
	for index := uint64(1); index <= im.entries(); index++ {
		if err := im.record(index, &n); err != nil {
			if !report(nil, err) {
				return
			}
			continue
		}
		var parts uint64
		switch n.mode & rafs.ModeType {
		case rafs.ModeRegular, rafs.ModeDir:
			parts = n.childCount
		}
		// A further name of a file has the same chunks once more.
		if parts > budget {
			report(&n, rafs.Damaged("inode", n.off, "children or chunk lists of several inodes overlap"))
			return
		}
		budget -= parts
		if err := im.hashContent(h, &n, &child); err != nil {
			if !report(nil, err) {
				return
			}
			continue
		}
		var got [32]byte
		h.Sum(got[:0])
		if want := [32]byte(im.data[n.off:]); got != want &&
			!report(&n, rafs.Damaged("inode", n.off, "digest %x, its content has %x", want, got)) {
			return
		}
	}
}

// hashContent puts what the digest of n covers into h.
func (im *Image) hashContent(h hash.Hash, n, child *inode) error {
	h.Reset()
	switch n.mode & rafs.ModeType {
	case rafs.ModeRegular:
		for i := range n.childCount {
			h.Write(im.data[n.chunks+i*rafs.ChunkRecordSize:][:32])
		}
	case rafs.ModeSymlink:
		h.Write(im.bytes(n.symlink))
	case rafs.ModeDir:
		for k := range n.childCount {
			if err := im.record(n.childIndex+k, child); err != nil {
				return err
			}
			h.Write(im.data[child.off:][:32])
		}
	}
	return nil
}

func (im *Image) newHash() hash.Hash {
	if im.info.Digester == rafs.DigesterSHA256 {
		return sha256.New()
	}
	return blake3.New()
}
