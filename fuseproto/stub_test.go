package fuseproto_test

import "github.com/rafsd/rafsd/fuseproto"

// stub is a file system whose every method ends with err.
type stub struct{ err error }

var _ fuseproto.FileSystem = stub{}

func (s stub) Root() uint64          { return fuseproto.RootID }
func (s stub) Init(uint64)           {}
func (s stub) Destroy()              {}
func (s stub) Forget(uint64, uint64) {}

func (s stub) Lookup(*fuseproto.Op, uint64, []byte, *fuseproto.Entry) error { return s.err }
func (s stub) GetAttr(*fuseproto.Op, uint64, *fuseproto.GetAttrIn, *fuseproto.AttrOut) error {
	return s.err
}
func (s stub) SetAttr(*fuseproto.Op, uint64, *fuseproto.SetAttrIn, *fuseproto.AttrOut) error {
	return s.err
}
func (s stub) Readlink(*fuseproto.Op, uint64, *fuseproto.Out) error     { return s.err }
func (s stub) StatFS(*fuseproto.Op, uint64, *fuseproto.StatFSOut) error { return s.err }
func (s stub) Open(*fuseproto.Op, uint64, *fuseproto.OpenIn, *fuseproto.OpenOut) error {
	return s.err
}
func (s stub) Read(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.Out) error { return s.err }
func (s stub) Write(*fuseproto.Op, uint64, *fuseproto.WriteIn, fuseproto.Payload) (uint32, error) {
	return 0, s.err
}
func (s stub) Flush(*fuseproto.Op, uint64, *fuseproto.ReleaseIn) error       { return s.err }
func (s stub) Release(*fuseproto.Op, uint64, *fuseproto.ReleaseIn) error     { return s.err }
func (s stub) Fsync(*fuseproto.Op, uint64, *fuseproto.FsyncIn) error         { return s.err }
func (s stub) Fallocate(*fuseproto.Op, uint64, *fuseproto.FallocateIn) error { return s.err }
func (s stub) Lseek(*fuseproto.Op, uint64, *fuseproto.LseekIn) (uint64, error) {
	return 0, s.err
}
func (s stub) CopyFileRange(*fuseproto.Op, uint64, *fuseproto.CopyFileRangeIn) (uint64, error) {
	return 0, s.err
}
func (s stub) Ioctl(*fuseproto.Op, uint64, *fuseproto.IoctlIn, []byte, *fuseproto.Out) (int32, error) {
	return 0, s.err
}
func (s stub) GetLk(*fuseproto.Op, uint64, *fuseproto.LkIn, *fuseproto.FileLock) error { return s.err }
func (s stub) SetLk(*fuseproto.Op, uint64, *fuseproto.LkIn, bool) error                { return s.err }
func (s stub) OpenDir(*fuseproto.Op, uint64, *fuseproto.OpenIn, *fuseproto.OpenOut) error {
	return s.err
}
func (s stub) ReadDir(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.DirWriter) error {
	return s.err
}
func (s stub) ReleaseDir(*fuseproto.Op, uint64, *fuseproto.ReleaseIn) error { return s.err }
func (s stub) FsyncDir(*fuseproto.Op, uint64, *fuseproto.FsyncIn) error     { return s.err }
func (s stub) SyncFS(*fuseproto.Op, uint64) error                           { return s.err }
func (s stub) GetXattr(*fuseproto.Op, uint64, []byte, *fuseproto.Out) error { return s.err }
func (s stub) ListXattr(*fuseproto.Op, uint64, *fuseproto.Out) error        { return s.err }
func (s stub) SetXattr(*fuseproto.Op, uint64, *fuseproto.SetXattrIn, []byte, []byte) error {
	return s.err
}
func (s stub) RemoveXattr(*fuseproto.Op, uint64, []byte) error { return s.err }
func (s stub) Mknod(*fuseproto.Op, uint64, *fuseproto.MknodIn, []byte, *fuseproto.Entry) error {
	return s.err
}
func (s stub) Mkdir(*fuseproto.Op, uint64, *fuseproto.MkdirIn, []byte, *fuseproto.Entry) error {
	return s.err
}
func (s stub) Symlink(*fuseproto.Op, uint64, []byte, []byte, *fuseproto.Entry) error { return s.err }
func (s stub) Link(*fuseproto.Op, uint64, uint64, []byte, *fuseproto.Entry) error    { return s.err }
func (s stub) Unlink(*fuseproto.Op, uint64, []byte) error                            { return s.err }
func (s stub) Rmdir(*fuseproto.Op, uint64, []byte) error                             { return s.err }
func (s stub) Rename(*fuseproto.Op, uint64, []byte, uint64, []byte, uint32) error    { return s.err }
func (s stub) Create(*fuseproto.Op, uint64, *fuseproto.CreateIn, []byte, *fuseproto.Entry, *fuseproto.OpenOut) error {
	return s.err
}
func (s stub) Tmpfile(*fuseproto.Op, uint64, *fuseproto.CreateIn, *fuseproto.Entry, *fuseproto.OpenOut) error {
	return s.err
}
