package testimage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testimage"
)

// layoutTree has an inode with every part that a layout can name.
func layoutTree() *testimage.Tree {
	t := testimage.NewTree()
	t.FileOf("/dir/file", testimage.Pattern(3<<16, 1), testimage.Mode(0o4711), testimage.Xattr("user.key", "a value"))
	t.Symlink("/dir/link", "a target", testimage.Mode(0o777), testimage.Xattr("trusted.key", "of the link"))
	t.Symlink("/dir/long", strings.Repeat("t", 4090))
	t.File("/dir/plain", nil)
	t.Link("/zlink", "/dir/file")
	for i := range 500 {
		t.File("/dir/names/of a long directory "+strings.Repeat("n", i%200)+string(rune('a'+i%26))+string(rune('0'+i/26)), nil)
	}
	return t
}

// part returns a range of the bootstrap.
func part(raw []byte, r testimage.Range) []byte { return raw[r.Offset:r.End()] }

func TestLayoutOfV5(t *testing.T) {
	img := write(t, layoutTree(), testimage.Options{Version: 5, ChunkSize: 1 << 16, Prefetch: []string{"/dir/link"}})
	m := check(t, img)
	l, raw := img.Layout, m.raw
	if l.Size != int64(len(raw)) || l.Inodes.End() != l.Size {
		t.Errorf("size %d, inodes end at %d, file has %d", l.Size, l.Inodes.End(), len(raw))
	}
	if got := part(raw, l.Superblock); string(got[:4]) != "SFAR" || len(got) != 8192 {
		t.Errorf("superblock %q, %d bytes", got[:4], len(got))
	}
	if !bytes.Equal(part(raw, l.BlobTable), m.tables["blob"]) || !bytes.Equal(part(raw, l.ExtBlobTable), m.tables["ext"]) {
		t.Error("blob tables are elsewhere")
	}
	table := part(raw, l.InodeTable)
	for path, in := range m.byPath {
		at, err := img.Inode(path)
		if err != nil {
			t.Fatal(err)
		}
		if uint64(at.Number) != in.number || at.Ino != in.ino {
			t.Errorf("%s: number %d, ino %d, want %d, %d", path, at.Number, at.Ino, in.number, in.ino)
		}
		if slot := le.Uint32(table[4*(at.Number-1):]); int64(slot)*8 != at.Record.Offset {
			t.Errorf("%s: record at %d, table says %d", path, at.Record.Offset, slot*8)
		}
		if !bytes.Equal(part(raw, at.Record), in.fixed) {
			t.Errorf("%s: other record at %d", path, at.Record.Offset)
		}
		if name := string(part(raw, at.Name)); path != "/" && !strings.HasSuffix(path, "/"+name) {
			t.Errorf("%s: name %q", path, name)
		}
		if got := string(part(raw, at.Target)); got != in.target {
			t.Errorf("%s: target %q", path, got)
		}
		var records []byte
		chunks, err := img.ChunksOf(path)
		if err != nil || len(chunks) != len(in.chunks) {
			t.Fatalf("%s: %d chunks, %v, want %d", path, len(chunks), err, len(in.chunks))
		}
		for i, c := range in.chunks {
			if chunks[i].Digest != c.digest || chunks[i].Index != c.index || chunks[i].CompressedOffset != c.coff {
				t.Errorf("%s: chunk %d is %+v, want %+v", path, i, chunks[i], c)
			}
			records = append(records, c.digest[:]...)
		}
		for i := range in.chunks {
			if got := part(raw, at.Chunks)[80*i:][:32]; !bytes.Equal(got, records[32*i:][:32]) {
				t.Errorf("%s: chunk record %d: digest %x", path, i, got)
			}
		}
		wantXattr := map[string]string{"/dir/file": "user.key\x00a value", "/dir/link": "trusted.key\x00of the link", "/zlink": "user.key\x00a value"}[path]
		if got := part(raw, at.Xattrs); wantXattr == "" && len(got) > 0 || !bytes.Contains(got, []byte(wantXattr)) {
			t.Errorf("%s: xattrs %q", path, got)
		}
	}
	link, err := img.Inode("/dir/link")
	if got := le.Uint32(part(raw, l.PrefetchTable)); err != nil || got != link.Number {
		t.Errorf("prefetch table says %d, %v, want %d", got, err, link.Number)
	}
}

func TestLayoutOfV6(t *testing.T) {
	for _, compact := range []bool{false, true} {
		img := write(t, layoutTree(), testimage.Options{ChunkSize: 1 << 16, Prefetch: []string{"/dir/link"}, Compact: compact})
		m := check(t, img)
		l, raw := img.Layout, m.raw
		if l.Size != int64(len(raw)) {
			t.Errorf("size %d, file has %d", l.Size, len(raw))
		}
		for name, r := range map[string]testimage.Range{
			"super": l.Superblock, "ext": l.ExtSuperblock, "device": l.DeviceTable, "blob": l.BlobTable, "chunk": l.ChunkTable,
		} {
			if !bytes.Equal(part(raw, r), m.tables[name]) {
				t.Errorf("%s table is not at %+v", name, r)
			}
		}
		for path, in := range m.byPath {
			at, err := img.Inode(path)
			if err != nil {
				t.Fatal(err)
			}
			if at.Ino != in.ino || at.Record.Offset != l.MetaAddress+int64(in.ino)*32 {
				t.Errorf("%s: nid %d at %d, want %d", path, at.Ino, at.Record.Offset, in.ino)
			}
			if got := le.Uint16(part(raw, at.Record)); got != in.format || (at.Record.Size == 32) != (got&1 == 0) {
				t.Errorf("%s: format %d in %d bytes, want %d", path, got, at.Record.Size, in.format)
			}
			if at.Record.Offset < l.Inodes.Offset || at.Record.End() > l.Inodes.End() {
				t.Errorf("%s: outside %+v", path, l.Inodes)
			}
			if got := part(raw, at.Chunks); !bytes.Equal(got, in.addrs) {
				t.Errorf("%s: chunk array % x, want % x", path, got, in.addrs)
			}
			if in.fixed != nil { // data of directories and links
				data := append(bytes.Clone(part(raw, at.Blocks)), part(raw, at.Inline)...)
				if !bytes.Equal(data[:len(in.fixed)], in.fixed) {
					t.Errorf("%s: other data in %+v and %+v", path, at.Blocks, at.Inline)
				}
				if at.Blocks.Size > 0 && (at.Blocks.Offset < l.Blocks.Offset || at.Blocks.End() > l.Blocks.End()) {
					t.Errorf("%s: blocks outside %+v", path, l.Blocks)
				}
			}
			wantXattr := map[string]string{"/dir/file": "keya value", "/dir/link": "keyof the link", "/zlink": "keya value"}[path]
			if got := part(raw, at.Xattrs); wantXattr == "" && len(got) > 0 || !bytes.Contains(got, []byte(wantXattr)) {
				t.Errorf("%s: xattrs %q", path, got)
			}
		}
		link, err := img.Inode("/dir/link")
		if got := le.Uint32(part(raw, l.PrefetchTable)); err != nil || uint64(got) != link.Ino {
			t.Errorf("prefetch table says %d, %v, want %d", got, err, link.Ino)
		}
		blob, err := os.ReadFile(img.Blobs[0].Path)
		if err != nil {
			t.Fatal(err)
		}
		b := img.Blobs[0]
		if h := part(blob, b.ChunkInfoHeader); le.Uint32(h) != 0xB10BB10B || b.ChunkInfoHeader.End() != int64(b.Size) {
			t.Errorf("no header of chunk information at %+v of %d", b.ChunkInfoHeader, b.Size)
		}
		if got := binary.Size(part(blob, b.ChunkInfo)); int64(got) != b.ChunkInfo.Size || b.ChunkInfo.Offset != int64(b.DataSize) {
			t.Errorf("chunk information at %+v, data ends at %d", b.ChunkInfo, b.DataSize)
		}
	}
}

func TestLayoutOfNothing(t *testing.T) {
	img := write(t, layoutTree(), testimage.Options{})
	for _, path := range []string{"/no", "/dir/file/below", "/dir/no"} {
		if _, err := img.Inode(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Inode(%q): %v", path, err)
		}
		if _, err := img.ChunksOf(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ChunksOf(%q): %v", path, err)
		}
	}
}
