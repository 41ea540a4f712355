package open_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/mutant"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// mutants is how many broken variants of each file are tried.
func mutants() uint64 {
	switch {
	case os.Getenv("RAFSD_LONG") == "1":
		return 100_000
	case raceDetector || testing.Short():
		return 150 // it makes them ten times slower, and they have one goroutine
	}
	return 1500
}

const (
	// mutantTime is ten times what the slowest variant takes on a busy machine: it
	// is there to end a hang.
	mutantTime = 30 * time.Second
	// mutantAlloc bounds what opening, using and checking a variant allocates in
	// all, whatever the counts in it say.
	mutantAlloc = 64 << 20
)

// TestMutants breaks bootstraps of every layout in every way that is aimed at a
// structure. None may crash, hang or bloat the process; each is refused, or shows
// sound entries and names the others as damaged, and what is damaged is found by
// Check, which names structure and offset.
func TestMutants(t *testing.T) {
	dir := corpus.Dir(t)
	for _, variant := range []string{
		"v5-dir-zstd-prefetch-fs-small", "v5-merge3-lz4-oci",
		"v6-dir-zstd-prefetch-fs-small", "v6-merge3-zstd-oci", "v6-tar-tarfs-small", "v6-dir-zstd-batch-encrypt-small", "v6-merge3-targz-ref-oci",
	} {
		t.Run(variant, func(t *testing.T) {
			path := rafstest.Bootstrap(t, dir, variant)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			img, err := open.Image(path, open.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			m := mutant.V5
			if img.Info().Version == 6 {
				m = func(b []byte) *mutant.Mutator {
					m, err := mutant.V6(b, img)
					if err != nil {
						t.Fatal(err)
					}
					return m
				}
			}
			campaign(t, m(b), "boot")
		})
	}
}

// TestMutantBlobs breaks blobs that hold their bootstrap: sections, table of
// contents, compressed bootstrap.
func TestMutantBlobs(t *testing.T) {
	dir := corpus.Dir(t)
	for _, variant := range []string{"v6-dir-zstd-inline-toc-small", "v5-dir-zstd-inline-small"} {
		t.Run(variant, func(t *testing.T) {
			cut := rafstest.Bootstrap(t, dir, variant)
			name := filepath.Base(cut)
			b, err := os.ReadFile(filepath.Join(dir, "images", variant, "blobs", name))
			if err != nil {
				t.Fatal(err)
			}
			b = b[max(0, len(b)-64<<10):] // all but chunks
			m := &mutant.Mutator{Data: b}
			for end := len(b); end >= 512; {
				h := b[end-512 : end]
				if string(h[257:262]) != "ustar" {
					break
				}
				size := 0
				for _, c := range strings.Trim(string(h[124:136]), " \x00") {
					size = size*8 + int(c-'0')
				}
				m.Spots = append(m.Spots, mutant.Spot{Off: end - 512, Width: 8, Name: "tar name"},
					mutant.Spot{Off: end - 512 + 124, Width: 8, Name: "tar size"}, mutant.Spot{Off: end - 512 + 128, Width: 8, Name: "tar size"},
					mutant.Spot{Off: end - 512 + 148, Width: 8, Name: "tar checksum"}, mutant.Spot{Off: end - 512 + 257, Width: 5, Name: "tar magic"})
				if end == len(b) {
					for off := end - 512 - size; off+128 <= end-512 && size <= 1024; off += 128 {
						for _, f := range []int{0, 8, 24, 56, 64, 72} {
							m.Spots = append(m.Spots, mutant.Spot{Off: off + f, Width: 8, Name: "table of contents"})
						}
					}
				}
				end -= 512 + size
			}
			if len(m.Spots) < 10 {
				t.Fatalf("%d spots", len(m.Spots))
			}
			campaign(t, m, name)
		})
	}
}

// campaign tries the mutants of one file.
func campaign(t *testing.T, m *mutant.Mutator, name string) {
	var (
		refused, damaged, sound int
		worst                   time.Duration
		most                    uint64
		current                 atomic.Uint64
	)
	hang := time.AfterFunc(mutantTime, func() { panic(fmt.Sprintf("seed %d hangs", current.Load())) })
	defer hang.Stop()
	for seed := range mutants() {
		b, what := m.Mutate(seed)
		current.Store(seed)
		hang.Reset(mutantTime)
		start, before := time.Now(), allocated()
		result, err := tryMutant(b, name)
		switch worst = max(worst, time.Since(start)); result {
		case isRefused:
			refused++
		case isDamaged:
			damaged++
		default:
			sound++
		}
		n := allocated() - before
		if most = max(most, n); n > mutantAlloc {
			err = fmt.Errorf("%d bytes were allocated", n)
		}
		if err != nil {
			t.Fatalf("seed %d (%s): %v", seed, what, err)
		}
	}
	t.Logf("%d refused, %d damaged, %d sound; at most %d KiB allocated and %v taken", refused, damaged, sound, most>>10, worst)
}

type outcome int

const (
	isSound outcome = iota
	isDamaged
	isRefused
)

// tryMutant opens, uses and checks one variant. The error is a promise that was
// not kept.
func tryMutant(b []byte, name string) (_ outcome, broken error) {
	boot := rafs.NewBootstrap(name, b)
	img, err := open.Bootstrap(boot)
	switch {
	case err == nil:
	case !errors.Is(err, rafs.ErrDamaged) && !errors.Is(err, rafs.ErrUnsupported) && !errors.Is(err, rafs.ErrNotRAFS):
		return isRefused, fmt.Errorf("refused with %v, want one of the three kinds", err)
	case errors.Is(err, rafs.ErrDamaged) && !strings.Contains(err.Error(), " at offset 0x"):
		return isRefused, fmt.Errorf("refused with %v, which names no offset", err)
	default:
		return isRefused, boot.Close()
	}
	defer func() { broken = errors.Join(broken, img.Close()) }()
	if err := rafstest.Visit(img); err != nil {
		return isSound, err
	}
	damage := rafstest.FirstDamage(img)
	if v5, ok := img.(interface{ VerifyTree() error }); ok && damage == nil {
		damage = v5.VerifyTree()
	}
	faults := 0
	if err := img.Check(func(f rafs.Fault) bool {
		if faults++; f.Structure == "" || f.Err == nil || f.Offset < 0 || f.Offset > int64(len(boot.Data())) {
			broken = fmt.Errorf("a fault without a place: %+v", f)
		}
		return faults < 100
	}); err != nil || broken != nil {
		return isDamaged, errors.Join(err, broken)
	}
	switch {
	case faults > 0:
		return isDamaged, nil
	case damage != nil:
		return isDamaged, fmt.Errorf("Check finds nothing, but %w", damage)
	}
	return isSound, nil
}

// allocated is how many bytes the process has allocated on its heap so far.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
