package v6_test

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
	"github.com/rafsd/rafsd/rafs/v6"
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
	tree.Dir("/d/e")
	tree.Symlink("/d/s", "target")
	tree.Link("/d/t", "/a")
	for i := range 300 {
		tree.File(fmt.Sprintf("/many/%040d", i), nil)
	}
	img, err := tree.Write(t.TempDir(), testimage.Options{ChunkSize: 4096, Blobs: 2, Prefetch: []string{"/d/b"}})
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

// dirent returns where the entry name of a directory is.
func (f *fixture) dirent(dir, name string) int64 {
	f.t.Helper()
	l := f.inode(dir)
	for _, r := range []testimage.Range{l.Blocks, l.Inline} {
		for start := r.Offset; start < r.End(); start += 4096 {
			b := f.b[start:min(start+4096, r.End())]
			n := int(binary.LittleEndian.Uint16(b[8:])) / 12
			for i := range n {
				from, to := int(binary.LittleEndian.Uint16(b[i*12+8:])), len(b)
				if i+1 < n {
					to = int(binary.LittleEndian.Uint16(b[i*12+20:]))
				}
				if string(bytes.TrimRight(b[from:to], "\x00")) == name {
					return start + int64(i)*12
				}
			}
		}
	}
	f.t.Fatalf("no entry %q in %s", name, dir)
	return 0
}

func (f *fixture) put8(off int64, v byte)    { f.b[off] = v }
func (f *fixture) put16(off int64, v uint16) { binary.LittleEndian.PutUint16(f.b[off:], v) }
func (f *fixture) put32(off int64, v uint32) { binary.LittleEndian.PutUint32(f.b[off:], v) }
func (f *fixture) put64(off int64, v uint64) { binary.LittleEndian.PutUint64(f.b[off:], v) }
func (f *fixture) get64(off int64) uint64    { return binary.LittleEndian.Uint64(f.b[off:]) }
func (f *fixture) get32(off int64) uint32    { return binary.LittleEndian.Uint32(f.b[off:]) }

func (f *fixture) blob(i int64) int64   { return f.img.Layout.BlobTable.Offset + 256*i }
func (f *fixture) slot(i int64) int64   { return f.img.Layout.DeviceTable.Offset + 128*i }
func (f *fixture) record(i int64) int64 { return f.img.Layout.ChunkTable.Offset + 80*i }

// recordOf returns where the record of a chunk is.
func (f *fixture) recordOf(blob, index uint32) int64 {
	f.t.Helper()
	for i := range f.img.Layout.ChunkTable.Size / 80 {
		if at := f.record(i); f.get32(at+32) == blob && f.get32(at+72) == index {
			return at
		}
	}
	f.t.Fatalf("no record for chunk %d of blob %d", index, blob)
	return 0
}

const (
	sb  = 1024
	ext = 1152
)

// TestOpenRefuses damages what is checked when an image is opened.
func TestOpenRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(f *fixture)
		says   string
		is     error
	}{
		"magic":                    {func(f *fixture) { f.put32(sb, 1) }, "", rafs.ErrNotRAFS},
		"no RAFS mark":             {func(f *fixture) { f.put32(sb+8, 1) }, "", rafs.ErrNotRAFS},
		"checksum":                 {func(f *fixture) { f.put32(sb+4, 1) }, "checksum", rafs.ErrDamaged},
		"block size":               {func(f *fixture) { f.put8(sb+12, 9) }, "block size", rafs.ErrUnsupported},
		"extension slots":          {func(f *fixture) { f.put8(sb+13, 1) }, "extension slots", rafs.ErrDamaged},
		"root outside":             {func(f *fixture) { f.put16(sb+14, 0xFFFF) }, "root inode", rafs.ErrDamaged},
		"root 0":                   {func(f *fixture) { f.put16(sb+14, 0) }, "root inode", rafs.ErrDamaged},
		"root is a file":           {func(f *fixture) { f.put16(sb+14, uint16(f.inode("/a").Ino)) }, "not a directory", rafs.ErrDamaged},
		"no inodes":                {func(f *fixture) { f.put64(sb+16, 0) }, "no inodes", rafs.ErrDamaged},
		"metadata area":            {func(f *fixture) { f.put32(sb+40, 1<<31) }, "metadata area", rafs.ErrDamaged},
		"shared xattrs":            {func(f *fixture) { f.put32(sb+44, 1<<20) }, "shared xattrs begin at", rafs.ErrDamaged},
		"pre-release":              {func(f *fixture) { f.put32(sb+8, 0); f.put32(sb+80, 0x4000000C) }, "", rafs.ErrNotRAFS},
		"incompatible features":    {func(f *fixture) { f.put32(sb+80, 0xE) }, "incompatible features 0xe", rafs.ErrUnsupported},
		"too many devices":         {func(f *fixture) { f.put16(sb+86, 3) }, "3 device slots", rafs.ErrDamaged},
		"devices to the end":       {func(f *fixture) { f.put16(sb+86, 0xFFFF) }, "device slots end behind", rafs.ErrDamaged},
		"no devices":               {func(f *fixture) { f.put16(sb+86, 0) }, "without a device", rafs.ErrDamaged},
		"slot offset":              {func(f *fixture) { f.put16(sb+88, 12) }, "device slots at 12", rafs.ErrDamaged},
		"unknown flag":             {func(f *fixture) { f.put64(ext, f.get64(ext)|1<<12) }, "flags 0x1000", rafs.ErrUnsupported},
		"flag of 64 bits":          {func(f *fixture) { f.put64(ext, f.get64(ext)|1<<63) }, "flags 0x8000000000000000", rafs.ErrUnsupported},
		"tarfs in wide blocks":     {func(f *fixture) { f.put64(ext, f.get64(ext)|rafs.FlagTarfs) }, "block size of 12 bits, want 9", rafs.ErrUnsupported},
		"two compressions":         {func(f *fixture) { f.put64(ext, f.get64(ext)|rafs.FlagCompressionGzip) }, "exactly one", rafs.ErrDamaged},
		"no digest":                {func(f *fixture) { f.put64(ext, f.get64(ext)&^rafs.FlagsHash) }, "exactly one", rafs.ErrDamaged},
		"blob table outside":       {func(f *fixture) { f.put64(ext+8, 1<<63) }, "blob table of 512 bytes", rafs.ErrDamaged},
		"blob table unaligned":     {func(f *fixture) { f.put64(ext+8, f.get64(ext+8)+8) }, "blob table", rafs.ErrDamaged},
		"blob table on the slots":  {func(f *fixture) { f.put64(ext+8, 0) }, "blob table", rafs.ErrDamaged},
		"blob table size":          {func(f *fixture) { f.put32(ext+16, 300) }, "entries of 256", rafs.ErrDamaged},
		"chunk size 0":             {func(f *fixture) { f.put32(ext+20, 0) }, "chunk size 0", rafs.ErrDamaged},
		"chunk size no power":      {func(f *fixture) { f.put32(ext+20, 12345) }, "chunk size 12345", rafs.ErrDamaged},
		"chunk size too big":       {func(f *fixture) { f.put32(ext+20, 1<<25) }, "chunk size", rafs.ErrDamaged},
		"chunk table outside":      {func(f *fixture) { f.put64(ext+24, 1<<40) }, "chunk table", rafs.ErrDamaged},
		"chunk table size wraps":   {func(f *fixture) { f.put64(ext+32, 1<<64-80) }, "chunk table", rafs.ErrDamaged},
		"chunk table size":         {func(f *fixture) { f.put64(ext+32, 81) }, "entries of 80", rafs.ErrDamaged},
		"no chunk table":           {func(f *fixture) { f.put64(ext+32, 0) }, "no chunk table", rafs.ErrUnsupported},
		"prefetch table size":      {func(f *fixture) { f.put32(ext+48, 3) }, "prefetch table of 3", rafs.ErrDamaged},
		"prefetch table outside":   {func(f *fixture) { f.put64(ext+40, 1<<63) }, "prefetch table", rafs.ErrDamaged},
		"tables overlap":           {func(f *fixture) { f.put64(ext+40, f.get64(ext+8)) }, "overlap", rafs.ErrDamaged},
		"slot of another blob":     {func(f *fixture) { f.put8(f.slot(1), 'z') }, "slot 1", rafs.ErrDamaged},
		"slot without blocks":      {func(f *fixture) { f.put32(f.slot(0)+64, 0) }, "no blocks", rafs.ErrDamaged},
		"id leads out":             {func(f *fixture) { f.id(0, "../../etc/passwd") }, "blob id", rafs.ErrDamaged},
		"id is empty":              {func(f *fixture) { f.id(0, "") }, "0 bytes", rafs.ErrDamaged},
		"id with a slash":          {func(f *fixture) { f.id(1, "a/b") }, `byte 0x2f`, rafs.ErrDamaged},
		"id is a placeholder":      {func(f *fixture) { f.id(0, strings.Repeat("x", 64)) }, "placeholder", rafs.ErrDamaged},
		"one id twice":             {func(f *fixture) { f.id(1, f.img.Blobs[0].ID) }, "blobs 0 and 1", rafs.ErrDamaged},
		"blob index":               {func(f *fixture) { f.put32(f.blob(1)+64, 0) }, "entry 1 has the index 0", rafs.ErrDamaged},
		"chunk size of a blob":     {func(f *fixture) { f.put32(f.blob(0)+68, 8192) }, "chunks of 8192", rafs.ErrDamaged},
		"chunk count":              {func(f *fixture) { f.put32(f.blob(0)+72, 1<<24+1) }, "16777217 chunks", rafs.ErrDamaged},
		"compression":              {func(f *fixture) { f.put32(f.blob(0)+76, 4) }, "compression 4", rafs.ErrDamaged},
		"digest":                   {func(f *fixture) { f.put32(f.blob(0)+80, 2) }, "digest 2", rafs.ErrDamaged},
		"not aligned":              {func(f *fixture) { f.feature(0, 0, rafs.BlobAligned) }, "ALIGNED", rafs.ErrDamaged},
		"zran":                     {func(f *fixture) { f.feature(0, rafs.BlobZran|rafs.BlobChunkInfoV2, 0) }, "ZRAN without SEPARATE", rafs.ErrDamaged},
		"zran of version 1":        {func(f *fixture) { f.feature(0, rafs.BlobZran|rafs.BlobSeparate, 0) }, "without CHUNK_INFO_V2", rafs.ErrDamaged},
		"zran and batch":           {func(f *fixture) { f.feature(0, 0x9C, 0) }, "both ZRAN and BATCH", rafs.ErrDamaged},
		"separate, of no blob":     {func(f *fixture) { f.feature(1, rafs.BlobSeparate, 0) }, "name the file <blob id>.boot", rafs.ErrUnsupported},
		"separate, without size":   {func(f *fixture) { f.feature(0, rafs.BlobSeparate, 0); f.put64(f.blob(0)+120, 0) }, "no such information", rafs.ErrDamaged},
		"batch of version 1":       {func(f *fixture) { f.feature(0, rafs.BlobBatch, 0) }, "without CHUNK_INFO_V2", rafs.ErrDamaged},
		"batch, information short": {func(f *fixture) { f.feature(0, rafs.BlobBatch|rafs.BlobChunkInfoV2, 0) }, "bytes of chunk information", rafs.ErrDamaged},
		"encrypted without cipher": {func(f *fixture) { f.feature(0, rafs.BlobEncrypted, 0) }, "cipher 0 and features", rafs.ErrDamaged},
		"encrypted, halves equal":  {func(f *fixture) { f.feature(0, rafs.BlobEncrypted, 0); f.put32(f.blob(0)+216, 1) }, "both halves", rafs.ErrDamaged},
		"encrypted and separate":   {func(f *fixture) { f.feature(0, rafs.BlobEncrypted|rafs.BlobSeparate, 0); f.put32(f.blob(0)+216, 1) }, "both ENCRYPTED and SEPARATE", rafs.ErrUnsupported},
		"tarfs blob":               {func(f *fixture) { f.feature(0, rafs.BlobTarfs, 0) }, "TARFS", rafs.ErrUnsupported},
		"unknown feature":          {func(f *fixture) { f.feature(0, 1<<13, 0) }, "unknown features 0x2000", rafs.ErrUnsupported},
		"internal feature":         {func(f *fixture) { f.feature(0, rafs.BlobV5NoExtBlobTable, 0) }, "_V5_NO_EXT", rafs.ErrUnsupported},
		"inlined, no id":           {func(f *fixture) { f.feature(0, rafs.BlobInlinedFSMeta, 0); f.id(0, strings.Repeat("x", 64)) }, "INLINED_FS_META", rafs.ErrUnsupported},
		"cipher, not encrypted":    {func(f *fixture) { f.put32(f.blob(0)+216, 1) }, "cipher 1 and features", rafs.ErrDamaged},
		"cipher unknown":           {func(f *fixture) { f.put32(f.blob(0)+216, 2) }, "cipher 2", rafs.ErrUnsupported},
		"stored size":              {func(f *fixture) { f.put64(f.blob(0)+88, 1<<41) }, "stored bytes", rafs.ErrDamaged},
		"uncompressed size":        {func(f *fixture) { f.put64(f.blob(0)+96, 1<<45) }, "bytes", rafs.ErrDamaged},
		"CI compression":           {func(f *fixture) { f.put32(f.blob(0)+108, 9) }, "information compression 9", rafs.ErrDamaged},
		"CI offset":                {func(f *fixture) { f.put64(f.blob(0)+112, 1<<50) }, "bytes of chunks", rafs.ErrDamaged},
		"CI larger when stored":    {func(f *fixture) { f.put64(f.blob(0)+120, f.get64(f.blob(0)+128)+1) }, "chunk information of", rafs.ErrDamaged},
		"CI of another size":       {func(f *fixture) { f.put64(f.blob(0)+128, f.get64(f.blob(0)+128)+16) }, "bytes of chunk information", rafs.ErrDamaged},
		"no room for a tar header": {func(f *fixture) { f.feature(0, rafs.BlobHasTarHeader, 0); f.put64(f.blob(0)+112, 511) }, "tar header", rafs.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			tt.damage(f)
			img, err := v6.Open(rafs.NewBootstrap("x", f.b))
			if img != nil || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Open = %v, %q, want %v saying %q", img, err, tt.is, tt.says)
			}
		})
	}
}

// id renames a blob in both tables.
func (f *fixture) id(i int64, id string) {
	for _, at := range []int64{f.blob(i), f.slot(i)} {
		clear(f.b[at : at+64])
		copy(f.b[at:at+64], id)
	}
}

func (f *fixture) feature(i int64, set, reset uint32) {
	at := f.blob(i) + 84
	f.put32(at, f.get32(at)&^reset|set)
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
		"block count":           {func(f *fixture) { f.put32(sb+36, 1) }, "superblock at offset 0x424", ""},
		"blocks of a device":    {func(f *fixture) { f.put32(f.slot(0)+64, 1) }, "device table", ""},
		"prefetch":              {func(f *fixture) { f.put32(f.img.Layout.PrefetchTable.Offset, 1<<30) }, "prefetch table", ""},
		"inode format":          {func(f *fixture) { f.put16(f.inode("/a").Record.Offset, 0x105) }, "format 0x105", "/a"},
		"inode layout":          {func(f *fixture) { f.put16(f.inode("/a").Record.Offset, 1|2<<1) }, "data layout 2", "/a"},
		"compressed layout":     {func(f *fixture) { f.put16(f.inode("/d").Record.Offset, 1|3<<1) }, "data layout 3", "/d"},
		"xattrs to the end":     {func(f *fixture) { f.put16(f.inode("/many").Record.Offset+2, 0xFFFF) }, "xattrs of", "/many"},
		"no links":              {func(f *fixture) { f.put32(f.inode("/a").Record.Offset+44, 0) }, "no links", "/a"},
		"nanoseconds":           {func(f *fixture) { f.put32(f.inode("/a").Record.Offset+40, 1e9) }, "mtime", "/a"},
		"no type":               {func(f *fixture) { f.put16(f.inode("/a").Record.Offset+4, 0o644) }, "mode 0644", "/a"},
		"another type":          {func(f *fixture) { f.put16(f.inode("/a").Record.Offset+4, 0o140644) }, "data layout 4 for mode 0140644", "/a"},
		"huge file":             {func(f *fixture) { f.put64(f.inode("/a").Record.Offset+8, 1<<62) }, "chunk addresses", "/a"},
		"negative size":         {func(f *fixture) { f.put64(f.inode("/a").Record.Offset+8, 1<<63) }, "size 9223372036854775808", "/a"},
		"size wraps":            {func(f *fixture) { f.put64(f.inode("/a").Record.Offset+8, 1<<63-1) }, "chunk addresses", "/a"},
		"huge directory":        {func(f *fixture) { f.put64(f.inode("/d").Record.Offset+8, 1<<40) }, "a directory of", "/d"},
		"directory to the end":  {func(f *fixture) { f.put64(f.inode("/many").Record.Offset+8, 1<<30) }, "bytes of data", "/many"},
		"directory blocks":      {func(f *fixture) { f.put32(f.inode("/many").Record.Offset+16, 1<<31) }, "behind the end", "/many"},
		"empty link":            {func(f *fixture) { f.put64(f.inode("/d/s").Record.Offset+8, 0) }, "symbolic link of 0", "/d/s"},
		"long link":             {func(f *fixture) { f.put64(f.inode("/d/s").Record.Offset+8, 4097) }, "symbolic link of 4097", "/d/s"},
		"link over a block":     {func(f *fixture) { f.put64(f.inode("/d/s").Record.Offset+8, 4096) }, "cross a block", "/d/s"},
		"NUL in a link":         {func(f *fixture) { f.put8(f.inode("/d/s").Inline.Offset+2, 0) }, "a NUL in the target", ""},
		"chunk format":          {func(f *fixture) { f.put32(f.inode("/d/b").Record.Offset+16, 0x60) }, "chunk format 0x60", "/d/b"},
		"chunk format too fine": {func(f *fixture) { f.grow(); f.put32(ext+20, 1<<20) }, "chunk format", ""},
		"device 0":              {func(f *fixture) { f.put8(f.inode("/d/b").Chunks.Offset+2, 0) }, "device 0", "/d/b"},
		"device 3":              {func(f *fixture) { f.put8(f.inode("/d/b").Chunks.Offset+10, 3) }, "device 3", "/d/b"},
		"hole":                  {func(f *fixture) { f.put32(f.inode("/d/b").Chunks.Offset+4, 1<<32-1) }, "a hole", "/d/b"},
		"no record":             {func(f *fixture) { f.put8(f.inode("/d/b").Chunks.Offset+3, 77) }, "no record for chunk", "/d/b"},
		"another place":         {func(f *fixture) { f.put32(f.inode("/d/b").Chunks.Offset+4, 12345) }, "its record says", "/d/b"},
		"record's place": {func(f *fixture) {
			at := f.recordOf(f.chunk("/d/b", 1))
			f.put64(at+56, f.get64(at+56)+4096)
		}, "its record says", "/d/b"},
		"record's size": {func(f *fixture) { f.put32(f.recordOf(f.chunk("/d/b", 0))+44, 5) }, "chunk", "/d/b"},
		"record's blob": {func(f *fixture) { f.put32(f.recordOf(f.chunk("/d/b", 0))+32, 9) }, "blob index 9", "/d/b"},
		"record's flags": {func(f *fixture) {
			f.put32(f.recordOf(f.chunk("/a", 0))+36, rafs.ChunkBatch)
		}, "flags 0x8", ""},
		"record stored nowhere":  {func(f *fixture) { f.put64(f.recordOf(f.chunk("/a", 0))+48, 1<<39) }, "is stored at", ""},
		"record's end wraps":     {func(f *fixture) { f.put64(f.recordOf(f.chunk("/a", 0))+48, 1<<64-1) }, "is stored at", ""},
		"record stored in 0":     {func(f *fixture) { f.put32(f.recordOf(f.chunk("/a", 0))+40, 0) }, "is stored as it is", ""},
		"record behind the blob": {func(f *fixture) { f.put64(f.recordOf(f.chunk("/a", 0))+56, 1<<43) }, "has the place", "/a"},
		"two records": {func(f *fixture) {
			at := f.recordOf(f.chunk("/d/b", 1))
			copy(f.b[at:at+80], f.b[f.recordOf(f.chunk("/d/b", 0)):][:80])
		}, "a second record", "/d/b"},
		"overlap": {func(f *fixture) {
			blob, index := f.chunk("/d/b", 0)
			other := f.recordOf(f.chunk("/d/b", 1))
			f.put64(other+56, f.get64(f.recordOf(blob, index)+56)+100)
		}, "overlap", "/d/b"},
		"shared xattr count": {func(f *fixture) { f.put8(f.inode("/a").Xattrs.Offset+4, 1) }, "1 shared attributes", ""},
		"xattr index":        {func(f *fixture) { f.put8(f.inode("/a").Xattrs.Offset+13, 5) }, "name index 5", ""},
		"xattr long prefix":  {func(f *fixture) { f.put8(f.inode("/a").Xattrs.Offset+13, 0x81) }, "name index 129", ""},
		"xattr value":        {func(f *fixture) { f.put16(f.inode("/a").Xattrs.Offset+14, 0xFFFF) }, "of value in an area", ""},
		"xattr twice": {func(f *fixture) {
			at := f.inode("/a").Xattrs.Offset
			f.b[at+12+12+4] = f.b[at+12+4] // names x and y
		}, "twice", ""},
		"directory without entries": {func(f *fixture) { f.put16(f.inode("/d").Inline.Offset+8, 0) }, "first name is at 0", "/d"},
		"entries of 13 bytes":       {func(f *fixture) { f.put16(f.inode("/d").Inline.Offset+8, 13) }, "first name is at 13", "/d"},
		"names behind the block":    {func(f *fixture) { f.put16(f.inode("/many").Blocks.Offset+8, 60000) }, "first name is at 60000", "/many"},
		"names backwards": {func(f *fixture) {
			f.put16(f.dirent("/d", "e")+8, 0xFFF)
		}, "name at 4095", "/d"},
		"out of order": {func(f *fixture) {
			f.b[f.name("/d", "b")] = 'z'
		}, "is not behind", ""},
		"slash in a name": {func(f *fixture) { f.b[f.name("/d", "e")] = '/' }, `name "/"`, "/d"},
		"NUL in a name":   {func(f *fixture) { f.b[f.name("/d", "e")] = 0 }, `name "\x00"`, "/d"},
		"entry's type":    {func(f *fixture) { f.put8(f.dirent("/d", "b")+10, 2) }, "file type 4, but inode", "/d/b"},
		"entry's type 0":  {func(f *fixture) { f.put8(f.dirent("/d", "b")+10, 0) }, "file type 0", "/d"},
		"entry's nid 0":   {func(f *fixture) { f.put64(f.dirent("/d", "b"), 0) }, "nid 0", "/d"},
		"entry leads out": {func(f *fixture) { f.put64(f.dirent("/d", "b"), 1<<40) }, "outside of the bootstrap", "/d/b"},
		"entry of 64 bits": {func(f *fixture) {
			f.put64(f.dirent("/d", "b"), 1<<64-1)
		}, "nid 18446744073709551615", "/d"},
		"loop":         {func(f *fixture) { f.put64(f.dirent("/d", "e"), f.inode("/d").Ino) }, "named twice", "/d/e"},
		"loop to root": {func(f *fixture) { f.put64(f.dirent("/d", "e"), f.inode("/").Ino) }, "named twice", "/d/e"},
		"two names":    {func(f *fixture) { f.put64(f.dirent("/", "many"), f.inode("/d/e").Ino) }, "named twice", "/many"},
		"wrong parent": {func(f *fixture) { f.put64(f.dirent("/d", ".."), f.inode("/many").Ino) }, "the entry .. leads", ""},
		"parent is a file": {func(f *fixture) {
			f.put64(f.dirent("/d", ".."), f.inode("/a").Ino)
		}, "the entry .. leads", ""},
		"wrong self": {func(f *fixture) { f.put64(f.dirent("/d", "."), f.inode("/many").Ino) }, "the entry . leads", ""},
		"no parent":  {func(f *fixture) { copy(f.b[f.name("/d", ".."):], ".a") }, "no entry . or ..", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			tt.damage(f)
			img, err := v6.Open(rafs.NewBootstrap("x", f.b))
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
			if strings.Contains(all, "damaged metadata: ") {
				t.Errorf("faults that repeat what they are:\n%s", all)
			}
			if err := rafstest.Visit(img); err != nil {
				t.Error(err)
			}
			if tt.path != "" && !brokenAt(t, img, tt.path) {
				t.Errorf("%s is served", tt.path)
			}
			if tt.path != "/a" && brokenAt(t, img, "/a") {
				t.Error("/a, which is sound, is not served")
			}
		})
	}
}

// grow gives the blob table entries a larger chunk size.
func (f *fixture) grow() {
	f.put32(f.blob(0)+68, 1<<20)
	f.put32(f.blob(1)+68, 1<<20)
	f.put32(f.inode("/a").Record.Offset+16, 0x28)
}

// chunk returns the blob and index of chunk i of a file.
func (f *fixture) chunk(path string, i int) (blob, index uint32) {
	f.t.Helper()
	chunks, err := f.img.ChunksOf(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return chunks[i].Blob, chunks[i].Index
}

// name returns where the name of a directory entry is.
func (f *fixture) name(dir, name string) int64 {
	at := f.dirent(dir, name)
	l := f.inode(dir)
	start := l.Inline.Offset
	if at < start || l.Inline.Size == 0 {
		start = at &^ 4095
	}
	return start + int64(binary.LittleEndian.Uint16(f.b[at+8:]))
}

// brokenAt tells whether a path is damaged: an error on the way to it, or of its
// attributes, listing or extents; anything else but damage fails the test.
func brokenAt(t *testing.T, img rafs.Image, path string) bool {
	t.Helper()
	broken := false
	found := false
	if err := rafs.Walk(img, func(w *rafs.WalkEntry) error {
		if string(w.Path) != path {
			return nil
		}
		found = true
		err := w.Err
		if err == nil && w.Attr.Mode&rafs.ModeType == rafs.ModeRegular {
			_, err = img.Extents(w.Ino, 0, 1<<30, nil)
		}
		if err != nil {
			if broken = true; !errors.Is(err, rafs.ErrDamaged) {
				t.Errorf("%s: %v, want ErrDamaged", path, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return broken || !found
}

// TestPrefetchSkipsBadHints: a hint that is wrong leaves the others.
func TestPrefetchSkipsBadHints(t *testing.T) {
	f := newFixture(t)
	img, err := v6.Open(rafs.NewBootstrap("x", f.b))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := img.Prefetch(), f.inode("/d/b").Ino; len(got) != 1 || got[0] != want {
		t.Errorf("Prefetch = %v, want %d", got, want)
	}
	f.put32(f.img.Layout.PrefetchTable.Offset, 1<<31)
	if got := img.Prefetch(); len(got) != 0 {
		t.Errorf("Prefetch = %v, want nothing", got)
	}
}
