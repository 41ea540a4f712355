package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/v6"
)

// memory is a blob in memory. Each of the first bad reads that reach byte flip
// gets it wrong.
type memory struct {
	data []byte
	flip int64
	bad  int
}

var errNotThere = errors.New("not there")

func (m *memory) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if m.data == nil {
		return nil, errNotThere
	}
	b := bytes.Clone(m.data[min(off, int64(len(m.data))):min(off+n, int64(len(m.data)))])
	if at := m.flip - off; m.bad > 0 && at >= 0 && at < int64(len(b)) {
		b[at] ^= 1
		m.bad--
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// sample is an image of two blobs of several chunks, in memory.
type sample struct {
	img   *testimage.Image
	boot  []byte
	blobs []*memory
}

func newSample(t *testing.T, compressor testimage.Compressor) *sample {
	t.Helper()
	tree := testimage.NewTree()
	tree.SizedFile("/a", 30000, 1)
	tree.SizedFile("/b", 50000, 2)
	img, err := tree.Write(t.TempDir(), testimage.Options{Compressor: compressor, ChunkSize: 4096, Blobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	s := &sample{img: img}
	if s.boot, err = os.ReadFile(img.Bootstrap); err != nil {
		t.Fatal(err)
	}
	for _, b := range img.Blobs {
		data, err := os.ReadFile(b.Path)
		if err != nil {
			t.Fatal(err)
		}
		s.blobs = append(s.blobs, &memory{data: data})
	}
	if len(s.blobs) != 2 || img.Blobs[1].ChunkCount < 4 {
		t.Fatalf("blobs %+v, want two of several chunks", img.Blobs)
	}
	return s
}

// entry is the place of an entry of blob 1's chunk information, which is stored
// as it is, and head that of its header.
func (s *sample) entry(i int) []byte {
	return s.blobs[1].data[s.img.Blobs[1].ChunkInfo.Offset+int64(i)*16:][:16]
}
func (s *sample) head() []byte { return s.blobs[1].data[s.img.Blobs[1].ChunkInfoHeader.Offset:][:4096] }

// record is the place of the record of a chunk of blob 1 in the bootstrap.
func (s *sample) record(index uint32) []byte {
	table := s.img.Layout.ChunkTable
	for at := table.Offset; at < table.End(); at += 80 {
		r := s.boot[at:][:80]
		if binary.LittleEndian.Uint32(r[32:]) == 1 && binary.LittleEndian.Uint32(r[72:]) == index {
			return r
		}
	}
	panic("no such record")
}

// verify returns the faults that VerifyData reports.
func (s *sample) verify(t *testing.T) []error {
	t.Helper()
	img, err := v6.Open(rafs.NewBootstrap("boot", s.boot))
	if err != nil {
		t.Fatal(err)
	}
	chunks := NewBlobChunks(img, func(id string) Source {
		return s.blobs[slices.IndexFunc(s.img.Blobs, func(b testimage.Blob) bool { return b.ID == id })]
	})
	chunks.retryWait = 1
	defer chunks.Close()
	var faults []error
	if err := VerifyData(t.Context(), img, chunks, func(err error) bool { faults = append(faults, err); return true }, nil); err != nil {
		t.Fatal(err)
	}
	return faults
}

func TestVerifyComparesChunkInfo(t *testing.T) {
	le := binary.LittleEndian
	for name, tt := range map[string]struct {
		damage func(s *sample)
		says   []string // of the only fault; the blob is always named
	}{
		"nothing":        {func(*sample) {}, nil},
		"reserved bits":  {func(s *sample) { s.entry(1)[0] = 0xFF; s.head()[100] = 1 }, nil},
		"other packages": {func(s *sample) { s.head()[4] |= 2 }, nil},
		"stored size":    {func(s *sample) { s.entry(1)[13] ^= 0x10 }, []string{"chunk 1 at offset 4096: ", "stored at 4096+4095, the bootstrap at 4096+4096"}},
		"stored offset":  {func(s *sample) { s.entry(1)[8]++ }, []string{"chunk 1 at offset 4096: ", "stored at 4097+4096"}},
		"size":           {func(s *sample) { s.entry(2)[5] ^= 0x10 }, []string{"chunk 2 at offset 8192: ", "uncompressed place 8192+4095 for it, the bootstrap 8192+4096"}},
		"order":          {func(s *sample) { s.entry(2)[1] = 0x10 }, []string{"chunk information entry 2 at offset 0x20: place 4096+4096", "ends at 8192"}},
		"record calls it compressed": {func(s *sample) { s.record(3)[36] |= rafs.ChunkCompressed },
			[]string{"chunk 3 at offset 12288: the bootstrap calls it compressed: true"}},
		"dictionary knows more chunks": {func(s *sample) {
			le.PutUint32(s.boot[s.img.Layout.BlobTable.Offset+256+84:], 0x40000201)
			le.PutUint32(s.record(1)[72:], 5000)
		}, []string{"chunk 5000 at offset 4096: the blob has "}},
		"magic":    {func(s *sample) { s.head()[4095] = 0 }, []string{"chunk information header at offset 0xffc: magic"}},
		"features": {func(s *sample) { s.head()[4] |= 0x20 }, []string{"header at offset 0x4: features 0x21, the blob table says 0x1"}},
		"version 2": {func(s *sample) { s.head()[4] |= 4 },
			[]string{"header at offset 0x20: ", "bytes of chunk information for"}},
		"compressor": {func(s *sample) { s.head()[8] = 3 }, []string{"header at offset 0x8: compressor zstd, the blob table says none"}},
		"offset":     {func(s *sample) { s.head()[16]++ }, []string{"header at offset 0x10: offset "}},
		"table says another compressor": {func(s *sample) { le.PutUint32(s.boot[s.img.Layout.BlobTable.Offset+256+108:], 2) },
			[]string{"compressor none, the blob table says gzip"}},
		"cut off": {func(s *sample) { s.blobs[1].data = s.blobs[1].data[:len(s.blobs[1].data)-1] }, []string{"unexpected EOF"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSample(t, testimage.None)
			tt.damage(s)
			faults := s.verify(t)
			if tt.says == nil {
				if faults != nil {
					t.Errorf("faults of a sound blob: %v", faults)
				}
				return
			}
			if len(faults) != 1 {
				t.Fatalf("%d faults, want 1: %v", len(faults), faults)
			}
			for _, says := range append(tt.says, "chunk information of blob "+s.img.Blobs[1].ID) {
				if got := faults[0].Error(); !strings.Contains(got, says) || strings.Contains(got, "\n") {
					t.Errorf("%q does not say %q", got, says)
				}
			}
		})
	}
}

// TestVerifyCompressedChunkInfo: what does not decode is a fault.
func TestVerifyCompressedChunkInfo(t *testing.T) {
	for _, compressor := range []testimage.Compressor{testimage.LZ4, testimage.Gzip, testimage.Zstd} {
		t.Run(compressor.String(), func(t *testing.T) {
			t.Parallel()
			s := newSample(t, compressor)
			if faults := s.verify(t); faults != nil {
				t.Fatal(faults)
			}
			if s.img.Blobs[1].ChunkInfoCompressor == testimage.None {
				t.Fatal("the chunk information is not compressed")
			}
			clear(s.entry(0)) // the first bytes of the stream
			faults := s.verify(t)
			if len(faults) != 1 || !strings.Contains(faults[0].Error(), "chunk information of blob "+s.img.Blobs[1].ID) {
				t.Errorf("%v, want one fault that names the blob", faults)
			}
		})
	}
}

// TestVerifyEveryFault: a blob with the information of another has a fault for
// each chunk that differs, up to a limit, and the work ends when it is told to.
func TestVerifyEveryFault(t *testing.T) {
	tree := testimage.NewTree()
	tree.FileOf("/a", testimage.Random(200*4096, 1))
	img, err := tree.Write(t.TempDir(), testimage.Options{ChunkSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(img.Blobs[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(200) {
		data[img.Blobs[0].ChunkInfo.Offset+i*16+13] = 0 // stored sizes
	}
	s := &sample{img: img, boot: boot, blobs: []*memory{{data: data}}}
	faults := s.verify(t)
	if len(faults) != maxChunkInfoFaults {
		t.Fatalf("%d faults, want %d", len(faults), maxChunkInfoFaults)
	}
	for i, fault := range faults {
		if want := fmt.Sprintf(", chunk %d at offset %d: ", i, i*4096); !strings.Contains(fault.Error(), want) {
			t.Fatalf("fault %d is %q, want %q", i, fault, want)
		}
	}
}

// TestVerifyMissingBlob: what is said of a blob that is not there is said of its
// chunks alone.
func TestVerifyMissingBlob(t *testing.T) {
	t.Parallel()
	s := newSample(t, testimage.Zstd)
	s.blobs[1].data = nil
	faults := s.verify(t)
	if len(faults) != int(s.img.Blobs[1].ChunkCount) {
		t.Errorf("%d faults, want one for each of %d chunks", len(faults), s.img.Blobs[1].ChunkCount)
	}
	for _, fault := range faults {
		var e *blobstore.ChunkError
		if !errors.As(fault, &e) || e.Op != "fetch" || e.Blob != s.img.Blobs[1].ID || !errors.Is(fault, errNotThere) {
			t.Fatalf("%v, want the error of the source", fault)
		}
	}
}

// TestVerifyAsksAgain: a source may hand over bad bytes once.
func TestVerifyAsksAgain(t *testing.T) {
	for _, tt := range []struct {
		bad  int
		want int // faults
	}{{maxTries - 1, 0}, {maxTries, 1}} {
		for name, flip := range map[string]func(b *testimage.Blob) int64{
			"header": func(b *testimage.Blob) int64 { return b.ChunkInfoHeader.Offset },
			"entry":  func(b *testimage.Blob) int64 { return b.ChunkInfo.Offset + 8 },
		} {
			t.Run(fmt.Sprintf("%s bad %d times", name, tt.bad), func(t *testing.T) {
				t.Parallel()
				s := newSample(t, testimage.None)
				s.blobs[0].flip, s.blobs[0].bad = flip(&s.img.Blobs[0]), tt.bad
				if faults := s.verify(t); len(faults) != tt.want {
					t.Errorf("faults %v, want %d", faults, tt.want)
				}
				if s.blobs[0].bad != 0 {
					t.Errorf("%d bad answers were not asked for", s.blobs[0].bad)
				}
			})
		}
	}
}
