package fuseproto

import "syscall"

// ReadOnly is the base of file systems that cannot be written: they embed it and
// add Root, Lookup, GetAttr, Readlink, Read and ReadDir, and Open, OpenDir,
// StatFS and the attribute methods where they know better.
//
// What would change something answers EROFS. What only tells that the guest is
// done with something (FLUSH, RELEASE, FSYNC, SYNCFS) succeeds. Nothing answers
// an ENOSYS that another mount of the same session would suffer from.
type ReadOnly struct{}

// Init does nothing.
func (ReadOnly) Init(flags uint64) {}

// Destroy does nothing.
func (ReadOnly) Destroy() {}

// Forget does nothing: nodes are functions of the file system.
func (ReadOnly) Forget(node, nlookup uint64) {}

// SetAttr answers EROFS.
func (ReadOnly) SetAttr(*Op, uint64, *SetAttrIn, *AttrOut) error { return syscall.EROFS }

// StatFS tells of a file system without free space.
func (ReadOnly) StatFS(_ *Op, _ uint64, out *StatFSOut) error {
	*out = StatFSOut{Bsize: 4096, Frsize: 4096, Namelen: maxName}
	return nil
}

// Open answers EROFS unless the file is opened for reading only; the guest may
// keep its pages of it from one open to the next.
func (ReadOnly) Open(_ *Op, _ uint64, in *OpenIn, out *OpenOut) error {
	if in.Flags&OpenAccessMode != OpenReadOnly || in.Flags&OpenTruncate != 0 {
		return syscall.EROFS
	}
	*out = OpenOut{Flags: FOpenKeepCache}
	return nil
}

// OpenDir lets the guest keep the listing.
func (ReadOnly) OpenDir(_ *Op, _ uint64, _ *OpenIn, out *OpenOut) error {
	*out = OpenOut{Flags: FOpenKeepCache | FOpenCacheDir}
	return nil
}

// Write answers EROFS.
func (ReadOnly) Write(*Op, uint64, *WriteIn, Payload) (uint32, error) { return 0, syscall.EROFS }

// Flush succeeds.
func (ReadOnly) Flush(*Op, uint64, *ReleaseIn) error { return nil }

// Release succeeds.
func (ReadOnly) Release(*Op, uint64, *ReleaseIn) error { return nil }

// Fsync succeeds.
func (ReadOnly) Fsync(*Op, uint64, *FsyncIn) error { return nil }

// Fallocate answers EROFS.
func (ReadOnly) Fallocate(*Op, uint64, *FallocateIn) error { return syscall.EROFS }

// Lseek answers ENOSYS, upon which the server takes the whole file for data.
func (ReadOnly) Lseek(*Op, uint64, *LseekIn) (uint64, error) { return 0, syscall.ENOSYS }

// CopyFileRange answers EROFS.
func (ReadOnly) CopyFileRange(*Op, uint64, *CopyFileRangeIn) (uint64, error) {
	return 0, syscall.EROFS
}

// Ioctl answers ENOTTY: no command is known.
func (ReadOnly) Ioctl(*Op, uint64, *IoctlIn, []byte, *Out) (int32, error) { return 0, syscall.ENOTTY }

// GetLk answers ENOSYS: locks are the guest's own, it does not ask.
func (ReadOnly) GetLk(*Op, uint64, *LkIn, *FileLock) error { return syscall.ENOSYS }

// SetLk answers ENOSYS: locks are the guest's own, it does not ask.
func (ReadOnly) SetLk(*Op, uint64, *LkIn, bool) error { return syscall.ENOSYS }

// ReleaseDir succeeds.
func (ReadOnly) ReleaseDir(*Op, uint64, *ReleaseIn) error { return nil }

// FsyncDir succeeds.
func (ReadOnly) FsyncDir(*Op, uint64, *FsyncIn) error { return nil }

// SyncFS succeeds.
func (ReadOnly) SyncFS(*Op, uint64) error { return nil }

// GetXattr answers ENODATA: there are no attributes.
func (ReadOnly) GetXattr(*Op, uint64, []byte, *Out) error { return syscall.ENODATA }

// ListXattr tells of no attributes.
func (ReadOnly) ListXattr(*Op, uint64, *Out) error { return nil }

// SetXattr answers EROFS.
func (ReadOnly) SetXattr(*Op, uint64, *SetXattrIn, []byte, []byte) error { return syscall.EROFS }

// RemoveXattr answers EROFS.
func (ReadOnly) RemoveXattr(*Op, uint64, []byte) error { return syscall.EROFS }

// Mknod answers EROFS.
func (ReadOnly) Mknod(*Op, uint64, *MknodIn, []byte, *Entry) error { return syscall.EROFS }

// Mkdir answers EROFS.
func (ReadOnly) Mkdir(*Op, uint64, *MkdirIn, []byte, *Entry) error { return syscall.EROFS }

// Symlink answers EROFS.
func (ReadOnly) Symlink(*Op, uint64, []byte, []byte, *Entry) error { return syscall.EROFS }

// Link answers EROFS.
func (ReadOnly) Link(*Op, uint64, uint64, []byte, *Entry) error { return syscall.EROFS }

// Unlink answers EROFS.
func (ReadOnly) Unlink(*Op, uint64, []byte) error { return syscall.EROFS }

// Rmdir answers EROFS.
func (ReadOnly) Rmdir(*Op, uint64, []byte) error { return syscall.EROFS }

// Rename answers EROFS.
func (ReadOnly) Rename(*Op, uint64, []byte, uint64, []byte, uint32) error { return syscall.EROFS }

// Create answers EROFS.
func (ReadOnly) Create(*Op, uint64, *CreateIn, []byte, *Entry, *OpenOut) error {
	return syscall.EROFS
}

// Tmpfile answers EROFS.
func (ReadOnly) Tmpfile(*Op, uint64, *CreateIn, *Entry, *OpenOut) error { return syscall.EROFS }
