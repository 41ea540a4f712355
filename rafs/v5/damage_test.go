package v5_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rafsd/rafsd/internal/testimage"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/rafs/internal/rafstest"
	"github.com/rafsd/rafsd/rafs/v5"
)

// fixture is an image of two blobs and the places to damage it at.
type fixture struct {
	t   *testing.T
	img *testimage.Image
	b   []byte
}

// fixtureImage is written once: what follows only needs its layout.
var (
	fixtureOnce  sync.Once
	fixtureImage *testimage.Image
	fixtureBytes []byte
)

func newFixture(t *testing.T) *fixture {
	t.Helper()
	fixtureOnce.Do(func() { writeFixture(t) })
	if fixtureImage == nil {
		t.Fatal("there is no image to damage")
	}
	return &fixture{t, fixtureImage, bytes.Clone(fixtureBytes)}
}

func writeFixture(t *testing.T) {
	tree := testimage.NewTree()
	tree.File("/a", []byte("content of a"), testimage.Xattr("user.x", "value"), testimage.Xattr("user.y", "other"))
	tree.SizedFile("/d/b", 9000, 1)
	tree.SizedFile("/d/b2", 9000, 1) // the same chunks, other records
	tree.Dir("/d/e")
	tree.Symlink("/d/s", "target")
	tree.Link("/d/t", "/a")
	for i := range 20 {
		tree.File(fmt.Sprintf("/many/%02d", i), nil)
	}
	img, err := tree.Write(t.TempDir(), testimage.Options{Version: 5, ChunkSize: 4096, Blobs: 2, Prefetch: []string{"/d/b"}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(img.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Blobs) != 2 {
		t.Fatalf("%d blobs, want 2", len(img.Blobs))
	}
	fixtureImage, fixtureBytes = img, b
}

func (f *fixture) inode(path string) testimage.InodeLayout {
	f.t.Helper()
	l, err := f.img.Inode(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

func (f *fixture) at(path string) int64    { return f.inode(path).Record.Offset }
func (f *fixture) chunk(path string) int64 { return f.inode(path).Chunks.Offset }

// slot is where the inode table has a path.
func (f *fixture) slot(path string) int64 {
	return f.img.Layout.InodeTable.Offset + 4*int64(f.inode(path).Number-1)
}

func (f *fixture) put16(off int64, v uint16) { binary.LittleEndian.PutUint16(f.b[off:], v) }
func (f *fixture) put32(off int64, v uint32) { binary.LittleEndian.PutUint32(f.b[off:], v) }
func (f *fixture) put64(off int64, v uint64) { binary.LittleEndian.PutUint64(f.b[off:], v) }
func (f *fixture) get64(off int64) uint64    { return binary.LittleEndian.Uint64(f.b[off:]) }
func (f *fixture) get32(off int64) uint32    { return binary.LittleEndian.Uint32(f.b[off:]) }

// feature changes the features of a blob.
func (f *fixture) feature(i int64, set uint32) {
	at := f.img.Layout.ExtBlobTable.Offset + 64*i + 4
	f.put32(at, f.get32(at)|set)
}

// TestOpenRefuses damages what is checked when an image is opened.
func TestOpenRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(f *fixture)
		says   string
		is     error
	}{
		"magic":                   {func(f *fixture) { f.put32(0, 1) }, "", rafs.ErrNotRAFS},
		"version":                 {func(f *fixture) { f.put32(4, 0x600) }, "version 0x600", rafs.ErrUnsupported},
		"superblock size":         {func(f *fixture) { f.put32(8, 4096) }, "superblock of 4096", rafs.ErrDamaged},
		"chunk size 0":            {func(f *fixture) { f.put32(12, 0) }, "chunk size 0", rafs.ErrDamaged},
		"chunk size too big":      {func(f *fixture) { f.put32(12, 1<<25) }, "chunk size", rafs.ErrDamaged},
		"unknown flag":            {func(f *fixture) { f.put64(16, 1<<12) }, "flags 0x1000", rafs.ErrUnsupported},
		"tarfs":                   {func(f *fixture) { f.put64(16, rafs.FlagTarfs) }, "TARTFS", rafs.ErrUnsupported},
		"encrypted":               {func(f *fixture) { f.put64(16, rafs.FlagEncryptionAESXTS) }, "AES", rafs.ErrUnsupported},
		"too many inodes":         {func(f *fixture) { f.put64(24, 1<<20) }, "1048576 inodes", rafs.ErrDamaged},
		"inode table outside":     {func(f *fixture) { f.put64(32, 1<<63) }, "inode table", rafs.ErrDamaged},
		"inode table unaligned":   {func(f *fixture) { f.put64(32, f.get64(32)+4) }, "inode table", rafs.ErrDamaged},
		"inode table in front":    {func(f *fixture) { f.put64(32, 80) }, "inode table", rafs.ErrDamaged},
		"inode table too long":    {func(f *fixture) { f.put32(56, 1<<32-1) }, "inode table", rafs.ErrDamaged},
		"no inodes":               {func(f *fixture) { f.put64(24, 0); f.put32(56, 0) }, "no inodes", rafs.ErrDamaged},
		"prefetch table outside":  {func(f *fixture) { f.put32(60, 1<<32-1) }, "prefetch table", rafs.ErrDamaged},
		"blob table outside":      {func(f *fixture) { f.put32(64, 1<<31) }, "blob table", rafs.ErrDamaged},
		"ext table outside":       {func(f *fixture) { f.put32(68, 1<<30) }, "extended blob table", rafs.ErrDamaged},
		"ext table too short":     {func(f *fixture) { f.put32(68, 1) }, "1 entries, the blob table has more", rafs.ErrDamaged},
		"tables overlap":          {func(f *fixture) { f.put64(48, f.get64(32)) }, "overlap", rafs.ErrDamaged},
		"id leads out":            {func(f *fixture) { copy(f.b[f.img.Layout.BlobTable.Offset+8:], "../../etc/passwd\x00") }, "begins with a dot", rafs.ErrDamaged},
		"id without an end":       {func(f *fixture) { f.b[f.img.Layout.BlobTable.Offset+8+64] = 'a' }, "65 bytes", rafs.ErrDamaged},
		"one id twice":            {func(f *fixture) { f.same() }, "blobs 0 and 1", rafs.ErrDamaged},
		"encrypted blob":          {func(f *fixture) { f.feature(1, rafs.BlobEncrypted) }, "blob 1: feature ENCRYPTED", rafs.ErrUnsupported},
		"chunk count":             {func(f *fixture) { f.put32(f.img.Layout.ExtBlobTable.Offset, 1<<25) }, "chunks", rafs.ErrDamaged},
		"uncompressed size":       {func(f *fixture) { f.put64(f.img.Layout.ExtBlobTable.Offset+8, 1<<60) }, "bytes", rafs.ErrDamaged},
		"stored size":             {func(f *fixture) { f.put64(f.img.Layout.ExtBlobTable.Offset+16, 1<<60) }, "stored bytes", rafs.ErrDamaged},
		"no room for a header":    {func(f *fixture) { f.feature(0, rafs.BlobHasTarHeader); f.put64(f.img.Layout.ExtBlobTable.Offset+16, 1) }, "tar header", rafs.ErrDamaged},
		"root nowhere":            {func(f *fixture) { f.put32(f.slot("/"), 1<<29) }, "root inode", rafs.ErrDamaged},
		"root in the superblock":  {func(f *fixture) { f.put32(f.slot("/"), 100) }, "root inode", rafs.ErrDamaged},
		"root is a file":          {func(f *fixture) { f.put32(f.at("/")+60, 0o100644); f.put64(f.at("/")+64, 0); f.put32(f.at("/")+96, 0) }, "not a directory", rafs.ErrDamaged},
		"root has a parent":       {func(f *fixture) { f.put64(f.at("/")+32, 1) }, "its parent is 1", rafs.ErrDamaged},
		"root has another number": {func(f *fixture) { f.put64(f.at("/")+40, 2) }, "number 2", rafs.ErrDamaged},
		"prototype":               {func(f *fixture) { f.put32(f.at("/")+60, 0); f.put16(f.at("/")+100, 0) }, "pre-release", rafs.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			tt.damage(f)
			img, err := v5.Open(rafs.NewBootstrap("x", f.b))
			if img != nil || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Open = %v, %q, want %v saying %q", img, err, tt.is, tt.says)
			}
		})
	}
}

// same gives both blobs one id.
func (f *fixture) same() {
	table := f.img.Layout.BlobTable.Offset
	copy(f.b[table+8+64+1+8:][:64], f.b[table+8:][:64])
}

// TestCheckFinds damages what is checked at use: the image opens, Check names
// the damage, using everything breaks no promise, and where the damage is in a
// path, that path answers ErrDamaged.
func TestCheckFinds(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(f *fixture)
		says   string
		path   string // that cannot be looked up, listed, or read
	}{
		"prefetch":             {func(f *fixture) { f.put32(f.img.Layout.PrefetchTable.Offset, 1<<30) }, "prefetch table", ""},
		"slot of zero":         {func(f *fixture) { f.put32(f.slot("/d/b"), 0) }, "inode table", "/d/b"},
		"slot behind the end":  {func(f *fixture) { f.put32(f.slot("/d/b"), 1<<28) }, "inode table", "/d/b"},
		"slot too low":         {func(f *fixture) { f.put32(f.slot("/d/b"), f.get32(f.slot("/d/b"))-4) }, "is not its inode", "/d/b"},
		"slot of another":      {func(f *fixture) { f.put32(f.slot("/d/b"), f.get32(f.slot("/d/e"))) }, "is not its inode", "/d/b"},
		"another parent":       {func(f *fixture) { f.put64(f.at("/d/b")+32, f.inode("/many").Ino) }, "its parent is", "/d/b"},
		"parent behind":        {func(f *fixture) { f.put64(f.at("/d/b")+32, 1000) }, "its parent is 1000", "/d/b"},
		"another number":       {func(f *fixture) { f.put64(f.at("/d/b")+40, 1000) }, "number 1000", "/d/b"},
		"number 0":             {func(f *fixture) { f.put64(f.at("/d/b")+40, 0) }, "number 0", "/d/b"},
		"second name, 1 link":  {func(f *fixture) { f.put32(f.at("/d/t")+88, 1) }, "1 links", "/d/t"},
		"link to a directory":  {func(f *fixture) { f.put64(f.at("/d/t")+40, f.inode("/many").Ino) }, "a hard link to", "/d/t"},
		"link to a link":       {func(f *fixture) { f.put64(f.at("/a")+40, 1) }, "a hard link to", "/d/t"},
		"no links":             {func(f *fixture) { f.put32(f.at("/d/b")+88, 0) }, "no links", "/d/b"},
		"no type":              {func(f *fixture) { f.put32(f.at("/d/b")+60, 0o644) }, "mode 0644", "/d/b"},
		"no name":              {func(f *fixture) { f.put16(f.at("/d/b")+100, 0) }, "a name of 0 bytes", "/d/b"},
		"long name":            {func(f *fixture) { f.put16(f.at("/d/b")+100, 256) }, "a name of 256 bytes", "/d/b"},
		"slash in a name":      {func(f *fixture) { f.b[f.inode("/d/e").Name.Offset] = '/' }, `the name "/"`, "/d/e"},
		"NUL in a name":        {func(f *fixture) { f.b[f.inode("/d/e").Name.Offset] = 0 }, `the name "\x00"`, "/d/e"},
		"name of a dot":        {func(f *fixture) { f.b[f.inode("/d/e").Name.Offset] = '.' }, `the name "."`, "/d/e"},
		"nanoseconds":          {func(f *fixture) { f.put32(f.at("/d/b")+108, 1e9) }, "mtime", "/d/b"},
		"negative size":        {func(f *fixture) { f.put64(f.at("/d/b")+64, 1<<63) }, "size 9223372036854775808", "/d/b"},
		"huge size":            {func(f *fixture) { f.put64(f.at("/d/b")+64, 1<<62) }, "chunks for", "/d/b"},
		"huge chunk count":     {func(f *fixture) { f.put64(f.at("/d/b")+64, (1<<32-1)<<12); f.put32(f.at("/d/b")+96, 1<<32-1) }, "it ends at", "/d/b"},
		"chunk count":          {func(f *fixture) { f.put32(f.at("/d/b")+96, 2) }, "2 chunks for", "/d/b"},
		"no target":            {func(f *fixture) { f.put16(f.at("/d/s")+102, 0) }, "without a target", "/d/s"},
		"NUL in a target":      {func(f *fixture) { f.b[f.inode("/d/s").Target.Offset+1] = 0 }, "a NUL in the target", ""},
		"xattrs to the end":    {func(f *fixture) { f.put64(f.inode("/a").Xattrs.Offset, 1<<63) }, "xattrs of", "/a"},
		"xattr pair":           {func(f *fixture) { f.put32(f.inode("/a").Xattrs.Offset+8, 1<<31) }, "a pair of", ""},
		"xattr without a name": {func(f *fixture) { f.b[f.inode("/a").Xattrs.Offset+12] = 0 }, "without a name", ""},
		"xattr twice": {func(f *fixture) {
			at := f.inode("/a").Xattrs.Offset + 8
			f.b[at+4+int64(f.get32(at))+4+5] = 'x'
		}, `"user.x" twice`, ""},
		"children before it":  {func(f *fixture) { f.put32(f.at("/many")+92, 1) }, "children 1+20", "/many"},
		"too many children":   {func(f *fixture) { f.put32(f.at("/many")+96, 1<<32-1) }, "children", "/many"},
		"children of others":  {func(f *fixture) { f.put32(f.at("/many")+92, f.get32(f.at("/d")+92)); f.put32(f.at("/many")+96, 2) }, "belongs to another directory too", "/many"},
		"lost children":       {func(f *fixture) { f.put32(f.at("/many")+96, 19) }, "is in no directory", "/many/19"},
		"out of order":        {func(f *fixture) { f.b[f.inode("/many/05").Name.Offset] = 'z' }, "is not behind", ""},
		"two of one name":     {func(f *fixture) { f.b[f.inode("/many/05").Name.Offset+1] = '4' }, "is not behind", ""},
		"chunk of no blob":    {func(f *fixture) { f.put32(f.chunk("/d/b")+32, 7) }, "blob index 7", "/d/b"},
		"chunk flags":         {func(f *fixture) { f.put32(f.chunk("/d/b")+36, rafs.ChunkHole) }, "flags 0x2", ""},
		"chunk size":          {func(f *fixture) { f.put32(f.chunk("/d/b")+44, 5) }, "chunk", "/d/b"},
		"chunk's file offset": {func(f *fixture) { f.put64(f.chunk("/d/b")+64, 5) }, "chunk 0: 4096 bytes at 5", "/d/b"},
		"chunk's index":       {func(f *fixture) { f.put32(f.chunk("/d/b")+72, 1<<30) }, "chunk index 1073741824", "/d/b"},
		"chunk of two places": {func(f *fixture) { f.put64(f.chunk("/d/b2")+56, 8192) }, "is described otherwise", "/d/b2"},
		"chunk of two digests": {func(f *fixture) {
			f.b[f.chunk("/d/b2")] ^= 1
		}, "is described otherwise", "/d/b2"},
		"chunk stored nowhere": {func(f *fixture) { f.put64(f.chunk("/a")+48, 1<<39) }, "is stored at", ""},
		"chunk's end wraps":    {func(f *fixture) { f.put64(f.chunk("/a")+48, 1<<64-1) }, "is stored at", ""},
		"chunk behind it all":  {func(f *fixture) { f.put64(f.chunk("/a")+56, 1<<43) }, "has the place", ""},
		"overlap": {func(f *fixture) {
			for _, path := range []string{"/d/b", "/d/b2"} {
				at := f.chunk(path)
				f.put64(at+80+56, f.get64(at+56)+100)
			}
		}, "overlap", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			tt.damage(f)
			img, err := v5.Open(rafs.NewBootstrap("x", f.b))
			if err != nil {
				t.Fatal(err)
			}
			var faults []string
			if err := img.Check(func(f rafs.Fault) bool {
				faults = append(faults, f.String())
				return true
			}); err != nil {
				t.Errorf("Check: %v", err)
			}
			all := strings.Join(faults, "\n")
			if !strings.Contains(all, tt.says) {
				t.Errorf("Check found %d faults, none saying %q:\n%s", len(faults), tt.says, all)
			}
			if err := rafstest.Visit(img); err != nil {
				t.Error(err)
			}
			if tt.path != "" && tt.path != "/many" && !brokenAt(t, img, tt.path) {
				t.Errorf("%s is served", tt.path)
			}
			if tt.path != "/many" && tt.path != "/many/19" && brokenAt(t, img, "/many/19") {
				t.Error("/many/19, which is sound, is not served")
			}
		})
	}
}

// brokenAt tells whether a path is damaged: a look-up on the way to it fails, or
// its attributes or extents; anything else but damage or absence fails the test.
func brokenAt(t *testing.T, img rafs.Image, path string) bool {
	t.Helper()
	ino := img.Root()
	var a rafs.Attr
	var err error
	for name := range strings.SplitSeq(path[1:], "/") {
		if ino, err = img.Lookup(ino, []byte(name)); err != nil {
			break
		}
		if err = img.Attr(ino, &a); err != nil {
			break
		}
	}
	if err == nil && a.Mode&rafs.ModeType == rafs.ModeRegular {
		_, err = img.Extents(ino, 0, 1<<30, nil)
	}
	if err != nil && !errors.Is(err, rafs.ErrDamaged) && !errors.Is(err, rafs.ErrNotExist) {
		t.Errorf("%s: %v, want ErrDamaged", path, err)
	}
	return err != nil
}

// TestLookupAmongDamage: whichever children of a directory are damaged, every
// other one is found, every damaged one is ErrDamaged, and an absent name is
// absent where no damaged child could have it.
func TestLookupAmongDamage(t *testing.T) {
	for pattern := range 400 {
		f := newFixture(t)
		damaged := map[int]bool{}
		for i := range 20 {
			if hash := uint32(pattern*31+i) * 2654435761; hash>>30 == 0 || pattern%7 == 0 && i >= pattern%20 {
				damaged[i] = true
				f.put32(f.slot(fmt.Sprintf("/many/%02d", i)), 0)
			}
		}
		img, err := v5.Open(rafs.NewBootstrap("x", f.b))
		if err != nil {
			t.Fatal(err)
		}
		many, err := img.Lookup(img.Root(), []byte("many"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			name := fmt.Sprintf("%02d", i)
			ino, err := img.Lookup(many, []byte(name))
			if damaged[i] != errors.Is(err, rafs.ErrDamaged) || !damaged[i] && ino != f.inode("/many/"+name).Ino {
				t.Fatalf("damaged %v: look-up of %s = %d, %v", damaged, name, ino, err)
			}
			// A name between this child and the next one.
			_, err = img.Lookup(many, []byte(name+"x"))
			between := damaged[i] || damaged[i+1]
			if between != errors.Is(err, rafs.ErrDamaged) || !between && err != rafs.ErrNotExist {
				t.Fatalf("damaged %v: look-up of %sx = %v", damaged, name, err)
			}
		}
		// The listing has the sound ones, from any position.
		var c rafs.Cursor
		var d rafs.Dirent
		if err := img.ReadDir(many, 0, &c); err != nil {
			t.Fatal(err)
		}
		seen := 0
		for {
			ok, err := c.Next(&d)
			if !ok {
				if (len(damaged) != 0) != errors.Is(err, rafs.ErrDamaged) {
					t.Fatalf("damaged %v: the listing ends with %v", damaged, err)
				}
				break
			}
			seen++
			if err := img.ReadDir(many, d.Next, &c); err != nil {
				t.Fatal(err)
			}
		}
		if seen != 20-len(damaged) {
			t.Fatalf("damaged %v: %d entries listed", damaged, seen)
		}
	}
}

// TestHoles: a file with the flag of holes reads as zeros where it has no chunk.
func TestHoles(t *testing.T) {
	f := newFixture(t)
	at, chunks := f.at("/d/b"), f.chunk("/d/b")
	f.put64(at+80, f.get64(at+80)|8)
	f.put64(at+64, 1<<40) // size
	// Chunks of 4096, 4096 and 808 bytes: at 100, 10000, and near the end.
	f.put64(chunks+64, 100)
	f.put64(chunks+80+64, 10000)
	f.put64(chunks+160+64, 1<<40-808)
	img, err := v5.Open(rafs.NewBootstrap("x", f.b))
	if err != nil {
		t.Fatal(err)
	}
	ino := f.inode("/d/b").Ino
	type piece struct {
		off  uint64
		n    uint32
		hole bool
	}
	for name, tt := range map[string]struct {
		off, n uint64
		want   []piece
	}{
		"from the beginning": {0, 20000, []piece{{0, 100, true}, {100, 4096, false}, {4196, 5804, true}, {10000, 4096, false}, {14096, 5904, true}}},
		"inside a chunk":     {200, 50, []piece{{200, 50, false}}},
		"inside a hole":      {5000, 10, []piece{{5000, 10, true}}},
		"end of a chunk":     {4195, 2, []piece{{4195, 1, false}, {4196, 1, true}}},
		"end of the file":    {1<<40 - 1000, 1 << 20, []piece{{1<<40 - 1000, 192, true}, {1<<40 - 808, 808, false}}},
		"a long hole":        {20000, 1 << 50, []piece{{20000, 1 << 30, true}}},
	} {
		t.Run(name, func(t *testing.T) {
			extents, err := img.Extents(ino, tt.off, tt.n, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []piece
			for _, e := range extents {
				got = append(got, piece{e.FileOffset, e.Length, e.Blob < 0})
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("Extents(%d, %d) = %v, want %v", tt.off, tt.n, got, tt.want)
			}
		})
	}
}
