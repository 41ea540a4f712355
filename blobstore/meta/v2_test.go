package meta_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/blobstore/meta"
)

// Flags of an entry of version 2.
const (
	compressed = 1
	zran       = 2
	batch      = 4
	encrypted  = 8
	hasCRC     = 16
)

// v2Sample is chunk information of version 2, written from the layout.
type v2Sample struct {
	features uint32
	entries  [][3]uint64
	contexts [][40]byte
	dicts    []byte
}

func entryOf(off, size uint64, flags, stored, storedSize, data uint64) [3]uint64 {
	return [3]uint64{off>>12 | (size-1)<<32 | flags<<56, stored | storedSize<<40, data}
}

func batchContext(stored, size uint32) (c [40]byte) {
	le.PutUint32(c[:], stored)
	le.PutUint32(c[4:], size)
	return c
}

func zranContext(in, out, dict uint64, stored, size, dictSize uint32, last, bits byte) (c [40]byte) {
	le.PutUint64(c[:], in)
	le.PutUint64(c[8:], out)
	le.PutUint64(c[16:], dict)
	le.PutUint32(c[24:], stored)
	le.PutUint32(c[28:], size)
	le.PutUint32(c[32:], dictSize)
	c[36], c[37] = last, bits
	return c
}

// v2Samples are a sound one of each kind.
func v2Samples() map[string]*v2Sample {
	return map[string]*v2Sample{
		"plain": {0x40000005, [][3]uint64{
			entryOf(0, 5000, compressed|hasCRC, 0, 300, 0xE3069283),
			entryOf(8192, 100, hasCRC, 300, 100, 7),
		}, nil, nil},
		"encrypted": {0x40000105, [][3]uint64{
			entryOf(0, 5000, compressed|encrypted, 0, 300, 0),
			entryOf(8192, 5, encrypted, 300, 18, 0),
			entryOf(12288, 16, encrypted, 318, 16, 0),
		}, nil, nil},
		"batch": {0x40000085, [][3]uint64{
			entryOf(0, 10, batch|compressed, 0, 0, 0),
			entryOf(4096, 20, batch|compressed, 0, 0, 10),
			entryOf(8192, 5000, compressed, 25, 300, 0),
			entryOf(16384, 7, batch|compressed, 325, 0, 1<<32),
		}, [][40]byte{batchContext(25, 30), batchContext(7, 7)}, nil},
		"encrypted batch": {0x40000185, [][3]uint64{
			entryOf(0, 2, batch|compressed|encrypted, 0, 0, 0),
		}, [][40]byte{batchContext(18, 2)}, nil},
		"zran": {0x4000001D, [][3]uint64{
			entryOf(0, 1404, zran|compressed, 184, 649, 1024),
			entryOf(4096, 100, zran|compressed, 700, 50, 1<<32|5),
		}, [][40]byte{zranContext(10, 0, 0, 690, 3000, 0, 0, 0), zranContext(690, 2000, 0, 300, 200, 32768, 0x9f, 3)}, make([]byte, 32768)},
	}
}

func (s *v2Sample) plain() []byte {
	var b []byte
	for _, e := range s.entries {
		for _, w := range e {
			b = le.AppendUint64(b, w)
		}
	}
	for _, c := range s.contexts {
		b = append(b, c[:]...)
	}
	return append(b, s.dicts...)
}

func (s *v2Sample) header() []byte {
	b := make([]byte, meta.HeaderSize)
	n := uint64(len(s.plain()))
	le.PutUint32(b, 0xB10BB10B)
	le.PutUint32(b[4:], s.features)
	le.PutUint32(b[12:], uint32(len(s.entries)))
	if s.features&0x10 == 0 {
		le.PutUint64(b[16:], 1<<20)
	}
	le.PutUint64(b[24:], n)
	le.PutUint64(b[32:], n)
	if len(s.contexts) > 0 {
		le.PutUint64(b[40:], uint64(len(s.entries))*24)
		le.PutUint64(b[48:], uint64(len(s.contexts)*40+len(s.dicts)))
		le.PutUint32(b[56:], uint32(len(s.contexts)))
	}
	le.PutUint32(b[4092:], 0xB10BB10B)
	return b
}

func (s *v2Sample) decode() (*meta.Table, error) {
	h, err := meta.ParseHeader(s.header())
	if err != nil {
		return nil, err
	}
	return meta.Decode(h, meta.Bounds{Stored: 1 << 20, Uncompressed: 1 << 20}, nil, s.plain())
}

func TestDecodeV2(t *testing.T) {
	const none = blobstore.ChunkNoDigest
	want := map[string][]blobstore.Chunk{
		"plain": {
			{UncompressedSize: 5000, CompressedSize: 300, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkHasCRC, CRC32C: 0xE3069283},
			{UncompressedOffset: 8192, UncompressedSize: 100, CompressedOffset: 300, CompressedSize: 100, Flags: none | blobstore.ChunkHasCRC, CRC32C: 7},
		},
		"encrypted": {
			{UncompressedSize: 5000, CompressedSize: 300, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkEncrypted},
			{UncompressedOffset: 8192, UncompressedSize: 5, CompressedOffset: 300, CompressedSize: 18, Flags: none | blobstore.ChunkEncrypted},
			{UncompressedOffset: 12288, UncompressedSize: 16, CompressedOffset: 318, CompressedSize: 16, Flags: none | blobstore.ChunkEncrypted},
		},
		"batch": {
			{UncompressedSize: 10, CompressedSize: 25, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkBatch},
			{UncompressedOffset: 4096, UncompressedSize: 20, CompressedSize: 25, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkBatch, ContextOffset: 10},
			{UncompressedOffset: 8192, UncompressedSize: 5000, CompressedOffset: 25, CompressedSize: 300, Flags: none | blobstore.ChunkCompressed},
			{UncompressedOffset: 16384, UncompressedSize: 7, CompressedOffset: 325, CompressedSize: 7, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkBatch, Context: 1},
		},
		"encrypted batch": {
			{UncompressedSize: 2, CompressedSize: 18, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkBatch | blobstore.ChunkEncrypted},
		},
		"zran": {
			{UncompressedSize: 1404, CompressedOffset: 10, CompressedSize: 690, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkZran, ContextOffset: 1024},
			{UncompressedOffset: 4096, UncompressedSize: 100, CompressedOffset: 690, CompressedSize: 300, Flags: none | blobstore.ChunkCompressed | blobstore.ChunkZran, Context: 1, ContextOffset: 5},
		},
	}
	for name, s := range v2Samples() {
		t.Run(name, func(t *testing.T) {
			table, err := s.decode()
			if err != nil {
				t.Fatal(err)
			}
			if got := chunks(t, table); fmt.Sprint(got) != fmt.Sprint(want[name]) {
				t.Errorf("%+v\nwant %+v", got, want[name])
			}
			var x blobstore.Context
			if err := table.Context(uint32(len(s.contexts)), &x); !errors.Is(err, blobstore.ErrNoChunk) {
				t.Errorf("a context behind the last: %v", err)
			}
			var c blobstore.Chunk
			if n := testing.AllocsPerRun(10, func() { _ = table.Chunk(0, &c); _ = table.Context(0, &x) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
	table, err := v2Samples()["zran"].decode()
	if err != nil {
		t.Fatal(err)
	}
	var x blobstore.Context
	if err := table.Context(1, &x); err != nil || x.Size != 200 || !x.Inflate || x.Window.Bits != 3 || x.Window.Byte != 0x9f || len(x.Window.Dict) != 32768 {
		t.Errorf("%v, %d bytes, window of %d", err, x.Size, len(x.Window.Dict))
	}
}

func TestDecodeV2Refuses(t *testing.T) {
	for name, tt := range map[string]struct {
		of        string
		damage    func(s *v2Sample)
		structure string
		index     int
		says      string
	}{
		"unknown flag":                 {"plain", func(s *v2Sample) { s.entries[1][0] |= 0x20 << 56 }, "chunk information entry", 1, "flags 0x30"},
		"batch in a plain blob":        {"plain", func(s *v2Sample) { s.entries[1][0] |= batch << 56 }, "chunk information entry", 1, "flag BATCH"},
		"zran in a plain blob":         {"plain", func(s *v2Sample) { s.entries[0][0] |= zran << 56 }, "chunk information entry", 0, "flag ZRAN"},
		"encrypted in a plain blob":    {"plain", func(s *v2Sample) { s.entries[0][0] |= encrypted << 56 }, "chunk information entry", 0, "flag ENCRYPTED"},
		"no stored bytes":              {"plain", func(s *v2Sample) { s.entries[1][1] = 300 }, "chunk information entry", 1, "no stored bytes"},
		"plain, and of two sizes":      {"plain", func(s *v2Sample) { s.entries[1][1] += 1 << 40 }, "chunk information entry", 1, "100 bytes are stored as they are, in 101"},
		"behind the data":              {"plain", func(s *v2Sample) { s.entries[1][1] += 1<<20 - 399 }, "chunk information entry", 1, "the blob has 1048576"},
		"overlap":                      {"plain", func(s *v2Sample) { s.entries[1][0]-- }, "chunk information entry", 1, "the entry before it ends at 5000"},
		"short, not padded":            {"encrypted", func(s *v2Sample) { s.entries[1][1] -= 13 << 40 }, "chunk information entry", 1, "5 bytes are stored as they are, in 5"},
		"context out of range":         {"batch", func(s *v2Sample) { s.entries[3][2] = 2 << 32 }, "chunk information entry", 3, "context 2, there are 2"},
		"outside its batch":            {"batch", func(s *v2Sample) { s.entries[1][2] = 11 }, "chunk information entry", 1, "bytes 11+20 of its context, which has 30"},
		"offset in batch wraps":        {"batch", func(s *v2Sample) { s.entries[1][2] = 1<<32 - 1 }, "chunk information entry", 1, "bytes 4294967295+20"},
		"batch of nothing":             {"batch", func(s *v2Sample) { s.contexts[1] = batchContext(1, 0) }, "chunk information context", 1, "batch of 0 bytes"},
		"batch of 16 MiB and one":      {"batch", func(s *v2Sample) { s.contexts[1] = batchContext(1, 16<<20+1) }, "chunk information context", 1, "the limit is 16777216"},
		"batch stored in nothing":      {"batch", func(s *v2Sample) { s.contexts[1] = batchContext(0, 7) }, "chunk information context", 1, "stored in none"},
		"batch stored in more":         {"batch", func(s *v2Sample) { s.contexts[1] = batchContext(18, 7) }, "chunk information context", 1, "batch of 7 bytes is stored in 18"},
		"batch behind the data":        {"batch", func(s *v2Sample) { s.entries[3][1] = 1<<20 - 6 }, "chunk information entry", 3, "its batch is stored at"},
		"padded batch that is not":     {"encrypted batch", func(s *v2Sample) { s.contexts[0] = batchContext(19, 2) }, "chunk information context", 0, "stored in 19"},
		"context of nothing":           {"zran", func(s *v2Sample) { le.PutUint32(s.contexts[0][28:], 0) }, "chunk information context", 0, "inflate context of 0 bytes"},
		"context of 4 GiB":             {"zran", func(s *v2Sample) { le.PutUint32(s.contexts[0][28:], 1<<32-1) }, "chunk information context", 0, "the limit is 16777216"},
		"context stored in nothing":    {"zran", func(s *v2Sample) { le.PutUint32(s.contexts[0][24:], 0) }, "chunk information context", 0, "stored in 0 bytes"},
		"context stored in 4 GiB":      {"zran", func(s *v2Sample) { le.PutUint32(s.contexts[0][24:], 1<<32-1) }, "chunk information context", 0, "the limit is 17825792"},
		"context behind the stream":    {"zran", func(s *v2Sample) { le.PutUint64(s.contexts[1][:], 1<<20-299) }, "chunk information context", 1, "the stream has 1048576 bytes"},
		"context at the end of all":    {"zran", func(s *v2Sample) { le.PutUint64(s.contexts[1][:], 1<<64-1) }, "chunk information context", 1, "the stream has"},
		"dictionary outside":           {"zran", func(s *v2Sample) { le.PutUint64(s.contexts[1][16:], 1) }, "chunk information context", 1, "dictionary at 1+32768, there are 32768"},
		"dictionary at the end of all": {"zran", func(s *v2Sample) { le.PutUint64(s.contexts[1][16:], 1<<64-1) }, "chunk information context", 1, "dictionary at"},
		"dictionary too large":         {"zran", func(s *v2Sample) { le.PutUint32(s.contexts[1][32:], 32769) }, "chunk information context", 1, "deflate looks back"},
		"eight bits":                   {"zran", func(s *v2Sample) { s.contexts[1][37] = 8 }, "chunk information context", 1, "8 bits"},
		"bits before the stream":       {"zran", func(s *v2Sample) { le.PutUint64(s.contexts[1][:], 0) }, "chunk information context", 1, "bits before the stream"},
		"outside what is inflated":     {"zran", func(s *v2Sample) { s.entries[1][2] = 1<<32 | 101 }, "chunk information entry", 1, "bytes 101+100 of its context, which has 200"},
	} {
		t.Run(name, func(t *testing.T) {
			s := v2Samples()[tt.of]
			tt.damage(s)
			_, err := s.decode()
			var e *meta.Error
			if !errors.As(err, &e) || !errors.Is(err, meta.ErrDamaged) || e.Structure != tt.structure || e.Index != tt.index || !strings.Contains(e.Reason, tt.says) {
				t.Errorf("%v, want %s %d: %q", err, tt.structure, tt.index, tt.says)
			}
		})
	}
}

func TestParseHeaderRefusesContexts(t *testing.T) {
	for name, tt := range map[string]struct {
		of     string
		damage func(b []byte)
		says   string
	}{
		"more contexts than chunks":       {"zran", func(b []byte) { le.PutUint32(b[56:], 3) }, "3 contexts for 2 chunks"},
		"contexts elsewhere":              {"zran", func(b []byte) { le.PutUint64(b[40:], 47) }, "contexts at 47, the entries end at 48"},
		"fewer bytes than contexts":       {"batch", func(b []byte) { le.PutUint64(b[48:], 79) }, "bytes of chunk information for 4 chunks"},
		"more bytes than contexts":        {"batch", func(b []byte) { le.PutUint32(b[56:], 1) }, "80 bytes for 1 contexts of batches"},
		"more dictionaries than contexts": {"zran", func(b []byte) { le.PutUint32(b[56:], 0) }, "bytes of dictionaries for 0 contexts"},
		"size near 2^64":                  {"zran", func(b []byte) { le.PutUint64(b[48:], 1<<64-1) }, "want 48"},
	} {
		t.Run(name, func(t *testing.T) {
			b := v2Samples()[tt.of].header()
			tt.damage(b)
			if h, err := meta.ParseHeader(b); !errors.Is(err, meta.ErrDamaged) || !strings.Contains(err.Error(), tt.says) || h != (meta.Header{}) {
				t.Errorf("%+v, %v, want %q", h, err, tt.says)
			}
		})
	}
}

// ranges is a blob in memory.
type ranges []byte

func (r ranges) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > int64(len(r)) {
		return nil, io.ErrUnexpectedEOF
	}
	return io.NopCloser(bytes.NewReader(r[off:min(off+n, int64(len(r)))])), nil
}

func heap(n uint64) ([]byte, error) { return make([]byte, n), nil }

// withTOC is a second blob of a zran image, with a table of contents, and what an
// image says of it.
func withTOC() (ranges, *meta.Place) {
	s := v2Samples()["zran"]
	plain, head := s.plain(), s.header()
	blob := append(bytes.Clone(plain), head...)
	section := func(name string, content []byte, off uint64) []byte {
		e := make([]byte, 128)
		le.PutUint32(e, 1)
		copy(e[8:], name)
		sum := sha256.Sum256(content)
		copy(e[24:], sum[:])
		le.PutUint64(e[56:], off)
		le.PutUint64(e[64:], uint64(len(content)))
		le.PutUint64(e[72:], uint64(len(content)))
		return e
	}
	toc := append(section("blob.meta", plain, 0), section("blob.meta.header", head, uint64(len(plain)))...)
	toc = append(toc, make([]byte, 512)...)
	blob = append(blob, toc...)
	h, err := meta.ParseHeader(head)
	if err != nil {
		panic(err)
	}
	h.Contexts, h.ContextsSize = 0, 0
	return blob, &meta.Place{
		Header: h, Bounds: meta.Bounds{Stored: 1 << 20, Uncompressed: 1 << 20},
		BlobSize: uint64(len(blob)), TOCSize: uint32(len(toc)), TOCDigest: sha256.Sum256(toc),
	}
}

func TestLoad(t *testing.T) {
	blob, p := withTOC()
	table, faults := p.Load(t.Context(), blob, heap)
	if faults != nil || table.Len() != 2 {
		t.Fatal(faults)
	}
	for name, tt := range map[string]struct {
		damage func(b ranges, p *meta.Place)
		says   string
	}{
		"information is not that of the contents": {func(b ranges, _ *meta.Place) { b[48+38] ^= 1 }, "of blob.meta, the table of contents says"},
		"header is not that of the contents":      {func(b ranges, _ *meta.Place) { b[len(b)-768-4096+100] ^= 1 }, "of blob.meta.header"},
		"contents are not those of the image":     {func(b ranges, _ *meta.Place) { b[len(b)-1] ^= 1 }, "the blob table says"},
		"contents behind the blob":                {func(_ ranges, p *meta.Place) { p.BlobSize += 1 << 20 }, "EOF"},
		"contents too large":                      {func(_ ranges, p *meta.Place) { p.TOCSize, p.BlobSize = 2<<20, 4<<20 }, "the limit is"},
		"blob ends early":                         {func(_ ranges, p *meta.Place) { p.Header.StoredSize += 1 << 20; p.Header.Size += 1 << 20 }, "EOF"},
		"size over the limit":                     {func(_ ranges, p *meta.Place) { p.Header.Size = 2<<30 + 1 }, "the limit is"},
		"more stored than there is":               {func(_ ranges, p *meta.Place) { p.Header.StoredSize = p.Header.Size + 1 }, "bytes stored in"},
		"more chunks than pages":                  {func(_ ranges, p *meta.Place) { p.Bounds.Uncompressed = 4096 }, "2 chunks in 4096 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			blob, p := withTOC()
			tt.damage(blob, p)
			table, faults := p.Load(t.Context(), blob, heap)
			if table != nil || len(faults) != 1 || !strings.Contains(faults[0].Error(), tt.says) {
				t.Errorf("%v, want one that says %q", faults, tt.says)
			}
		})
	}
	t.Run("digest of the blob", func(t *testing.T) {
		blob, p := withTOC()
		blob = blob[:len(blob)-int(p.TOCSize)]
		p.TOCSize, p.BlobSize, p.BlobDigest = 0, uint64(len(blob)), sha256.Sum256(blob)
		if _, faults := p.Load(t.Context(), blob, heap); faults != nil {
			t.Fatal(faults)
		}
		blob[len(blob)-100] ^= 1 // reserved
		if _, faults := p.Load(t.Context(), blob, heap); len(faults) != 1 || !errors.Is(faults[0], meta.ErrDamaged) || !strings.Contains(faults[0].Error(), "sha256") {
			t.Errorf("%v, want another digest", faults)
		}
	})
}

func TestFromCache(t *testing.T) {
	_, p := withTOC()
	s := v2Samples()["zran"]
	file := s.plain()
	file = append(file, make([]byte, (4096-len(file)%4096)%4096)...)
	file = append(file, s.header()...)
	if table, err := p.FromCache(bytes.NewReader(file), int64(len(file)), heap); err != nil || table.Len() != 2 {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"longer":           func(b []byte) []byte { return append(b, 0) },
		"shorter":          func(b []byte) []byte { return b[:len(b)-4096] },
		"zero information": func(b []byte) []byte { clear(b[:4096]); return b },
		"zero header":      func(b []byte) []byte { clear(b[len(b)-4096:]); return b },
		"another header":   func(b []byte) []byte { b[len(b)-4096+24]++; return b },
	} {
		b := damage(bytes.Clone(file))
		if _, err := p.FromCache(bytes.NewReader(b), int64(len(b)), heap); !errors.Is(err, meta.ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}

// FuzzLoad reads a hostile blob by what a sound or hostile image says of it.
func FuzzLoad(f *testing.F) {
	blob, p := withTOC()
	f.Add([]byte(blob), p.Header.Size, p.TOCSize, uint32(2), false)
	f.Add([]byte(blob), p.Header.Size, uint32(0), uint32(2), true)
	f.Add([]byte(blob[:100]), uint64(16), uint32(700), uint32(0), false)
	f.Fuzz(func(t *testing.T, blob []byte, size uint64, tocSize, entries uint32, cipher bool) {
		_, p := withTOC()
		p.Header.Size, p.Header.StoredSize, p.Header.Entries, p.TOCSize = size, size, entries, tocSize
		p.BlobSize = uint64(len(blob))
		if n := min(int(tocSize), len(blob)); n > 0 {
			p.TOCDigest = sha256.Sum256(blob[len(blob)-n:])
		}
		if cipher {
			c, err := codec.NewCipher([32]byte{1}, [16]byte{2})
			if err != nil {
				t.Fatal(err)
			}
			p.Cipher = c
		}
		given := ranges(bytes.Clone(blob))
		table, faults := p.Load(t.Context(), given, heap)
		if (table == nil) != (len(faults) > 0) {
			t.Fatalf("%v, %v", table, faults)
		}
		for _, err := range faults {
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				refused(t, err)
			}
		}
		if _, err := p.FromCache(bytes.NewReader(blob), int64(len(blob)), heap); err != nil && !errors.Is(err, io.EOF) {
			refused(t, err)
		}
	})
}
