package blobstore_test

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// TestChunksThatCannotBeRight: an image may say anything of a chunk. Reading it is
// an error that nobody else notices, and nothing is asked of the backend for it.
func TestChunksThatCannotBeRight(t *testing.T) {
	s := lz4Sample(t, 1, 3, 4096)
	tests := map[string]func(c *blobstore.Chunk){
		"no bytes":                      func(c *blobstore.Chunk) { c.UncompressedSize = 0 },
		"more bytes than a chunk has":   func(c *blobstore.Chunk) { c.UncompressedSize = blobstore.MaxChunkSize + 1 },
		"4 GiB of bytes":                func(c *blobstore.Chunk) { c.UncompressedSize = math.MaxUint32 },
		"stored in nothing":             func(c *blobstore.Chunk) { c.CompressedSize = 0 },
		"stored in 4 GiB":               func(c *blobstore.Chunk) { c.CompressedSize = math.MaxUint32 },
		"stored behind the blob":        func(c *blobstore.Chunk) { c.CompressedOffset = uint64(len(s.stored)) },
		"stored over the blob's end":    func(c *blobstore.Chunk) { c.CompressedOffset = uint64(len(s.stored)) - 1 },
		"stored at the end of all":      func(c *blobstore.Chunk) { c.CompressedOffset = math.MaxUint64 - 1 },
		"address at the end of all":     func(c *blobstore.Chunk) { c.UncompressedOffset = math.MaxUint64 - 1 },
		"address behind the blob":       func(c *blobstore.Chunk) { c.UncompressedOffset = 3 * 4096 },
		"plain, and yet of two sizes":   func(c *blobstore.Chunk) { c.Flags &^= blobstore.ChunkCompressed },
		"flags that nobody knows":       func(c *blobstore.Chunk) { c.Flags |= 1 << 2 },
		"flags that nobody knows, high": func(c *blobstore.Chunk) { c.Flags |= 1 << 31 },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			tab := append(table(nil), s.table...)
			spoil(&tab[1])
			f := newFake(s)
			d := s.descOf(tab)
			d.UncompressedSize = 3 * 4096
			b := openBlob(t, open(t, f, blobstore.Options{Amplification: 1 << 20}), d)
			if err := b.Fetch(t.Context(), 0, 0); err != nil {
				t.Fatalf("another chunk: %v", err)
			}
			wantChunk(t, b, s, 0)
			before := len(f.seen())
			err := b.Fetch(t.Context(), 1, 1)
			var ce *blobstore.ChunkError
			if !errors.As(err, &ce) || ce.Blob != s.id {
				t.Errorf("error = %v, want a ChunkError of the blob", err)
			}
			if n := len(f.seen()) - before; n != 0 || b.Ready(1) {
				t.Errorf("%d requests, ready %v", n, b.Ready(1))
			}
		})
	}
}

func TestRangesOfChunksThatCannotBeRight(t *testing.T) {
	s := lz4Sample(t, 1, 3, 4096)
	b := openBlob(t, open(t, newFake(s), blobstore.Options{}), s.descOf(s.only(0, 2)))
	for _, r := range [][2]uint32{{1, 0}, {0, math.MaxUint32}, {3, 3}, {math.MaxUint32, math.MaxUint32}, {0, 2}, {1, 1}} {
		if err := b.Fetch(t.Context(), r[0], r[1]); err == nil {
			t.Errorf("Fetch(%d, %d) succeeded", r[0], r[1])
		}
	}
	if err := b.Fetch(t.Context(), 1, 1); !errors.Is(err, blobstore.ErrNoChunk) {
		t.Errorf("a chunk that the image does not know: %v, want ErrNoChunk", err)
	}
}

func TestBlobsThatCannotBeRight(t *testing.T) {
	s := lz4Sample(t, 1, 1, 4096)
	st := open(t, newFake(s), blobstore.Options{})
	for name, spoil := range map[string]func(d *blobstore.BlobDesc){
		"id that is a path":  func(d *blobstore.BlobDesc) { d.ID = "../../etc/passwd" },
		"no id":              func(d *blobstore.BlobDesc) { d.ID = "" },
		"unknown compressor": func(d *blobstore.BlobDesc) { d.Compressor = 4 },
		"unknown digester":   func(d *blobstore.BlobDesc) { d.Digester = 2 },
		"no table":           func(d *blobstore.BlobDesc) { d.Table = nil },
	} {
		d := s.desc()
		spoil(&d)
		if b, err := st.Blob(d); err == nil {
			b.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// weak returns a sample whose chunks have no digest, but a CRC.
func weak(s *sample) *sample {
	w := *s
	w.table = append(table(nil), s.table...)
	for i := range w.table {
		c := &w.table[i]
		c.Digest = blobstore.Digest{}
		c.Flags |= blobstore.ChunkNoDigest | blobstore.ChunkHasCRC
		c.CRC32C = codec.CRC32C(s.plain[i])
	}
	return &w
}

func TestCRCWhereThereIsNoDigest(t *testing.T) {
	s := weak(lz4Sample(t, 1, 2, 4096))
	s.table[1].CRC32C ^= 1
	b := openBlob(t, open(t, newFake(s), blobstore.Options{}), s.desc())
	if err := b.Fetch(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	wantChunk(t, b, s, 0)
	if err := b.Fetch(t.Context(), 1, 1); !errors.Is(err, blobstore.ErrDigestMismatch) || b.Ready(1) {
		t.Errorf("wrong CRC: %v, ready %v", err, b.Ready(1))
	}
}

func TestDigestIsCheckedThoughThereIsACRC(t *testing.T) {
	s := lz4Sample(t, 1, 1, 4096)
	s.table[0].Flags |= blobstore.ChunkHasCRC
	s.table[0].CRC32C = codec.CRC32C(s.plain[0])
	s.table[0].Digest[31] ^= 1
	b := openBlob(t, open(t, newFake(s), blobstore.Options{}), s.desc())
	if err := b.Fetch(t.Context(), 0, 0); !errors.Is(err, blobstore.ErrDigestMismatch) {
		t.Errorf("right CRC, wrong digest: %v, want ErrDigestMismatch", err)
	}
}

// elsewhere is a backend of another name.
type elsewhere struct{ *fake }

func (elsewhere) Name() string { return "elsewhere" }

func TestWhatCannotBeVerifiedIsNotSharedBetweenPlaces(t *testing.T) {
	s, dir := weak(lz4Sample(t, 1, 1, 4096)), t.TempDir()
	here := openBlob(t, open(t, newFake(s), blobstore.Options{Dir: dir}), s.desc())
	if err := here.Fetch(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	f := newFake(s)
	there := openBlob(t, open(t, elsewhere{f}, blobstore.Options{Dir: dir}), s.desc())
	if err := there.Fetch(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	if n := len(f.seen()); n != 1 {
		t.Errorf("%d requests to the other place, want 1: a CRC alone is not believed from elsewhere", n)
	}
}

func TestImagesShareTheChunksOfABlob(t *testing.T) {
	s := lz4Sample(t, 1, 10, 4096)
	f := newFake(s)
	st := open(t, f, blobstore.Options{Amplification: 1 << 20})
	a, b := openBlob(t, st, s.descOf(s.only(0, 1, 2, 9))), openBlob(t, st, s.descOf(s.only(1, 2, 3)))
	if err := a.Fetch(t.Context(), 0, 2); err != nil {
		t.Fatal(err)
	}
	if err := b.Fetch(t.Context(), 1, 2); err != nil {
		t.Fatal(err)
	}
	if n := len(f.seen()); n != 1 {
		t.Errorf("%d requests, want 1: chunks 1 and 2 are there", n)
	}
	wantChunk(t, b, s, 2)
	if b.Ready(0) {
		t.Error("an image reads a chunk that it does not name")
	}
	if err := b.Fetch(t.Context(), 3, 3); err != nil {
		t.Fatal(err)
	}
	wantChunk(t, b, s, 3)
}

// TestLyingTable: an image that describes chunks otherwise gets what the digests
// that it names say, or nothing; the honest one is not disturbed.
func TestLyingTable(t *testing.T) {
	s := lz4Sample(t, 1, 4, 4096)
	st := open(t, newFake(s), blobstore.Options{})
	lie := append(table(nil), s.table...)
	lie[1].Digest, lie[1].CompressedOffset, lie[1].CompressedSize = lie[2].Digest, lie[2].CompressedOffset, lie[2].CompressedSize
	l, h := openBlob(t, st, s.descOf(lie)), openBlob(t, st, s.desc())
	if err := l.Fetch(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	if got, ok := l.Data(1, 0, 4096); !ok || !bytes.Equal(got, s.plain[2]) {
		t.Error("the chunk does not hold what its digest says")
	}
	if err := h.Fetch(t.Context(), 0, 3); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(4) {
		wantChunk(t, h, s, i)
	}
}

func TestVerifyOffWarnsAndKeepsApart(t *testing.T) {
	s, dir := lz4Sample(t, 1, 2, 4096), t.TempDir()
	s.table[0].Digest[0] ^= 1
	var log bytes.Buffer
	off := open(t, newFake(s), blobstore.Options{
		Dir: dir, Verify: blobstore.VerifyOff, Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	b := openBlob(t, off, s.desc())
	if err := b.Fetch(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "not verified") {
		t.Errorf("log = %q, want a warning", log.String())
	}
	b = openBlob(t, open(t, newFake(s), blobstore.Options{Dir: dir}), s.desc())
	if err := b.Fetch(t.Context(), 0, 0); !errors.Is(err, blobstore.ErrDigestMismatch) {
		t.Errorf("with verification: %v, want ErrDigestMismatch", err)
	}
}
