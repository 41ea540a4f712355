package testimage_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// A reader of bootstraps that shares nothing with the writer: it checks every
// rule it knows, and yields what the writer's and the reference's images are
// compared by. It reads the reference's images as well as ours.

var le = binary.LittleEndian

// image is a bootstrap as checked.
type image struct {
	raw       []byte
	version   int
	flags     uint64
	chunkSize uint64
	blobs     []blobEntry
	inodes    []*inode // v5: a name each, by index; v6: in the order of a walk
	byPath    map[string]*inode
	prefetch  []string
	chunks    []chunkRecord // v6: the chunk table
	tables    map[string][]byte
	problems  []error
}

type blobEntry struct {
	id                 string
	chunks             uint32
	features           uint32
	size, uncompressed uint64
	raw                []byte
}

// inode is one name; further names of an inode repeat it.
type inode struct {
	path     string
	number   uint64 // v5 index, v6 nid
	ino      uint64 // v5 i_ino, v6 nid
	mode     uint32
	uid, gid uint32
	nlink    uint32
	rdev     uint32
	size     uint64
	mtime    int64
	nsec     uint32
	target   string
	xattrs   []string // "name=value", sorted
	children []*inode
	parent   uint64
	digest   [32]byte
	chunks   []chunkRecord // v6: from the chunk table
	fixed    []byte        // v5: the 128 bytes
	format   uint16        // v6
	union    uint32        // v6
	addrs    []byte        // v6: chunk array
}

type chunkRecord struct {
	digest                    [32]byte
	blob, flags, csize, usize uint32
	coff, uoff, foff          uint64
	index, crc                uint32
}

func readChunkRecord(b []byte) (c chunkRecord) {
	copy(c.digest[:], b)
	c.blob, c.flags, c.csize, c.usize = le.Uint32(b[32:]), le.Uint32(b[36:]), le.Uint32(b[40:]), le.Uint32(b[44:])
	c.coff, c.uoff, c.foff = le.Uint64(b[48:]), le.Uint64(b[56:]), le.Uint64(b[64:])
	c.index, c.crc = le.Uint32(b[72:]), le.Uint32(b[76:])
	return c
}

func (m *image) bad(format string, args ...any) {
	if len(m.problems) < 20 {
		m.problems = append(m.problems, fmt.Errorf(format, args...))
	}
}

// must is bad unless ok.
func (m *image) must(ok bool, format string, args ...any) {
	if !ok {
		m.bad(format, args...)
	}
}

// checkBootstrap reads and checks the bootstrap in a file.
func checkBootstrap(name string) (m *image, err error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	m = &image{raw: raw, byPath: map[string]*inode{}, tables: map[string][]byte{}}
	defer func() { // broken offsets end in slice bounds
		if r := recover(); r != nil {
			err = errors.Join(append(m.problems, fmt.Errorf("%s: %v", name, r))...)
		}
	}()
	if le.Uint32(raw) == 0x52414653 {
		m.version = 5
		m.checkV5()
	} else {
		m.version = 6
		m.checkV6()
	}
	m.checkTree()
	return m, errors.Join(m.problems...)
}

func (m *image) hash(b []byte) [32]byte {
	if m.flags&0x8 != 0 {
		return sha256.Sum256(b)
	}
	return blake3.Sum256(b)
}

func (m *image) checkV5() {
	b := m.raw
	m.must(le.Uint32(b[4:]) == 0x500 && le.Uint32(b[8:]) == 8192, "v5 version or superblock size")
	m.must(len(b)%8 == 0, "size %d is no multiple of 8", len(b))
	m.chunkSize, m.flags = uint64(le.Uint32(b[12:])), le.Uint64(b[16:])
	names, nPrefetch, nExt := le.Uint32(b[56:]), le.Uint32(b[60:]), le.Uint32(b[68:])
	inodeAt, prefetchAt, blobAt, extAt := le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:]), le.Uint64(b[72:])
	for _, at := range []uint64{inodeAt, prefetchAt, blobAt, extAt} {
		m.must(at%8 == 0, "table at %d", at)
	}
	m.must(inodeAt == 8192 && prefetchAt == align(inodeAt+4*uint64(names), 8), "order of tables")
	m.must(blobAt == align(prefetchAt+4*uint64(nPrefetch), 8), "blob table at %d", blobAt)
	m.must(!slices.ContainsFunc(b[80:8192], func(c byte) bool { return c != 0 }), "reserved superblock bytes")
	blobTable := b[blobAt:][:le.Uint32(b[64:])]
	m.tables["blob"] = blobTable
	for rest := blobTable; len(rest) > 8; {
		id, after, _ := bytes.Cut(rest[8:], []byte{0})
		m.must(len(id) == 64, "blob id %q", id)
		m.blobs = append(m.blobs, blobEntry{id: string(id)})
		rest = after
	}
	end := blobAt + uint64(len(blobTable))
	if nExt > 0 {
		m.must(extAt == end && int(nExt) == len(m.blobs), "extended table at %d with %d entries", extAt, nExt)
		m.tables["ext"] = b[extAt:][:64*nExt]
		for i := range m.blobs {
			e := b[extAt+64*uint64(i):]
			bl := &m.blobs[i]
			bl.chunks, bl.features, bl.uncompressed, bl.size = le.Uint32(e), le.Uint32(e[4:]), le.Uint64(e[8:]), le.Uint64(e[16:])
		}
		end = extAt + 64*uint64(nExt)
	}
	slots := make([]uint64, names)
	for i := range slots {
		slots[i] = uint64(le.Uint32(b[inodeAt+4*uint64(i):])) * 8
	}
	inos := map[uint64]bool{}
	for i, at := range slots {
		in, size := m.readInodeV5(at)
		in.number = uint64(i + 1)
		inos[in.ino] = true
		m.inodes = append(m.inodes, in)
		end = max(end, at+size)
	}
	m.must(end == uint64(len(b)), "last record ends at %d of %d", end, len(b))
	m.must(uint64(len(inos)) == le.Uint64(b[24:]), "%d inodes, superblock says %d", len(inos), le.Uint64(b[24:]))

	// Paths, and the order of records: depth first, without gaps.
	next := slots[0]
	var walk func(in *inode)
	walk = func(in *inode) {
		m.must(slots[in.number-1] == next, "record of %s at %d, want %d", in.path, slots[in.number-1], next)
		_, size := m.readInodeV5(slots[in.number-1])
		next += size
		m.byPath[in.path] = in
		if in.mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		first, count := uint64(le.Uint32(in.fixed[92:])), uint64(le.Uint32(in.fixed[96:]))
		m.must(first > in.number, "%s: children from %d", in.path, first)
		for k := first; k < first+count; k++ {
			c := m.inodes[k-1]
			m.must(c.parent == in.ino, "%s: parent of child %d is %d, want %d", in.path, k, c.parent, in.ino)
			c.path = path.Join(in.path, c.path)
			in.children = append(in.children, c)
		}
		for _, c := range in.children {
			walk(c)
		}
	}
	m.must(m.inodes[0].path == "/" && m.inodes[0].parent == 0, "root %q", m.inodes[0].path)
	walk(m.inodes[0])
	m.must(len(m.byPath) == len(m.inodes), "%d paths of %d names", len(m.byPath), len(m.inodes))
	for i := range nPrefetch {
		if nr := le.Uint32(b[prefetchAt+4*uint64(i):]); nr != 0 {
			m.prefetch = append(m.prefetch, m.inodes[nr-1].path)
		}
	}
	for _, in := range m.inodes {
		first := m.inodes[in.ino-1]
		m.must(in.ino <= in.number && first.ino == in.ino, "%s: i_ino %d", in.path, in.ino)
		var parts []byte
		switch in.mode & unix.S_IFMT {
		case unix.S_IFREG:
			for _, c := range in.chunks {
				parts = append(parts, c.digest[:]...)
			}
		case unix.S_IFDIR:
			for _, c := range in.children {
				parts = append(parts, c.digest[:]...)
			}
		case unix.S_IFLNK:
			parts = []byte(in.target)
		}
		m.must(m.hash(parts) == in.digest, "%s: inode digest", in.path)
	}
}

// readInodeV5 returns the record at an offset, with its own name as path, and
// its size.
func (m *image) readInodeV5(at uint64) (*inode, uint64) {
	m.must(at%8 == 0, "record at %d", at)
	b := m.raw[at:]
	in := &inode{
		fixed: b[:128], parent: le.Uint64(b[32:]), ino: le.Uint64(b[40:]), uid: le.Uint32(b[48:]), gid: le.Uint32(b[52:]),
		mode: le.Uint32(b[60:]), size: le.Uint64(b[64:]), nlink: le.Uint32(b[88:]), rdev: le.Uint32(b[104:]),
		nsec: le.Uint32(b[108:]), mtime: int64(le.Uint64(b[112:])),
	}
	copy(in.digest[:], b)
	nameLen, linkLen := uint64(le.Uint16(b[100:])), uint64(le.Uint16(b[102:]))
	pos := uint64(128)
	take := func(n uint64) []byte {
		part := b[pos:][:n]
		for _, c := range b[pos+n : align(pos+n, 8)] {
			m.must(c == 0, "padding in record at %d", at)
		}
		pos = align(pos+n, 8)
		return part
	}
	in.path = string(take(nameLen))
	in.target = string(take(linkLen))
	flags := le.Uint64(b[80:])
	m.must(flags&^uint64(0x5) == 0, "%s: flags %#x", in.path, flags)
	m.must(flags&1 != 0 == (in.mode&unix.S_IFMT == unix.S_IFLNK), "%s: flag SYMLINK", in.path)
	if flags&4 != 0 {
		pairs := take(8 + le.Uint64(b[pos:]))[8:]
		for len(pairs) > 0 {
			n := le.Uint32(pairs)
			key, value, ok := bytes.Cut(pairs[4:4+n], []byte{0})
			m.must(ok, "%s: xattr pair without NUL", in.path)
			in.xattrs = append(in.xattrs, string(key)+"="+string(value))
			pairs = pairs[4+n:]
		}
		slices.Sort(in.xattrs)
	}
	if in.mode&unix.S_IFMT == unix.S_IFREG {
		for range le.Uint32(b[96:]) {
			c := readChunkRecord(take(80))
			m.must(c.foff == uint64(len(in.chunks))*m.chunkSize, "%s: file offset %d of chunk", in.path, c.foff)
			in.chunks = append(in.chunks, c)
		}
	}
	return in, pos
}

func (m *image) checkV6() {
	b := m.raw
	m.must(len(b)%4096 == 0, "size %d is no multiple of 4096", len(b))
	s, x := b[1024:1152], b[1152:1408]
	m.must(le.Uint32(s) == 0xE0F5E1E2 && le.Uint32(s[4:]) == 0 && le.Uint32(s[8:]) == 0x40000000, "magic, checksum, features")
	m.must(s[12] == 12 && s[13] == 0 && le.Uint32(s[44:]) == 0 && le.Uint32(s[80:]) == 0xC && le.Uint16(s[88:]) == 11, "superblock")
	devices := uint64(le.Uint16(s[86:]))
	metaAt := uint64(le.Uint32(s[40:])) * 4096
	m.flags, m.chunkSize = le.Uint64(x), uint64(le.Uint32(x[20:]))
	m.must(bits.OnesCount64(m.flags&0xC3) == 1 && bits.OnesCount64(m.flags&0xC) == 1, "algorithm flags %#x", m.flags)
	blobAt, blobSize := le.Uint64(x[8:]), uint64(le.Uint32(x[16:]))
	chunkAt, chunkSize := le.Uint64(x[24:]), le.Uint64(x[32:])
	prefetchAt, prefetchSize := le.Uint64(x[40:]), uint64(le.Uint32(x[48:]))
	m.must(blobAt%4096 == 0 && blobAt >= 1408+128*devices && blobSize == 256*devices, "blob table at %d, %d bytes", blobAt, blobSize)
	m.must(chunkAt%4096 == 0 && chunkSize%80 == 0, "chunk table at %d, %d bytes", chunkAt, chunkSize)
	m.must(prefetchAt%8 == 0 && prefetchSize%4 == 0, "prefetch table at %d, %d bytes", prefetchAt, prefetchSize)
	m.tables["super"], m.tables["ext"] = s, x
	m.tables["device"], m.tables["blob"], m.tables["chunk"] = b[1408:][:128*devices], b[blobAt:][:blobSize], b[chunkAt:][:chunkSize]

	blocks := uint64(0)
	mapped := align(uint64(len(b)), 512<<10) / 4096
	for i := range devices {
		d, e := b[1408+128*i:], b[blobAt+256*i:][:256]
		bl := blobEntry{
			id: string(bytes.TrimRight(e[:64], "\x00")), chunks: le.Uint32(e[72:]), features: le.Uint32(e[84:]),
			size: le.Uint64(e[88:]), uncompressed: le.Uint64(e[96:]), raw: e,
		}
		n := uint64(le.Uint32(d[64:]))
		m.must(bytes.Equal(d[:64], e[:64]), "slot %d and blob table disagree on the id", i)
		m.must(n == bl.uncompressed/4096 && n > 0, "slot %d: %d blocks", i, n)
		m.must(uint64(le.Uint32(d[68:])) == mapped, "slot %d: mapped at %d, want %d", i, le.Uint32(d[68:]), mapped)
		m.must(uint64(le.Uint32(e[64:])) == i && uint64(le.Uint32(e[68:])) == m.chunkSize, "blob entry %d", i)
		m.must(le.Uint64(e[128:]) == 16*uint64(bl.chunks), "blob entry %d: chunk information of %d bytes", i, le.Uint64(e[128:]))
		m.must(le.Uint64(e[120:]) <= le.Uint64(e[128:]), "blob entry %d: chunk information grew", i)
		mapped = align(mapped+n, 128)
		blocks += n
		m.blobs = append(m.blobs, bl)
	}
	m.must(uint64(le.Uint32(s[36:])) == blocks, "%d blocks, want %d", le.Uint32(s[36:]), blocks)

	byPlace := map[[2]uint32]chunkRecord{}
	var last chunkRecord
	for at := chunkAt; at < chunkAt+chunkSize; at += 80 {
		c := readChunkRecord(b[at:])
		order := cmp.Or(bytes.Compare(last.digest[:], c.digest[:]), cmp.Compare(last.blob, c.blob), cmp.Compare(last.index, c.index))
		m.must(order < 0 || at == chunkAt, "chunk table order at %d", at)
		last = c
		byPlace[[2]uint32{c.blob, c.index}] = c
		m.chunks = append(m.chunks, c)
	}

	rootNid := uint64(le.Uint16(s[14:]))
	m.must(rootNid == 128, "root nid %d", rootNid)
	paths := map[uint64]string{}
	seen := map[uint64]*inode{}
	names := uint64(1)
	var used []span
	var walk func(nid, parent uint64, name string) *inode
	walk = func(nid, parent uint64, name string) *inode {
		in, known := seen[nid]
		if !known {
			var spans []span
			in, spans = m.readInodeV6(metaAt, nid, byPlace)
			used = append(used, spans...)
			seen[nid] = in
			paths[nid] = name
		} else {
			m.must(in.mode&unix.S_IFMT == unix.S_IFREG, "%s: second name of no regular file", name)
			again := *in
			in = &again
		}
		in.path, in.number, in.parent = name, nid, parent
		m.inodes = append(m.inodes, in)
		m.byPath[name] = in
		if in.mode&unix.S_IFMT != unix.S_IFDIR {
			return in
		}
		for _, d := range m.readDir(in, parent) {
			names++
			c := walk(d.nid, nid, path.Join(name, d.name))
			types := map[uint32]byte{unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7}
			m.must(types[c.mode&unix.S_IFMT] == d.kind, "%s: type %d in the directory", c.path, d.kind)
			in.children = append(in.children, c)
		}
		return in
	}
	walk(rootNid, rootNid, "/")
	m.must(names == le.Uint64(s[16:]), "%d names, superblock says %d", names, le.Uint64(s[16:]))
	for at := prefetchAt; at < prefetchAt+prefetchSize; at += 4 {
		m.prefetch = append(m.prefetch, paths[uint64(le.Uint32(b[at:]))])
	}
	slices.SortFunc(used, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	end := metaAt + 4096
	for _, u := range used {
		m.must(u.from >= end, "%s at %d overlaps what ends at %d", u.what, u.from, end)
		end = u.to
	}
	m.must(chunkSize == 0 || chunkAt >= end, "chunk table at %d, metadata ends at %d", chunkAt, end)
}

type span struct {
	from, to uint64
	what     string
}

// readInodeV6 returns the inode nid and the ranges of the file that it uses.
func (m *image) readInodeV6(metaAt, nid uint64, byPlace map[[2]uint32]chunkRecord) (*inode, []span) {
	at := metaAt + nid*32
	b := m.raw[at:]
	in := &inode{ino: nid, format: le.Uint16(b), mode: uint32(le.Uint16(b[4:])), union: le.Uint32(b[16:])}
	size := uint64(32)
	if in.format&1 != 0 {
		size = 64
		in.size, in.uid, in.gid = le.Uint64(b[8:]), le.Uint32(b[24:]), le.Uint32(b[28:])
		in.mtime, in.nsec, in.nlink = int64(le.Uint64(b[32:])), le.Uint32(b[40:]), le.Uint32(b[44:])
	} else {
		in.nlink, in.size = uint32(le.Uint16(b[6:])), uint64(le.Uint32(b[8:]))
		in.uid, in.gid = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
	}
	m.must(in.format>>4 == 0, "nid %d: format %#x", nid, in.format)
	if icount := uint64(le.Uint16(b[2:])); icount > 0 {
		area := b[size:][:12+4*(icount-1)]
		size += uint64(len(area))
		m.must(bytes.Equal(area[:12], make([]byte, 12)), "nid %d: xattr header", nid)
		prefixes := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
		for area = area[12:]; len(area) >= 4; {
			n, v := int(area[0]), int(le.Uint16(area[2:]))
			in.xattrs = append(in.xattrs, prefixes[area[1]]+string(area[4:][:n])+"="+string(area[4+n:][:v]))
			area = area[align(uint64(4+n+v), 4):]
		}
		slices.Sort(in.xattrs)
	}
	layout := in.format >> 1 & 7
	spans := []span{{at, at + size, fmt.Sprintf("nid %d", nid)}}
	switch in.mode & unix.S_IFMT {
	case unix.S_IFREG:
		m.must(layout == 4, "nid %d: layout %d of a file", nid, layout)
		format := in.union & 0xFFFF
		sizeBits := format&0x1F + 12
		m.must(format&^0x3F == 0 && format&0x20 != 0 && sizeBits >= uint32(bits.TrailingZeros64(m.chunkSize)), "nid %d: chunk format %#x", nid, format)
		count := (in.size + m.chunkSize - 1) / m.chunkSize
		arrayAt := align(at+size, 8)
		in.addrs = m.raw[arrayAt:][:8*count]
		if count > 0 {
			spans = append(spans, span{arrayAt, arrayAt + 8*count, fmt.Sprintf("chunks of nid %d", nid)})
		}
		for i := range count {
			e := in.addrs[8*i:]
			blob, index := uint32(e[2])-1, uint32(le.Uint16(e))|uint32(e[3])<<16
			c, ok := byPlace[[2]uint32{blob, index}]
			m.must(ok, "nid %d: chunk %d of blob %d is in no table", nid, index, blob)
			m.must(c.uoff == uint64(le.Uint32(e[4:]))*4096, "nid %d: chunk %d at block %d", nid, i, le.Uint32(e[4:]))
			in.chunks = append(in.chunks, c)
		}
		if count > 1 && sizeBits > uint32(bits.TrailingZeros64(m.chunkSize)) {
			for i, c := range in.chunks {
				m.must(c.blob == in.chunks[0].blob && c.uoff == in.chunks[0].uoff+uint64(i)*m.chunkSize, "nid %d is not contiguous", nid)
			}
			m.must(in.size <= 1<<sizeBits, "nid %d: %d bytes in one chunk of 2^%d", nid, in.size, sizeBits)
		}
	case unix.S_IFDIR, unix.S_IFLNK:
		blocks, tail := in.size/4096, in.size%4096
		var data []byte
		if layout == 0 {
			blocks, tail = (in.size+4095)/4096, 0
		} else {
			m.must(layout == 2 && tail > 0, "nid %d: layout %d, size %d", nid, layout, in.size)
			m.must(at/4096 == (at+size+tail-1)/4096, "nid %d: inline data crosses a block", nid)
		}
		first := uint64(in.union) * 4096
		if blocks > 0 {
			data = append(data, m.raw[first:][:blocks*4096]...)
			spans = append(spans, span{first, first + blocks*4096, fmt.Sprintf("blocks of nid %d", nid)})
		}
		data = append(data, b[size:][:tail]...)
		spans[0].to += tail
		m.must(!slices.ContainsFunc(data[in.size:], func(c byte) bool { return c != 0 }), "nid %d: bytes behind the end", nid)
		in.fixed = data[:in.size]
		if in.mode&unix.S_IFMT == unix.S_IFLNK {
			in.target = string(in.fixed)
		}
	default:
		m.must(layout == 0 && in.size == 0, "nid %d: layout %d, size %d", nid, layout, in.size)
		if k := in.mode & unix.S_IFMT; k == unix.S_IFCHR || k == unix.S_IFBLK {
			in.rdev = in.union
		}
	}
	return in, spans
}

type dirEntry struct {
	name string
	nid  uint64
	kind byte
}

// readDir returns the entries of in without dots.
func (m *image) readDir(in *inode, parent uint64) (list []dirEntry) {
	last, dots := "", 0
	for block := range slices.Chunk(in.fixed, 4096) {
		count := int(le.Uint16(block[8:])) / 12
		used := 0
		for k := range count {
			e := block[12*k:]
			from, to := int(le.Uint16(e[8:])), len(block)
			if k+1 < count {
				to = int(le.Uint16(e[12+8:]))
			}
			name, _, _ := strings.Cut(string(block[from:to]), "\x00")
			m.must(from == 12*count+used-12*k, "nid %d: name of entry %d at %d", in.ino, k, from)
			used += 12 + len(name)
			m.must(last < name, "nid %d: %q after %q", in.ino, name, last)
			last = name
			nid := le.Uint64(e)
			switch name {
			case ".":
				m.must(nid == in.ino && e[10] == 2, "nid %d: dot is %d", in.ino, nid)
				dots++
			case "..":
				m.must(nid == parent && e[10] == 2, "nid %d: dot dot is %d, want %d", in.ino, nid, parent)
				dots++
			default:
				m.must(name != "" && len(name) < 256 && !strings.ContainsAny(name, "/"), "name %q", name)
				list = append(list, dirEntry{name, nid, e[10]})
			}
		}
		for _, c := range block[used:] {
			m.must(c == 0, "nid %d: bytes behind the last name", in.ino)
		}
	}
	m.must(dots == 2, "nid %d: %d dots", in.ino, dots)
	return list
}

// checkTree checks what both versions have in common.
func (m *image) checkTree() {
	linked, dirs := map[uint64]uint32{}, map[uint64]uint32{}
	for _, in := range m.inodes {
		linked[in.ino]++
		if in.mode&unix.S_IFMT == unix.S_IFDIR && in.path != "/" {
			dirs[in.parent]++
		}
	}
	for _, in := range m.inodes {
		if in.mode&unix.S_IFMT == unix.S_IFDIR {
			m.must(in.nlink == 2+dirs[in.ino], "%s: nlink %d with %d sub-directories", in.path, in.nlink, dirs[in.ino])
			names := make([]string, len(in.children))
			for i, c := range in.children {
				names[i] = path.Base(c.path)
			}
			m.must(slices.IsSorted(names) && len(slices.Compact(names)) == len(in.children), "%s: order of names", in.path)
		} else {
			m.must(in.nlink == linked[in.ino], "%s: nlink %d of %d names", in.path, in.nlink, linked[in.ino])
		}
		if in.mode&unix.S_IFMT == unix.S_IFLNK {
			m.must(in.size == uint64(len(in.target)), "%s: size %d, target of %d bytes", in.path, in.size, len(in.target))
		}
		if in.mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		m.must(uint64(len(in.chunks)) == (in.size+m.chunkSize-1)/m.chunkSize, "%s: %d chunks of %d bytes", in.path, len(in.chunks), in.size)
		for i, c := range in.chunks {
			want := min(m.chunkSize, in.size-uint64(i)*m.chunkSize)
			m.must(uint64(c.usize) == want, "%s: chunk %d has %d bytes, want %d", in.path, i, c.usize, want)
			m.must(int(c.blob) < len(m.blobs), "%s: blob %d", in.path, c.blob)
			m.must(c.csize <= c.usize && (c.flags&1 != 0) == (c.csize < c.usize), "%s: chunk sizes %d, %d, flags %#x", in.path, c.csize, c.usize, c.flags)
		}
	}
	m.must(m.hasXattrs() == (m.flags&0x20 != 0), "flag HAS_XATTR")
}

func (m *image) hasXattrs() bool {
	return slices.ContainsFunc(m.inodes, func(in *inode) bool { return len(in.xattrs) > 0 })
}

// checkBlobs reads every blob in dir and checks its chunks against their
// records, and in v6 its chunk information. It returns the content of all
// chunks by blob and index.
func (m *image) checkBlobs(dir string, idIsSum bool) (map[[2]uint64][]byte, error) {
	content := map[[2]uint64][]byte{}
	byBlob := make([]map[uint64]chunkRecord, len(m.blobs))
	for i := range byBlob {
		byBlob[i] = map[uint64]chunkRecord{}
	}
	for _, in := range m.inodes {
		for _, c := range in.chunks {
			byBlob[c.blob][c.uoff] = c
		}
	}
	for i, bl := range m.blobs {
		raw, err := os.ReadFile(filepath.Join(dir, bl.id))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(raw)
		m.must(!idIsSum || hex.EncodeToString(sum[:]) == bl.id, "blob %d: id %s", i, bl.id)
		m.must(bl.size == 0 || uint64(len(raw)) == bl.size, "blob %d: %d bytes, table says %d", i, len(raw), bl.size)
		offsets := make([]uint64, 0, len(byBlob[i]))
		for off := range byBlob[i] {
			offsets = append(offsets, off)
		}
		slices.Sort(offsets)
		m.must(bl.size == 0 || len(offsets) == int(bl.chunks), "blob %d: %d chunks, table says %d", i, len(offsets), bl.chunks)
		uEnd, cEnd := uint64(0), uint64(0)
		for k, off := range offsets {
			c := byBlob[i][off]
			index := k
			if bl.size == 0 { // before 1.1
				index = 0
				m.must(c.flags&^1 == 0 && c.crc == 0, "blob %d: chunk %d has flags %#x, crc %d", i, k, c.flags, c.crc)
			}
			m.must(int(c.index) == index, "blob %d: chunk %d has index %d", i, k, c.index)
			m.must(c.uoff == uEnd && c.coff == cEnd, "blob %d chunk %d: at %d, %d, want %d, %d", i, k, c.uoff, c.coff, uEnd, cEnd)
			uEnd, cEnd = c.uoff+uint64(c.usize), c.coff+uint64(c.csize)
			if m.version == 6 || k+1 < len(offsets) && offsets[k+1] == align(uEnd, 4096) || bl.uncompressed == align(uEnd, 4096) {
				uEnd = align(uEnd, 4096)
			}
			data, err := m.inflate(raw[c.coff:][:c.csize], int(c.usize), c.flags&1 != 0)
			if err != nil {
				return nil, fmt.Errorf("blob %d chunk %d: %w", i, k, err)
			}
			m.must(m.hash(data) == c.digest, "blob %d chunk %d: digest", i, k)
			if c.flags&0x10 != 0 {
				m.must(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) == c.crc, "blob %d chunk %d: crc", i, k)
			}
			content[[2]uint64{uint64(i), off}] = data
		}
		m.must(bl.size == 0 || uEnd == bl.uncompressed, "blob %d: addresses end at %d, table says %d", i, uEnd, bl.uncompressed)
		if m.version == 6 {
			m.checkChunkInfo(raw, i, cEnd, byBlob[i])
		} else {
			m.must(cEnd == uint64(len(raw)), "blob %d: data ends at %d of %d", i, cEnd, len(raw))
		}
	}
	return content, errors.Join(m.problems...)
}

// checkChunkInfo checks the chunk information of a v6 blob against the records.
func (m *image) checkChunkInfo(raw []byte, blob int, dataEnd uint64, records map[uint64]chunkRecord) {
	e := m.blobs[blob].raw
	off, csize, usize := le.Uint64(e[112:]), le.Uint64(e[120:]), le.Uint64(e[128:])
	h := raw[off+csize:]
	m.must(len(h) == 4096, "blob %d: %d bytes behind the chunk information", blob, len(h))
	m.must(off == dataEnd, "blob %d: chunk information at %d, data ends at %d", blob, off, dataEnd)
	m.must(le.Uint32(h) == 0xB10BB10B && le.Uint32(h[4092:]) == 0xB10BB10B, "blob %d: magic", blob)
	m.must(le.Uint32(h[4:]) == m.blobs[blob].features, "blob %d: features %#x", blob, le.Uint32(h[4:]))
	m.must(le.Uint32(h[8:]) == le.Uint32(e[108:]) && le.Uint32(h[12:]) == m.blobs[blob].chunks, "blob %d: compressor, entries", blob)
	m.must(bytes.Equal(h[16:40], e[112:136]), "blob %d: header and table disagree", blob)
	m.must(bytes.Equal(h[40:4092], make([]byte, 4052)), "blob %d: reserved header bytes", blob)
	entries, err := m.inflate(raw[off:][:csize], int(usize), le.Uint32(e[108:]) != 0)
	if err != nil {
		m.bad("blob %d: chunk information: %v", blob, err)
		return
	}
	for i := range m.blobs[blob].chunks {
		u, c := le.Uint64(entries[16*i:]), le.Uint64(entries[16*i+8:])
		uoff, ulen := u&0xFFFFFFFF000, u>>44|u>>8&0xF<<20
		coff, clen := c&0xFFFFFFFFFF, c>>44|c>>40&0xF<<20
		r, ok := records[uoff]
		m.must(ok && r.index == i && uint64(r.usize) == ulen+1 && r.coff == coff && uint64(r.csize) == clen+1,
			"blob %d entry %d: %d+%d, %d+%d, record %+v", blob, i, uoff, ulen+1, coff, clen+1, r)
	}
}

func (m *image) inflate(b []byte, size int, compressed bool) (out []byte, err error) {
	out = make([]byte, size)
	switch {
	case !compressed:
		out = b
	case m.flags&0x40 != 0:
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			out, err = io.ReadAll(r)
		}
	case m.flags&0x80 != 0:
		var h zstd.Header
		m.must(h.Decode(b) == nil && h.HasFCS && h.FrameContentSize == uint64(size) && !h.HasCheckSum, "zstd frame header %+v", h)
		var r *zstd.Decoder
		if r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true)); err == nil {
			out, err = r.DecodeAll(b, out[:0])
			r.Close()
		}
	default: // lz4, also when no flag says anything
		var n int
		n, err = lz4.UncompressBlock(b, out)
		out = out[:max(n, 0)]
	}
	if err == nil && len(out) != size {
		err = fmt.Errorf("%d bytes, want %d", len(out), size)
	}
	return out, err
}

func align(x, n uint64) uint64 { return (x + n - 1) / n * n }
