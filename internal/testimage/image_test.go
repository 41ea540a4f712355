package testimage_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// shapes are the kinds of images that must hold any tree.
var shapes = map[string]testimage.Options{
	"v6 default":           {},
	"v6 lz4 compact":       {Compressor: testimage.LZ4, Compact: true},
	"v6 zstd sha256 4 KiB": {Compressor: testimage.Zstd, Digest: testimage.SHA256, ChunkSize: 1 << 12},
	"v6 gzip 64 KiB":       {Compressor: testimage.Gzip, ChunkSize: 1 << 16},
	"v6 seven blobs":       {Compressor: testimage.Zstd, ChunkSize: 1 << 16, Blobs: 7},
	"v6 254 blobs":         {ChunkSize: 1 << 12, Blobs: 254},
	"v6 prefetch":          {Prefetch: []string{"/wide", "/links/second", "/data"}},
	"v5 default":           {Version: 5},
	"v5 lz4 64 KiB":        {Version: 5, Compressor: testimage.LZ4, ChunkSize: 1 << 16},
	"v5 gzip sha256":       {Version: 5, Compressor: testimage.Gzip, Digest: testimage.SHA256},
	"v5 zstd aligned":      {Version: 5, Compressor: testimage.Zstd, Aligned: true, ChunkSize: 1 << 14},
	"v5 five blobs":        {Version: 5, Compressor: testimage.Zstd, ChunkSize: 1 << 12, Blobs: 5},
	"v5 256 blobs":         {Version: 5, ChunkSize: 1 << 12, Blobs: 256},
	"v5 prefetch":          {Version: 5, Prefetch: []string{"/"}},
	"v5 before 1.1":        {Version: 5, Compressor: testimage.LZ4, NoExtBlobTable: true, OldFlags: true},
}

func write(t *testing.T, tree *testimage.Tree, opt testimage.Options) *testimage.Image {
	t.Helper()
	img, err := tree.Write(t.TempDir(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func imageManifest(t *testing.T, img *testimage.Image) []manifest.Entry {
	t.Helper()
	entries, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// check reads img with the independent reader, blobs included, and compares
// what it shows with the manifest.
func check(t *testing.T, img *testimage.Image) *image {
	t.Helper()
	m, err := checkBootstrap(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	content, err := m.checkBlobs(img.BlobDir, true)
	if err != nil {
		t.Fatal(err)
	}
	if d := manifest.Compare(m.manifest(content), imageManifest(t, img), manifest.Options{}); !d.Equal() {
		t.Errorf("the image shows another tree:\n%v", d)
	}
	return m
}

// manifest is what the independent reader sees.
func (m *image) manifest(content map[[2]uint64][]byte) []manifest.Entry {
	var all manifest.Collector
	for _, in := range m.inodes {
		kind, _ := manifest.TypeOfMode(in.mode)
		e := manifest.Entry{
			Path: in.path, Type: kind, Mode: uint16(in.mode & 0o7777), UID: in.uid, GID: in.gid, Size: in.size,
			Major: unix.Major(uint64(in.rdev)), Minor: unix.Minor(uint64(in.rdev)), Nlink: uint64(in.nlink),
			Mtime: manifest.Time{Sec: in.mtime, Nsec: in.nsec}, Target: in.target,
		}
		for _, x := range in.xattrs {
			name, value, _ := strings.Cut(x, "=")
			e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: value})
		}
		h := sha256.New()
		for _, c := range in.chunks {
			h.Write(content[[2]uint64{uint64(c.blob), c.uoff}])
		}
		e.SHA256 = [32]byte(h.Sum(nil))
		e.SortXattrs()
		all.Add(e, manifest.InodeKey{Ino: in.ino})
	}
	return all.Entries()
}

func TestSampleInEveryShape(t *testing.T) {
	for name, opt := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := write(t, testimage.Sample(), opt)
			m := check(t, img)
			if want := cmp.Or(opt.Blobs, 1); len(m.blobs) != want {
				t.Errorf("%d blobs, want %d", len(m.blobs), want)
			}
			files, err := os.ReadDir(img.BlobDir)
			if err != nil || len(files) != len(img.Blobs) {
				t.Errorf("%d files in the blob folder, %v, want %d", len(files), err, len(img.Blobs))
			}
			var wantPrefetch []string
			for _, path := range opt.Prefetch {
				if path == "/links/second" { // shown as the inode's first name
					path = "/also here"
				}
				wantPrefetch = append(wantPrefetch, path)
			}
			if !slices.Equal(m.prefetch, wantPrefetch) {
				t.Errorf("prefetch %q, want %q", m.prefetch, wantPrefetch)
			}
		})
	}
}

func TestEveryChunkSize(t *testing.T) {
	for shift := 12; shift <= 24; shift++ {
		for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
			t.Run(fmt.Sprintf("v%d %d KiB", version, 1<<shift>>10), func(t *testing.T) {
				t.Parallel()
				size := int64(1) << shift
				tree := testimage.NewTree()
				sizes := []int64{size + 1}
				if size <= 1<<20 {
					sizes = []int64{1, size - 1, size, size + 1}
				}
				for i, n := range sizes {
					tree.FileOf(fmt.Sprintf("/pattern/%d", i), testimage.Pattern(n, uint64(i)))
				}
				tree.FileOf("/zeros", testimage.Zeros(2*size+5))
				tree.FileOf("/random", testimage.Random(min(size, 3<<20), 1))
				opt := testimage.Options{Version: version, ChunkSize: uint32(size)}
				if size <= 1<<20 { // compressing more takes long under the race detector
					opt.Compressor = testimage.LZ4
				}
				img := write(t, tree, opt)
				m := check(t, img)
				if got := len(m.byPath["/zeros"].chunks); got != 3 {
					t.Errorf("/zeros has %d chunks, want 3", got)
				}
			})
		}
	}
}

func TestTreesWithoutData(t *testing.T) {
	for name, build := range map[string]func(*testimage.Tree){
		"nothing":     func(*testimage.Tree) {},
		"empty files": func(tree *testimage.Tree) { tree.File("/a/empty", nil); tree.Symlink("/b", "a") },
	} {
		for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
			t.Run(fmt.Sprintf("v%d %s", version, name), func(t *testing.T) {
				tree := testimage.NewTree()
				build(tree)
				img := write(t, tree, testimage.Options{Version: version})
				if m := check(t, img); len(m.blobs) != 0 {
					t.Errorf("%d blobs, want none", len(m.blobs))
				}
				if img.Layout.Size <= 8192 && version == testimage.V5 {
					t.Errorf("bootstrap of %d bytes: a reader wants more than a superblock", img.Layout.Size)
				}
			})
		}
	}
}

// TestSameBytes writes one tree twice, the second time with its files added in
// another order.
func TestSameBytes(t *testing.T) {
	build := func(shuffle bool) *testimage.Tree {
		tree := testimage.NewTree()
		order := rand.Perm(60)
		for i := range 60 {
			nr := i
			if shuffle {
				nr = order[i]
			}
			attrs := []testimage.Attr{testimage.Xattr("user.b", "2"), testimage.Xattr("user.a", "1")}
			if shuffle {
				slices.Reverse(attrs)
			}
			tree.FileOf(fmt.Sprintf("/d%d/%d", nr%7, nr), testimage.Pattern(int64(nr*1000), uint64(nr/2)), attrs...)
		}
		return tree
	}
	for _, name := range []string{"v6 lz4 compact", "v6 zstd sha256 4 KiB", "v6 seven blobs", "v5 gzip sha256", "v5 five blobs", "v5 before 1.1"} {
		opt := shapes[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := write(t, build(false), opt), write(t, build(true), opt)
			x, errX := os.ReadFile(a.Bootstrap)
			y, errY := os.ReadFile(b.Bootstrap)
			if errX != nil || errY != nil || !bytes.Equal(x, y) { // names blobs by their sums
				t.Errorf("bootstraps differ from byte %d on (%v, %v)", firstDifference(x, y), errX, errY)
			}
		})
	}
}

func TestPrefetchedDataComesFirst(t *testing.T) {
	tree := testimage.NewTree()
	for _, path := range []string{"/a", "/b/sub/deep", "/b/z", "/c"} {
		tree.File(path, []byte(path))
	}
	img := write(t, tree, testimage.Options{Prefetch: []string{"/c", "/b"}})
	blob, err := os.ReadFile(img.Blobs[0].Path)
	if want := "/c" + "/b/z" + "/b/sub/deep" + "/a"; err != nil || !strings.HasPrefix(string(blob), want) {
		t.Errorf("blob starts with %q, %v, want %q", blob[:min(len(blob), 20)], err, want)
	}
}

// TestFileOfSeveralBlobs has a file whose chunks follow each other in the
// addresses of different blobs, which does not make it contiguous.
func TestFileOfSeveralBlobs(t *testing.T) {
	const size = 1 << 12
	x, y, z := bytes.Repeat([]byte("x"), size), bytes.Repeat([]byte("y"), size), bytes.Repeat([]byte("z"), size)
	tree := testimage.NewTree()
	tree.File("/1", x)                   // blob 0 at 0
	tree.File("/2", slices.Concat(z, y)) // blob 1 at 0 and 4096
	tree.File("/3", slices.Concat(x, y))
	m := check(t, write(t, tree, testimage.Options{ChunkSize: size, Blobs: 2}))
	if c := m.byPath["/3"].chunks; c[0].blob != 0 || c[1].blob != 1 || c[0].uoff+size != c[1].uoff {
		t.Fatalf("chunks %+v: this test needs another tree", c)
	}
	if one, two := m.byPath["/3"].union, m.byPath["/2"].union; one != 0x20 || two != 0x21 {
		t.Errorf("chunk formats %#x and %#x, want 0x20 and 0x21", one, two)
	}
}

// TestFromDir takes a host directory as a tree.
func TestFromDir(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "sub/empty"), 0o755),
		os.WriteFile(filepath.Join(dir, "sub/file"), bytes.Repeat([]byte("content"), 5000), 0o640),
		os.WriteFile(filepath.Join(dir, "none"), nil, 0o600),
		os.Link(filepath.Join(dir, "sub/file"), filepath.Join(dir, "another name")),
		os.Symlink("sub/file", filepath.Join(dir, "link")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o622),
		os.Chtimes(filepath.Join(dir, "none"), time.Time{}, time.Unix(-7, 5)),
		os.Chmod(filepath.Join(dir, "sub"), 0o1711),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tree, err := testimage.FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := hostManifest(t, dir)
	want[0].Mtime = manifest.Time{} // the root's
	for _, version := range []testimage.Version{testimage.V5, testimage.V6} {
		img := write(t, tree, testimage.Options{Version: version, ChunkSize: 1 << 12, Compressor: testimage.Zstd})
		check(t, img)
		if d := manifest.Compare(imageManifest(t, img), want, manifest.Options{}); !d.Equal() {
			t.Errorf("v%d of a host directory:\n%v", version, d)
		}
	}
	if _, err := testimage.FromDir(filepath.Join(dir, "none")); err == nil {
		t.Error("FromDir of a file: no error")
	}
}

// TestGoErofs walks v6 images with an independent EROFS reader.
func TestGoErofs(t *testing.T) {
	for _, name := range []string{"v6 lz4 compact", "v6 seven blobs"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := write(t, testimage.Sample(), shapes[name])
			paths, err := img.WriteUncompressed(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			boot, err := os.Open(img.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			defer boot.Close()
			var devices []io.ReaderAt
			for _, p := range paths {
				f, err := os.Open(p)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				devices = append(devices, f)
			}
			fsys, err := erofs.Open(boot, erofs.WithExtraDevices(devices...))
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]manifest.Entry{}
			for _, e := range imageManifest(t, img) {
				want[e.Path] = e
			}
			var walk func(path string)
			walk = func(path string) {
				e, ok := want["/"+strings.TrimPrefix(path, ".")]
				if !ok {
					t.Errorf("%q is not in the tree", path)
					return
				}
				delete(want, e.Path)
				info, err := fs.Stat(fsys, path)
				if e.Type == manifest.Symlink {
					info, err = fs.Lstat(fsys, path)
				}
				if err != nil {
					t.Errorf("%q: %v", path, err)
					return
				}
				st := info.Sys().(*erofs.Stat)
				if st.UID != e.UID || st.GID != e.GID || st.Mtime != uint64(e.Mtime.Sec) || st.MtimeNs != e.Mtime.Nsec ||
					e.Type != manifest.Directory && (st.Nlink != int(e.Nlink) || e.Type != manifest.CharDevice && e.Type != manifest.BlockDevice && st.Size != int64(e.Size)) {
					t.Errorf("%q: %+v, want %+v", path, st, e)
				}
				if info.Mode().Perm() != fs.FileMode(e.Mode)&0o777 {
					t.Errorf("%q: mode %v, want %#o", path, info.Mode(), e.Mode)
				}
				if len(st.Xattrs) != len(e.Xattrs) {
					t.Errorf("%q: %d xattrs, want %d", path, len(st.Xattrs), len(e.Xattrs))
				}
				for _, x := range e.Xattrs {
					if got := st.Xattrs[x.Name]; got != x.Value {
						t.Errorf("%q: xattr %q is %q, want %q", path, x.Name, got, x.Value)
					}
				}
				switch e.Type {
				case manifest.Regular:
					if data, err := fs.ReadFile(fsys, path); err != nil || sha256.Sum256(data) != e.SHA256 {
						t.Errorf("%q: %d bytes of other content, %v", path, len(data), err)
					}
				case manifest.Symlink:
					if got, err := fs.ReadLink(fsys, path); err != nil || got != e.Target {
						t.Errorf("%q: target %q, %v, want %q", path, got, err, e.Target)
					}
				case manifest.Directory:
					entries, err := fs.ReadDir(fsys, path)
					if err != nil {
						t.Errorf("%q: %v", path, err)
					}
					for _, d := range entries {
						walk(strings.TrimPrefix(path+"/"+d.Name(), "./"))
					}
				}
			}
			walk(".")
			for path := range want {
				t.Errorf("%q was not found", path)
			}
		})
	}
}

// TestFsck asks Debian's fsck.erofs, where it is installed.
func TestFsck(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("SKIPPED, NOT ASKED: fsck.erofs (erofs-utils) is not installed")
	}
	img := write(t, testimage.Sample(), testimage.Options{Compressor: testimage.Zstd, ChunkSize: 1 << 16, Blobs: 3})
	devices, err := img.WriteUncompressed(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "tree")
	args := []string{"--extract=" + out, "--preserve"}
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	if text, err := exec.Command(fsck, append(args, img.Bootstrap)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	// It keeps neither hard links nor xattrs nor the times of directories, and
	// its chown takes the set-id bits away again.
	got, want := hostManifest(t, out), imageManifest(t, img)
	for _, entries := range [][]manifest.Entry{got, want} {
		for i := range entries {
			entries[i].Mode &^= 0o6000
		}
	}
	ignore := manifest.Options{Ignore: []string{"nlink", "hardlink", "xattrs", "mtime"}}
	if d := manifest.Compare(got, want, ignore); !d.Equal() {
		t.Errorf("fsck.erofs extracts another tree:\n%v", d)
	}
}

func TestMistakesInTrees(t *testing.T) {
	for name, tt := range map[string]struct {
		build func(*testimage.Tree)
		want  string
	}{
		"same name twice":        {func(tr *testimage.Tree) { tr.File("/a", nil); tr.Fifo("/a") }, "exists"},
		"file as directory":      {func(tr *testimage.Tree) { tr.File("/a", nil); tr.File("/a/b", nil) }, "not a directory"},
		"directory over file":    {func(tr *testimage.Tree) { tr.File("/a", nil); tr.Dir("/a") }, "not a directory"},
		"name of 256 bytes":      {func(tr *testimage.Tree) { tr.File("/"+strings.Repeat("x", 256), nil) }, "256 bytes"},
		"NUL in a parent's name": {func(tr *testimage.Tree) { tr.File("/x\x00y/z", nil) }, "NUL"},
		"dot dot":                {func(tr *testimage.Tree) { tr.File("/a/../b", nil) }, "no file name"},
		"no name":                {func(tr *testimage.Tree) { tr.File("/", nil) }, "no file name"},
		"link to nothing":        {func(tr *testimage.Tree) { tr.Link("/b", "/a") }, "not exist"},
		"link to a directory":    {func(tr *testimage.Tree) { tr.Dir("/a"); tr.Link("/b", "/a") }, "not a regular file"},
		"link to a symlink":      {func(tr *testimage.Tree) { tr.Symlink("/a", "x"); tr.Link("/b", "/a") }, "not a regular file"},
		"empty target":           {func(tr *testimage.Tree) { tr.Symlink("/a", "") }, "target"},
		"xattr of no namespace":  {func(tr *testimage.Tree) { tr.File("/a", nil, testimage.Xattr("btrfs.x", "")) }, "xattr"},
		"xattr without suffix":   {func(tr *testimage.Tree) { tr.File("/a", nil, testimage.Xattr("user.", "")) }, "xattr"},
		"ACL with suffix":        {func(tr *testimage.Tree) { tr.File("/a", nil, testimage.Xattr("system.posix_acl_access.x", "")) }, "xattr"},
		"xattr twice": {func(tr *testimage.Tree) {
			tr.File("/a", nil, testimage.Xattr("user.x", ""), testimage.Xattr("user.x", "y"))
		}, "twice"},
		"xattr of 64 KiB":     {func(tr *testimage.Tree) { tr.File("/a", nil, testimage.Xattr("user.x", strings.Repeat("x", 65536))) }, "65536 bytes"},
		"wide device":         {func(tr *testimage.Tree) { tr.Device("/a", true, 4096, 0) }, "12:20"},
		"type bits in a mode": {func(tr *testimage.Tree) { tr.File("/a", nil, testimage.Mode(0o100644)) }, "mode"},
		"long v6 symlink":     {func(tr *testimage.Tree) { tr.Symlink("/a", strings.Repeat("x", 4097)) }, "4097 bytes"},
		"short content":       {func(tr *testimage.Tree) { tr.FileOf("/a", tooShort{}) }, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := testimage.NewTree()
			tt.build(tree)
			dir := t.TempDir()
			if _, err := tree.Write(dir, testimage.Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Write: %v, want an error with %q", err, tt.want)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "blobs", ".*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// tooShort is content that has less than it says.
type tooShort struct{}

func (tooShort) Size() int64 { return 100 }
func (tooShort) ReadAt(p []byte, off int64) (int, error) {
	return testimage.Zeros(50).ReadAt(p, off)
}

func TestMistakesInOptions(t *testing.T) {
	for name, opt := range map[string]testimage.Options{
		"version":             {Version: 4},
		"odd chunk size":      {ChunkSize: 3 << 12},
		"small chunk size":    {ChunkSize: 1 << 11},
		"large chunk size":    {ChunkSize: 1 << 25},
		"v6 blobs":            {Blobs: 255},
		"v5 blobs":            {Version: 5, Blobs: 257},
		"negative blobs":      {Blobs: -1},
		"compressor":          {Compressor: 4},
		"digest":              {Digest: 2},
		"compact v5":          {Version: 5, Compact: true},
		"aligned v6":          {Aligned: true},
		"old flags v6":        {OldFlags: true, Compressor: testimage.LZ4},
		"old flags with zstd": {Version: 5, OldFlags: true, Compressor: testimage.Zstd},
		"prefetch of nothing": {Prefetch: []string{"/no/such"}},
	} {
		if _, err := testimage.NewTree().Write(t.TempDir(), opt); err == nil {
			t.Errorf("%s: Write(%+v): no error", name, opt)
		}
	}
}
