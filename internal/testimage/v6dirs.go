package testimage

import "golang.org/x/sys/unix"

const direntSize = 12

// dirents calls visit for each entry of the directory with number nr in name
// order, "." and ".." in their sorted places.
func (img *Image) dirents(nr uint32, visit func(name string, child uint32)) {
	p, d := img.plan, img.plan.at(nr)
	dots := []struct {
		name  string
		child uint32
	}{{".", nr}, {"..", max(d.parent, 1)}}
	for c := d.firstChild; c < d.firstChild+d.children; c++ {
		for len(dots) > 0 && dots[0].name < p.at(c).name {
			visit(dots[0].name, dots[0].child)
			dots = dots[1:]
		}
		visit(p.at(c).name, c)
	}
	for _, dot := range dots {
		visit(dot.name, dot.child)
	}
}

// direntsSize returns the size of the directory with number nr. Blocks are
// filled in order: an entry that does not fit any more opens the next one.
func (img *Image) direntsSize(nr uint32) int64 {
	full, used := int64(0), 0
	img.dirents(nr, func(name string, _ uint32) {
		if used+direntSize+len(name) > blockSize {
			full, used = full+blockSize, 0
		}
		used += direntSize + len(name)
	})
	return full + int64(used)
}

// direntBlocks calls emit for each block of the directory with number nr: an
// array of entries, then their names. All but the last have the full size.
func (img *Image) direntBlocks(nr uint32, emit func(block []byte, last bool)) {
	type item struct {
		name  string
		child uint32
	}
	var items []item
	used := 0
	block := make([]byte, 0, blockSize)
	flush := func(last bool) {
		block = block[:0]
		nameAt := direntSize * len(items)
		for _, it := range items {
			block = le.AppendUint64(block, img.nid(it.child))
			block = le.AppendUint16(block, uint16(nameAt))
			block = append(block, direntType(img.plan.at(it.child).node), 0)
			nameAt += len(it.name)
		}
		for _, it := range items {
			block = append(block, it.name...)
		}
		if !last {
			block = pad(block, blockSize)
		}
		emit(block, last)
		items, used = items[:0], 0
	}
	img.dirents(nr, func(name string, child uint32) {
		if used+direntSize+len(name) > blockSize {
			flush(false)
		}
		items = append(items, item{name, child})
		used += direntSize + len(name)
	})
	flush(true)
}

func direntType(n *node) byte {
	switch n.kind() {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	}
	return 7 // symbolic link
}
