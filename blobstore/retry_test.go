package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend"
)

// flip returns a copy of p with one bit wrong.
func flip(p []byte, at int) []byte {
	q := bytes.Clone(p)
	q[at] ^= 1
	return q
}

func body(p []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(p)) }

func TestOutageIsInvisible(t *testing.T) {
	s := lz4Sample(t, 1, 4, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		back := time.Now().Add(30 * time.Second)
		f.fault = func(context.Context, request, []byte) (io.ReadCloser, error) {
			if time.Now().Before(back) {
				return nil, backend.Errorf(backend.Temporary, "connection refused")
			}
			return nil, nil
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Amplification: 1 << 20}), s.desc())
		if err := b.Fetch(t.Context(), 0, 3); err != nil {
			t.Fatal(err)
		}
		if late := time.Since(back); late < 0 || late > time.Second {
			t.Errorf("served %v after the end of the outage, want at most 1s", late)
		}
		if n := len(f.seen()); n > 60 {
			t.Errorf("%d requests in 30 s", n)
		}
		wantChunk(t, b, s, 2)
	})
}

func TestDeadline(t *testing.T) {
	s := lz4Sample(t, 1, 2, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		down := true
		f.fault = func(context.Context, request, []byte) (io.ReadCloser, error) {
			if down {
				return nil, backend.Errorf(backend.Temporary, "connection refused")
			}
			return nil, nil
		}
		st := open(t, f, blobstore.Options{Dir: dir})
		b := openBlob(t, st, s.desc())
		start := time.Now()
		err := b.Fetch(t.Context(), 1, 1)
		if d := time.Since(start); d != blobstore.DefaultDeadline {
			t.Errorf("gave up after %v, want %v", d, blobstore.DefaultDeadline)
		}
		var ce *blobstore.ChunkError
		if !errors.As(err, &ce) || ce.Blob != s.id || ce.Off != s.table[1].CompressedOffset || ce.Len != s.table[1].CompressedSize {
			t.Errorf("error = %#v, want a ChunkError of chunk 1", err)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("error = %v, want the deadline and its last cause", err)
		}
		synctest.Wait() // the flight has ended with its last reader
		before := len(f.seen())
		time.Sleep(time.Minute)
		if n := len(f.seen()) - before; n != 0 {
			t.Errorf("%d requests for nobody", n)
		}
		down = false
		if err := b.Fetch(t.Context(), 1, 1); err != nil {
			t.Errorf("after recovery: %v", err)
		}
		if got := st.Stats(); got.FailedFetches != 1 || got.WaitingFetches != 0 {
			t.Errorf("stats = %+v, want 1 failed fetch, none waiting", got)
		}
	})
}

func TestForever(t *testing.T) {
	s := lz4Sample(t, 1, 1, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		back := time.Now().Add(time.Hour)
		f.fault = func(context.Context, request, []byte) (io.ReadCloser, error) {
			if time.Now().Before(back) {
				return nil, backend.Errorf(backend.Temporary, "connection refused")
			}
			return nil, nil
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Deadline: blobstore.Forever}), s.desc())
		if err := b.Fetch(t.Context(), 0, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestRetryAfterHoldsEveryFlightBack(t *testing.T) {
	one, two := lz4Sample(t, 1, 1, 4096), lz4Sample(t, 2, 1, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(one, two)
		start := time.Now()
		var early int
		f.fault = func(_ context.Context, r request, _ []byte) (io.ReadCloser, error) {
			if r.n == 1 {
				return nil, &backend.Error{Kind: backend.Temporary, RetryAfter: 7 * time.Second, Err: errors.New("429")}
			}
			if time.Since(start) < 7*time.Second {
				early++
			}
			return nil, nil
		}
		st := open(t, f, blobstore.Options{Dir: dir})
		a, b := openBlob(t, st, one.desc()), openBlob(t, st, two.desc())
		done := make(chan error, 2)
		go func() { done <- a.Fetch(t.Context(), 0, 0) }()
		synctest.Wait()
		// Who gives up during the pause is told what caused it.
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Fetch(short, 0, 0); err == nil || !strings.Contains(err.Error(), "429") {
			t.Errorf("a reader without the time to wait gets %v, want the cause of the pause", err)
		}
		go func() { done <- b.Fetch(t.Context(), 0, 0) }()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if early != 0 {
			t.Errorf("%d requests before the 7 s were over that the backend asked for", early)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("served after %v", d)
		}
	})
}

func TestWrongBytes(t *testing.T) {
	s := lz4Sample(t, 1, 4, 4096)
	plain := &sample{comp: blobstore.CompressNone}
	for _, p := range s.plain {
		plain.add(p, p, 0, uint64(len(plain.stored)))
	}
	plain.named()
	for name, s := range map[string]*sample{"lz4": s, "stored plain": plain} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := newFake(s)
				bad := 2 // answers with a bit of chunk 1 flipped
				f.fault = func(_ context.Context, r request, right []byte) (io.ReadCloser, error) {
					if at := int64(s.table[1].CompressedOffset) + 40; bad > 0 && at >= r.off {
						bad--
						return body(flip(right, int(at-r.off))), nil
					}
					return nil, nil
				}
				b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Amplification: 1 << 20}), s.desc())
				if err := b.Fetch(t.Context(), 0, 3); err != nil {
					t.Fatal(err)
				}
				for i := range uint32(4) {
					wantChunk(t, b, s, i)
				}
				reqs := f.seen()
				if len(reqs) != 3 || reqs[1].len != int64(s.table[1].CompressedSize) {
					t.Errorf("requests = %+v, want one for all, then two for the bad chunk alone", reqs)
				}
				if got := b.Stats().Mismatches; got != 2 {
					t.Errorf("%d mismatches counted, want 2", got)
				}
			})
		})
	}
}

func TestWrongBytesForGood(t *testing.T) {
	s := lz4Sample(t, 1, 4, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		f.blobs[s.id] = flip(s.stored, int(s.table[1].CompressedOffset)+40)
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Amplification: 1 << 20}), s.desc())
		if err := b.Fetch(t.Context(), 0, 0); err != nil {
			t.Fatalf("a chunk that is good: %v", err)
		}
		err := b.Fetch(t.Context(), 0, 3)
		var ce *blobstore.ChunkError
		if !errors.As(err, &ce) || ce.Off != s.table[1].CompressedOffset || ce.Op != "verify" && ce.Op != "decompress" {
			t.Fatalf("error = %v, want the verify error of chunk 1", err)
		}
		if b.Ready(1) {
			t.Error("a chunk that does not verify is ready")
		}
		if _, ok := b.Data(1, 0, 1); ok {
			t.Error("a chunk that does not verify is served")
		}
		wantChunk(t, b, s, 0)
		wantChunk(t, b, s, 2) // came along with the first request
		wantChunk(t, b, s, 3)
		if n := len(f.seen()); n > 5 {
			t.Errorf("%d requests for a chunk that is bad for good", n)
		}
		f.mu.Lock()
		f.blobs[s.id] = s.stored
		f.mu.Unlock()
		if err := b.Fetch(t.Context(), 1, 1); err != nil {
			t.Errorf("after the blob was mended: %v", err)
		}
		wantChunk(t, b, s, 1)
	})
}

func TestBadAnswersAreBoundedAndRefusalsAreFinal(t *testing.T) {
	s := lz4Sample(t, 1, 1, 4096)
	tests := map[string]struct {
		kind backend.Kind
		want int // requests
	}{
		"bad answers": {backend.BadAnswer, 3},
		"no such":     {backend.Permanent, 1},
		"denied":      {backend.Denied, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := newFake(s)
				on := true
				f.fault = func(context.Context, request, []byte) (io.ReadCloser, error) {
					if on {
						return nil, backend.Errorf(tt.kind, "the reason")
					}
					return nil, nil
				}
				b := openBlob(t, open(t, f, blobstore.Options{Dir: dir}), s.desc())
				start := time.Now()
				err := b.Fetch(t.Context(), 0, 0)
				if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), s.id) {
					t.Errorf("error = %v, want the reason and the blob", err)
				}
				if n := len(f.seen()); n != tt.want || time.Since(start) > 5*time.Second {
					t.Errorf("%d requests in %v, want %d", n, time.Since(start), tt.want)
				}
				on = false // nothing latches
				if err := b.Fetch(t.Context(), 0, 0); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestBodiesThatBreakOff cuts a body after every chunk and a half: what came is
// kept, and only the rest is asked for again.
func TestBodiesThatBreakOff(t *testing.T) {
	s := lz4Sample(t, 1, 6, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(s)
		f.fault = func(_ context.Context, r request, right []byte) (io.ReadCloser, error) {
			n := len(s.stored) / 4
			if len(right) < n {
				return nil, nil
			}
			return io.NopCloser(io.MultiReader(bytes.NewReader(right[:n]), failing{backend.Errorf(backend.Temporary, "reset")})), nil
		}
		b := openBlob(t, open(t, f, blobstore.Options{Dir: dir, Amplification: 1 << 20}), s.desc())
		if err := b.Fetch(t.Context(), 0, 5); err != nil {
			t.Fatal(err)
		}
		for i := range uint32(6) {
			wantChunk(t, b, s, i)
		}
		asked := map[int64]bool{}
		for _, r := range f.seen() {
			if asked[r.off] {
				t.Errorf("bytes at %d were asked for twice although a chunk of them had come: %+v", r.off, f.seen())
			}
			asked[r.off] = true
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestOneBlobHangsAndOthersGoOn(t *testing.T) {
	bad, good := lz4Sample(t, 1, 64, 4096), lz4Sample(t, 2, 4, 4096)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(bad, good)
		f.fault = func(ctx context.Context, r request, _ []byte) (io.ReadCloser, error) {
			if r.blob == bad.id {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, nil
		}
		st := open(t, f, blobstore.Options{Dir: dir})
		a, b := openBlob(t, st, bad.desc()), openBlob(t, st, good.desc())
		errs := make(chan error, 64)
		for i := range uint32(64) {
			go func() { errs <- a.Fetch(t.Context(), i, i) }()
		}
		synctest.Wait()
		start := time.Now()
		if err := b.Fetch(t.Context(), 0, 3); err != nil || time.Since(start) != 0 {
			t.Errorf("the other blob: %v after %v", err, time.Since(start))
		}
		for range 64 {
			if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("reader of the blob that hangs: %v, want its deadline", err)
			}
		}
		if n := st.Stats().WaitingFetches; n != 0 {
			t.Errorf("%d fetches wait", n)
		}
	})
}
