package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
)

func TestColdReadIsOneRequestAndWarmReadsAreNone(t *testing.T) {
	s := lz4Sample(t, 1, 64, 16<<10)
	dir := t.TempDir()
	const amplification = 100 << 10
	f := newFake(s)
	st, err := blobstore.Open(blobstore.Options{Dir: dir, Backend: f, Amplification: amplification})
	if err != nil {
		t.Fatal(err)
	}
	b, err := st.Blob(s.desc())
	if err != nil {
		t.Fatal(err)
	}
	if b.Ready(3) {
		t.Error("a chunk of a cold blob is ready")
	}
	if err := b.Fetch(t.Context(), 3, 3); err != nil {
		t.Fatal(err)
	}
	wantChunk(t, b, s, 3)
	reqs := f.seen()
	if len(reqs) != 1 || reqs[0].off != int64(s.table[3].CompressedOffset) || reqs[0].len > amplification {
		t.Fatalf("requests = %+v, want one at %d of at most %d bytes", reqs, s.table[3].CompressedOffset, amplification)
	}
	if err := b.Close(); err != nil { // waits for what was fetched along
		t.Error(err)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}

	again := newFake(s)
	b = openBlob(t, open(t, again, blobstore.Options{Dir: dir, Amplification: amplification}), s.desc())
	if err := b.Fetch(t.Context(), 3, 3); err != nil {
		t.Fatal(err)
	}
	wantChunk(t, b, s, 3)
	if got := again.seen(); len(got) != 0 {
		t.Errorf("after a restart a chunk that was fetched before is asked for: %+v", got)
	}
}

func TestLocalBlob(t *testing.T) {
	s := lz4Sample(t, 2, 8, 5000)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, s.id), s.stored, 0o600); err != nil {
		t.Fatal(err)
	}
	be, err := localfs.New(localfs.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	b := openBlob(t, open(t, be, blobstore.Options{Amplification: 1 << 20}), s.desc())
	if err := b.Fetch(t.Context(), 0, 7); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(8) {
		wantChunk(t, b, s, i)
	}
	if st := b.Stats(); st.Requests != 1 || st.FetchedChunks != 8 || st.DecodedBytes != 8*5000 {
		t.Errorf("stats = %+v, want 1 request, 8 chunks, 40000 bytes", st)
	}
}

func TestManyReadersOfOneChunkCauseOneRequest(t *testing.T) {
	s := lz4Sample(t, 3, 4, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		release := make(chan struct{})
		f.fault = func(ctx context.Context, r request, right []byte) (io.ReadCloser, error) {
			<-release
			return nil, nil
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir}), s.desc())
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if err := b.Fetch(t.Context(), 1, 2); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // all of them wait for the two chunks
		if got := b.Stats().WaitingFetches; got != 50 {
			t.Errorf("%d fetches wait, want 50", got)
		}
		close(release)
		wg.Wait()
		wantChunk(t, b, s, 1)
		wantChunk(t, b, s, 2)
		if got := len(f.seen()); got != 2 { // no amplification: one per chunk
			t.Errorf("%d requests, want 2", got)
		}
	})
}

func TestChunksAreReadyWhileTheBodyStreams(t *testing.T) {
	s := lz4Sample(t, 4, 3, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		rest := make(chan struct{})
		f.fault = func(ctx context.Context, r request, right []byte) (io.ReadCloser, error) {
			first := s.table[1].CompressedOffset
			return io.NopCloser(io.MultiReader(bytes.NewReader(right[:first]), waiter(rest), bytes.NewReader(right[first:]))), nil
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Amplification: 1 << 20}), s.desc())
		if err := b.Fetch(t.Context(), 0, 0); err != nil {
			t.Fatal(err)
		}
		wantChunk(t, b, s, 0)
		if b.Ready(1) {
			t.Error("chunk 1 is ready before its bytes came")
		}
		// A reader of what is still to come joins the same request, and gets it
		// although nobody waited for it when it was made.
		done := make(chan error)
		go func() { done <- b.Fetch(t.Context(), 2, 2) }()
		synctest.Wait()
		close(rest)
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantChunk(t, b, s, 2)
		if got := len(f.seen()); got != 1 {
			t.Errorf("%d requests, want 1", got)
		}
	})
}

// waiter is a reader that ends when the channel is closed.
type waiter chan struct{}

func (w waiter) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}

func TestFlightEndsWhenItsLastReaderGivesUp(t *testing.T) {
	s := lz4Sample(t, 5, 2, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		ended := make(chan error, 1)
		f.fault = func(ctx context.Context, r request, right []byte) (io.ReadCloser, error) {
			if r.n > 1 {
				return nil, nil
			}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir}), s.desc())
		ctx, cancel := context.WithCancel(t.Context())
		other, cancelOther := context.WithCancel(t.Context())
		errs := make(chan error, 2)
		go func() { errs <- b.Fetch(ctx, 0, 0) }()
		go func() { errs <- b.Fetch(other, 0, 0) }()
		synctest.Wait()
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled reader: %v", err)
		}
		synctest.Wait()
		if len(ended) != 0 {
			t.Error("the flight ended although a reader still waits")
		}
		cancelOther()
		<-ended
		var ce *blobstore.ChunkError
		if err := <-errs; !errors.As(err, &ce) || ce.Blob != s.id {
			t.Errorf("error of the last reader = %v, want a ChunkError of the blob", err)
		}
		// Nothing is remembered: the next reader gets the chunk.
		if err := b.Fetch(t.Context(), 0, 0); err != nil {
			t.Error(err)
		}
		wantChunk(t, b, s, 0)
	})
}

// TestReaderOfSeveralChunksGivesUpBetweenThem: a chunk that came already does not
// keep the rest of its flight alive.
func TestReaderOfSeveralChunksGivesUpBetweenThem(t *testing.T) {
	s := lz4Sample(t, 6, 3, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		ended := make(chan struct{})
		f.fault = func(ctx context.Context, r request, right []byte) (io.ReadCloser, error) {
			context.AfterFunc(ctx, func() { close(ended) })
			n := s.table[1].CompressedOffset // the first chunk comes, no more
			return io.NopCloser(io.MultiReader(bytes.NewReader(right[:n]), hanging{ctx})), nil
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Amplification: 1 << 20}), s.desc())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Fetch(ctx, 0, 2) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v", err)
		}
		<-ended // or synctest reports a deadlock
		wantChunk(t, b, s, 0)
	})
}

// hanging is a reader that waits until its context ends.
type hanging struct{ ctx context.Context }

func (h hanging) Read([]byte) (int, error) {
	<-h.ctx.Done()
	return 0, h.ctx.Err()
}
