package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/codec"
)

// batches is a blob whose chunks are packed together, per at a time, with what
// its chunk information says. It implements blobstore.Places.
type batches struct {
	*sample
	stored   []blobstore.Chunk // by chunk, as the information has it
	contexts []blobstore.Context
	loads    atomic.Int32 // how often the places were asked for
}

func batchSample(t testing.TB, packs, per int) *batches {
	t.Helper()
	b := &batches{sample: &sample{comp: blobstore.CompressLZ4}}
	for pack := range packs {
		var plain []byte
		first := len(b.plain)
		for i := range per {
			p := bytes.Repeat([]byte{byte('a' + pack), byte('a' + i)}, 50+i)
			index := len(b.plain)
			b.table = append(b.table, blobstore.Chunk{
				UncompressedOffset: uint64(index) * 4096, UncompressedSize: uint32(len(p)), Digest: codec.Sum(codec.Blake3, p),
			})
			b.stored = append(b.stored, blobstore.Chunk{
				UncompressedOffset: uint64(index) * 4096, UncompressedSize: uint32(len(p)),
				Flags:   blobstore.ChunkCompressed | blobstore.ChunkBatch | blobstore.ChunkNoDigest,
				Context: uint32(pack), ContextOffset: uint32(len(plain)),
			})
			b.plain = append(b.plain, p)
			plain = append(plain, p...)
		}
		z := make([]byte, lz4.CompressBlockBound(len(plain)))
		n, err := lz4.CompressBlock(plain, z, nil)
		if err != nil || n == 0 || n >= len(plain) {
			t.Fatal(n, err)
		}
		for i := first; i < len(b.stored); i++ {
			b.stored[i].CompressedOffset, b.stored[i].CompressedSize = uint64(len(b.sample.stored)), uint32(n)
		}
		b.sample.stored = append(b.sample.stored, z[:n]...)
		b.contexts = append(b.contexts, blobstore.Context{Size: uint32(len(plain))})
	}
	b.named()
	return b
}

func (b *batches) Chunk(i uint32, c *blobstore.Chunk) error {
	if int(i) >= len(b.stored) {
		return blobstore.ErrNoChunk
	}
	*c = b.stored[i]
	return nil
}

func (b *batches) Context(i uint32, x *blobstore.Context) error {
	if int(i) >= len(b.contexts) {
		return blobstore.ErrNoChunk
	}
	*x = b.contexts[i]
	return nil
}

func (b *batches) desc() blobstore.BlobDesc {
	d := b.sample.desc()
	d.Places = func(context.Context, func(string) (backend.Source, error), func(uint64) ([]byte, error)) (blobstore.Places, error) {
		b.loads.Add(1)
		return b, nil
	}
	return d
}

// TestBatchIsOneRequest: whoever reads whichever chunk of a batch, it is fetched
// and decoded once, and brings all of its chunks. Others are not touched.
func TestBatchIsOneRequest(t *testing.T) {
	const per = 20
	s := batchSample(t, 3, per)
	f := newFake(s.sample)
	st := open(t, f, blobstore.Options{})
	blob := openBlob(t, st, s.desc())
	var wg sync.WaitGroup
	for i := range uint32(per) {
		wg.Go(func() {
			if err := blob.Fetch(t.Context(), per+i, per+i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(f.seen()); n != 1 || s.loads.Load() != 1 {
		t.Errorf("%d requests, places loaded %d times; want one of each", n, s.loads.Load())
	}
	for i := range uint32(3 * per) {
		if mine := i >= per && i < 2*per; mine {
			wantChunk(t, blob, s.sample, i)
		} else if blob.Ready(i) {
			t.Errorf("chunk %d of another batch is ready", i)
		}
	}
	if st := st.Stats(); st.DecodedBytes != uint64(s.contexts[1].Size) || st.FetchedChunks != per {
		t.Errorf("%d bytes decoded, %d chunks; want those of one batch", st.DecodedBytes, st.FetchedChunks)
	}
	// A chunk that went is brought alone, from the same stored bytes.
	if err := blob.Drop(per + 3); err != nil {
		t.Fatal(err)
	}
	if err := blob.Fetch(t.Context(), 0, 3*per-1); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(3 * per) {
		wantChunk(t, blob, s.sample, i)
	}
	if st := st.Stats(); st.FetchedChunks != 3*per+1 {
		t.Errorf("%d chunks stored, want %d", st.FetchedChunks, 3*per+1)
	}
}

// TestBatchesMerge: batches that are neighbours are one request, as chunks are.
func TestBatchesMerge(t *testing.T) {
	s := batchSample(t, 4, 5)
	f := newFake(s.sample)
	blob := openBlob(t, open(t, f, blobstore.Options{Amplification: 1 << 20}), s.desc())
	if err := blob.Fetch(t.Context(), 7, 7); err != nil {
		t.Fatal(err)
	}
	if err := blob.Fetch(t.Context(), 5, 19); err != nil { // comes along, and may still be on its way
		t.Fatal(err)
	}
	if n := len(f.seen()); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	for i := uint32(5); i < 20; i++ { // the batch, and those behind it
		wantChunk(t, blob, s.sample, i)
	}
	if blob.Ready(4) {
		t.Error("the batch before is ready")
	}
	if err := blob.Fetch(t.Context(), 0, 19); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(20) {
		wantChunk(t, blob, s.sample, i)
	}
}

// TestOneLieInABatch: a chunk whose digest the image has wrong is refused, and
// those beside it are served.
func TestOneLieInABatch(t *testing.T) {
	s := batchSample(t, 1, 5)
	s.table[2].Digest[0] ^= 1
	blob := openBlob(t, open(t, newFake(s.sample), blobstore.Options{}), s.desc())
	if err := blob.Fetch(t.Context(), 2, 2); !errors.Is(err, blobstore.ErrDigestMismatch) {
		t.Errorf("Fetch = %v, want ErrDigestMismatch", err)
	}
	for i := range uint32(5) {
		if i != 2 {
			wantChunk(t, blob, s.sample, i)
		}
	}
	if blob.Ready(2) {
		t.Error("a chunk that does not verify is ready")
	}
}

// TestPlacesThatContradictTheImage: what is stored is another matter than what the
// image asks for; nothing is fetched for it.
func TestPlacesThatContradictTheImage(t *testing.T) {
	for name, spoil := range map[string]func(s *batches){
		"another place":            func(s *batches) { s.stored[1].UncompressedOffset += 4096 },
		"another size":             func(s *batches) { s.stored[1].UncompressedSize++ },
		"no such chunk":            func(s *batches) { s.stored = s.stored[:1] },
		"no such context":          func(s *batches) { s.stored[1].Context = 9 },
		"outside its context":      func(s *batches) { s.stored[1].ContextOffset = s.contexts[0].Size },
		"offset that wraps":        func(s *batches) { s.stored[1].ContextOffset = 1<<32 - 1 },
		"a context above 16 MiB":   func(s *batches) { s.contexts[0].Size = 16<<20 + 1 },
		"stored behind the blob":   func(s *batches) { s.stored[1].CompressedOffset = uint64(len(s.sample.stored)) },
		"encrypted, without a key": func(s *batches) { s.stored[1].Flags |= blobstore.ChunkEncrypted },
		"unknown flags":            func(s *batches) { s.stored[1].Flags |= 1 << 30 },
	} {
		t.Run(name, func(t *testing.T) {
			s := batchSample(t, 1, 3)
			spoil(s)
			f := newFake(s.sample)
			blob := openBlob(t, open(t, f, blobstore.Options{}), s.desc())
			var ce *blobstore.ChunkError
			if err := blob.Fetch(t.Context(), 1, 1); !errors.As(err, &ce) || ce.Blob != s.id {
				t.Errorf("Fetch = %v, want a ChunkError", err)
			}
			if n := len(f.seen()); n != 0 || blob.Ready(1) {
				t.Errorf("%d requests, ready %v", n, blob.Ready(1))
			}
		})
	}
}

// TestPlacesAreLoadedAsChunksAre: again while the backend fails, a few times when
// what it says is wrong, not at all when it has no such thing, and by nobody for
// chunks that are there.
func TestPlacesAreLoadedAsChunksAre(t *testing.T) {
	damaged := errors.New("damaged information")
	for name, tt := range map[string]struct {
		fail  []error // of the first loads
		loads int32
		want  error
	}{
		"sound":               {nil, 1, nil},
		"back after a while":  {[]error{backend.Errorf(backend.Temporary, "down"), backend.Errorf(backend.Temporary, "down")}, 3, nil},
		"wrong once":          {[]error{damaged}, 2, nil},
		"wrong for good":      {[]error{damaged, damaged, damaged, damaged}, 3, damaged},
		"no such blob":        {[]error{&backend.Error{Kind: backend.Permanent, Err: damaged}}, 1, damaged},
		"credentials refused": {[]error{&backend.Error{Kind: backend.Denied, Err: damaged}}, 1, damaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := batchSample(t, 2, 3)
			d := s.desc()
			sound := d.Places
			var given []byte
			d.Places = func(ctx context.Context, blob func(string) (backend.Source, error), alloc func(uint64) ([]byte, error)) (blobstore.Places, error) {
				p, err := sound(ctx, blob, alloc)
				if err != nil {
					return nil, err
				}
				if given, err = alloc(3 << 20); err != nil {
					return nil, err
				}
				given[0], given[3<<20-1] = 1, 2
				if n := int(s.loads.Load()); n <= len(tt.fail) {
					return nil, tt.fail[n-1]
				}
				return p, nil
			}
			dir := t.TempDir()
			st := open(t, newFake(s.sample), blobstore.Options{Dir: dir})
			blob := openBlob(t, st, d)
			err := blob.Fetch(t.Context(), 0, 0)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("Fetch = %v, want %v", err, tt.want)
			}
			if n := s.loads.Load(); n != tt.loads {
				t.Errorf("loaded %d times, want %d", n, tt.loads)
			}
			if tt.want != nil {
				return
			}
			if err := blob.Fetch(t.Context(), 0, 2); err != nil { // what comes along may be on its way
				t.Fatal(err)
			}
			// Another mount after a restart reads what is there without them.
			again := openBlob(t, st, d)
			if err := again.Fetch(t.Context(), 0, 2); err != nil || s.loads.Load() != tt.loads {
				t.Errorf("Fetch of what is there = %v, places loaded %d times more", err, s.loads.Load()-tt.loads)
			}
			wantChunk(t, again, s.sample, 1)
		})
	}
}

// TestAReaderOfABatchGivesUp: its flight ends, and nobody else's.
func TestAReaderOfABatchGivesUp(t *testing.T) {
	s := batchSample(t, 1, 4)
	f := newFake(s.sample)
	started := make(chan struct{}, 8)
	f.fault = func(ctx context.Context, r request, right []byte) (io.ReadCloser, error) {
		if r.n > 1 {
			return nil, nil
		}
		started <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	blob := openBlob(t, open(t, f, blobstore.Options{}), s.desc())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- blob.Fetch(ctx, 1, 1) }()
	<-started
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch = %v, want Canceled", err)
	}
	if err := blob.Fetch(t.Context(), 3, 3); err != nil {
		t.Error(err)
	}
	if err := blob.Fetch(t.Context(), 0, 3); err != nil {
		t.Error(err)
	}
	for i := range uint32(4) {
		wantChunk(t, blob, s.sample, i)
	}
}

// TestWeakChecksAreTold: who serves chunks without digests says so, and by what
// they are checked.
func TestWeakChecksAreTold(t *testing.T) {
	for check, spoil := range map[string]func(c *blobstore.Chunk){
		"":        func(*blobstore.Chunk) {},
		"CRC-32C": func(c *blobstore.Chunk) { c.Flags |= blobstore.ChunkNoDigest | blobstore.ChunkHasCRC },
		"none":    func(c *blobstore.Chunk) { c.Flags |= blobstore.ChunkNoDigest },
	} {
		s := lz4Sample(t, 3, 2, 4096)
		for i := range s.table {
			s.table[i].CRC32C = codec.CRC32C(s.plain[i])
		}
		spoil(&s.table[1])
		var log bytes.Buffer
		blob := openBlob(t, open(t, newFake(s), blobstore.Options{Log: slog.New(slog.NewTextHandler(&log, nil))}), s.desc())
		if err := blob.Fetch(t.Context(), 0, 1); err != nil {
			t.Error(err)
		}
		if want := fmt.Sprintf("check=%s", check); (check != "") != strings.Contains(log.String(), want) || check == "" && log.Len() != 0 {
			t.Errorf("%q: the log says %q", check, log.String())
		}
	}
}
