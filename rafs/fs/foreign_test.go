package fs_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
)

// oldCache copies a cache folder that nydusd left into a new work_dir.
func oldCache(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(corpus.Dir(t), "caches", name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// filesOf lists the files of a folder, and what is in them.
func filesOf(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %v %x", e.Name(), st.ModTime(), sha256.Sum256(b)))
	}
	return all
}

// TestOldCache: what nydusd's cache has of an image is served without a byte from
// the backend, what it has not is fetched, and its files stay as they are.
func TestOldCache(t *testing.T) {
	dir := corpus.Dir(t)
	for _, tt := range []struct {
		cache string
		files []string // that it has; nil: all
		whole bool     // one file brought all of the only gzip context
	}{
		{"v5-dir-lz4-16k-dict.full", nil, true},
		{"v6-dir-zstd-16k-dict.partial", []string{"/lib/t03", "/lib/copy"}, false},
		{"v6-dir-zstd-64k-batch16k-dict.partial", []string{"/lib/t03"}, false},
		{"v6-targz-ref-16k-dict.partial", []string{"/lib/t03"}, true},
	} {
		t.Run(tt.cache, func(t *testing.T) {
			variant, _, _ := strings.Cut(tt.cache, ".")
			work := oldCache(t, tt.cache)
			before := filesOf(t, work)
			s := openStore(t, filepath.Join(dir, "images", variant, "blobs"), work)
			f := openThrough(t, s, rafstest.Bootstrap(t, dir, variant))
			for _, path := range tt.files {
				e := find(t, f, path)
				if _, err := readAll(f, e.Node, e.Attr.Size, 64<<10); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
			st := s.Stats()
			if tt.files != nil && (st.Requests != 0 || st.FetchedBytes != 0 || st.AdoptedChunks == 0) {
				t.Errorf("%d requests and %d adopted chunks for what the cache has", st.Requests, st.AdoptedChunks)
			}
			want, err := manifest.ReadFile(rafstest.Variants(t, dir)[variant])
			if err != nil {
				t.Fatal(err)
			}
			if diff := manifest.Compare(tree(t, f, 32<<10), want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
				t.Errorf("differs:\n%s", diff)
			}
			if st := s.Stats(); tt.files == nil && (st.Requests != 0 || st.FetchedBytes != 0 || st.AdoptedChunks != 30) {
				t.Errorf("%d requests and %d adopted chunks, want none and 30", st.Requests, st.AdoptedChunks)
			} else if tt.files != nil && (st.Requests == 0) != tt.whole {
				t.Errorf("%d requests for the rest", st.Requests)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if after := filesOf(t, work); !slices.Equal(before, after) {
				t.Errorf("files of the old cache changed:\n%s\nnow\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		})
	}
}

// TestOldCacheThatLies: marks of readiness are not believed, wrong bytes are
// fetched, and chunk information that leads to wrong bytes is read anew.
func TestOldCacheThatLies(t *testing.T) {
	dir := corpus.Dir(t)
	overwrite := func(t *testing.T, work, suffix string, change func([]byte) []byte) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(work, "*"+suffix))
		if err != nil || len(found) != 1 {
			t.Fatalf("%d files *%s, %v", len(found), suffix, err)
		}
		b, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(found[0]), os.WriteFile(found[0], change(b), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		cache  string
		spoil  func(t *testing.T, work string)
		adopts bool
	}{
		"every chunk marked ready, the data zero": {"v5-dir-lz4-16k-dict.full", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.data", func(b []byte) []byte { clear(b); return b })
			overwrite(t, work, ".chunk_map", func(b []byte) []byte {
				for i := range b[4096:] {
					b[4096+i] = 0xFF
				}
				return b
			})
		}, false},
		"some bytes flipped": {"v5-dir-lz4-16k-dict.full", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.data", func(b []byte) []byte {
				for i := 0; i < len(b); i += 40000 {
					b[i] ^= 1
				}
				return b
			})
		}, true},
		"cut short": {"v5-dir-lz4-16k-dict.full", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.data", func(b []byte) []byte { return b[:20000] })
		}, true},
		"longer than the blob": {"v5-dir-lz4-16k-dict.full", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.data", func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) })
		}, false},
		"places of batches that are others'": {"v6-dir-zstd-64k-batch16k-dict.partial", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.meta", func(b []byte) []byte {
				for i := range 19 { // stored offsets
					b[i*24+8] ^= 1
				}
				return b
			})
			overwrite(t, work, ".blob.data", func(b []byte) []byte { return nil })
		}, false},
		"a checksum that the bootstrap has otherwise": {"v6-dir-zstd-64k-batch16k-dict.partial", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.meta", func(b []byte) []byte { b[3*24+19] ^= 0x80; return b })
			overwrite(t, work, ".blob.data", func(b []byte) []byte { return nil })
		}, false},
		"contexts of gzip that are others'": {"v6-targz-ref-16k-dict.partial", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.meta", func(b []byte) []byte { b[30*24]++; return b })
			overwrite(t, work, ".blob.data", func(b []byte) []byte { return nil })
		}, false},
		"chunk information of zeros": {"v6-targz-ref-16k-dict.partial", func(t *testing.T, work string) {
			overwrite(t, work, ".blob.meta", func(b []byte) []byte { clear(b[:4096]); return b })
			overwrite(t, work, ".blob.data", func(b []byte) []byte { return nil })
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			variant, _, _ := strings.Cut(tt.cache, ".")
			work := oldCache(t, tt.cache)
			tt.spoil(t, work)
			s := openStore(t, filepath.Join(dir, "images", variant, "blobs"), work)
			f := openThrough(t, s, rafstest.Bootstrap(t, dir, variant))
			want, err := manifest.ReadFile(rafstest.Variants(t, dir)[variant])
			if err != nil {
				t.Fatal(err)
			}
			if diff := manifest.Compare(tree(t, f, 32<<10), want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
				t.Errorf("differs:\n%s", diff)
			}
			if st := s.Stats(); st.Requests == 0 || (st.AdoptedChunks != 0) != tt.adopts {
				t.Errorf("%d requests, %d adopted chunks", st.Requests, st.AdoptedChunks)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMutantOldCaches: whatever is in the files of an old cache, a file that is
// read is right, since the backend has it too.
func TestMutantOldCaches(t *testing.T) {
	rounds := 12
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds = 100_000 / 4
	}
	dir := corpus.Dir(t)
	for _, name := range []string{
		"v5-dir-lz4-16k-dict.full", "v6-dir-zstd-16k-dict.partial", "v6-dir-zstd-64k-batch16k-dict.partial", "v6-targz-ref-16k-dict.partial",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			variant, _, _ := strings.Cut(name, ".")
			want, err := manifest.ReadFile(rafstest.Variants(t, dir)[variant])
			if err != nil {
				t.Fatal(err)
			}
			sound := oldCache(t, name)
			for seed := range uint64(rounds) {
				work := filepath.Join(t.TempDir(), "work")
				if err := os.CopyFS(work, os.DirFS(sound)); err != nil {
					t.Fatal(err)
				}
				mutateCache(t, work, seed)
				s := openStore(t, filepath.Join(dir, "images", variant, "blobs"), work)
				f := openThrough(t, s, rafstest.Bootstrap(t, dir, variant))
				if diff := manifest.Compare(tree(t, f, 32<<10), want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
					t.Errorf("seed %d:\n%s", seed, diff)
				}
				if err := errors.Join(f.Close(), s.Close(), os.RemoveAll(work)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// mutateCache breaks one or two files of a cache folder.
func mutateCache(t *testing.T, work string, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 5))
	files, err := filepath.Glob(filepath.Join(work, "*.blob.*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for range 1 + rng.IntN(2) {
		path := files[rng.IntN(len(files))]
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n := len(b)
		switch kind := rng.IntN(6); {
		case kind == 0 || n < 8192:
			b = b[:rng.IntN(n+1)]
		case kind == 1:
			b = append(b, make([]byte, rng.IntN(1<<16))...)
		case kind == 2:
			for range 1 + rng.IntN(100) {
				b[rng.IntN(n)] ^= 1 << rng.IntN(8)
			}
		case kind == 3: // pages change places
			i, k := rng.IntN(n/4096)*4096, rng.IntN(n/4096)*4096
			page := append([]byte(nil), b[i:i+4096]...)
			copy(b[i:i+4096], b[k:k+4096])
			copy(b[k:k+4096], page)
		case kind == 4:
			clear(b[rng.IntN(n):])
		default: // entries and contexts of chunk information are at its begin
			for range 1 + rng.IntN(4) {
				b[rng.IntN(min(n, 900))] = byte(rng.Uint32())
			}
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}
