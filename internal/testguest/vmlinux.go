package testguest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// extractVmlinux takes the ELF kernel out of an x86 bzImage: QEMU starts it at
// once, without the decompressor that would run in the guest.
//
// Layout (Documentation/arch/x86/boot.rst): at 0x1f1 the number of set-up sectors
// less one, where 0 means 4; at 0x202 "HdrS"; at 0x248 and 0x24c offset and length
// of the compressed kernel, counted from the end of the set-up sectors. Its last
// four bytes are the size of the ELF.
func extractVmlinux(ctx context.Context, image []byte, bb busybox) ([]byte, error) {
	const magicAt, sectorsAt, offsetAt, lengthAt = 0x202, 0x1f1, 0x248, 0x24c
	if len(image) < lengthAt+4 || string(image[magicAt:magicAt+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	sectors := uint64(image[sectorsAt])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[offsetAt:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[lengthAt:]))
	if end > uint64(len(image)) || end-start < 8 {
		return nil, fmt.Errorf("payload at [%d,%d) of a bzImage of %d bytes", start, end, len(image))
	}
	payload := image[start : end-4]
	size := binary.LittleEndian.Uint32(image[end-4:])

	elf, err := decompressKernel(ctx, payload, bb)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(elf, []byte("\x7fELF")) || uint32(len(elf)) != size {
		return nil, fmt.Errorf("payload is not an ELF of %d bytes", size)
	}
	return elf, nil
}

func decompressKernel(ctx context.Context, b []byte, bb busybox) ([]byte, error) {
	switch {
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderMaxWindow(1<<30))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return io.ReadAll(d)
	case bytes.HasPrefix(b, []byte{0x02, 0x21, 0x4c, 0x18}):
		return io.ReadAll(lz4.NewReader(bytes.NewReader(b)))
	case bytes.HasPrefix(b, []byte("\xfd7zXZ")):
		return bb.unxz(ctx, b)
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		d, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(d)
	}
	return nil, fmt.Errorf("kernel compressed in an unknown way: %x", b[:4])
}
