package fs_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// words is text that compresses about as programs do.
func words(size int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	vocabulary := make([][]byte, 3000)
	for i := range vocabulary {
		w := make([]byte, 2+rng.IntN(9))
		for k := range w {
			w[k] = byte('a' + rng.IntN(26))
		}
		vocabulary[i] = append(w, ' ')
	}
	b := make([]byte, 0, size+16)
	for len(b) < size {
		b = append(b, vocabulary[rng.IntN(len(vocabulary))]...)
	}
	return b[:size]
}

// TestZranTouchesOnlyTheContextsItNeeds: a small read in the middle of a layer of
// 50 MiB fetches and inflates the one context that has it.
func TestZranTouchesOnlyTheContextsItNeeds(t *testing.T) {
	layer, limit := 50<<20, uint64(4<<20)
	if raceEnabled {
		layer = 8 << 20 // making the layer takes a minute then, and proves no more
	}
	tree := testimage.NewTree()
	content := words(layer-(1<<20), 1)
	tree.File("/before", words(1<<20-512*8, 2))
	tree.File("/big", content)
	img, err := tree.Write(t.TempDir(), testimage.Options{Zran: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(img.Blobs[0].Contexts); n < layer>>21 {
		t.Fatalf("%d contexts: the layer proves nothing", n)
	}
	s := openStore(t, img.BlobDir, t.TempDir())
	f := openThrough(t, s, img.Bootstrap)
	e := find(t, f, "/big")
	read := func(off uint64) {
		t.Helper()
		buf := make([]byte, 4096)
		out := fuseproto.NewOut(buf)
		if err := f.Read(fuseproto.NewOp(context.Background()), e.Node, &fuseproto.ReadIn{Offset: off, Size: 4096}, out); err != nil {
			t.Fatal(err)
		}
		if string(buf) != string(content[off:off+4096]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	middle := uint64(layer / 2)
	read(middle)
	st := s.Stats()
	if st.DecodedBytes == 0 || st.DecodedBytes >= limit {
		t.Errorf("%d bytes were inflated for 4096, want less than %d", st.DecodedBytes, limit)
	}
	if st.FetchedBytes == 0 || st.FetchedBytes >= 2<<20 || st.Requests != 2 {
		t.Errorf("%d stored bytes were fetched in %d requests, want one context, and the chunk information", st.FetchedBytes, st.Requests)
	}
	t.Logf("of %d contexts and %d stored bytes: %d bytes fetched, %d inflated, %d chunks",
		len(img.Blobs[0].Contexts), img.Blobs[0].Size, st.FetchedBytes, st.DecodedBytes, st.FetchedChunks)
	read(middle + 8192) // in the same context
	if again := s.Stats(); again.Requests != st.Requests || again.DecodedBytes != st.DecodedBytes {
		t.Errorf("what the context brought was fetched again: %+v", again)
	}
	read(uint64(layer) - 1<<20 - 4096)
	if again := s.Stats(); again.Requests != st.Requests+1 || again.DecodedBytes-st.DecodedBytes >= limit {
		t.Errorf("another context: %d requests, %d bytes inflated", again.Requests-st.Requests, again.DecodedBytes-st.DecodedBytes)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestZranImage: a layer with contexts that begin at many bits of a byte is read
// whole, by files as small and as large as there are.
func TestZranImage(t *testing.T) {
	layer := testimage.Sample()
	for i := range uint64(20) {
		layer.File("/words/"+string(rune('a'+i)), words(120<<10+int(i)*777, i+10))
	}
	layer.FileOf("/pattern", testimage.Pattern(2<<20+5, 3))
	layer.FileOf("/random", testimage.Random(2<<20+1, 4))
	img, err := layer.Write(t.TempDir(), testimage.Options{Zran: true, ChunkSize: 64 << 10, Digest: testimage.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	bits := map[uint8]int{}
	for _, x := range img.Blobs[0].Contexts {
		bits[x.Bits]++
	}
	if len(bits) < 4 {
		t.Errorf("contexts begin at bits %v: that proves little", bits)
	}
	want, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, img.BlobDir, t.TempDir())
	f := openThrough(t, s, img.Bootstrap)
	if diff := manifest.Compare(tree(t, f, 128<<10), want, manifest.Options{}); !diff.Equal() {
		t.Errorf("differs:\n%s", diff)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
