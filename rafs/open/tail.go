package open

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs"
)

// A blob may hold the bootstrap that describes it. Each section of such a blob
// is followed by a tar header that names it and has its size, and nothing is
// padded, so that sections are found from the end:
//
//	│ image.blob │hdr│ blob.meta │hdr│ blob.digest │hdr│ image.boot │hdr│ rafs.blob.toc │hdr│
//	                                                   ◀── size ──┘    ◀──── size ────┘
//
// Where there is a table of contents (rafs.blob.toc), it has the bootstrap's
// uncompressed size and digest, and the bootstrap may be a zstd frame.

const (
	sectionBootstrap = "image.boot"
	sectionTOC       = "rafs.blob.toc"
	sectionData      = "image.blob"

	maxSections = 8
	tocEntry    = 128
	// maxTOC bounds a table of contents: builders write five entries.
	maxTOC = 1 << 20

	// A bootstrap is at most so many times as large as its compressed form, and
	// a little more.
	maxRatio = 256
	maxSlack = 16 << 20
)

// section is one part of a blob and the name that its tar header gives it.
type section struct {
	name      string
	off, size uint64
}

// lastSection returns the section whose tar header ends at end.
func lastSection(data []byte, end uint64) (s section, ok bool) {
	if end < tarBlock {
		return s, false
	}
	h := data[end-tarBlock : end]
	if !isTarHeader(h) {
		return s, false
	}
	size, ok := tarSize(h)
	if !ok || size > end-tarBlock {
		return s, false
	}
	switch s.name = tarName(h); s.name {
	case sectionData, "blob.meta", "blob.digest", sectionBootstrap, sectionTOC:
	default:
		return s, false
	}
	s.off, s.size = end-tarBlock-size, size
	return s, true
}

// tarSize reads the size field of a tar header: octal digits, or a number of 88
// bits whose first byte is 0x80.
func tarSize(h []byte) (uint64, bool) {
	f := h[124:136]
	if f[0] == 0x80 {
		return binary.BigEndian.Uint64(f[4:]), f[1]|f[2]|f[3] == 0
	}
	size, err := strconv.ParseUint(string(bytes.Trim(f, " \x00")), 8, 63)
	return size, err == nil
}

// isTarHeader wants the magic and a checksum that is right: the sum of all bytes,
// those of the checksum's own field taken as blanks.
func isTarHeader(b []byte) bool {
	if len(b) < tarBlock || string(b[257:262]) != "ustar" {
		return false
	}
	sum := uint64(8 * ' ')
	for i, c := range b[:tarBlock] {
		if i < 148 || i >= 156 {
			sum += uint64(c)
		}
	}
	want, err := strconv.ParseUint(string(bytes.Trim(b[148:156], " \x00")), 8, 32)
	return err == nil && want == sum
}

func tarName(header []byte) string {
	name, _, _ := bytes.Cut(header[:100], []byte{0})
	return string(name)
}

// narrow makes b the bootstrap that is in a blob, if b is a blob with one.
func narrow(b *rafs.Bootstrap) (err error) {
	boot, toc, err := findBootstrap(b)
	if err != nil || boot.name == "" {
		return err
	}
	b.Narrow(boot.off, boot.size)
	return expand(b, boot, toc)
}

// content is what a table of contents says of the bootstrap.
type content struct {
	known  bool
	size   uint64
	digest [32]byte // zero = not known
}

// findBootstrap looks for a bootstrap behind the other sections of a blob. The
// section has no name if there is none because b is no blob.
func findBootstrap(b *rafs.Bootstrap) (boot section, toc content, err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	data := b.Data()
	end := uint64(len(data))
	last, ok := lastSection(data, end)
	if !ok || last.name != sectionBootstrap && last.name != sectionTOC {
		return section{}, toc, nil
	}
	for range maxSections {
		s, ok := lastSection(data, end)
		if !ok {
			break
		}
		switch s.name {
		case sectionBootstrap:
			return s, toc, nil
		case sectionTOC:
			if toc, err = parseTOC(data, s); err != nil {
				return section{}, toc, err
			}
		}
		if end = s.off; s.name == sectionData {
			break
		}
	}
	return section{}, toc, fmt.Errorf("%w: a data blob without a bootstrap in it (its last section is %s)", rafs.ErrNotRAFS, last.name)
}

// parseTOC finds the bootstrap's entry in a table of contents. Entry, 128 bytes:
// flags 0:4, name 8:16, sha256 24:32, offset 56:8, stored size 64:8, size 72:8.
func parseTOC(data []byte, s section) (c content, err error) {
	if s.size > maxTOC || s.size%tocEntry != 0 {
		return c, rafs.Damaged("table of contents", s.off, "%d bytes, want a multiple of %d and at most %d", s.size, tocEntry, maxTOC)
	}
	for off := s.off; off < s.off+s.size; off += tocEntry {
		e := data[off : off+tocEntry]
		if name, _, _ := bytes.Cut(e[8:24], []byte{0}); string(name) == sectionBootstrap {
			return content{known: true, size: binary.LittleEndian.Uint64(e[72:]), digest: [32]byte(e[24:56])}, nil
		}
	}
	return c, nil
}

var zstdMagic = []byte{0x28, 0xB5, 0x2F, 0xFD}

// expand decompresses a bootstrap that was stored as a zstd frame, and compares
// it with the table of contents.
func expand(b *rafs.Bootstrap, boot section, toc content) (err error) {
	defer b.Guard(debug.SetPanicOnFault(true), &err)
	bad := func(format string, args ...any) error {
		return rafs.Damaged("bootstrap in its blob", boot.off, format, args...)
	}
	if !bytes.HasPrefix(b.Data(), zstdMagic) {
		if toc.known && toc.size != boot.size {
			return bad("%d bytes, the table of contents says %d", boot.size, toc.size)
		}
		return checkContent(b, toc, bad)
	}
	// The decoder gets bytes that do not change under it.
	stored := bytes.Clone(b.Data())
	var h zstd.Header
	if err := h.Decode(stored); err != nil || !h.HasFCS {
		return bad("a zstd frame that does not say how large it is")
	}
	size := h.FrameContentSize
	switch {
	case toc.known && size != toc.size:
		return bad("a zstd frame of %d bytes, the table of contents says %d", size, toc.size)
	case size == 0 || size > rafs.MaxBootstrapSize || size > boot.size*maxRatio+maxSlack:
		return bad("a zstd frame of %d bytes in %d", size, boot.size)
	}
	if err := b.Replace(size, func(dst []byte) error {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(size), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return err
		}
		defer d.Close()
		out, err := d.DecodeAll(stored, dst[:0])
		if err != nil || len(out) != len(dst) {
			return bad("its zstd frame does not decode to %d bytes (%v)", size, err)
		}
		return nil
	}); err != nil {
		return err
	}
	return checkContent(b, toc, bad)
}

func checkContent(b *rafs.Bootstrap, toc content, bad func(string, ...any) error) error {
	if toc.digest == [32]byte{} {
		return nil
	}
	if sum := sha256.Sum256(b.Data()); sum != toc.digest {
		return bad("sha256 %x, the table of contents says %x", sum, toc.digest)
	}
	return nil
}
