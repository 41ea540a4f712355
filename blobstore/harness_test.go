package blobstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/pierrec/lz4/v4"
	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/cache"
	"github.com/rafsd/rafsd/blobstore/codec"
)

func TestMain(m *testing.M) {
	// Each store that closes waits for its disk: in memory that is quick.
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	goleak.VerifyTestMain(m)
}

// table is the chunk table of a test; a zero size is an unknown chunk.
type table []blobstore.Chunk

func (t table) Len() uint32 { return uint32(len(t)) }

func (t table) Chunk(i uint32, c *blobstore.Chunk) error {
	if int(i) >= len(t) || t[i].UncompressedSize == 0 {
		return blobstore.ErrNoChunk
	}
	*c = t[i]
	return nil
}

// sample is a blob with the truth about it.
type sample struct {
	id     string
	stored []byte
	plain  [][]byte // by chunk
	table  table
	comp   blobstore.Compressor
}

// lz4Sample makes a blob of n compressible chunks of size bytes, at 4 KiB aligned
// addresses as v6 has them. (Not zstd: its decoders are pooled and hold channels,
// which must not wander between the bubbles of synctest.)
func lz4Sample(t testing.TB, seed uint64, n, size int) *sample {
	t.Helper()
	s := &sample{comp: blobstore.CompressLZ4}
	rng := rand.New(rand.NewPCG(seed, 7))
	var lz lz4.Compressor
	addr := uint64(0)
	for range n {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte('a' + rng.IntN(2))
		}
		z := make([]byte, lz4.CompressBlockBound(size))
		zn, err := lz.CompressBlock(p, z)
		if err != nil || zn == 0 || zn >= size {
			t.Fatalf("lz4: %d bytes of %d, %v", zn, size, err)
		}
		s.add(p, z[:zn], blobstore.ChunkCompressed, addr)
		addr += (uint64(size) + 4095) &^ 4095
	}
	return s.named()
}

// add adds a chunk.
func (s *sample) add(plain, stored []byte, flags blobstore.ChunkFlags, addr uint64) {
	s.table = append(s.table, blobstore.Chunk{
		CompressedOffset: uint64(len(s.stored)), CompressedSize: uint32(len(stored)),
		UncompressedOffset: addr, UncompressedSize: uint32(len(plain)),
		Flags: flags, Digest: codec.Sum(codec.Blake3, plain),
	})
	s.stored = append(s.stored, stored...)
	s.plain = append(s.plain, plain)
}

// named gives the blob its id.
func (s *sample) named() *sample {
	sum := sha256.Sum256(s.stored)
	s.id = hex.EncodeToString(sum[:])
	return s
}

func (s *sample) desc() blobstore.BlobDesc { return s.descOf(s.table) }

func (s *sample) descOf(t table) blobstore.BlobDesc {
	return blobstore.BlobDesc{
		ID: s.id, Compressor: s.comp, Digester: blobstore.DigestBlake3,
		CompressedSize: uint64(len(s.stored)), Table: t,
	}
}

// only returns the table of an image that names just these chunks.
func (s *sample) only(indexes ...uint32) table {
	t := make(table, indexes[len(indexes)-1]+1)
	for _, i := range indexes {
		t[i] = s.table[i]
	}
	return t
}

// request is one call of ReadRange.
type request struct {
	n        int // counted from 1
	blob     string
	off, len int64
}

// fake is a backend in memory. fault, if set, may answer a request in place of
// it; nil, nil means "go on as usual".
type fake struct {
	mu       sync.Mutex
	blobs    map[string][]byte
	requests []request
	fault    func(ctx context.Context, r request, right []byte) (io.ReadCloser, error)
}

func newFake(samples ...*sample) *fake {
	f := &fake{blobs: map[string][]byte{}}
	for _, s := range samples {
		f.blobs[s.id] = s.stored
	}
	return f
}

func (f *fake) Name() string { return "fake" }
func (f *fake) Close() error { return nil }

func (f *fake) Blob(id string) (backend.Source, error) { return fakeSource{f, id}, nil }

func (f *fake) seen() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]request(nil), f.requests...)
}

type fakeSource struct {
	f  *fake
	id string
}

func (s fakeSource) Size(context.Context) (int64, error) { return int64(len(s.f.blobs[s.id])), nil }

func (s fakeSource) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.f.mu.Lock()
	r := request{n: len(s.f.requests) + 1, blob: s.id, off: off, len: n}
	s.f.requests = append(s.f.requests, r)
	fault := s.f.fault
	b := s.f.blobs[s.id]
	s.f.mu.Unlock()
	var right []byte
	if off >= 0 && off+n <= int64(len(b)) {
		right = b[off : off+n]
	}
	if fault != nil {
		if rc, err := fault(ctx, r, right); rc != nil || err != nil {
			return rc, err
		}
	}
	if right == nil {
		return nil, backend.Errorf(backend.Permanent, "blob %s: no bytes %d+%d", s.id, off, n)
	}
	return io.NopCloser(bytes.NewReader(right)), nil
}

// open opens a store on a fake and closes it when the test ends.
func open(t testing.TB, f backend.Backend, o blobstore.Options) *blobstore.Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.Backend = f
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	st, err := blobstore.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return st
}

func openBlob(t testing.TB, st *blobstore.Store, d blobstore.BlobDesc) *blobstore.Blob {
	t.Helper()
	b, err := st.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Blob.Close: %v", err)
		}
	})
	return b
}

// wantChunk fails unless chunk i is ready and holds what it must.
func wantChunk(t testing.TB, b *blobstore.Blob, s *sample, i uint32) {
	t.Helper()
	if !b.Ready(i) {
		t.Errorf("chunk %d is not ready", i)
		return
	}
	err := cache.Guard(func() error {
		got, ok := b.Data(i, 0, uint32(len(s.plain[i])))
		if !ok || !bytes.Equal(got, s.plain[i]) {
			t.Errorf("chunk %d: Data = %d bytes, %v, not the chunk's", i, len(got), ok)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
