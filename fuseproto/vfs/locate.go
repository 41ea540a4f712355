package vfs

// Locate returns the mount that a node of the guest belongs to, and the node's index
// in its file system. For what belongs to none, a directory above mounts or a mount
// that is gone, ok is false.
func (v *FS) Locate(node uint64) (m MountInfo, index uint64, ok bool) {
	found, index := v.table.Load().find(node)
	if found == nil || found.fs == &v.pseudo {
		return MountInfo{}, 0, false
	}
	return MountInfo{ID: found.id, Path: found.path, FS: found.fs}, index, true
}
