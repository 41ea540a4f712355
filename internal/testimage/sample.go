package testimage

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// Sample returns a tree that has some of everything a reader must handle: all
// kinds of files, sizes around the usual chunk sizes, repeated and zero chunks,
// hard links, odd names, times and owners, xattrs, a directory of several
// blocks. It holds about 4 MiB, half of them zeros.
func Sample() *Tree {
	t := NewTree()
	t.Dir("/", Mode(0o751), Owner(1, 2), Xattr("user.root", "yes"))
	t.Dir("/empty-dir", Mode(0o1777))

	for _, step := range []int64{1 << 12, 1 << 16, 1 << 20} {
		for _, d := range []int64{-1, 0, 1} {
			content := Pattern(step+d, uint64(step+d))
			if step == 1<<20 && d <= 0 {
				content = Zeros(step + d) // cheap to write
			}
			t.FileOf(fmt.Sprintf("/sizes/%d", step+d), content)
		}
	}
	t.File("/sizes/0", nil)
	t.File("/sizes/1", []byte("x"))
	t.FileOf("/data/random", Random(100_000, 7), Mode(0o600))
	t.FileOf("/data/zeros", Zeros(300_000))
	t.FileOf("/data/pattern", Pattern(200_000, 3), Mode(0o6755))
	t.FileOf("/data/again", Pattern(200_000, 3), Mtime(time.Unix(1, 0)))
	mixed := bytes.Repeat([]byte("the same line over and over\n"), 400)
	t.File("/data/text", append(mixed, bytes.Repeat([]byte{0}, 9000)...))

	t.File("/links/first", []byte("one file, four names\n"), Xattr("user.shared", "by all"))
	t.Link("/links/second", "/links/first")
	t.Link("/also here", "/links/first")
	t.Link("/zz/deep/er/third", "/links/first")
	t.File("/links/empty", nil)
	t.Link("/links/empty2", "/links/empty")
	t.Symlink("/links/relative", "../data/text")
	t.Symlink("/links/absolute", "/no/such/file", Owner(1000, 1000))
	t.Symlink("/links/long", strings.Repeat("d/", 2000)+"e", Mtime(time.Unix(-5, 7)))
	t.Symlink("/links/xattr", "first", Xattr("trusted.on-link", "1"))

	t.Device("/dev/null", false, 1, 3, Mode(0o666))
	t.Device("/dev/wide", true, 4095, 1048575, Owner(0, 6), Mode(0o660))
	t.Device("/dev/whiteout", false, 0, 0, Mode(0))
	t.Fifo("/dev/fifo", Mode(0o622))
	t.Socket("/dev/socket")

	t.File("/names/"+strings.Repeat("n", 255), []byte("longest name"))
	t.File("/names/"+strings.Repeat("ü", 127), []byte("utf-8"))
	t.File("/names/not utf-8 \xff\xfe\x01", []byte("bytes"))
	t.File("/names/new\nline and \\", []byte("escapes"))
	for _, name := range []string{"!before the dot", "-", "..a", ".-", ".hidden", "...", "a", "A"} {
		t.File("/names/"+name, []byte(name))
	}
	t.File("/times/epoch", nil, Mtime(time.Unix(0, 0)))
	t.File("/times/one-ns", nil, Mtime(time.Unix(0, 1)))
	t.File("/times/before", nil, Mtime(time.Unix(-2, 500_000_000)))
	t.File("/times/2242", nil, Mtime(time.Unix(1<<33, 999_999_999)))
	t.File("/owners/most", nil, Owner(4294967294, 4294967294))
	t.File("/owners/16-bit", nil, Owner(65535, 65535))
	t.File("/owners/17-bit", nil, Owner(65536, 0))

	t.File("/xattrs/empty", nil, Xattr("user.empty", ""))
	t.File("/xattrs/binary", []byte("b"), Xattr("user.bin", "\x00\x01\xff\n"))
	t.File("/xattrs/large", []byte("l"), Xattr("user.large", strings.Repeat("v", 3000)))
	t.File("/xattrs/larger", []byte("l"), Xattr("user.larger", strings.Repeat("w", 16000)))
	t.File("/xattrs/long-name", nil, Xattr("user."+strings.Repeat("k", 250), "255 bytes"))
	t.Dir("/xattrs/dir", Xattr("trusted.overlay.opaque", "y"), Xattr("security.label", "s"))
	many := make([]Attr, 0, 60)
	for i := range 60 {
		many = append(many, Xattr(fmt.Sprintf("user.%02d", i), strings.Repeat("m", i)))
	}
	t.File("/xattrs/many", []byte("m"), many...)

	for i := range 16 { // inodes that end at every multiple of 4
		t.File(fmt.Sprintf("/xattrs/step/%02d", i), []byte{'s', byte(i)}, Xattr("user.step", strings.Repeat("s", 4*i)))
	}

	// Entries of 128 bytes, after one of 101 beside the 27 of the dots, fill
	// blocks to the last byte.
	t.File("/exact/"+strings.Repeat("0", 89), nil)
	for i := range 31 + 2*32 {
		t.File(fmt.Sprintf("/exact/1%03d%s", i, strings.Repeat("x", 112)), nil)
	}
	for i := range 700 {
		t.File(fmt.Sprintf("/wide/entry number %05d", i), []byte{byte(i), byte(i >> 8)})
	}
	t.File("/"+strings.Repeat("level/", 60)+"bottom", []byte("sixty levels down"))
	return t
}

// Wide returns a tree of n empty or tiny files in directories of perDir entries
// each, for tests of many inodes.
func Wide(n, perDir int) *Tree {
	t := NewTree()
	contents := make([][]byte, 64)
	for i := range contents {
		contents[i] = bytes.Repeat([]byte{byte(i)}, i)
	}
	for i := range n {
		t.File(fmt.Sprintf("/%05d/%08d", i/perDir, i), contents[i%len(contents)])
	}
	return t
}
