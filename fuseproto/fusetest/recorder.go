package fusetest

import (
	"fmt"
	"sync"

	"github.com/rafsd/rafsd/fuseproto"
)

// Recorder is a file system that can do everything and does nothing: each method
// succeeds and records its name and arguments as text. What it answers is told
// by its fields.
type Recorder struct {
	RootIndex uint64
	Entry     fuseproto.Entry // of all methods that give one
	Data      []byte          // written by those that have an Out
	Count     uint64          // returned by those that count

	mu    sync.Mutex
	calls []string
}

var _ fuseproto.FileSystem = (*Recorder)(nil)

// Take returns the calls recorded since the last Take.
func (r *Recorder) Take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *Recorder) record(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *Recorder) made(entry *fuseproto.Entry) error {
	*entry = r.Entry
	return nil
}

func (r *Recorder) write(out *fuseproto.Out) error {
	_, err := out.Write(r.Data[:min(len(r.Data), out.Room())])
	return err
}

// Root implements fuseproto.FileSystem, as does all that follows.
func (r *Recorder) Root() uint64 { return r.RootIndex }

func (r *Recorder) Init(flags uint64) { r.record("Init") }

func (r *Recorder) Destroy() { r.record("Destroy") }

func (r *Recorder) Lookup(_ *fuseproto.Op, dir uint64, name []byte, out *fuseproto.Entry) error {
	r.record("Lookup %d %s", dir, name)
	return r.made(out)
}

func (r *Recorder) Forget(node, nlookup uint64) { r.record("Forget %d %d", node, nlookup) }

func (r *Recorder) GetAttr(_ *fuseproto.Op, node uint64, in *fuseproto.GetAttrIn, out *fuseproto.AttrOut) error {
	r.record("GetAttr %d %+v", node, *in)
	*out = fuseproto.AttrOut{Timeout: r.Entry.AttrTimeout, Attr: r.Entry.Attr}
	return nil
}

func (r *Recorder) SetAttr(_ *fuseproto.Op, node uint64, in *fuseproto.SetAttrIn, out *fuseproto.AttrOut) error {
	r.record("SetAttr %d valid %#x size %d", node, in.Valid, in.Size)
	*out = fuseproto.AttrOut{Timeout: r.Entry.AttrTimeout, Attr: r.Entry.Attr}
	return nil
}

func (r *Recorder) Readlink(_ *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	r.record("Readlink %d", node)
	return r.write(out)
}

func (r *Recorder) StatFS(_ *fuseproto.Op, node uint64, out *fuseproto.StatFSOut) error {
	r.record("StatFS %d", node)
	out.Blocks = r.Count
	return nil
}

func (r *Recorder) Open(_ *fuseproto.Op, node uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	r.record("Open %d %#o %d", node, in.Flags, in.OpenFlags)
	*out = fuseproto.OpenOut{Fh: r.Count, Flags: fuseproto.FOpenKeepCache}
	return nil
}

func (r *Recorder) Read(_ *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	r.record("Read %d fh %d at %d size %d", node, in.Fh, in.Offset, in.Size)
	return r.write(out)
}

func (r *Recorder) Write(_ *fuseproto.Op, node uint64, in *fuseproto.WriteIn, data fuseproto.Payload) (uint32, error) {
	segs, err := data.Segments(nil)
	if err != nil {
		return 0, err
	}
	r.record("Write %d fh %d at %d %s", node, in.Fh, in.Offset, segs)
	return in.Size, nil
}

func (r *Recorder) Flush(_ *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	r.record("Flush %d fh %d owner %d", node, in.Fh, in.LockOwner)
	return nil
}

func (r *Recorder) Release(_ *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	r.record("Release %d %+v", node, *in)
	return nil
}

func (r *Recorder) Fsync(_ *fuseproto.Op, node uint64, in *fuseproto.FsyncIn) error {
	r.record("Fsync %d fh %d %d", node, in.Fh, in.FsyncFlags)
	return nil
}

func (r *Recorder) Fallocate(_ *fuseproto.Op, node uint64, in *fuseproto.FallocateIn) error {
	r.record("Fallocate %d fh %d [%d,+%d) %#x", node, in.Fh, in.Offset, in.Length, in.Mode)
	return nil
}

func (r *Recorder) Lseek(_ *fuseproto.Op, node uint64, in *fuseproto.LseekIn) (uint64, error) {
	r.record("Lseek %d fh %d at %d %d", node, in.Fh, in.Offset, in.Whence)
	return r.Count, nil
}

func (r *Recorder) CopyFileRange(_ *fuseproto.Op, node uint64, in *fuseproto.CopyFileRangeIn) (uint64, error) {
	r.record("CopyFileRange %d at %d to %d at %d len %d", node, in.OffIn, in.NodeOut, in.OffOut, in.Len)
	return in.Len, nil
}

func (r *Recorder) Ioctl(_ *fuseproto.Op, node uint64, in *fuseproto.IoctlIn, data []byte, out *fuseproto.Out) (int32, error) {
	r.record("Ioctl %d fh %d cmd %#x %s out %d", node, in.Fh, in.Cmd, data, in.OutSize)
	return int32(r.Count), r.write(out)
}

func (r *Recorder) GetLk(_ *fuseproto.Op, node uint64, in *fuseproto.LkIn, out *fuseproto.FileLock) error {
	r.record("GetLk %d fh %d %+v", node, in.Fh, in.Lock)
	*out = in.Lock
	return nil
}

func (r *Recorder) SetLk(_ *fuseproto.Op, node uint64, in *fuseproto.LkIn, wait bool) error {
	r.record("SetLk %d fh %d %+v wait %v", node, in.Fh, in.Lock, wait)
	return nil
}

func (r *Recorder) OpenDir(_ *fuseproto.Op, node uint64, in *fuseproto.OpenIn, out *fuseproto.OpenOut) error {
	r.record("OpenDir %d %#o", node, in.Flags)
	*out = fuseproto.OpenOut{Fh: r.Count, Flags: fuseproto.FOpenKeepCache | fuseproto.FOpenCacheDir}
	return nil
}

func (r *Recorder) ReadDir(_ *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	r.record("ReadDir %d fh %d at %d plus %v", node, in.Fh, in.Offset, out.Plus())
	if in.Offset == 0 {
		out.AddPlus(fuseproto.DirEntry{Name: []byte("name"), Ino: r.Entry.Attr.Ino, Off: 1, Type: fuseproto.DTReg}, &r.Entry)
	}
	return nil
}

func (r *Recorder) ReleaseDir(_ *fuseproto.Op, node uint64, in *fuseproto.ReleaseIn) error {
	r.record("ReleaseDir %d fh %d", node, in.Fh)
	return nil
}

func (r *Recorder) FsyncDir(_ *fuseproto.Op, node uint64, in *fuseproto.FsyncIn) error {
	r.record("FsyncDir %d fh %d", node, in.Fh)
	return nil
}

func (r *Recorder) SyncFS(_ *fuseproto.Op, node uint64) error {
	r.record("SyncFS %d", node)
	return nil
}

func (r *Recorder) GetXattr(_ *fuseproto.Op, node uint64, name []byte, out *fuseproto.Out) error {
	r.record("GetXattr %d %s", node, name)
	_, err := out.Write(r.Data)
	return err
}

func (r *Recorder) ListXattr(_ *fuseproto.Op, node uint64, out *fuseproto.Out) error {
	r.record("ListXattr %d", node)
	_, err := out.Write(r.Data)
	return err
}

func (r *Recorder) SetXattr(_ *fuseproto.Op, node uint64, in *fuseproto.SetXattrIn, name, value []byte) error {
	r.record("SetXattr %d %+v %s=%s", node, *in, name, value)
	return nil
}

func (r *Recorder) RemoveXattr(_ *fuseproto.Op, node uint64, name []byte) error {
	r.record("RemoveXattr %d %s", node, name)
	return nil
}

func (r *Recorder) Mknod(_ *fuseproto.Op, dir uint64, in *fuseproto.MknodIn, name []byte, out *fuseproto.Entry) error {
	r.record("Mknod %d %s mode %#o rdev %d umask %#o", dir, name, in.Mode, in.Rdev, in.Umask)
	return r.made(out)
}

func (r *Recorder) Mkdir(_ *fuseproto.Op, dir uint64, in *fuseproto.MkdirIn, name []byte, out *fuseproto.Entry) error {
	r.record("Mkdir %d %s mode %#o umask %#o", dir, name, in.Mode, in.Umask)
	return r.made(out)
}

func (r *Recorder) Symlink(_ *fuseproto.Op, dir uint64, name, target []byte, out *fuseproto.Entry) error {
	r.record("Symlink %d %s -> %s", dir, name, target)
	return r.made(out)
}

func (r *Recorder) Link(_ *fuseproto.Op, node, newDir uint64, newName []byte, out *fuseproto.Entry) error {
	r.record("Link %d as %d %s", node, newDir, newName)
	return r.made(out)
}

func (r *Recorder) Unlink(_ *fuseproto.Op, dir uint64, name []byte) error {
	r.record("Unlink %d %s", dir, name)
	return nil
}

func (r *Recorder) Rmdir(_ *fuseproto.Op, dir uint64, name []byte) error {
	r.record("Rmdir %d %s", dir, name)
	return nil
}

func (r *Recorder) Rename(_ *fuseproto.Op, dir uint64, name []byte, newDir uint64, newName []byte, flags uint32) error {
	r.record("Rename %d %s to %d %s flags %d", dir, name, newDir, newName, flags)
	return nil
}

func (r *Recorder) Create(_ *fuseproto.Op, dir uint64, in *fuseproto.CreateIn, name []byte, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	r.record("Create %d %s %+v", dir, name, *in)
	*out = fuseproto.OpenOut{Fh: r.Count}
	return r.made(entry)
}

func (r *Recorder) Tmpfile(_ *fuseproto.Op, dir uint64, in *fuseproto.CreateIn, entry *fuseproto.Entry, out *fuseproto.OpenOut) error {
	r.record("Tmpfile %d %+v", dir, *in)
	*out = fuseproto.OpenOut{Fh: r.Count}
	return r.made(entry)
}
