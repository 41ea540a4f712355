package testimage

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// plan is a tree in the order of its numbers: every name is an entry, the
// root is number 1 (entries[0]); the children of a directory have consecutive
// numbers in name order, and directories are visited in pre-order.
type plan struct {
	entries []entry
	inodes  int  // distinct
	xattrs  bool // any entry has one
	refs    []uint32
}

// entry is a name of the tree. Numbers count from 1, 0 is none.
type entry struct {
	name       string
	node       *node
	parent     uint32 // number of the directory; of the root 0
	first      uint32 // number of the inode's first name: its own, or smaller
	firstChild uint32 // directories: number of the first child, or the next free one
	children   uint32
	nlink      uint32
	refAt      uint32 // regular files: plan.refs[refAt:][:refs] are its chunks
	refCount   uint32
}

// newPlan numbers the tree.
func newPlan(t *Tree) (*plan, error) {
	if t.err != nil {
		return nil, t.err
	}
	p := &plan{}
	p.entries = append(p.entries, entry{name: "/", node: t.root, first: 1})
	links := map[*node]uint32{}
	p.number(1, links)
	for i := range p.entries {
		e := &p.entries[i]
		p.xattrs = p.xattrs || len(e.node.xattrs) > 0
		if e.first == uint32(i+1) {
			p.inodes++
		}
	}
	if len(p.entries) >= 1<<31 {
		return nil, fmt.Errorf("tree of %d names, more than 2^31", len(p.entries))
	}
	return p, nil
}

// number gives numbers to the children of directory dir, then to theirs.
func (p *plan) number(dir uint32, links map[*node]uint32) {
	first := uint32(len(p.entries) + 1)
	children := p.at(dir).node.dir.sorted()
	p.entries = slices.Grow(p.entries, len(children))
	subdirs := uint32(0)
	for _, c := range children {
		nr := uint32(len(p.entries) + 1)
		e := entry{name: c.name, node: c.node, parent: dir, first: nr, nlink: c.node.nlink}
		if c.node.dir != nil {
			subdirs++
		}
		if e.nlink > 1 {
			if known, ok := links[c.node]; ok {
				e.first = known
			} else {
				links[c.node] = nr
			}
		}
		p.entries = append(p.entries, e)
	}
	d := p.at(dir)
	d.firstChild, d.children, d.nlink = first, uint32(len(children)), 2+subdirs
	for nr := first; nr < first+uint32(len(children)); nr++ {
		if p.at(nr).node.dir != nil {
			p.number(nr, links)
		}
	}
}

// at returns the entry with a number.
func (p *plan) at(nr uint32) *entry { return &p.entries[nr-1] }

// isFirst says that entry nr is the (first) name of its inode.
func (p *plan) isFirst(nr uint32) bool { return p.at(nr).first == nr }

// depthFirst calls visit for every entry of the tree below dir and dir itself,
// a directory's before its children's, in name order.
func (p *plan) depthFirst(dir uint32, visit func(nr uint32)) {
	visit(dir)
	d := p.at(dir)
	for nr := d.firstChild; nr < d.firstChild+d.children; nr++ {
		if p.at(nr).node.dir != nil {
			p.depthFirst(nr, visit)
		} else {
			visit(nr)
		}
	}
}

// find returns the number of the entry at path, 0 if there is none.
func (p *plan) find(path string) uint32 {
	nr := uint32(1)
	for _, name := range splitPath(path) {
		d := p.at(nr)
		if d.node.dir == nil {
			return 0
		}
		children := p.entries[d.firstChild-1:][:d.children]
		i, ok := slices.BinarySearchFunc(children, name, func(e entry, name string) int {
			return compareNames(e.name, name)
		})
		if !ok {
			return 0
		}
		nr = d.firstChild + uint32(i)
	}
	return nr
}

// path returns the absolute path of entry nr.
func (p *plan) path(nr uint32) string {
	if nr == 1 {
		return "/"
	}
	if parent := p.at(nr).parent; parent != 1 {
		return p.path(parent) + "/" + p.at(nr).name
	}
	return "/" + p.at(nr).name
}

// files returns the numbers of the regular files in the order of their data:
// those below each of the prefetch paths first, then the rest.
func (p *plan) files(prefetch []uint32) []uint32 {
	var order []uint32
	seen := make([]bool, len(p.entries)+1)
	add := func(nr uint32) {
		nr = p.at(nr).first
		if p.at(nr).node.kind() == unix.S_IFREG && !seen[nr] {
			seen[nr] = true
			order = append(order, nr)
		}
	}
	for _, nr := range prefetch {
		below := []uint32{nr}
		if p.at(nr).node.dir != nil {
			p.depthFirst(nr, func(nr uint32) { below = append(below, nr) })
			slices.Sort(below)
		}
		for _, nr := range below {
			add(nr)
		}
	}
	for nr := uint32(1); nr <= uint32(len(p.entries)); nr++ {
		add(nr)
	}
	return order
}

// chunks returns the chunk numbers of the file e.
func (p *plan) chunks(e *entry) []uint32 { return p.refs[e.refAt:][:e.refCount] }
