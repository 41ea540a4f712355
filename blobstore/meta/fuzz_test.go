package meta_test

import (
	"bytes"
	"errors"
	"runtime/metrics"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/blobstore/meta"
	"github.com/rafsd/rafsd/internal/testimage"
)

// FuzzMeta reads hostile headers and hostile chunk information. The header is
// given by its first bytes; mend puts magics and the size of stored where they
// belong, so that the rest is looked at. What is refused must be refused as
// damaged or unsupported; what is accepted must keep every promise of the
// package, within bounded memory.
func FuzzMeta(f *testing.F) {
	tree := testimage.NewTree()
	tree.SizedFile("/a", 40000, 1)
	tree.File("/b", []byte("content"))
	for _, compressor := range []testimage.Compressor{testimage.None, testimage.LZ4, testimage.Gzip, testimage.Zstd} {
		img, err := tree.Write(f.TempDir(), testimage.Options{Compressor: compressor, ChunkSize: 4096})
		if err != nil {
			f.Fatal(err)
		}
		blob := &img.Blobs[0]
		head, stored := readBlob(f, blob)
		f.Add(head[:64], true, stored, blob.DataSize, blob.UncompressedSize)
		f.Add(head[:64], true, stored, uint64(0), uint64(0))
		f.Add(head[:64], true, stored, blob.DataSize-1, blob.UncompressedSize)
		f.Add(head[:64], true, stored[:len(stored)-1], blob.DataSize, uint64(4096))
		f.Add(head, false, stored, blob.DataSize, blob.UncompressedSize)
	}
	full := sampleHeader()
	f.Add(full, false, make([]byte, 32), uint64(0), uint64(1<<64-1))
	for _, features := range []uint32{0x40000005, 0x40000085, 0x40000105, 0x4000001D, 0x70000221, 0x40000040} {
		le.PutUint32(full[4:], features)
		f.Add(bytes.Clone(full[:64]), true, make([]byte, 48), uint64(0), uint64(0))
	}
	for _, s := range v2Samples() {
		head := s.header()
		f.Add(head[:64], true, s.plain(), uint64(0), uint64(0))
		f.Add(head[:64], true, s.plain(), uint64(1<<20), uint64(1<<20))
		cut := s.plain()
		f.Add(head[:64], true, cut[:len(cut)-1], uint64(0), uint64(0))
	}
	f.Fuzz(func(t *testing.T, head []byte, mend bool, stored []byte, data, space uint64) {
		if mend {
			b := make([]byte, meta.HeaderSize)
			copy(b, head)
			le.PutUint32(b, 0xB10BB10B)
			le.PutUint64(b[24:], uint64(len(stored)))
			le.PutUint32(b[4092:], 0xB10BB10B)
			head = b
		}
		h, err := meta.ParseHeader(head)
		if err != nil {
			refused(t, err)
			return
		}
		entry, separate := uint64(16), h.Features&0x10 != 0
		if h.Features&4 != 0 {
			entry = 24
		}
		if h.Entries > meta.MaxChunks || h.Size > meta.MaxSize || h.StoredSize > h.Size || uint64(h.Entries)*entry+h.ContextsSize > h.Size ||
			h.Contexts > h.Entries || uint64(h.Contexts)*40 > h.ContextsSize {
			t.Fatalf("accepted %+v", h)
		}
		if faults := h.Contradictions(h); faults != nil {
			t.Fatalf("a header contradicts itself: %v", faults)
		}
		given := bytes.Clone(stored)
		before := allocated()
		table, err := meta.Decode(h, meta.Bounds{Stored: data, Uncompressed: space}, nil, given)
		// The output, what a decoder of the pool remembers, and room for the rest
		// of the process.
		if n, limit := allocated()-before, uint64(4*codec.MaxChunk); n > limit {
			t.Fatalf("%d bytes allocated for %d stored ones, the limit is %d", n, len(stored), limit)
		}
		if err != nil {
			refused(t, err)
			return
		}
		if uint64(len(stored)) != h.StoredSize || table.Len() != h.Entries {
			t.Fatalf("%d chunks from %d bytes, the header says %d and %d", table.Len(), len(stored), h.Entries, h.StoredSize)
		}
		end := min(h.Offset, 1<<40+512)
		if separate { // of another blob
			end = 1<<40 + 512
		}
		if data == 0 || data > end {
			data = end
		}
		if space == 0 || space > 1<<44 {
			space = 1 << 44
		}
		var last uint64
		for i := range table.Len() {
			var c blobstore.Chunk
			if err := table.Chunk(i, &c); err != nil {
				t.Fatal(err)
			}
			switch {
			case c.CompressedSize == 0 || c.UncompressedSize == 0 || c.CompressedSize > blobstore.MaxStoredSize || c.UncompressedSize > 1<<24:
				t.Fatalf("chunk %d has no possible size: %+v", i, c)
			case c.CompressedOffset+uint64(c.CompressedSize) > data:
				t.Fatalf("chunk %d ends beyond %d: %+v", i, data, c)
			case c.UncompressedOffset+uint64(c.UncompressedSize) > (space+4095)/4096*4096:
				t.Fatalf("chunk %d ends beyond %d uncompressed: %+v", i, space, c)
			case c.UncompressedOffset < last || c.UncompressedOffset%4096 != 0:
				t.Fatalf("chunk %d begins before %d: %+v", i, last, c)
			}
			last = c.UncompressedOffset + uint64(c.UncompressedSize)
			if c.Flags&blobstore.ChunkShared != 0 {
				sharesSoundly(t, table, &c)
			}
			if entry == 24 {
				continue
			}
			if (c.Flags&blobstore.ChunkCompressed != 0) != (c.CompressedSize != c.UncompressedSize) {
				t.Fatalf("chunk %d has the flags of another: %+v", i, c)
			}
			if h.Compressor == codec.None {
				want := bytes.Clone(stored[i*16:][:16])
				want[0] = 0 // reserved
				if got := appendEntry(nil, &c); !bytes.Equal(got, want) {
					t.Fatalf("chunk %d: %x from %x", i, got, want)
				}
			}
		}
		if err := table.Chunk(table.Len(), new(blobstore.Chunk)); !errors.Is(err, blobstore.ErrNoChunk) {
			t.Fatalf("a chunk behind the last: %v", err)
		}
	})
}

// sharesSoundly: the context of a chunk holds it, and its window is one that an
// inflater takes.
func sharesSoundly(t *testing.T, table *meta.Table, c *blobstore.Chunk) {
	t.Helper()
	var x blobstore.Context
	if err := table.Context(c.Context, &x); err != nil {
		t.Fatalf("context of %+v: %v", c, err)
	}
	switch {
	case x.Size > codec.MaxChunk || uint64(c.ContextOffset)+uint64(c.UncompressedSize) > uint64(x.Size):
		t.Fatalf("%+v is not inside its context of %d bytes", c, x.Size)
	case x.Inflate != (c.Flags&blobstore.ChunkZran != 0):
		t.Fatalf("%+v in a context of the other kind", c)
	case len(x.Window.Dict) > codec.WindowSize || x.Window.Bits > 7:
		t.Fatalf("window of %d bytes and %d bits", len(x.Window.Dict), x.Window.Bits)
	}
}

// refused wants one of the two kinds of refusal.
func refused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, meta.ErrDamaged) && !errors.Is(err, meta.ErrUnsupported) {
		t.Fatalf("%v, want ErrDamaged or ErrUnsupported", err)
	}
}

// allocated is how many bytes this process ever allocated on the heap.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
