package export

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/mutant"
	"github.com/rafsd/rafsd/rafs/v6"
)

// mutants is how many broken variants of each blob are tried.
func mutants() uint64 {
	switch {
	case os.Getenv("RAFSD_LONG") == "1":
		return 100_000
	case raceDetector:
		return 150 // it makes them ten times slower, and they have one goroutine
	}
	return 1500
}

const (
	// mutantTime ends a hang; it is far more than ten times what a variant takes.
	mutantTime = 30 * time.Second
	// mutantAlloc bounds what reading chunks of a variant allocates in all.
	mutantAlloc = 64 << 20
)

// open6 is an image of v6 whose blobs' chunk information lies open: neither
// compressed nor encrypted, so that mutations reach its structures.
type open6 struct {
	boot  []byte
	img   rafs.Image
	blobs map[string][]byte // all but those with chunk information
	// meta is the blob that holds the chunk information of blob 0, from its
	// beginning to the end of the information's header.
	meta  []byte
	entry int // of blob 0, in the blob table
	truth map[uint32][]byte
}

func newOpen6(t *testing.T, variant string) *open6 {
	t.Helper()
	dir := corpus.Dir(t)
	boot, err := os.ReadFile(filepath.Join(dir, "images", variant, "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	o := &open6{boot: boot, blobs: map[string][]byte{}, truth: map[uint32][]byte{}}
	for _, from := range []string{filepath.Join(dir, "images", variant, "blobs"), filepath.Join(dir, "source-blobs")} {
		files, err := os.ReadDir(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if o.blobs[f.Name()], err = os.ReadFile(filepath.Join(from, f.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	img, err := v6.Open(rafs.NewBootstrap("boot", boot))
	if err != nil {
		t.Fatal(err)
	}
	chunks := o.chunks(img, nil)
	n, err := img.ChunkCount(0)
	if err != nil || n == 0 {
		t.Fatalf("%d chunks, %v", n, err)
	}
	for i := range n {
		data, err := chunks.Chunk(t.Context(), 0, i)
		if err != nil {
			t.Fatal(err)
		}
		o.truth[i] = bytes.Clone(data)
	}
	ci := img.Blobs()[0].ChunkInfo
	raw := o.blobs[ci.BlobID]
	plain := make([]byte, ci.Size)
	stored := raw[ci.Offset:][:ci.StoredSize]
	if err := codec.Decode(codec.Algorithm(ci.Compressor), plain, stored); err != nil {
		t.Fatal(err)
	}
	head := bytes.Clone(raw[ci.Offset+ci.StoredSize:][:4096])
	le := binary.LittleEndian
	le.PutUint32(head[8:], 0)
	le.PutUint64(head[24:], ci.Size)
	o.meta = append(append(bytes.Clone(raw[:ci.Offset]), plain...), head...)
	for _, table := range img.Tables() {
		if table.Name == "blob table" {
			o.entry = int(table.Offset)
		}
	}
	le.PutUint32(o.boot[o.entry+108:], 0)
	le.PutUint64(o.boot[o.entry+120:], ci.Size)
	if ci.BlobID != img.Blobs()[0].ID {
		delete(o.blobs, ci.BlobID)
	}
	o.img = img
	return o
}

// chunks reads blobs; those that are not known are meta.
func (o *open6) chunks(img rafs.Image, meta []byte) *BlobChunks {
	own := img.Blobs()[0]
	c := NewBlobChunks(img, func(id string) Source {
		if data, ok := o.blobs[id]; ok && (meta == nil || id != own.ID || own.ChunkInfo.BlobID != own.ID) {
			return &memory{data: data}
		}
		return &memory{data: meta}
	})
	c.retryWait = 1
	return c
}

// TestMutantChunkInfo breaks the chunk information of blobs whose chunks cannot
// be found without it: entries, contexts, dictionaries, header. Whatever it says,
// a chunk that is handed over has its own bytes.
func TestMutantChunkInfo(t *testing.T) {
	for _, variant := range []string{"v6-dir-zstd-64k-batch16k-dict", "v6-targz-ref-16k-dict", "v6-targz-ref-2member-small"} {
		t.Run(variant, func(t *testing.T) {
			o := newOpen6(t, variant)
			ci := o.img.Blobs()[0].ChunkInfo
			m := &mutant.Mutator{Data: o.meta[ci.Offset:]}
			entries := len(o.truth)
			for i := range entries {
				for _, f := range []mutant.Spot{{Off: 0, Width: 4}, {Off: 4, Width: 4}, {Off: 7, Width: 1}, {Off: 8, Width: 8}, {Off: 13, Width: 2}, {Off: 16, Width: 4}, {Off: 20, Width: 4}} {
					m.Spots = append(m.Spots, mutant.Spot{Off: 24*i + f.Off, Width: f.Width, Name: fmt.Sprintf("entry %d+%d", i, f.Off)})
				}
				m.Refs = append(m.Refs, uint64(i), uint64(i)*4096)
			}
			for off := 24 * entries; off+4 <= min(24*entries+400, int(ci.Size)); off += 4 {
				m.Spots = append(m.Spots, mutant.Spot{Off: off, Width: 4, Name: "context"})
			}
			for _, f := range []int{0, 4, 8, 12, 16, 24, 32, 40, 48, 56} {
				m.Spots = append(m.Spots, mutant.Spot{Off: int(ci.Size) + f, Width: 4, Name: "header"})
			}
			le := binary.LittleEndian
			var right, wrong int
			var most uint64
			var current atomic.Uint64
			hang := time.AfterFunc(mutantTime, func() { panic(fmt.Sprintf("seed %d hangs", current.Load())) })
			defer hang.Stop()
			for seed := range mutants() {
				current.Store(seed)
				hang.Reset(mutantTime)
				b, what := m.Mutate(seed)
				meta := append(bytes.Clone(o.meta[:ci.Offset]), b...)
				boot := bytes.Clone(o.boot)
				if o.img.Blobs()[0].Features&rafs.BlobSeparate != 0 {
					// The blob is named by its digest; a lying one has the digest of its lies.
					sum := sha256.Sum256(meta)
					copy(boot[o.entry+168:], sum[:])
					le.PutUint64(boot[o.entry+200:], uint64(len(meta)))
				}
				before := allocatedBytes()
				img, err := v6.Open(rafs.NewBootstrap("boot", boot))
				if err != nil {
					t.Fatal(err)
				}
				chunks := o.chunks(img, meta)
				r := rand.New(rand.NewPCG(seed, 2))
				for range 3 {
					i := uint32(r.IntN(entries))
					switch data, err := chunks.Chunk(t.Context(), 0, i); {
					case err != nil:
						wrong++
					case !bytes.Equal(data, o.truth[i]):
						t.Fatalf("seed %d (%s): chunk %d has other bytes", seed, what, i)
					default:
						right++
					}
				}
				chunks.Close()
				n := allocatedBytes() - before
				if most = max(most, n); n > mutantAlloc {
					t.Fatalf("seed %d (%s): %d bytes allocated", seed, what, n)
				}
			}
			if right == 0 || wrong == 0 {
				t.Errorf("%d chunks read right, %d refused: want some of both", right, wrong)
			}
			t.Logf("%d chunks read right, %d refused, at most %d KiB allocated", right, wrong, most>>10)
		})
	}
}

func allocatedBytes() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
