package vmm

import (
	"context"
	"encoding/binary"
)

// The requests that only the back-end of a writable directory has an answer to.

// Umask returns the client with requests by a process with another umask. The guest
// applies it itself before it sends a mode, unless DONT_MASK was granted; then it
// sends both, and this client sends what it is told.
func (c *Client) Umask(mask uint32) *Client {
	d := *c
	d.umask = mask
	return &d
}

// Tmpfile makes and opens a file without a name in a directory. Link gives it one.
func (c *Client) Tmpfile(ctx context.Context, parent uint64, flags, mode uint32) (Entry, OpenOut, error) {
	return c.create(ctx, OpTmpfile, parent, "/", flags, mode) // the name of a dentry that has none
}

// Access checks permissions (mask as in access(2)). Linux's virtio-fs never sends it.
func (c *Client) Access(ctx context.Context, nodeID uint64, mask uint32) error {
	return c.plain(ctx, OpAccess, nodeID, pack(mask, uint32(0)))
}

// Fsyncdir syncs a directory.
func (c *Client) Fsyncdir(ctx context.Context, nodeID, fh uint64) error {
	return c.plain(ctx, OpFsyncdir, nodeID, pack(fh, uint64(0)))
}

// CopyRange is what COPY_FILE_RANGE copies.
type CopyRange struct {
	FromFh, FromOff uint64
	To, ToFh, ToOff uint64
	Len, Flags      uint64
}

// CopyFileRange copies from a file to another (or itself) and returns how many
// bytes, which may be fewer than asked.
func (c *Client) CopyFileRange(ctx context.Context, from uint64, r CopyRange) (int, error) {
	b, err := c.call(ctx, OpCopyFileRange, from, pack(r), shape{fixed: 8})
	if err != nil {
		return 0, err
	}
	return int(binary.LittleEndian.Uint32(b)), nil
}

// Ioctl sends a restricted ioctl: in is what the guest's kernel read from the
// program because of the command's size and direction, out how much it would write
// back. result is what the ioctl itself returns.
func (c *Client) Ioctl(ctx context.Context, nodeID, fh uint64, cmd uint32, arg uint64, in []byte, out int) (result int32, data []byte, err error) {
	args := append(pack(fh, uint32(0), cmd, arg, uint32(len(in)), uint32(out)), in...)
	b, err := c.call(ctx, OpIoctl, nodeID, args, shape{variable: ioctlOutSize + out})
	if err != nil {
		return 0, nil, err
	}
	if len(b) < ioctlOutSize {
		return 0, nil, violation("IOCTL of node %d: a reply of %d bytes", nodeID, outHeaderSize+len(b))
	}
	return unpack[int32](b), b[ioctlOutSize:], nil
}

// FileLock is fuse_file_lock: bytes Start to End, both included.
type FileLock struct {
	Start, End uint64
	Type       uint32 // 0 read, 1 write, 2 none, as F_RDLCK, F_WRLCK, F_UNLCK
	PID        uint32
}

// LockFlock marks a lock as one of flock(2).
const LockFlock = 1

type lockIn struct {
	Fh, Owner uint64
	Lock      FileLock
	Flags, _  uint32
}

// Getlk asks which lock stands in the way of one; of Type 2 if none does.
func (c *Client) Getlk(ctx context.Context, nodeID, fh, owner uint64, lock FileLock) (FileLock, error) {
	b, err := c.call(ctx, OpGetlk, nodeID, pack(lockIn{Fh: fh, Owner: owner, Lock: lock}), shape{fixed: fileLockSize})
	if err != nil {
		return FileLock{}, err
	}
	return unpack[FileLock](b), nil
}

// Setlk takes a lock or gives it back (Type 2); EAGAIN if it is another's.
func (c *Client) Setlk(ctx context.Context, nodeID, fh, owner uint64, lock FileLock, flags uint32) error {
	return c.plain(ctx, OpSetlk, nodeID, pack(lockIn{Fh: fh, Owner: owner, Lock: lock, Flags: flags}))
}

// GoSetlkw is Setlk that waits for the other, without the wait for its reply.
func (c *Client) GoSetlkw(ctx context.Context, nodeID, fh, owner uint64, lock FileLock, flags uint32) (*Pending, error) {
	return c.start(ctx, OpSetlkw, nodeID, pack(lockIn{Fh: fh, Owner: owner, Lock: lock, Flags: flags}), nil, shape{})
}

// ReleaseOwner is Release of a handle that was an owner's last one of the file, or
// the last one of a flock (releaseFlags 2).
func (c *Client) ReleaseOwner(ctx context.Context, nodeID, fh, owner uint64, releaseFlags uint32) error {
	return c.plain(ctx, OpRelease, nodeID, pack(fh, uint32(oLargefile), releaseFlags, owner))
}

// FlushOwner is Flush by an owner of locks, which end with it.
func (c *Client) FlushOwner(ctx context.Context, nodeID, fh, owner uint64) error {
	return c.plain(ctx, OpFlush, nodeID, pack(fh, uint64(0), owner))
}

// Statx is fuse_statx, as far as it says more than Attr.
type Statx struct {
	Mask, Blksize      uint32
	Attributes         uint64
	Nlink, UID, GID    uint32
	Mode, _            uint16
	Ino, Size, Blocks  uint64
	AttributesMask     uint64
	Atime, Btime       StatxTime
	Ctime, Mtime       StatxTime
	RdevMajor          uint32
	RdevMinor          uint32
	DevMajor, DevMinor uint32
	_                  [14]uint64
}

// StatxTime is fuse_sx_time.
type StatxTime struct {
	Sec  int64
	Nsec uint32
	_    int32
}

// Statx reads a node's attributes with its time of birth (mask as in statx(2)).
func (c *Client) Statx(ctx context.Context, nodeID uint64, mask uint32) (Statx, error) {
	b, err := c.call(ctx, OpStatx, nodeID, pack(uint64(0), uint64(0), uint32(0), mask), shape{fixed: statxOutSize})
	if err != nil {
		return Statx{}, err
	}
	return unpack[Statx](b[statxOutSize-statxSize:]), nil
}

// Bits of Write and Open by which the guest leaves the set-id bits to the back-end
// (HANDLE_KILLPRIV_V2).
const (
	WriteKillSuidgid uint32 = 4
	OpenKillSuidgid  uint32 = 1
)

// WriteFlags is Write with write flags.
func (c *Client) WriteFlags(ctx context.Context, nodeID, fh, off uint64, data []byte, flags uint32) (int, error) {
	p, err := c.start(ctx, OpWrite, nodeID, writeIn(fh, off, len(data), flags), data, shape{fixed: 8})
	if err != nil {
		return 0, err
	}
	b, err := p.Wait(ctx)
	if err != nil {
		return 0, err
	}
	return int(binary.LittleEndian.Uint32(b)), nil
}

func writeIn(fh, off uint64, size int, flags uint32) []byte {
	return pack(fh, off, uint32(size), flags, uint64(0), uint32(oLargefile), uint32(0))
}
