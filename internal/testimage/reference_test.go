package testimage_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/testimage"
)

// plainVariants are the reference's images of the kinds that this package
// writes, with the options that should give the same.
var plainVariants = map[string]testimage.Options{
	"v5-dir-lz4-16k-dict":            {Version: 5, Compressor: testimage.LZ4, ChunkSize: 16 << 10},
	"v5-dir-lz4-blake3-edge":         {Version: 5, Compressor: testimage.LZ4},
	"v5-dir-lz4-prefetch-root-small": {Version: 5, Compressor: testimage.LZ4, Prefetch: []string{"/"}},
	"v5-dir-none-aligned-4k-dict":    {Version: 5, Aligned: true, ChunkSize: 4 << 10},
	"v5-dir-none-sha256-small":       {Version: 5, Digest: testimage.SHA256},
	"v5-dir-zstd-aligned-small":      {Version: 5, Compressor: testimage.Zstd, Aligned: true},
	"v5-dir-zstd-prefetch-fs-small":  {Version: 5, Compressor: testimage.Zstd, Prefetch: []string{"/data", "/links/hard/one", "/xattrs/many"}},
	"v5-dir-zstd-rootfs":             {Version: 5, Compressor: testimage.Zstd},
	"v6-dir-lz4-blake3-small":        {Compressor: testimage.LZ4},
	"v6-dir-none-blake3-small":       {},
	"v6-dir-zstd-16k-dict":           {Compressor: testimage.Zstd, ChunkSize: 16 << 10},
	"v6-dir-zstd-16m-small":          {Compressor: testimage.Zstd, ChunkSize: 16 << 20},
	"v6-dir-zstd-4k-edge":            {Compressor: testimage.Zstd, ChunkSize: 4 << 10},
	"v6-dir-zstd-blake3-edge":        {Compressor: testimage.Zstd},
	"v6-dir-zstd-prefetch-fs-small":  {Compressor: testimage.Zstd, Prefetch: []string{"/data", "/links/hard/one", "/xattrs/many"}},
	"v6-dir-zstd-sha256-small":       {Compressor: testimage.Zstd, Digest: testimage.SHA256},
}

// TestRewriteOfReference takes the trees out of the reference's images, writes
// them again, and compares structure by structure. What compression decides
// (sizes and places of compressed chunks, hence blob ids) may differ; without
// compression the blobs must be the same bytes.
func TestRewriteOfReference(t *testing.T) {
	dir := filepath.Join(corpus.Dir(t), "images")
	for name, opt := range plainVariants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.HasSuffix(name, "-rootfs") && os.Getenv("RAFSD_LONG") != "1" {
				t.Skip("13 MiB: only with RAFSD_LONG=1")
			}
			want, err := checkBootstrap(filepath.Join(dir, name, "bootstrap"))
			if err != nil {
				t.Fatalf("the reference's image: %v", err)
			}
			content, err := want.checkBlobs(filepath.Join(dir, name, "blobs"), true)
			if err != nil {
				t.Fatalf("the reference's blob: %v", err)
			}
			img, err := treeOf(want, content).Write(t.TempDir(), opt)
			if err != nil {
				t.Fatal(err)
			}
			got, err := checkBootstrap(img.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := got.checkBlobs(img.BlobDir, true); err != nil {
				t.Fatal(err)
			}
			compareImages(t, got, want)
		})
	}
}

// treeOf makes the tree that an image shows.
func treeOf(m *image, content map[[2]uint64][]byte) *testimage.Tree {
	t := testimage.NewTree()
	first := map[uint64]string{}
	for _, in := range m.inodes {
		attrs := []testimage.Attr{
			testimage.Mode(in.mode & 0o7777), testimage.Owner(in.uid, in.gid),
			testimage.Mtime(time.Unix(in.mtime, int64(in.nsec))),
		}
		for _, x := range in.xattrs {
			key, value, _ := strings.Cut(x, "=")
			attrs = append(attrs, testimage.Xattr(key, value))
		}
		if old, ok := first[in.ino]; ok {
			t.Link(in.path, old)
			continue
		}
		first[in.ino] = in.path
		switch in.mode & unix.S_IFMT {
		case unix.S_IFREG:
			var data []byte
			for _, c := range in.chunks {
				data = append(data, content[[2]uint64{uint64(c.blob), c.uoff}]...)
			}
			t.File(in.path, data, attrs...)
		case unix.S_IFDIR:
			t.Dir(in.path, attrs...)
		case unix.S_IFLNK:
			t.Symlink(in.path, in.target, attrs...)
		case unix.S_IFCHR, unix.S_IFBLK:
			dev := uint64(in.rdev)
			t.Device(in.path, in.mode&unix.S_IFMT == unix.S_IFBLK, unix.Major(dev), unix.Minor(dev), attrs...)
		case unix.S_IFIFO:
			t.Fifo(in.path, attrs...)
		case unix.S_IFSOCK:
			t.Socket(in.path, attrs...)
		}
	}
	return t
}

// compareImages compares what must be equal in two images of one tree with the
// same options.
func compareImages(t *testing.T, got, want *image) {
	t.Helper()
	differences := 0
	differ := func(format string, args ...any) {
		t.Helper()
		if differences++; differences <= 10 {
			t.Errorf(format, args...)
		}
	}
	if got.flags != want.flags {
		differ("flags %#x, want %#x", got.flags, want.flags)
	}
	if !slices.Equal(got.prefetch, want.prefetch) {
		differ("prefetch %q, want %q", got.prefetch, want.prefetch)
	}
	if len(got.blobs) != len(want.blobs) {
		t.Fatalf("%d blobs, want %d", len(got.blobs), len(want.blobs))
	}
	plain := got.flags&0x1 != 0
	for i, w := range want.blobs {
		g := got.blobs[i]
		if g.chunks != w.chunks || g.features != w.features || g.uncompressed != w.uncompressed {
			differ("blob %d: %+v, want %+v", i, g, w)
		}
		if plain && g.id != w.id {
			differ("blob %d: id %s, want %s: other bytes", i, g.id, w.id)
		}
	}
	if got.version == 6 {
		clear(got.tables["ext"][24:32]) // the chunk table's place: inodes are placed otherwise
		clear(want.tables["ext"][24:32])
	} else if !got.hasXattrs() && plain && !bytes.Equal(got.raw, want.raw) {
		differ("bootstraps differ from byte %d on", firstDifference(got.raw, want.raw)) // xattrs are in no order in the reference's
	}
	for name, w := range want.tables {
		if plain || name == "super" || name == "ext" && got.version == 6 {
			if !bytes.Equal(got.tables[name], w) {
				differ("%s table differs from byte %d on", name, firstDifference(got.tables[name], w))
			}
		}
	}
	if len(got.inodes) != len(want.inodes) {
		t.Fatalf("%d names, want %d", len(got.inodes), len(want.inodes))
	}
	for _, w := range want.inodes {
		g := got.byPath[w.path]
		if g == nil {
			differ("%s: missing", w.path)
			continue
		}
		if got.version == 5 && (g.number != w.number || !bytes.Equal(g.fixed, w.fixed)) {
			differ("%s: record %d % x\nwant %d % x", w.path, g.number, g.fixed, w.number, w.fixed)
		}
		if g.format != w.format && w.mode&unix.S_IFMT == unix.S_IFREG || g.format&1 != w.format&1 {
			differ("%s: format %d, want %d", w.path, g.format, w.format)
		}
		if g.mode != w.mode || g.uid != w.uid || g.gid != w.gid || g.nlink != w.nlink || g.rdev != w.rdev ||
			g.size != w.size || g.mtime != w.mtime || g.nsec != w.nsec || g.target != w.target {
			differ("%s: %+v, want %+v", w.path, g, w)
		}
		if !slices.Equal(g.xattrs, w.xattrs) {
			differ("%s: xattrs %q, want %q", w.path, g.xattrs, w.xattrs)
		}
		if !bytes.Equal(g.addrs, w.addrs) {
			differ("%s: chunk array % x, want % x", w.path, g.addrs, w.addrs)
		}
		if w.mode&unix.S_IFMT == unix.S_IFREG && g.union != w.union {
			differ("%s: chunk format %#x, want %#x", w.path, g.union, w.union)
		}
		if len(g.chunks) != len(w.chunks) {
			differ("%s: %d chunks, want %d", w.path, len(g.chunks), len(w.chunks))
			continue
		}
		for i, c := range g.chunks {
			r := w.chunks[i]
			if !plain { // what the compressor decides
				c.csize, c.coff, c.flags = r.csize, r.coff, r.flags
			}
			if c != r {
				differ("%s: chunk %d is %+v, want %+v", w.path, i, c, r)
			}
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
