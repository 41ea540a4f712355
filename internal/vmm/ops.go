package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"syscall"
)

// The operations of a mount, each one request as the Linux client lays it out.
// An errno of the reply is returned as a syscall.Errno.

// entry sends a request that is answered with an entry.
func (c *Client) entry(ctx context.Context, op Opcode, nodeID uint64, args []byte) (Entry, error) {
	b, err := c.call(ctx, op, nodeID, args, shape{fixed: entrySize})
	if err != nil {
		return Entry{}, err
	}
	e := unpack[Entry](b)
	c.granted(e.NodeID)
	return e, nil
}

// Lookup finds a name in a directory. An entry with NodeID 0 is a negative one.
func (c *Client) Lookup(ctx context.Context, parent uint64, name string) (Entry, error) {
	return c.entry(ctx, OpLookup, parent, pack(name))
}

// Getattr reads a node's attributes.
func (c *Client) Getattr(ctx context.Context, nodeID uint64) (AttrOut, error) {
	b, err := c.call(ctx, OpGetattr, nodeID, make([]byte, 16), shape{fixed: attrOutSize})
	if err != nil {
		return AttrOut{}, err
	}
	return unpack[AttrOut](b), nil
}

// Setattr changes attributes.
func (c *Client) Setattr(ctx context.Context, nodeID uint64, in SetattrIn) (AttrOut, error) {
	b, err := c.call(ctx, OpSetattr, nodeID, pack(in), shape{fixed: attrOutSize})
	if err != nil {
		return AttrOut{}, err
	}
	return unpack[AttrOut](b), nil
}

// Readlink reads a symbolic link's target.
func (c *Client) Readlink(ctx context.Context, nodeID uint64) (string, error) {
	b, err := c.call(ctx, OpReadlink, nodeID, nil, shape{pages: PageSize - 1})
	return string(b), err
}

// Symlink makes a symbolic link.
func (c *Client) Symlink(ctx context.Context, parent uint64, name, target string) (Entry, error) {
	return c.entry(ctx, OpSymlink, parent, pack(name, target))
}

// Mknod makes a file of any kind; mode holds the type.
func (c *Client) Mknod(ctx context.Context, parent uint64, name string, mode, rdev uint32) (Entry, error) {
	return c.entry(ctx, OpMknod, parent, pack(mode, rdev, c.umask, uint32(0), name))
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, parent uint64, name string, mode uint32) (Entry, error) {
	return c.entry(ctx, OpMkdir, parent, pack(mode, c.umask, name))
}

// Link makes one more name for a node.
func (c *Client) Link(ctx context.Context, nodeID, parent uint64, name string) (Entry, error) {
	return c.entry(ctx, OpLink, parent, pack(nodeID, name))
}

func (c *Client) plain(ctx context.Context, op Opcode, nodeID uint64, args []byte) error {
	_, err := c.call(ctx, op, nodeID, args, shape{})
	return err
}

// Unlink removes a name.
func (c *Client) Unlink(ctx context.Context, parent uint64, name string) error {
	return c.plain(ctx, OpUnlink, parent, pack(name))
}

// Rmdir removes a directory.
func (c *Client) Rmdir(ctx context.Context, parent uint64, name string) error {
	return c.plain(ctx, OpRmdir, parent, pack(name))
}

// Rename moves a name.
func (c *Client) Rename(ctx context.Context, parent uint64, name string, newParent uint64, newName string) error {
	return c.plain(ctx, OpRename, parent, pack(newParent, name, newName))
}

// Rename2 moves a name with flags: 1 NOREPLACE, 2 EXCHANGE, 4 WHITEOUT.
func (c *Client) Rename2(ctx context.Context, parent uint64, name string, newParent uint64, newName string, flags uint32) error {
	return c.plain(ctx, OpRename2, parent, pack(newParent, flags, uint32(0), name, newName))
}

// oLargefile is what every 64-bit guest has in its open flags.
const oLargefile = 0o100000

// Open opens a file. Once the back-end has answered ENOSYS no request is sent any
// more and the handle is 0, as in the guest.
func (c *Client) Open(ctx context.Context, nodeID uint64, flags uint32) (OpenOut, error) {
	return c.open(ctx, OpOpen, nodeID, flags|oLargefile, &c.noOpen)
}

// Opendir opens a directory, with Open's rule about ENOSYS.
func (c *Client) Opendir(ctx context.Context, nodeID uint64) (OpenOut, error) {
	return c.open(ctx, OpOpendir, nodeID, 0o304000, &c.noOpendir)
}

func (c *Client) open(ctx context.Context, op Opcode, nodeID uint64, flags uint32, never interface {
	Load() bool
	Store(bool)
}) (OpenOut, error) {
	if never.Load() {
		return OpenOut{}, nil
	}
	b, err := c.call(ctx, op, nodeID, pack(flags, uint32(0)), shape{fixed: openOutSize})
	if errors.Is(err, syscall.ENOSYS) {
		never.Store(true)
		return OpenOut{}, nil
	}
	if err != nil {
		return OpenOut{}, err
	}
	return unpack[OpenOut](b), nil
}

// Release closes a file's handle.
func (c *Client) Release(ctx context.Context, nodeID, fh uint64) error {
	if c.noOpen.Load() {
		return nil
	}
	return c.plain(ctx, OpRelease, nodeID, pack(fh, uint32(oLargefile), uint32(0), uint64(0)))
}

// Releasedir closes a directory's handle.
func (c *Client) Releasedir(ctx context.Context, nodeID, fh uint64) error {
	if c.noOpendir.Load() {
		return nil
	}
	return c.plain(ctx, OpReleasedir, nodeID, pack(fh, uint32(0o304000), uint32(0), uint64(0)))
}

// Flush is sent at each close of a descriptor in the guest.
func (c *Client) Flush(ctx context.Context, nodeID, fh uint64) error {
	return c.plain(ctx, OpFlush, nodeID, pack(fh, uint64(0), uint64(0)))
}

// Fsync syncs a file.
func (c *Client) Fsync(ctx context.Context, nodeID, fh uint64) error {
	return c.plain(ctx, OpFsync, nodeID, pack(fh, uint64(0)))
}

// Syncfs syncs the file system.
func (c *Client) Syncfs(ctx context.Context, nodeID uint64) error {
	return c.plain(ctx, OpSyncfs, nodeID, pack(uint64(0)))
}

func readIn(fh, off uint64, size int) []byte {
	return pack(fh, off, uint32(size), uint32(0), uint64(0), uint32(oLargefile), uint32(0))
}

// Read reads size bytes, or fewer at the end of the file, into scattered pages.
func (c *Client) Read(ctx context.Context, nodeID, fh, off uint64, size int) ([]byte, error) {
	return c.call(ctx, OpRead, nodeID, readIn(fh, off, size), shape{pages: size})
}

// GoRead is Read without the wait.
func (c *Client) GoRead(ctx context.Context, nodeID, fh, off uint64, size int) (*Pending, error) {
	return c.start(ctx, OpRead, nodeID, readIn(fh, off, size), nil, shape{pages: size})
}

// Write writes data from pages and returns how much was taken.
func (c *Client) Write(ctx context.Context, nodeID, fh, off uint64, data []byte) (int, error) {
	return c.WriteFlags(ctx, nodeID, fh, off, data, 0)
}

// Create makes and opens a regular file.
func (c *Client) Create(ctx context.Context, parent uint64, name string, flags, mode uint32) (Entry, OpenOut, error) {
	return c.create(ctx, OpCreate, parent, name, flags, mode)
}

func (c *Client) create(ctx context.Context, op Opcode, parent uint64, name string, flags, mode uint32) (Entry, OpenOut, error) {
	args := pack(flags|oLargefile, mode, c.umask, uint32(0), name)
	b, err := c.call(ctx, op, parent, args, shape{fixed: entrySize + openOutSize})
	if err != nil {
		return Entry{}, OpenOut{}, err
	}
	e := unpack[Entry](b)
	c.granted(e.NodeID)
	return e, unpack[OpenOut](b[entrySize:]), nil
}

// Readdir reads entries from the cookie off on into room bytes. None is the end.
func (c *Client) Readdir(ctx context.Context, nodeID, fh, off uint64, room int) ([]Dirent, error) {
	b, err := c.call(ctx, OpReaddir, nodeID, readIn(fh, off, room), shape{pages: room})
	if err != nil {
		return nil, err
	}
	return parseDirents(b, false)
}

// ReaddirPlus is Readdir with each entry's attributes, and a look-up of it.
func (c *Client) ReaddirPlus(ctx context.Context, nodeID, fh, off uint64, room int) ([]Dirent, error) {
	b, err := c.call(ctx, OpReaddirplus, nodeID, readIn(fh, off, room), shape{pages: room})
	if err != nil {
		return nil, err
	}
	list, err := parseDirents(b, true)
	for _, d := range list {
		if id := d.Entry.NodeID; id != 0 && (d.Name == "." || d.Name == "..") {
			return list, violation("READDIRPLUS of node %d gives %q the nodeid %d: the look-up would leak", nodeID, d.Name, id)
		}
		c.granted(d.Entry.NodeID)
	}
	return list, err
}

// Statfs reads the file system's figures.
func (c *Client) Statfs(ctx context.Context, nodeID uint64) (Statfs, error) {
	b, err := c.call(ctx, OpStatfs, nodeID, nil, shape{fixed: statfsSize})
	if err != nil {
		return Statfs{}, err
	}
	return unpack[Statfs](b), nil
}

// xattr sends GETXATTR or LISTXATTR: with room 0 it asks for the size.
func (c *Client) xattr(ctx context.Context, op Opcode, nodeID uint64, room int, name []byte) (value []byte, size int, err error) {
	args := append(le32s(uint32(room), 0), name...)
	if room > 0 {
		value, err = c.call(ctx, op, nodeID, args, shape{variable: room})
		return value, len(value), err
	}
	b, err := c.call(ctx, op, nodeID, args, shape{fixed: 8})
	if err != nil {
		return nil, 0, err
	}
	return nil, int(binary.LittleEndian.Uint32(b)), nil
}

// Getxattr reads an attribute into room bytes, or only its size when room is 0.
func (c *Client) Getxattr(ctx context.Context, nodeID uint64, name string, room int) (value []byte, size int, err error) {
	return c.xattr(ctx, OpGetxattr, nodeID, room, pack(name))
}

// Listxattr reads the names, NUL-terminated, or only their size when room is 0.
func (c *Client) Listxattr(ctx context.Context, nodeID uint64, room int) (names []byte, size int, err error) {
	return c.xattr(ctx, OpListxattr, nodeID, room, nil)
}

// Xattrs reads all attributes of a node the way programs do: sizes first.
func (c *Client) Xattrs(ctx context.Context, nodeID uint64) (map[string][]byte, error) {
	_, size, err := c.Listxattr(ctx, nodeID, 0)
	if err != nil || size == 0 {
		return nil, err
	}
	list, _, err := c.Listxattr(ctx, nodeID, size)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[len(list)-1] != 0 {
		return nil, violation("LISTXATTR of node %d: %q does not end in a NUL", nodeID, list)
	}
	out := map[string][]byte{}
	for name := range strings.SplitSeq(string(list[:len(list)-1]), "\x00") {
		_, size, err := c.Getxattr(ctx, nodeID, name, 0)
		if err != nil {
			return nil, err
		}
		value := []byte{}
		if size > 0 {
			if value, _, err = c.Getxattr(ctx, nodeID, name, size); err != nil {
				return nil, err
			}
		}
		out[name] = value
	}
	return out, nil
}

// Setxattr sets an attribute.
func (c *Client) Setxattr(ctx context.Context, nodeID uint64, name string, value []byte, flags uint32) error {
	args := le32s(uint32(len(value)), flags)
	if c.InitReply().AllFlags()&InitSetxattrExt != 0 {
		args = append(args, le32s(0, 0)...)
	}
	return c.plain(ctx, OpSetxattr, nodeID, append(args, pack(name, value)...))
}

// Removexattr removes an attribute.
func (c *Client) Removexattr(ctx context.Context, nodeID uint64, name string) error {
	return c.plain(ctx, OpRemovexattr, nodeID, pack(name))
}

// Lseek finds data (whence 3) or a hole (4).
func (c *Client) Lseek(ctx context.Context, nodeID, fh, off uint64, whence uint32) (uint64, error) {
	b, err := c.call(ctx, OpLseek, nodeID, pack(fh, off, whence, uint32(0)), shape{fixed: 8})
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Fallocate reserves or punches a range of a file.
func (c *Client) Fallocate(ctx context.Context, nodeID, fh, off, length uint64, mode uint32) error {
	return c.plain(ctx, OpFallocate, nodeID, pack(fh, off, length, mode, uint32(0)))
}

// Resolve looks a path up, name by name from the root.
func (c *Client) Resolve(ctx context.Context, path string) (Entry, error) {
	e := Entry{NodeID: RootID}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		var err error
		if e, err = c.Lookup(ctx, e.NodeID, name); err != nil {
			return Entry{}, err
		}
		if e.NodeID == 0 {
			return Entry{}, syscall.ENOENT
		}
	}
	if e.NodeID == RootID && e.Attr.Mode == 0 {
		a, err := c.Getattr(ctx, RootID)
		e.Attr = a.Attr
		return e, err
	}
	return e, nil
}
