package chunktable_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/chunktable"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// TestDescribe: the table of a blob says what the image says.
func TestDescribe(t *testing.T) {
	img, err := open.Image(rafstest.Bootstrap(t, corpus.Dir(t), "v6-merge3-zstd-oci"), open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for i, b := range img.Blobs() {
		d, err := chunktable.Describe(img, i)
		if err != nil {
			t.Fatal(err)
		}
		if d.ID != b.ID || d.Compressor != blobstore.CompressZstd || d.Digester != blobstore.DigestBlake3 ||
			d.CompressedSize != b.CompressedSize || d.UncompressedSize != b.UncompressedSize {
			t.Errorf("blob %d: %+v, want %+v", i, d, b)
		}
		var known int
		for k := range d.Table.Len() {
			var c blobstore.Chunk
			switch err := d.Table.Chunk(k, &c); {
			case err == nil:
				known++
				if c.Digest == (blobstore.Digest{}) || c.UncompressedSize == 0 || c.Flags&blobstore.ChunkNoDigest != 0 {
					t.Errorf("blob %d chunk %d: %+v", i, k, c)
				}
			case err != blobstore.ErrNoChunk:
				t.Errorf("blob %d chunk %d: %v", i, k, err)
			}
		}
		var c blobstore.Chunk
		if err := d.Table.Chunk(d.Table.Len(), &c); err != blobstore.ErrNoChunk || known == 0 {
			t.Errorf("blob %d: %d chunks known, behind the last: %v", i, known, err)
		}
	}
}

// TestTableThatCannotBeRead: damage in the chunk records is an error of the
// read, not a file of another length.
func TestTableThatCannotBeRead(t *testing.T) {
	img := &damagedTable{}
	d, err := chunktable.Describe(img, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := d.Table.Len(); n != 0 {
		t.Errorf("Len = %d, want 0", n)
	}
	var c blobstore.Chunk
	if err := d.Table.Chunk(0, &c); err == nil || err == blobstore.ErrNoChunk {
		t.Errorf("Chunk = %v, want the cause", err)
	}
}

type damagedTable struct{ rafs.Image }

func (damagedTable) Blobs() []rafs.Blob                   { return []rafs.Blob{{ID: "b"}} }
func (damagedTable) ChunkCount(int) (uint32, error)       { return 0, rafs.ErrFault }
func (damagedTable) Chunk(int, uint32, *rafs.Chunk) error { return rafs.ErrFault }

// TestKeysAreNotPrinted: whatever prints what is known of an encrypted blob shows
// no byte of its key.
func TestKeysAreNotPrinted(t *testing.T) {
	path := rafstest.Bootstrap(t, corpus.Dir(t), "v6-dir-zstd-batch-encrypt-small")
	img, err := open.Image(path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	b := &img.Blobs()[0]
	key, iv := b.Cipher.Reveal()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(raw, key[:]) || !bytes.Contains(raw, iv[:]) {
		t.Fatal("this is not the key of the blob table")
	}
	d, err := chunktable.Describe(img, 0)
	if err != nil {
		t.Fatal(err)
	}
	place, err := chunktable.MetaPlace(b)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	printed := string(asJSON)
	for _, v := range []any{b, *b, b.Cipher, *place, d.Cipher, struct{ B rafs.Blob }{*b}, []*rafs.Cipher{b.Cipher}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			printed += fmt.Sprintf(verb, v)
		}
	}
	for _, secret := range [][]byte{key[:4], key[16:20], iv[:4]} {
		for _, form := range []string{
			fmt.Sprintf("%x", secret), fmt.Sprint(secret)[1 : len(fmt.Sprint(secret))-1], string(secret),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret), "[]byte{"), "}"),
		} {
			if strings.Contains(printed, form) {
				t.Errorf("a part of the key is printed: %s", form)
			}
		}
	}
}
