package passthrough

import "unsafe"

// Known returns how many references the guest has to a node.
func (fs *FS) Known(id uint64) uint64 {
	s := fs.session.Load()
	n := s.nodes.get(id)
	if n == nil {
		return 0
	}
	sh := s.nodes.shardOf(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return n.count
}

// NodeSize is how many bytes a node has.
const NodeSize = unsafe.Sizeof(node{})
