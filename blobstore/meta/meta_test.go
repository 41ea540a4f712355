package meta_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/blobstore/meta"
	"github.com/rafsd/rafsd/internal/testimage"
)

var le = binary.LittleEndian

// sampleHeader is that of an image of the reference: two chunks, stored as they are
// behind the tar header of the data.
func sampleHeader() []byte {
	b := make([]byte, meta.HeaderSize)
	le.PutUint32(b, 0xB10BB10B)
	le.PutUint32(b[4:], 0x70000021)
	le.PutUint32(b[12:], 2)
	le.PutUint64(b[16:], 0x207a)
	le.PutUint64(b[24:], 32)
	le.PutUint64(b[32:], 32)
	le.PutUint32(b[4092:], 0xB10BB10B)
	return b
}

var sampleParsed = meta.Header{Features: 0x70000021, Entries: 2, Offset: 0x207a, StoredSize: 32, Size: 32}

// appendEntry appends an entry of version 1, written anew from the layout: the
// sizes are stored less one, 20 low and 4 high bits apart.
func appendEntry(b []byte, c *blobstore.Chunk) []byte {
	u, z := uint64(c.UncompressedSize)-1, uint64(c.CompressedSize)-1
	b = le.AppendUint64(b, (u%(1<<20))*(1<<44)+c.UncompressedOffset+(u/(1<<20))*(1<<8))
	return le.AppendUint64(b, (z%(1<<20))*(1<<44)+(z/(1<<20))*(1<<40)+c.CompressedOffset)
}

func TestParseHeader(t *testing.T) {
	h, err := meta.ParseHeader(sampleHeader())
	if err != nil || h != sampleParsed {
		t.Errorf("%+v, %v, want %+v", h, err, sampleParsed)
	}
	b := sampleHeader()
	for i := 60; i < 4092; i++ {
		b[i] = 0xFF
	}
	if h, err := meta.ParseHeader(b); err != nil || h != sampleParsed {
		t.Errorf("reserved bytes in use: %+v, %v", h, err)
	}
	b = sampleHeader()
	le.PutUint32(b[4:], 0x70000221)
	le.PutUint64(b[24:], 48)
	le.PutUint64(b[32:], 48)
	if h, err := meta.ParseHeader(b); err != nil || h.Entries != 2 || h.Size != 48 {
		t.Errorf("generated chunk dictionary: %+v, %v", h, err)
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	put32 := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
	}
	put64 := func(off int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint64(b[off:], v); return b }
	}
	for name, tt := range map[string]struct {
		damage func([]byte) []byte
		offset uint64
		says   string
	}{
		"short":                         {func(b []byte) []byte { return b[:4095] }, 0, "4095 bytes"},
		"long":                          {func(b []byte) []byte { return append(b, 0) }, 0, "4097 bytes"},
		"empty":                         {func([]byte) []byte { return nil }, 0, "0 bytes"},
		"first magic":                   {put32(0, 0xB10BB10C), 0, "magic 0xb10bb10c"},
		"last magic":                    {put32(4092, 0), 4092, "magic 0x00000000"},
		"neither aligned nor tarfs":     {put32(4, 0x70000020), 4, "ALIGNED"},
		"aligned and tarfs":             {put32(4, 0x70000061), 4, "TARFS"},
		"tarfs":                         {put32(4, 0x40000040), 4, "TARFS"},
		"external":                      {put32(4, 0x40000801), 4, "EXTERNAL"},
		"bit that has no place on disk": {put32(4, 0xC0000001), 4, "_V5_NO_EXT_BLOB_TABLE"},
		"zran in entries of version 1":  {put32(4, 0x40000019), 4, "without CHUNK_INFO_V2"},
		"batch in version 1":            {put32(4, 0x40000081), 4, "without CHUNK_INFO_V2"},
		"encrypted in version 1":        {put32(4, 0x40000101), 4, "without CHUNK_INFO_V2"},
		"zran without separate":         {put32(4, 0x4000000D), 4, "ZRAN without SEPARATE"},
		"zran and batch":                {put32(4, 0x4000009D), 4, "both ZRAN and BATCH"},
		"compressor":                    {put32(8, 4), 8, "compressor 4"},
		"compressor of 32 bits":         {put32(8, 0x100), 8, "compressor 256"},
		"too many chunks":               {put32(12, 1<<24+1), 12, "16777217 chunks"},
		"more chunks than bytes":        {put32(12, 3), 32, "want 48"},
		"fewer chunks than bytes":       {put32(12, 1), 32, "want 16"},
		"offset beyond all chunks":      {put64(16, 1<<40+513), 16, "chunk information at 1099511628289"},
		"offset near 2^64":              {put64(16, 1<<64-1), 16, "chunk information at 18446744073709551615"},
		"no room for a tar header":      {put64(16, 511), 16, "no room for a tar header"},
		"stored size":                   {put64(24, 31), 24, "stored as it is, in 31"},
		"stored size over size":         {put64(24, 33), 24, "stored in 33"},
		"nothing stored":                {put64(24, 0), 24, "stored in 0"},
		"size":                          {put64(32, 33), 32, "33 bytes"},
		"size near 2^64":                {put64(32, 1<<64-16), 32, "want 32"},
		"size of contexts":              {put64(48, 40), 48, "40 bytes of contexts"},
		"contexts":                      {put32(56, 1), 56, "1 contexts"},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := meta.ParseHeader(tt.damage(sampleHeader()))
			var e *meta.Error
			if !errors.As(err, &e) || !errors.Is(err, meta.ErrDamaged) || h != (meta.Header{}) {
				t.Fatalf("%+v, %v, want an Error that wraps ErrDamaged", h, err)
			}
			if e.Structure != "chunk information header" || e.Index != meta.NoIndex || e.Offset != tt.offset || !strings.Contains(e.Reason, tt.says) {
				t.Errorf("%v, want offset %#x and %q", err, tt.offset, tt.says)
			}
		})
	}
}

func TestParseHeaderNamesWhatIsNotSupported(t *testing.T) {
	for features, says := range map[uint32]string{
		0x40001001: "0x1000 of them unknown",
		0x40008001: "0x8000 of them unknown",
	} {
		b := sampleHeader()
		le.PutUint32(b[4:], features)
		_, err := meta.ParseHeader(b)
		if !errors.Is(err, meta.ErrUnsupported) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("features %#x: %v, want ErrUnsupported and %q", features, err, says)
		}
	}
}

func TestContradictions(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(table *meta.Header)
		offset uint64 // 0: no fault
		says   string
	}{
		"equal":                {func(*meta.Header) {}, 0, ""},
		"merged":               {func(h *meta.Header) { h.Features |= 0x2 }, 0, ""},
		"with prefetch copies": {func(h *meta.Header) { h.Features |= 0x400 }, 0, ""},
		"in a dictionary":      {func(h *meta.Header) { h.Features |= 0x200; h.Entries = 1 }, 0, ""},
		"packaged otherwise":   {func(h *meta.Header) { h.Features &= 0xFFFFFFF }, 0, ""},
		"digests":              {func(h *meta.Header) { h.Features &^= 0x20 }, 4, "features 0x21, the blob table says 0x1"},
		"version":              {func(h *meta.Header) { h.Features |= 0x4 }, 4, "0x25"},
		"compressor":           {func(h *meta.Header) { h.Compressor = codec.Zstd }, 8, "compressor none, the blob table says zstd"},
		"chunks":               {func(h *meta.Header) { h.Entries = 3 }, 12, "chunks: 2, the blob table says 3"},
		"offset":               {func(h *meta.Header) { h.Offset = 0 }, 16, "offset 8314, the blob table says 0"},
		"stored size":          {func(h *meta.Header) { h.StoredSize++ }, 24, "stored size 32, the blob table says 33"},
		"size":                 {func(h *meta.Header) { h.Size++ }, 32, "uncompressed size 32, the blob table says 33"},
	} {
		t.Run(name, func(t *testing.T) {
			table := sampleParsed
			tt.change(&table)
			faults := sampleParsed.Contradictions(table)
			if tt.offset == 0 {
				if faults != nil {
					t.Errorf("%v, want none", faults)
				}
				return
			}
			var e *meta.Error
			if len(faults) != 1 || !errors.As(faults[0], &e) || e.Offset != tt.offset || !strings.Contains(e.Reason, tt.says) {
				t.Errorf("%v, want one at %#x with %q", faults, tt.offset, tt.says)
			}
		})
	}
	if faults := sampleParsed.Contradictions(meta.Header{Features: 4, Compressor: codec.LZ4}); len(faults) != 6 {
		t.Errorf("everything differs: %d faults, want 6: %v", len(faults), faults)
	}
}

// TestDecodeWords compares with entries of an image of the reference.
func TestDecodeWords(t *testing.T) {
	var stored []byte
	for _, w := range []uint64{0x0422200000000000, 0x012db00000000000, 0x0345700000005000, 0x00b9d000000012dc} {
		stored = le.AppendUint64(stored, w)
	}
	stored[0], stored[16] = 0xFF, 0x80 // reserved
	table, err := meta.Decode(sampleParsed, meta.Bounds{}, nil, stored)
	if err != nil {
		t.Fatal(err)
	}
	const flags = blobstore.ChunkCompressed | blobstore.ChunkNoDigest
	want := []blobstore.Chunk{
		{UncompressedSize: 16931, CompressedSize: 4828, Flags: flags},
		{UncompressedOffset: 20480, UncompressedSize: 13400, CompressedOffset: 4828, CompressedSize: 2974, Flags: flags},
	}
	if got := chunks(t, table); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// chunks lists a table.
func chunks(t *testing.T, table blobstore.Table) []blobstore.Chunk {
	t.Helper()
	all := make([]blobstore.Chunk, table.Len())
	for i := range all {
		if err := table.Chunk(uint32(i), &all[i]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// headerOf describes information that is stored as it is, far behind all chunks.
func headerOf(stored []byte) meta.Header {
	n := uint64(len(stored))
	return meta.Header{Features: 0x40000001, Entries: uint32(n / 16), Offset: 1 << 40, StoredSize: n, Size: n}
}

// TestDecodeExtremes: every field at both of its ends.
func TestDecodeExtremes(t *testing.T) {
	const max = 1 << 24
	want := []blobstore.Chunk{
		{UncompressedSize: 1, CompressedSize: 1},
		{UncompressedOffset: 4096, UncompressedSize: max, CompressedOffset: 1, CompressedSize: max},
		{UncompressedOffset: 4096 + max, UncompressedSize: 1<<20 + 1, CompressedOffset: 5, CompressedSize: 1 << 20},
		{UncompressedOffset: 1<<44 - 4096, UncompressedSize: 4096, CompressedOffset: 1<<40 - 1, CompressedSize: 1},
	}
	var stored []byte
	for i := range want {
		stored = appendEntry(stored, &want[i])
		want[i].Flags = blobstore.ChunkNoDigest
		if want[i].CompressedSize != want[i].UncompressedSize {
			want[i].Flags |= blobstore.ChunkCompressed
		}
	}
	table, err := meta.Decode(headerOf(stored), meta.Bounds{}, nil, stored)
	if err != nil {
		t.Fatal(err)
	}
	if got := chunks(t, table); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	var c blobstore.Chunk
	for _, i := range []uint32{4, 1 << 24, 1<<32 - 1} {
		if err := table.Chunk(i, &c); !errors.Is(err, blobstore.ErrNoChunk) {
			t.Errorf("chunk %d: %v, want ErrNoChunk", i, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = table.Chunk(3, &c) }); n != 0 {
		t.Errorf("Chunk allocates %v times", n)
	}
}

func TestDecodeOfNoChunks(t *testing.T) {
	table, err := meta.Decode(headerOf(nil), meta.Bounds{}, nil, nil)
	if err != nil || table.Len() != 0 {
		t.Errorf("%v, %v, want an empty table", table, err)
	}
}

func TestDecodeRefusesEntries(t *testing.T) {
	sound := func() []blobstore.Chunk {
		return []blobstore.Chunk{
			{UncompressedSize: 5000, CompressedSize: 300},
			{UncompressedOffset: 8192, UncompressedSize: 4096, CompressedOffset: 300, CompressedSize: 100},
			{UncompressedOffset: 12288, UncompressedSize: 10, CompressedOffset: 400, CompressedSize: 10},
		}
	}
	bounds := meta.Bounds{Stored: 410, Uncompressed: 12298}
	decode := func(all []blobstore.Chunk, bounds meta.Bounds) error {
		var stored []byte
		for i := range all {
			stored = appendEntry(stored, &all[i])
		}
		_, err := meta.Decode(headerOf(stored), bounds, nil, stored)
		return err
	}
	if err := decode(sound(), bounds); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		damage func(c []blobstore.Chunk, b *meta.Bounds)
		index  int
		offset uint64
		says   string
	}{
		"stored bytes end one beyond the data":  {func(c []blobstore.Chunk, _ *meta.Bounds) { c[2].CompressedSize = 11 }, 2, 40, "400+11, the blob has 410"},
		"stored bytes begin beyond the data":    {func(c []blobstore.Chunk, _ *meta.Bounds) { c[1].CompressedOffset = 1<<40 - 1 }, 1, 24, "1099511627775+100"},
		"data reach into the chunk information": {func(_ []blobstore.Chunk, b *meta.Bounds) { b.Stored = 409 }, 2, 40, "the blob has 409"},
		"place beyond the last 4 KiB": {func(c []blobstore.Chunk, _ *meta.Bounds) {
			c[2].UncompressedSize, c[2].CompressedSize = 4097, 5
		}, 2, 32, "12288+4097 of the uncompressed address space, which has 16384"},
		"place beyond the address space": {func(c []blobstore.Chunk, b *meta.Bounds) {
			*b = meta.Bounds{}
			c[2].UncompressedOffset, c[2].UncompressedSize = 1<<44-4096, 4097
		}, 2, 32, "which has 17592186044416"},
		"hostile bound": {func(c []blobstore.Chunk, b *meta.Bounds) {
			b.Uncompressed = 1<<64 - 1
			c[2].UncompressedOffset, c[2].UncompressedSize = 1<<44-4096, 4097
		}, 2, 32, "which has 17592186044416"},
		"same place twice":      {func(c []blobstore.Chunk, _ *meta.Bounds) { c[2].UncompressedOffset = 8192 }, 2, 32, "8192+10 of the uncompressed address space, the entry before it ends at 12288"},
		"descending order":      {func(c []blobstore.Chunk, _ *meta.Bounds) { c[1], c[2] = c[2], c[1] }, 2, 32, "ends at 12298"},
		"end in the next chunk": {func(c []blobstore.Chunk, _ *meta.Bounds) { c[0].UncompressedSize = 8193 }, 1, 16, "ends at 8193"},
	} {
		t.Run(name, func(t *testing.T) {
			c, b := sound(), bounds
			tt.damage(c, &b)
			err := decode(c, b)
			var e *meta.Error
			if !errors.As(err, &e) || !errors.Is(err, meta.ErrDamaged) {
				t.Fatalf("%v, want an Error that wraps ErrDamaged", err)
			}
			if e.Structure != "chunk information entry" || e.Index != tt.index || e.Offset != tt.offset || !strings.Contains(e.Reason, tt.says) {
				t.Errorf("%v, want entry %d, offset %#x and %q", err, tt.index, tt.offset, tt.says)
			}
		})
	}
}

// TestDecodeBoundsOfTheHeader: without a blob table, chunks end where the chunk
// information begins, less the tar header that may be between.
func TestDecodeBoundsOfTheHeader(t *testing.T) {
	c := blobstore.Chunk{UncompressedSize: 1000, CompressedSize: 1000}
	stored := appendEntry(nil, &c)
	for _, tt := range []struct {
		features uint32
		offset   uint64
		ok       bool
	}{{0x40000001, 1000, true}, {0x40000001, 999, false}, {0x50000001, 1512, true}, {0x50000001, 1511, false}} {
		h := headerOf(stored)
		h.Features, h.Offset = tt.features, tt.offset
		if _, err := meta.Decode(h, meta.Bounds{Stored: 1 << 40}, nil, bytes.Clone(stored)); (err == nil) != tt.ok {
			t.Errorf("features %#x, chunk information at %d: %v", tt.features, tt.offset, err)
		}
	}
}

func TestDecodeRefusesStoredBytes(t *testing.T) {
	c := blobstore.Chunk{UncompressedSize: 100, CompressedSize: 100}
	entry := appendEntry(nil, &c)
	for name, tt := range map[string]struct {
		change func(*meta.Header)
		stored []byte
		is     error
		says   string
	}{
		"too few":               {func(*meta.Header) {}, entry[:15], meta.ErrDamaged, "15 stored bytes, the header says 16"},
		"too many":              {func(*meta.Header) {}, append(bytes.Clone(entry), 0), meta.ErrDamaged, "17 stored bytes"},
		"more chunks than room": {func(h *meta.Header) { h.Entries = 2 }, entry, meta.ErrDamaged, "16 bytes for 2 chunks"},
		"plain, but longer":     {func(h *meta.Header) { h.Size = 32 }, entry, meta.ErrDamaged, "32 bytes are stored as they are, in 16"},
		"not zstd":              {func(h *meta.Header) { h.Compressor, h.Size = codec.Zstd, 32 }, entry, codec.ErrCorrupt, "16 stored bytes of 32: zstd"},
		"not gzip":              {func(h *meta.Header) { h.Compressor, h.Size = codec.Gzip, 32 }, entry, codec.ErrCorrupt, "gzip"},
		"not lz4":               {func(h *meta.Header) { h.Compressor, h.Size = codec.LZ4, 32 }, entry, codec.ErrCorrupt, "lz4_block"},
		"compressor":            {func(h *meta.Header) { h.Compressor = 9 }, entry, codec.ErrCorrupt, "compressor 9"},
		"compressed over the limit": {func(h *meta.Header) {
			h.Compressor, h.Entries, h.Size = codec.Zstd, 1<<20+1, 16<<20+16
		}, entry, meta.ErrUnsupported, "16777232 bytes of it are compressed, at most 16777216 are decoded in memory"},
	} {
		t.Run(name, func(t *testing.T) {
			h := headerOf(entry)
			tt.change(&h)
			table, err := meta.Decode(h, meta.Bounds{}, nil, bytes.Clone(tt.stored))
			if table != nil || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %v and %q", err, tt.is, tt.says)
			}
			if errors.Is(tt.is, codec.ErrCorrupt) && !errors.Is(err, meta.ErrDamaged) {
				t.Errorf("%v does not wrap ErrDamaged", err)
			}
		})
	}
}

// TestWrittenBlobs reads blobs that were written elsewhere, with each compressor.
func TestWrittenBlobs(t *testing.T) {
	for _, compressor := range []testimage.Compressor{testimage.None, testimage.LZ4, testimage.Gzip, testimage.Zstd} {
		t.Run(compressor.String(), func(t *testing.T) {
			t.Parallel()
			img, err := testimage.Sample().Write(t.TempDir(), testimage.Options{Compressor: compressor, ChunkSize: 4096, Blobs: 2})
			if err != nil {
				t.Fatal(err)
			}
			for i := range img.Blobs {
				blob := &img.Blobs[i]
				head, stored := readBlob(t, blob)
				h, err := meta.ParseHeader(head)
				if err != nil {
					t.Fatal(err)
				}
				if compressor != testimage.None && h.Compressor == codec.None {
					t.Errorf("the chunk information of blob %d is not compressed: it proves nothing", i)
				}
				if faults := h.Contradictions(meta.Header{
					Features: 0x40000001, Compressor: codec.Algorithm(blob.ChunkInfoCompressor), Entries: blob.ChunkCount,
					Offset: blob.DataSize, StoredSize: uint64(blob.ChunkInfo.Size), Size: blob.ChunkInfoSize,
				}); faults != nil {
					t.Error(faults)
				}
				table, err := meta.Decode(h, meta.Bounds{Stored: blob.DataSize, Uncompressed: blob.UncompressedSize}, nil, stored)
				if err != nil {
					t.Fatal(err)
				}
				compared := 0
				for _, want := range img.Chunks {
					if int(want.Blob) != i {
						continue
					}
					var got blobstore.Chunk
					if err := table.Chunk(want.Index, &got); err != nil {
						t.Fatal(err)
					}
					if got.CompressedOffset != want.CompressedOffset || got.CompressedSize != want.CompressedSize ||
						got.UncompressedOffset != want.UncompressedOffset || got.UncompressedSize != want.UncompressedSize ||
						(got.Flags&blobstore.ChunkCompressed != 0) != want.Compressed {
						t.Fatalf("blob %d: %+v, want %+v", i, got, want)
					}
					compared++
				}
				if compared == 0 || compared != int(table.Len()) {
					t.Errorf("blob %d: compared %d of %d chunks", i, compared, table.Len())
				}
			}
		})
	}
}

// readBlob returns header and stored chunk information of a blob.
func readBlob(t testing.TB, blob *testimage.Blob) (head, stored []byte) {
	t.Helper()
	b, err := os.ReadFile(blob.Path)
	if err != nil {
		t.Fatal(err)
	}
	at, info := blob.ChunkInfoHeader, blob.ChunkInfo
	return b[at.Offset:at.End()], b[info.Offset:info.End()]
}
