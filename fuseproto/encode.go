package fuseproto

// Encoders of the fixed parts of replies. Each fills exactly its size of b,
// padding included: the guest copies whole structures, so a byte left out would
// be old memory of ours or its own.

const (
	attrSize          = 88
	entryOutSize      = 128
	attrOutSize       = 104
	openOutSize       = 16
	createOutSize     = entryOutSize + openOutSize
	writeOutSize      = 8
	statFSOutSize     = 80
	getXattrOutSize   = 8
	lkOutSize         = 24
	lseekOutSize      = 8
	copyRangeOutSize  = 8
	ioctlOutSize      = 16
	initOutSize       = 64
	direntSize        = 24 // before the name
	direntPlusSize    = entryOutSize + direntSize
	maxFixedReplySize = createOutSize
)

func encodeOutHeader(b []byte, length uint32, errno int32, unique uint64) {
	_ = b[outHeaderSize-1]
	le.PutUint32(b, length)
	le.PutUint32(b[4:], uint32(-errno))
	le.PutUint64(b[8:], unique)
}

func encodeAttr(b []byte, a *Attr, ino uint64) {
	_ = b[attrSize-1]
	le.PutUint64(b, ino)
	le.PutUint64(b[8:], a.Size)
	le.PutUint64(b[16:], a.Blocks)
	le.PutUint64(b[24:], uint64(a.Atime))
	le.PutUint64(b[32:], uint64(a.Mtime))
	le.PutUint64(b[40:], uint64(a.Ctime))
	le.PutUint32(b[48:], a.AtimeNsec)
	le.PutUint32(b[52:], a.MtimeNsec)
	le.PutUint32(b[56:], a.CtimeNsec)
	le.PutUint32(b[60:], a.Mode)
	le.PutUint32(b[64:], a.Nlink)
	le.PutUint32(b[68:], a.UID)
	le.PutUint32(b[72:], a.GID)
	le.PutUint32(b[76:], a.Rdev)
	le.PutUint32(b[80:], a.Blksize)
	le.PutUint32(b[84:], a.Flags)
}

// encodeEntry encodes e with the given node and inode number in place of its own.
func encodeEntry(b []byte, e *Entry, node, ino uint64) {
	_ = b[entryOutSize-1]
	le.PutUint64(b, node)
	le.PutUint64(b[8:], e.Generation)
	le.PutUint64(b[16:], e.EntryTimeout.Sec)
	le.PutUint64(b[24:], e.AttrTimeout.Sec)
	le.PutUint32(b[32:], e.EntryTimeout.Nsec)
	le.PutUint32(b[36:], e.AttrTimeout.Nsec)
	encodeAttr(b[40:], &e.Attr, ino)
}

func encodeAttrOut(b []byte, a *AttrOut) {
	_ = b[attrOutSize-1]
	le.PutUint64(b, a.Timeout.Sec)
	le.PutUint32(b[8:], a.Timeout.Nsec)
	le.PutUint32(b[12:], 0)
	encodeAttr(b[16:], &a.Attr, a.Attr.Ino)
}

func encodeOpenOut(b []byte, o *OpenOut) {
	_ = b[openOutSize-1]
	le.PutUint64(b, o.Fh)
	le.PutUint32(b[8:], o.Flags)
	le.PutUint32(b[12:], 0) // backing_id: /dev/fuse only
}

func encodeStatFS(b []byte, s *StatFSOut) {
	_ = b[statFSOutSize-1]
	le.PutUint64(b, s.Blocks)
	le.PutUint64(b[8:], s.Bfree)
	le.PutUint64(b[16:], s.Bavail)
	le.PutUint64(b[24:], s.Files)
	le.PutUint64(b[32:], s.Ffree)
	le.PutUint32(b[40:], s.Bsize)
	le.PutUint32(b[44:], s.Namelen)
	le.PutUint32(b[48:], s.Frsize)
	clear(b[52:statFSOutSize])
}

func encodeFileLock(b []byte, l *FileLock) {
	_ = b[lkOutSize-1]
	le.PutUint64(b, l.Start)
	le.PutUint64(b[8:], l.End)
	le.PutUint32(b[16:], l.Type)
	le.PutUint32(b[20:], l.PID)
}

func encodeIoctlOut(b []byte, result int32) {
	_ = b[ioctlOutSize-1]
	le.PutUint32(b, uint32(result))
	clear(b[4:ioctlOutSize])
}

// encodeCount encodes a 32-bit number followed by padding: the replies to
// WRITE, GETXATTR's size probe, and COPY_FILE_RANGE.
func encodeCount(b []byte, n uint32) {
	le.PutUint32(b, n)
	le.PutUint32(b[4:], 0)
}

// initOut is struct fuse_init_out.
type initOut struct {
	major, minor        uint32
	maxReadahead        uint32
	flags               uint64
	maxBackground       uint16
	congestionThreshold uint16
	maxWrite            uint32
	maxPages            uint16
	mapAlignment        uint16
}

func (o *initOut) encode(b []byte) {
	clear(b[:initOutSize])
	le.PutUint32(b, o.major)
	le.PutUint32(b[4:], o.minor)
	le.PutUint32(b[8:], o.maxReadahead)
	le.PutUint32(b[12:], uint32(o.flags))
	le.PutUint16(b[16:], o.maxBackground)
	le.PutUint16(b[18:], o.congestionThreshold)
	le.PutUint32(b[20:], o.maxWrite)
	le.PutUint32(b[24:], 1) // time_gran: nanoseconds
	le.PutUint16(b[28:], o.maxPages)
	le.PutUint16(b[30:], o.mapAlignment)
	le.PutUint32(b[32:], uint32(o.flags>>32))
}
