package open

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime/debug"

	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/v5"
	"github.com/rafsd/rafsd/rafs/v6"
)

// What marks an EROFS image as one of RAFS: a compatible feature; before the
// first release it was an incompatible one.
const (
	erofsCompatRAFS   = 0x4000_0000
	erofsIncompatRAFS = 0x4000_0000
)

// Bootstrap opens an image over a bootstrap in memory, by what its magic says. A
// blob that holds a bootstrap is as good as the bootstrap; b is then narrowed to
// it.
// On success the image holds b, and Close of the image gives it back; on failure
// b stays with the caller. What is not a RAFS image wraps ErrNotRAFS; what is
// one that this reader does not serve wraps ErrUnsupported and names the reason.
func Bootstrap(b *rafs.Bootstrap) (rafs.Image, error) {
	if err := narrow(b); err != nil {
		return nil, err
	}
	version, err := detect(b)
	if err != nil {
		return nil, err
	}
	// Each version's Open returns a pointer: it must not become a non-nil
	// interface around nil.
	if version == 5 {
		if img, err := v5.Open(b); err != nil {
			return nil, err
		} else {
			return img, nil
		}
	}
	if img, err := v6.Open(b); err != nil {
		return nil, err
	} else {
		return img, nil
	}
}

// detect returns the version of a bootstrap: 5 or 6. Magics are looked for in
// the bytes that are there; how long the file must be is the versions' matter.
func detect(b *rafs.Bootstrap) (version int, err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	data := b.Data()
	le := binary.LittleEndian
	switch {
	case len(data) >= 8 && le.Uint32(data) == v5.Magic:
		if v := le.Uint32(data[4:]); v != v5.Version {
			return 0, rafs.Unsupported("superblock: RAFS version %#x, want %#x", v, v5.Version)
		}
		return 5, nil
	case len(data) >= v6.MagicOffset+12 && le.Uint32(data[v6.MagicOffset:]) == v6.Magic:
		if len(data) >= v6.MagicOffset+84 && le.Uint32(data[v6.MagicOffset+80:])&erofsIncompatRAFS != 0 {
			return 0, rafs.Unsupported("a pre-release v6 layout (of the turn of 2021): the image must be built again")
		}
		if le.Uint32(data[v6.MagicOffset+8:])&erofsCompatRAFS == 0 {
			return 0, fmt.Errorf("%w: an EROFS image without the RAFS mark (a plain one, or one of nydus 3, which is not supported yet)",
				rafs.ErrNotRAFS)
		}
		return 6, nil
	}
	return 0, refuse(data)
}

// refuse names files that are taken for bootstraps by mistake.
func refuse(data []byte) error {
	if n := len(data); n >= 4 && binary.LittleEndian.Uint32(data[n-4:]) == blobMetaMagic {
		return fmt.Errorf("%w: a data blob (it ends with a header of chunk information)", rafs.ErrNotRAFS)
	}
	if s, ok := lastSection(data, uint64(len(data))); ok {
		return fmt.Errorf("%w: a data blob (its last section is %s)", rafs.ErrNotRAFS, s.name)
	}
	switch {
	case bytes.HasPrefix(data, zstdMagic):
		return rafs.Unsupported("a zstd stream: a compressed bootstrap, or a layer that was not unpacked")
	case bytes.HasPrefix(data, []byte{0x1F, 0x8B}):
		return rafs.Unsupported("a gzip stream: the layer of an image, its image/image.boot is the bootstrap")
	case isTarHeader(data):
		return rafs.Unsupported("a tar file: the layer of an image, its image/image.boot is the bootstrap")
	}
	return fmt.Errorf("%w: no magic of v5 or v6 in %d bytes", rafs.ErrNotRAFS, len(data))
}

const (
	tarBlock      = 512
	blobMetaMagic = 0xB10BB10B
)
