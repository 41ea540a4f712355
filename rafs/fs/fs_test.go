package fs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/blobstore"
	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/fs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/open"
)

// served mounts a variant of the corpus.
func served(t testing.TB, variant string, o fs.Options) (*fs.FS, []*fakeBlob) {
	t.Helper()
	dir := corpus.Dir(t)
	return mount(t, rafstest.Bootstrap(t, dir, variant), filepath.Join(dir, "images", variant, "blobs"), o)
}

func blockingOp() *fuseproto.Op { return fuseproto.NewOp(context.Background()) }

// listed is one record of a READDIR or READDIRPLUS reply.
type listed struct {
	name string
	ino  uint64
	off  uint64
	typ  uint32
	node uint64 // of READDIRPLUS
}

// list asks once for a part of a directory.
func list(f *fs.FS, dir, off uint64, size int, plus bool) ([]listed, error) {
	buf := make([]byte, size)
	w := fuseproto.NewDirWriter(buf, plus)
	if err := f.ReadDir(new(fuseproto.Op), dir, &fuseproto.ReadIn{Offset: off, Size: uint32(size)}, w); err != nil {
		return nil, err
	}
	var all []listed
	for b := buf[:w.Len()]; len(b) > 0; {
		var l listed
		head := 0
		if plus {
			l.node = binary.LittleEndian.Uint64(b)
			head = 128
		}
		d := b[head:]
		l.ino, l.off = binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
		n := int(binary.LittleEndian.Uint32(d[16:]))
		l.typ = binary.LittleEndian.Uint32(d[20:])
		l.name = string(d[24 : 24+n])
		all = append(all, l)
		b = b[head+(24+n+7)&^7:]
	}
	return all, nil
}

// listAll lists a directory to its end, in replies of that size.
func listAll(f *fs.FS, dir uint64, size int, plus bool) (all []listed, err error) {
	for off := uint64(0); ; {
		part, err := list(f, dir, off, size, plus)
		if err != nil || len(part) == 0 {
			return all, err
		}
		all = append(all, part...)
		off = part[len(part)-1].off
	}
}

// readAll reads a file as a guest does, size bytes at a time.
func readAll(f *fs.FS, node, length uint64, size int) ([]byte, error) {
	var all []byte
	buf := make([]byte, size)
	for {
		out := fuseproto.NewOut(buf[:size/3], buf[size/3:])
		if err := f.Read(blockingOp(), node, &fuseproto.ReadIn{Offset: uint64(len(all)), Size: uint32(size)}, out); err != nil {
			return nil, err
		}
		all = append(all, buf[:out.Len()]...)
		if out.Len() < size {
			return all, nil
		}
		if uint64(len(all)) > length {
			return nil, fmt.Errorf("more than %d bytes", length)
		}
	}
}

// tree lists what a guest sees, by requests alone.
func tree(t *testing.T, f *fs.FS, replySize int) []manifest.Entry {
	t.Helper()
	var all manifest.Collector
	var walk func(path string, node uint64)
	walk = func(path string, node uint64) {
		entries, err := listAll(f, node, replySize, len(path)%2 == 0)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if len(entries) < 2 || entries[0].name != "." || entries[0].ino != node || entries[1].name != ".." {
			t.Fatalf("%s begins with %+v", path, entries[:min(2, len(entries))])
		}
		for _, e := range entries[2:] {
			var found fuseproto.Entry
			if err := f.Lookup(blockingOp(), node, []byte(e.name), &found); err != nil || found.Node == 0 {
				t.Fatalf("%s/%s: %v, node %d", path, e.name, err, found.Node)
			}
			if found.Node != e.ino || found.Attr.Ino != e.ino || found.Attr.Mode>>12 != e.typ || e.node != 0 && e.node != e.ino {
				t.Fatalf("%s/%s: listed as %+v, found as %+v", path, e.name, e, found)
			}
			if found.AttrTimeout != fuseproto.Forever || found.EntryTimeout != fuseproto.Forever {
				t.Fatalf("%s/%s: timeouts %v and %v", path, e.name, found.AttrTimeout, found.EntryTimeout)
			}
			child := path + "/" + e.name
			all.Add(entry(t, f, child, &found.Attr), manifest.InodeKey{Ino: found.Node})
			if found.Attr.Mode&rafs.ModeType == rafs.ModeDir {
				walk(child, found.Node)
			}
		}
	}
	var root fuseproto.AttrOut
	if err := f.GetAttr(blockingOp(), f.Root(), nil, &root); err != nil {
		t.Fatal(err)
	}
	all.Add(entry(t, f, "/", &root.Attr), manifest.InodeKey{Ino: f.Root()})
	walk("", f.Root())
	return all.Entries()
}

func entry(t *testing.T, f *fs.FS, path string, a *fuseproto.Attr) manifest.Entry {
	t.Helper()
	typ, ok := manifest.TypeOfMode(a.Mode)
	if !ok {
		t.Fatalf("%s: mode %#o", path, a.Mode)
	}
	if a.Atime != a.Mtime || a.Ctime != a.Mtime || a.Blksize != 4096 {
		t.Fatalf("%s: attributes %+v", path, a)
	}
	e := manifest.Entry{
		Path: path, Type: typ, Mode: uint16(a.Mode & 0o7777), UID: a.UID, GID: a.GID, Size: a.Size,
		Major: a.Rdev >> 8 & 0xFFF, Minor: a.Rdev&0xFF | a.Rdev>>12&0xFFF00,
		Nlink: uint64(a.Nlink), Mtime: manifest.Time{Sec: a.Mtime, Nsec: a.MtimeNsec},
	}
	buf := make([]byte, 70<<10)
	out := fuseproto.NewOut(buf)
	if err := f.ListXattr(blockingOp(), a.Ino, out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, name := range strings.FieldsFunc(string(buf[:out.Len()]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 70<<10)
		out := fuseproto.NewOut(value)
		if err := f.GetXattr(blockingOp(), a.Ino, []byte(name), out); err != nil {
			t.Fatalf("%s: xattr %q: %v", path, name, err)
		}
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: string(value[:out.Len()])})
	}
	e.SortXattrs()
	switch typ {
	case manifest.Symlink:
		out := fuseproto.NewOut(buf)
		if err := f.Readlink(blockingOp(), a.Ino, out); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		e.Target = string(buf[:out.Len()])
	case manifest.Regular:
		data, err := readAll(f, a.Ino, a.Size, 128<<10)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		e.SHA256 = sha256.Sum256(data)
	}
	return e
}

// TestTree compares what requests alone show of whole images with the truth.
func TestTree(t *testing.T) {
	dir := corpus.Dir(t)
	for variant, size := range map[string]int{
		"v5-dir-zstd-sha256-edge":  4096,
		"v6-dir-zstd-blake3-edge":  32 << 10,
		"v6-dir-zstd-4k-small":     4096,
		"v5-dir-zstd-4k-small":     32 << 10,
		"v5-merge3-lz4-oci":        4096,
		"v6-merge3-lz4-4k-oci":     32 << 10,
		"v5-dir-zstd-inline-small": 32 << 10,
	} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			want, err := manifest.ReadFile(rafstest.Variants(t, dir)[variant])
			if err != nil {
				t.Fatal(err)
			}
			f, blobs := served(t, variant, fs.Options{})
			got := tree(t, f, size)
			if diff := manifest.Compare(got, want, manifest.Options{MountTimes: manifest.MountTimesEpoch}); !diff.Equal() {
				t.Errorf("replies of %d bytes:\n%s", size, diff)
			}
			if len(blobs) == 0 || len(blobs[0].fetches) == 0 {
				t.Error("nothing was fetched")
			}
		})
	}
}

// TestOwnersOfAnImageWithoutOwners: they are the server's, or what was set.
func TestOwnersOfAnImageWithoutOwners(t *testing.T) {
	for name, tt := range map[string]struct {
		o        fs.Options
		uid, gid uint32
	}{
		"of the process": {fs.Options{}, uint32(os.Geteuid()), uint32(os.Getegid())},
		"as set":         {fs.Options{OwnerSet: true, UID: 7, GID: 8}, 7, 8},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := served(t, "v6-dir-zstd-repeatable-small", tt.o)
			var out fuseproto.AttrOut
			if err := f.GetAttr(blockingOp(), f.Root(), nil, &out); err != nil {
				t.Fatal(err)
			}
			if out.Attr.UID != tt.uid || out.Attr.GID != tt.gid {
				t.Errorf("root belongs to %d:%d, want %d:%d", out.Attr.UID, out.Attr.GID, tt.uid, tt.gid)
			}
		})
	}
}

// TestReadDirResumes: behind every entry, in both forms, with replies of any
// size, a listing goes on with exactly the rest.
func TestReadDirResumes(t *testing.T) {
	for _, variant := range []string{"v5-dir-zstd-sha256-edge", "v6-dir-zstd-blake3-edge"} {
		t.Run(variant, func(t *testing.T) {
			f, _ := served(t, variant, fs.Options{})
			big := f.Root()
			entries, err := listAll(f, big, 1<<20, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries[2:] { // the root, and its largest child
				if e.typ != rafs.ModeDir>>12 {
					continue
				}
				if sub, err := listAll(f, e.ino, 1<<20, false); err != nil {
					t.Fatal(err)
				} else if len(sub) > len(entries) {
					big, entries = e.ino, sub
				}
			}
			if len(entries) < 3000 {
				t.Fatalf("the largest directory has %d entries, want one of 3000", len(entries))
			}
			offs := map[uint64]bool{}
			for i, e := range entries {
				if e.off == 0 || e.off >= 1<<31 || offs[e.off] {
					t.Fatalf("entry %d has the cookie %d", i, e.off)
				}
				offs[e.off] = true
				if i%197 != 0 && i > 4 && i < len(entries)-2 {
					continue
				}
				plus := i%2 == 0
				rest, err := listAll(f, big, 500+i, plus)
				if err != nil || len(rest) != len(entries) {
					t.Fatalf("replies of %d bytes: %d entries, %v, want %d", 500+i, len(rest), err, len(entries))
				}
				part, err := list(f, big, e.off, 1<<20, plus)
				if err != nil || len(part) != len(entries)-i-1 {
					t.Fatalf("behind entry %d: %d entries, %v, want %d", i, len(part), err, len(entries)-i-1)
				}
				for k := range part {
					if part[k].name != entries[i+1+k].name || part[k].off != entries[i+1+k].off {
						t.Fatalf("behind entry %d: %+v, want %+v", i, part[k], entries[i+1+k])
					}
				}
			}
			if !slices.IsSortedFunc(entries[2:], func(a, b listed) int { return strings.Compare(a.name, b.name) }) {
				t.Error("names are not in order")
			}
			// A reply with no room for one entry is empty, never a part of one.
			if part, err := list(f, big, 0, 31, false); err != nil || len(part) != 0 {
				t.Errorf("31 bytes hold %v, %v", part, err)
			}
		})
	}
}

func find(t testing.TB, f *fs.FS, path string) *fuseproto.Entry {
	t.Helper()
	node := f.Root()
	var e fuseproto.Entry
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		if err := f.Lookup(blockingOp(), node, []byte(name), &e); err != nil || e.Node == 0 {
			t.Fatalf("%s: %q: node %d, %v", path, name, e.Node, err)
		}
		node = e.Node
	}
	return &e
}

// bySize returns the path of the smallest regular file of at least n bytes.
func bySize(t testing.TB, f *fs.FS, n uint64) (path string, attr rafs.Attr) {
	t.Helper()
	attr.Size = math.MaxUint64
	if err := rafs.Walk(f.Image(), func(w *rafs.WalkEntry) error {
		if w.Err == nil && w.Attr.Mode&rafs.ModeType == rafs.ModeRegular && w.Attr.Size >= n && w.Attr.Size < attr.Size {
			path, attr = string(w.Path), w.Attr
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if path == "" {
		t.Fatalf("no file of %d bytes", n)
	}
	return path, attr
}

func TestLookup(t *testing.T) {
	for _, variant := range []string{"v5-dir-zstd-blake3-small", "v6-dir-zstd-blake3-small"} {
		t.Run(variant, func(t *testing.T) {
			f, _ := served(t, variant, fs.Options{})
			path, attr := bySize(t, f, 1)
			dir := f.Root()
			if i := strings.LastIndexByte(path, '/'); i > 0 {
				dir = find(t, f, path[:i]).Node
			}
			parent, err := f.Image().Parent(dir)
			if err != nil {
				t.Fatal(err)
			}
			tests := map[string]struct {
				dir  uint64
				name string
				node uint64
				err  error
			}{
				"found":               {dir, path[strings.LastIndexByte(path, '/')+1:], attr.Ino, nil},
				"absent":              {dir, "no such name", 0, nil},
				"absent, first":       {dir, "\x01", 0, nil},
				"absent, last":        {dir, "\xff\xff", 0, nil},
				"longest name":        {dir, strings.Repeat("n", 255), 0, nil},
				"itself":              {dir, ".", dir, nil},
				"a file itself":       {attr.Ino, ".", attr.Ino, nil},
				"parent":              {dir, "..", parent, nil},
				"parent of the root":  {f.Root(), "..", f.Root(), nil},
				"parent of a file":    {attr.Ino, "..", 0, syscall.ENOTDIR},
				"below a file":        {attr.Ino, "x", 0, syscall.ENOTDIR},
				"node 0":              {0, "x", 0, syscall.ESTALE},
				"node beyond the end": {1 << 40, "x", 0, syscall.ESTALE},
				"node of 64 bits":     {math.MaxUint64, ".", 0, syscall.ESTALE},
			}
			for name, tt := range tests {
				t.Run(name, func(t *testing.T) {
					e := fuseproto.Entry{Node: 99}
					err := f.Lookup(blockingOp(), tt.dir, []byte(tt.name), &e)
					if err != tt.err {
						t.Fatalf("Lookup(%d, %q) = %v, want %v", tt.dir, tt.name, err, tt.err)
					}
					if err == nil && (e.Node != tt.node || e.EntryTimeout != fuseproto.Forever) {
						t.Errorf("Lookup(%d, %q): node %d for %v, want %d", tt.dir, tt.name, e.Node, e.EntryTimeout, tt.node)
					}
				})
			}
		})
	}
}

func TestErrors(t *testing.T) {
	f, _ := served(t, "v6-dir-zstd-blake3-small", fs.Options{})
	_, file := bySize(t, f, 1)
	op, buf := blockingOp(), make([]byte, 4096)
	read := func(node uint64) error {
		return f.Read(op, node, &fuseproto.ReadIn{Size: 100}, fuseproto.NewOut(buf))
	}
	xattr := func(name string) error { return f.GetXattr(op, file.Ino, []byte(name), fuseproto.NewOut(buf)) }
	var attr fuseproto.AttrOut
	for name, tt := range map[string]struct{ got, want error }{
		"read a directory":        {read(f.Root()), syscall.EISDIR},
		"read a stale node":       {read(1 << 40), syscall.ESTALE},
		"readlink of a directory": {f.Readlink(op, f.Root(), fuseproto.NewOut(buf)), syscall.EINVAL},
		"readlink of a file":      {f.Readlink(op, file.Ino, fuseproto.NewOut(buf)), syscall.EINVAL},
		"absent xattr":            {xattr("user.absent"), syscall.ENODATA},
		"xattr without a prefix":  {xattr("absent"), syscall.ENODATA},
		"attributes of node 0":    {f.GetAttr(op, 0, nil, &attr), syscall.ESTALE},
		"list a file":             {f.ReadDir(op, file.Ino, &fuseproto.ReadIn{}, fuseproto.NewDirWriter(buf, false)), syscall.ENOTDIR},
		"write": {func() error {
			_, err := f.Write(op, file.Ino, &fuseproto.WriteIn{}, fuseproto.Payload{})
			return err
		}(), syscall.EROFS},
		"unlink":           {f.Unlink(op, f.Root(), []byte("x")), syscall.EROFS},
		"open for writing": {f.Open(op, file.Ino, &fuseproto.OpenIn{Flags: 2}, new(fuseproto.OpenOut)), syscall.EROFS},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %v, want %v", name, tt.got, tt.want)
		}
	}
	var st fuseproto.StatFSOut
	if err := f.StatFS(op, f.Root(), &st); err != nil || st.Files != 264 || st.Bsize != 512 || st.Frsize != 512 || st.Namelen != 255 || st.Blocks != 0 {
		t.Errorf("StatFS = %+v, %v", st, err)
	}
}

// TestXattrsAreHiddenWhereTheImageHasNone: neither the superblock nor the
// configuration speaks of attributes.
func TestXattrsAreHiddenWhereTheImageHasNone(t *testing.T) {
	for _, enable := range []bool{false, true} {
		f, _ := served(t, "v6-dir-zstd-16k-dict", fs.Options{EnableXattr: enable})
		out := fuseproto.NewOut(make([]byte, 100))
		if err := f.ListXattr(blockingOp(), f.Root(), out); err != nil || out.Len() != 0 {
			t.Errorf("ListXattr = %d bytes, %v, want none", out.Len(), err)
		}
		if err := f.GetXattr(blockingOp(), f.Root(), []byte("user.x"), out); err != syscall.ENODATA {
			t.Errorf("GetXattr = %v, want ENODATA", err)
		}
	}
}

// TestReadWaitsOnlyWhereItMay: without leave to block a read of what is missing
// writes nothing and fetches nothing; what is missing and adjacent is fetched
// together, once.
func TestReadWaitsOnlyWhereItMay(t *testing.T) {
	for _, variant := range []string{"v5-dir-zstd-4k-small", "v6-dir-zstd-4k-small"} {
		t.Run(variant, func(t *testing.T) {
			f, blobs := served(t, variant, fs.Options{})
			_, attr := bySize(t, f, 40<<10)
			buf := make([]byte, attr.Size+100)
			in := &fuseproto.ReadIn{Size: uint32(len(buf))}
			for range 2 { // before and after the index of chunks was made
				out := fuseproto.NewOut(buf)
				if err := f.Read(new(fuseproto.Op), attr.Ino, in, out); err != fuseproto.ErrWouldBlock || out.Len() != 0 {
					t.Fatalf("read of missing chunks = %v, %d bytes, want ErrWouldBlock", err, out.Len())
				}
				if _, err := f.Image().ChunkCount(0); err != nil {
					t.Fatal(err)
				}
			}
			if len(blobs[0].fetches) != 0 {
				t.Fatalf("fetched %v without leave to block", blobs[0].fetches)
			}
			first, err := readAll(f, attr.Ino, attr.Size, len(buf))
			if err != nil {
				t.Fatal(err)
			}
			fetches := len(blobs[0].fetches)
			var chunks uint32
			for _, f := range blobs[0].fetches {
				chunks += f[1] - f[0] + 1
			}
			if fetches == 0 || uint32(fetches) >= chunks {
				t.Errorf("%d chunks in %d fetches %v, want adjacent ones together", chunks, fetches, blobs[0].fetches)
			}
			out := fuseproto.NewOut(buf)
			if err := f.Read(new(fuseproto.Op), attr.Ino, in, out); err != nil || !bytes.Equal(buf[:out.Len()], first) {
				t.Errorf("read of what is ready = %v, %d bytes, want %d", err, out.Len(), len(first))
			}
			if len(blobs[0].fetches) != fetches {
				t.Error("what was ready was fetched again")
			}
		})
	}
}

func TestReadRanges(t *testing.T) {
	for _, variant := range []string{"v5-dir-zstd-4k-small", "v6-dir-zstd-4k-small"} {
		t.Run(variant, func(t *testing.T) {
			f, _ := served(t, variant, fs.Options{})
			_, attr := bySize(t, f, 20<<10)
			whole, err := readAll(f, attr.Ino, attr.Size, 128<<10)
			if err != nil || uint64(len(whole)) != attr.Size {
				t.Fatalf("%d bytes, %v", len(whole), err)
			}
			for name, tt := range map[string]struct {
				off  uint64
				size uint32
				room int
			}{
				"nothing":              {5, 0, 100},
				"one byte":             {4095, 1, 100},
				"across a chunk":       {4090, 20, 100},
				"whole chunks":         {4096, 8192, 8192},
				"more than the room":   {100, 1 << 20, 5000},
				"across the end":       {attr.Size - 3, 100, 100},
				"at the end":           {attr.Size, 100, 100},
				"behind the end":       {attr.Size + 1, 100, 100},
				"far behind the end":   {math.MaxInt64, 100, 100},
				"largest offset":       {math.MaxUint64, math.MaxUint32, 100},
				"largest size at zero": {0, math.MaxUint32, 3 * len(whole)},
			} {
				buf := make([]byte, tt.room)
				out := fuseproto.NewOut(buf)
				if err := f.Read(blockingOp(), attr.Ino, &fuseproto.ReadIn{Offset: tt.off, Size: tt.size}, out); err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				start := min(tt.off, attr.Size)
				want := whole[start:][:min(uint64(tt.size), uint64(tt.room), attr.Size-start)]
				if !bytes.Equal(buf[:out.Len()], want) {
					t.Errorf("%s: %d bytes, want %d", name, out.Len(), len(want))
				}
			}
		})
	}
}

// TestFetchErrorNamesTheFile: the chunk's error passes, and the next read tries
// again.
func TestFetchErrorNamesTheFile(t *testing.T) {
	f, blobs := served(t, "v6-dir-zstd-blake3-small", fs.Options{})
	_, attr := bySize(t, f, 1)
	cause := &blobstore.ChunkError{Op: "verify", Blob: "b", Off: 1, Len: 2, Err: blobstore.ErrDigestMismatch}
	blobs[0].fail = cause
	err := f.Read(blockingOp(), attr.Ino, &fuseproto.ReadIn{Size: 10}, fuseproto.NewOut(make([]byte, 10)))
	var chunk *blobstore.ChunkError
	if !errors.As(err, &chunk) || !strings.Contains(err.Error(), fmt.Sprint("inode ", attr.Ino)) {
		t.Errorf("read = %v, want the chunk's error with the inode", err)
	}
	if err := f.Read(blockingOp(), attr.Ino, &fuseproto.ReadIn{Size: 10}, fuseproto.NewOut(make([]byte, 10))); err != nil {
		t.Errorf("second read = %v", err)
	}
}

// TestUnmappedChunks are read by ReadAt; chunks that never stay are an error.
func TestUnmappedChunks(t *testing.T) {
	f, blobs := served(t, "v6-dir-zstd-blake3-small", fs.Options{})
	_, attr := bySize(t, f, 1)
	want, err := readAll(f, attr.Ino, attr.Size, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	blobs[0].unmapped = true
	if got, err := readAll(f, attr.Ino, attr.Size, 64<<10); err != nil || !bytes.Equal(got, want) {
		t.Errorf("unmapped: %d bytes, %v, want %d", len(got), err, len(want))
	}
	blobs[0].forgets = true
	if _, err := readAll(f, attr.Ino, attr.Size, 64<<10); err == nil || !strings.Contains(err.Error(), "fetched 3 times") {
		t.Errorf("chunks that do not stay: %v", err)
	}
}

// TestCacheFileShrinks: a fault while a chunk is copied is an error of that read
// and drops the chunk; a fault of the reply's memory is the transport's.
func TestCacheFileShrinks(t *testing.T) {
	f, blobs := served(t, "v6-dir-zstd-blake3-small", fs.Options{})
	_, attr := bySize(t, f, 1)
	want, err := readAll(f, attr.Ino, attr.Size, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(gone)
	b := blobs[0]
	var chunk uint32
	for chunk = range b.chunks {
		b.chunks[chunk] = gone
	}
	if _, err := readAll(f, attr.Ino, attr.Size, 64<<10); err == nil || !strings.Contains(err.Error(), "shrank") ||
		!strings.Contains(err.Error(), f.Image().Blobs()[0].ID) {
		t.Errorf("read of a file that shrank: %v", err)
	}
	if len(b.dropped) != 1 || b.dropped[0] != chunk {
		t.Errorf("dropped %v, want chunk %d", b.dropped, chunk)
	}
	if got, err := readAll(f, attr.Ino, attr.Size, 64<<10); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the next read: %d bytes, %v, want %d", len(got), err, len(want))
	}
	if panicked := func() (r any) {
		defer func() { r = recover() }()
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		f.Read(blockingOp(), attr.Ino, &fuseproto.ReadIn{Size: 10}, fuseproto.NewOut(gone))
		return nil
	}(); panicked == nil {
		t.Error("a fault of the reply's memory did not reach the transport")
	}
}

// TestDamagedImage: directories list what is sound and end in an error.
func TestDamagedImage(t *testing.T) {
	f, _ := served(t, rafstest.DamagedVariant, fs.Options{})
	entries, err := listAll(f, f.Root(), 4096, true)
	if !errors.Is(err, rafs.ErrDamaged) || len(entries) < 5 {
		t.Errorf("the root lists %d entries and ends with %v, want some and ErrDamaged", len(entries), err)
	}
	var e fuseproto.Entry
	if err := f.Lookup(blockingOp(), f.Root(), []byte("modes"), &e); !errors.Is(err, rafs.ErrDamaged) {
		t.Errorf("lookup of a damaged entry = %+v, %v, want ErrDamaged", e, err)
	}
	if err := f.Lookup(blockingOp(), f.Root(), []byte("aaaa"), &e); err != nil || e.Node != 0 {
		t.Errorf("lookup of an absent name before the damage = %+v, %v, want a negative entry", e, err)
	}
}

func TestNewClosesBlobsOnFailure(t *testing.T) {
	dir := corpus.Dir(t)
	img, err := open.Image(rafstest.Bootstrap(t, dir, "v6-merge3-zstd-oci"), open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	var opened []*fakeBlob
	f, err := fs.New(img, func(d blobstore.BlobDesc) (fs.Blob, error) {
		if len(opened) == 2 {
			return nil, errors.New("no room")
		}
		opened = append(opened, &fakeBlob{})
		return opened[len(opened)-1], nil
	}, fs.Options{})
	if err == nil || f != nil || !strings.Contains(err.Error(), "no room") {
		t.Fatalf("New = %v, %v", f, err)
	}
	for i, b := range opened {
		if !b.closed {
			t.Errorf("blob %d is still open", i)
		}
	}
}

// TestReadDirOfInventedCookies: a guest may seek to anywhere; in a sound directory
// that is never an error.
func TestReadDirOfInventedCookies(t *testing.T) {
	for _, variant := range []string{"v5-dir-zstd-sha256-small", "v6-dir-zstd-blake3-small"} {
		f, _ := served(t, variant, fs.Options{})
		for shift := range 64 {
			for _, cookie := range []uint64{1 << shift, 1<<shift - 1, 1<<shift | 1, ^uint64(0) << shift} {
				if _, err := list(f, f.Root(), cookie, 4096, shift%2 == 0); err != nil {
					t.Errorf("%s: cookie %#x: %v", variant, cookie, err)
				}
			}
		}
	}
}
