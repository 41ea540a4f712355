package blobstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/blobstore/backend/registry"
	"github.com/rafsd/rafsd/internal/testregistry"
)

// openRegistry opens a blob of a store on a test registry.
func openRegistry(t *testing.T, r *testregistry.Registry, s *sample, deadline time.Duration) *blobstore.Blob {
	t.Helper()
	be, err := registry.New(registry.Options{
		Scheme: r.Scheme(), Host: r.Host(), Repo: "library/test",
		Timeout: 150 * time.Millisecond, ConnectTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return openBlob(t, open(t, be, blobstore.Options{Amplification: 1 << 20, Deadline: deadline}), s.desc())
}

func startRegistry(t *testing.T, o testregistry.Options, samples ...*sample) *testregistry.Registry {
	t.Helper()
	r, err := testregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	for _, s := range samples {
		r.AddBlob(s.stored)
	}
	return r
}

// TestBadDays lets a registry fail in every way it knows: for two requests, which
// no reader must notice, and for good, which every reader must be told, and which
// must be forgotten as soon as it is over. No wrong byte is ever served.
func TestBadDays(t *testing.T) {
	s := lz4Sample(t, 1, 8, 4096)
	days := map[string]testregistry.Fault{
		"500":                    {Kind: testregistry.Status, Status: 500},
		"502":                    {Kind: testregistry.Status, Status: 502},
		"429 with Retry-After":   {Kind: testregistry.Status, Status: 429, RetryAfter: "1"},
		"truncated body":         {Kind: testregistry.Truncate},
		"shorter range":          {Kind: testregistry.ShortRange},
		"wrong range":            {Kind: testregistry.WrongRange},
		"range that lies":        {Kind: testregistry.LyingRange},
		"wrong bytes":            {Kind: testregistry.WrongBytes},
		"whole blob":             {Kind: testregistry.Whole},
		"page of HTML":           {Kind: testregistry.Page},
		"encoded body":           {Kind: testregistry.Encoded},
		"hangs":                  {Kind: testregistry.Hang, Delay: time.Minute},
		"hangs in the body":      {Kind: testregistry.HangBody, Delay: time.Minute},
		"connection reset":       {Kind: testregistry.Reset},
		"reset in the body":      {Kind: testregistry.ResetBody},
		"redirects to itself":    {Kind: testregistry.RedirectLoop},
		"redirects to nowhere":   {Kind: testregistry.Status, Status: 307},
		"says nothing new (304)": {Kind: testregistry.Status, Status: 304},
	}
	const first = 3 // not at the beginning of the blob, where a 200 would be let pass
	for name, fault := range days {
		t.Run("for a moment/"+name, func(t *testing.T) {
			t.Parallel()
			r := startRegistry(t, testregistry.Options{}, s)
			f := fault
			f.Times = 2
			r.Fail(f)
			b := openRegistry(t, r, s, 20*time.Second)
			if err := b.Fetch(t.Context(), first, 7); err != nil {
				t.Fatal(err)
			}
			for i := uint32(first); i < 8; i++ {
				wantChunk(t, b, s, i)
			}
		})
		t.Run("for good/"+name, func(t *testing.T) {
			t.Parallel()
			r := startRegistry(t, testregistry.Options{}, s)
			stop := r.Fail(fault)
			b := openRegistry(t, r, s, 400*time.Millisecond)
			err := b.Fetch(t.Context(), first, 7)
			var ce *blobstore.ChunkError
			if !errors.As(err, &ce) || ce.Blob != s.id || ce.Err == nil {
				t.Fatalf("error = %v, want a ChunkError of the blob with a cause", err)
			}
			if !strings.Contains(err.Error(), fmt.Sprintf("offset %d", ce.Off)) {
				t.Errorf("error %q does not name the offset", err)
			}
			for i := range uint32(8) {
				if b.Ready(i) { // then it is right, whatever the day
					wantChunk(t, b, s, i)
				}
			}
			stop()
			if fault.RetryAfter != "" {
				time.Sleep(time.Second) // what the registry asked for is still honoured
			}
			if err := b.Fetch(t.Context(), first, 7); err != nil {
				t.Errorf("after recovery: %v", err)
			}
			for i := uint32(first); i < 8; i++ {
				wantChunk(t, b, s, i)
			}
		})
	}
}

func TestRegistryDownAtStartAndBackLater(t *testing.T) {
	t.Parallel()
	s := lz4Sample(t, 1, 4, 4096)
	r := startRegistry(t, testregistry.Options{}, s)
	r.Down()
	b := openRegistry(t, r, s, 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- b.Fetch(t.Context(), 0, 3) }()
	for b.Stats().BackendErrors == 0 { // it was tried, and waits
		time.Sleep(time.Millisecond)
	}
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantChunk(t, b, s, 0)
}

func TestTokenExpiresBetweenReads(t *testing.T) {
	t.Parallel()
	s := lz4Sample(t, 1, 4, 4096)
	r := startRegistry(t, testregistry.Options{Auth: testregistry.Bearer, HideExpiry: true}, s)
	be, err := registry.New(registry.Options{Scheme: "http", Host: r.Host(), Repo: "a/b"})
	if err != nil {
		t.Fatal(err)
	}
	b := openBlob(t, open(t, be, blobstore.Options{}), s.desc())
	for i := range uint32(4) {
		if err := b.Fetch(t.Context(), i, i); err != nil {
			t.Fatal(err)
		}
		wantChunk(t, b, s, i)
		r.ExpireTokens()
	}
	if got := b.Stats(); got.BackendErrors != 0 || got.Requests != 4 {
		t.Errorf("stats = %+v, want 4 requests and no errors: a token is renewed without a failure", got)
	}
}

func TestWrongMirrorIsLeft(t *testing.T) {
	t.Parallel()
	s := lz4Sample(t, 1, 4, 4096)
	origin := startRegistry(t, testregistry.Options{}, s)
	mirror := startRegistry(t, testregistry.Options{}, s)
	mirror.Fail(testregistry.Fault{Kind: testregistry.WrongBytes})
	be, err := registry.New(registry.Options{
		Scheme: "http", Host: origin.Host(), Repo: "a/b",
		Mirrors: []registry.Mirror{{Host: "http://" + mirror.Host(), HealthCheckInterval: time.Hour}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b := openBlob(t, open(t, be, blobstore.Options{Amplification: 1 << 20}), s.desc())
	if err := b.Fetch(t.Context(), 0, 3); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(4) {
		wantChunk(t, b, s, i)
	}
	if got := mirror.Counts("").Requests; got != 1 {
		t.Errorf("the mirror with wrong bytes was asked %d times, want 1", got)
	}
}

// TestSmallReadIsOneRange is the lazy claim, by the registry's own counters.
func TestSmallReadIsOneRange(t *testing.T) {
	t.Parallel()
	s := lz4Sample(t, 1, 40, 16<<10)
	r := startRegistry(t, testregistry.Options{Auth: testregistry.Bearer, Redirect: true}, s)
	be, err := registry.New(registry.Options{Scheme: "http", Host: r.Host(), Repo: "a/b"})
	if err != nil {
		t.Fatal(err)
	}
	const amplification = 64 << 10
	b := openBlob(t, open(t, be, blobstore.Options{Amplification: amplification}), s.desc())
	if err := b.Fetch(t.Context(), 20, 20); err != nil {
		t.Fatal(err)
	}
	if got := r.Counts(s.id); got.Ranges != 1 || got.Whole != 0 || got.Bytes > amplification+int64(s.table[20].CompressedSize) {
		t.Errorf("counts = %+v, want one range of at most amplification and a chunk", got)
	}
	if err := b.Fetch(t.Context(), 20, 20); err != nil {
		t.Fatal(err)
	}
	if got := r.Counts(s.id).Ranges; got != 1 {
		t.Errorf("a second read fetched: %d ranges", got)
	}
}
