package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/blobstore/codec"
	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/open"
)

// victim is an image of the corpus whose blobs are in memory, its chunk
// information uncompressed, so that changes reach its structures.
type victim struct {
	variant string
	img     rafs.Image
	blobs   map[string][]byte
	truth   map[[2]uint32][]byte // by blob and chunk
	info    []*rafs.Blob         // those with chunk information
	saved   []rafs.Blob
}

// bytesOf is a blob in memory.
type bytesOf []byte

func (b bytesOf) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > int64(len(b)) || n > int64(len(b))-off {
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, off, len(b), io.ErrUnexpectedEOF)
	}
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func newVictim(t *testing.T, variant string) *victim {
	t.Helper()
	dir := corpus.Dir(t)
	path := filepath.Join(dir, "images", variant, "bootstrap")
	img, err := open.Image(path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	m := &victim{variant: variant, img: img, blobs: map[string][]byte{}, truth: map[[2]uint32][]byte{}}
	read := func(id string) {
		for _, from := range []string{filepath.Join(dir, "images", variant, "blobs"), filepath.Join(dir, "source-blobs")} {
			if b, err := os.ReadFile(filepath.Join(from, id)); err == nil {
				m.blobs[id] = b
				return
			}
		}
		t.Fatalf("%s: no blob %s", variant, id)
	}
	for i := range img.Blobs() {
		b := &img.Blobs()[i]
		read(b.ID)
		if ci := &b.ChunkInfo; ci.Size > 0 {
			if ci.BlobID != b.ID {
				read(ci.BlobID)
			}
			if b.Cipher == nil {
				m.uncompress(t, b)
			}
			m.info = append(m.info, b)
		}
	}
	m.saved = append(m.saved, img.Blobs()...)
	// The truth, from the image as it is now.
	chunks := m.reader(m.blobs)
	defer chunks.Close()
	for i := range img.Blobs() {
		n, err := img.ChunkCount(i)
		if err != nil {
			t.Fatal(err)
		}
		for k := range n {
			data, err := chunks.Chunk(t.Context(), i, k)
			if errors.Is(err, rafs.ErrNoChunk) || err != nil && img.Chunk(i, k, new(rafs.Chunk)) != nil {
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", variant, err)
			}
			m.truth[[2]uint32{uint32(i), k}] = bytes.Clone(data)
		}
	}
	if len(m.truth) == 0 {
		t.Fatalf("%s has no chunks", variant)
	}
	return m
}

// uncompress stores the chunk information of a blob as it is.
func (m *victim) uncompress(t *testing.T, b *rafs.Blob) {
	t.Helper()
	ci := &b.ChunkInfo
	blob := m.blobs[ci.BlobID]
	plain := make([]byte, ci.Size)
	if err := codec.DecodeLarge(codec.Algorithm(ci.Compressor), plain, blob[ci.Offset:][:ci.StoredSize]); err != nil {
		t.Fatal(err)
	}
	head := bytes.Clone(blob[ci.Offset+ci.StoredSize:][:4096])
	le := binary.LittleEndian
	le.PutUint32(head[8:], 0)
	le.PutUint64(head[24:], ci.Size)
	ci.Compressor, ci.StoredSize = 0, ci.Size
	ci.TOCSize, ci.BlobDigest = 0, [32]byte{} // which would refuse every change
	m.blobs[ci.BlobID] = append(append(bytes.Clone(blob[:ci.Offset]), plain...), head...)
}

func (m *victim) reader(blobs map[string][]byte) *BlobChunks {
	c := NewBlobChunks(m.img, func(id string) Source { return bytesOf(blobs[id]) })
	c.retryWait = 1
	return c
}

// mutate changes chunk information, its header, what the image says of both, or
// stored bytes.
func (m *victim) mutate(rng *rand.Rand, blobs map[string][]byte) (what string) {
	le := binary.LittleEndian
	b := m.info[rng.IntN(len(m.info))]
	ci := &b.ChunkInfo
	file := bytes.Clone(blobs[ci.BlobID])
	defer func() { blobs[ci.BlobID] = file }()
	if uint64(len(file)) < ci.Offset+ci.StoredSize+4096 {
		return "nothing more: it is cut short"
	}
	info, head := file[ci.Offset:][:ci.StoredSize], file[ci.Offset+ci.StoredSize:][:4096]
	entry := 16
	if b.Features&rafs.BlobChunkInfoV2 != 0 {
		entry = 24
	}
	entries := info[:min(len(info), int(b.ChunkCount)*entry)]
	contexts := info[len(entries):]
	contexts = contexts[:min(len(contexts), 40*int(le.Uint32(head[56:]))%(1<<20))]
	values := []uint64{0, 1, 1<<24 - 1, 1 << 24, 1<<31 - 1, 1<<32 - 1, 1 << 40, 1<<44 - 1, 1<<63 - 1, 1<<64 - 1, rng.Uint64(), rng.Uint64N(1 << 20)}
	value := values[rng.IntN(len(values))]
	field := func(p []byte) {
		if len(p) < 8 {
			return
		}
		at := rng.IntN(len(p)/4-1) * 4
		switch rng.IntN(4) {
		case 0:
			le.PutUint32(p[at:], uint32(value))
		case 1:
			le.PutUint64(p[at:], value)
		case 2:
			le.PutUint64(p[at:], le.Uint64(p[at:])+value)
		case 3:
			p[at+rng.IntN(4)] ^= 1 << rng.IntN(8)
		}
	}
	switch rng.IntN(9) {
	case 0:
		field(entries)
		return "a field of an entry"
	case 1:
		field(contexts)
		return "a field of a context"
	case 2:
		field(head[:64])
		return "a field of the header"
	case 3: // entries change places
		if n := len(entries) / entry; n > 1 {
			i, k := rng.IntN(n), rng.IntN(n)
			for x := range entry {
				entries[i*entry+x], entries[k*entry+x] = entries[k*entry+x], entries[i*entry+x]
			}
		}
		return "entries swapped"
	case 4: // an entry twice: they overlap
		if n := len(entries) / entry; n > 1 {
			copy(entries[rng.IntN(n)*entry:][:entry], entries[rng.IntN(n)*entry:][:entry])
		}
		return "an entry twice"
	case 5: // image and header agree on another count or size
		n := uint32(value)
		if rng.IntN(2) == 0 {
			b.ChunkCount = n
			le.PutUint32(head[12:], n)
		} else {
			le.PutUint32(head[56:], n)
			le.PutUint64(head[48:], value)
		}
		return "counts that image and header agree on"
	case 6:
		file = file[:rng.IntN(len(file)+1)]
		return "cut short"
	case 7:
		data := bytes.Clone(blobs[b.ID])
		for range 1 + rng.IntN(4) {
			data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		}
		if b.ID == ci.BlobID {
			file = data
		} else {
			blobs[b.ID] = data
		}
		return "stored bytes"
	default:
		if n := len(info); n > 1 {
			for range 1 + rng.IntN(8) {
				info[rng.IntN(n)] ^= 1 << rng.IntN(8)
			}
		}
		return "bits of the information"
	}
}

// TestMutantStored breaks what a whole reader of an image meets: stored chunks,
// plain and encrypted, chunk information and its header, what the image says of
// them. (TestMutantChunkInfo has the structures of batch and zran one by one.)
// Whatever is done, a chunk is right or an error, within bounded memory.
func TestMutantStored(t *testing.T) {
	rounds := uint64(60)
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds = 25_000
	}
	for _, variant := range []string{
		"v6-dir-zstd-batch-encrypt-small", "v6-dir-lz4-encrypt-small", "v6-merge3-targz-ref-oci", "v6-dir-zstd-16k-dict",
	} {
		t.Run(variant, func(t *testing.T) {
			m := newVictim(t, variant)
			right, wrong := 0, 0
			for seed := range rounds {
				ok, bad := m.round(t, seed)
				right, wrong = right+ok, wrong+bad
			}
			if right == 0 || wrong == 0 {
				t.Errorf("%d chunks were right and %d refused: that proves little", right, wrong)
			}
			t.Logf("%d chunks right, %d refused", right, wrong)
		})
	}
}

// round reads all chunks of a mutated image.
func (m *victim) round(t *testing.T, seed uint64) (right, wrong int) {
	rng := rand.New(rand.NewPCG(seed, 11))
	blobs := map[string][]byte{}
	for id, b := range m.blobs {
		blobs[id] = b
	}
	var what []string
	for range 1 + rng.IntN(2) {
		what = append(what, m.mutate(rng, blobs))
	}
	defer copy(m.img.Blobs(), m.saved)
	chunks := m.reader(blobs)
	defer chunks.Close()
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("seed %d (%v): %v", seed, what, r)
			panic(r)
		}
	}()
	before := allocatedBytes()
	var key [2]uint32
	for key = range m.truth {
		data, err := chunks.Chunk(t.Context(), int(key[0]), key[1])
		if err != nil {
			wrong++
			continue
		}
		if !bytes.Equal(data, m.truth[key]) {
			t.Errorf("seed %d (%v): chunk %d of blob %d has wrong bytes", seed, what, key[1], key[0])
		}
		right++
	}
	for i := range m.info {
		_ = chunks.chunkInfoFaults(t.Context(), i, nil)
	}
	// Chunks of 1 MiB, contexts of 16 MiB at most, three tries.
	if n := allocatedBytes() - before; n > 256<<20 {
		t.Errorf("seed %d (%v): %d bytes allocated", seed, what, n)
	}
	return right, wrong
}
