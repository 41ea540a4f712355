package fuseproto

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"syscall"
)

// maxLogText is the longest text put in a log line. Lines stay below 8 KiB with
// room for the rest.
const maxLogText = 6 << 10

// clip returns s as valid UTF-8 of at most maxLogText bytes.
func clip(s string) string {
	if len(s) > maxLogText {
		s = s[:maxLogText]
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

func (s *Server) tracing() bool { return s.log.Enabled(context.Background(), slog.LevelDebug) }

// traceRequest writes the line of a request that has been received:
//
//	rx 42 LOOKUP n1 "etc" uid 0 pid 17
func (s *Server) traceRequest(op *Op) {
	l := traceLine(make([]byte, 0, 256))
	l = l.text("rx ").num(op.Unique).text(" ").text(op.Opcode.String()).text(" n").num(op.NodeID)
	l = l.args(op)
	l = l.text(" uid ").num(uint64(op.UID)).text(" pid ").num(uint64(op.PID))
	s.log.Debug(string(l))
}

// traceReply writes the line of a reply that is about to be delivered:
//
//	tx 42 LOOKUP ok n17592186044418 size 12 mode 100644 for 0s
//	tx 44 READ ENOENT
func (s *Server) traceReply(op *Op, errno syscall.Errno, length uint32) {
	l := traceLine(make([]byte, 0, 256))
	l = l.text("tx ").num(op.Unique).text(" ").text(op.Opcode.String()).text(" ")
	if errno != 0 {
		l = l.text(strconv.Itoa(int(errno))).text(" ").text(errno.Error())
	} else {
		l = l.text("ok").result(op).text(" ").num(uint64(length)).text(" bytes")
	}
	s.log.Debug(string(l))
}

// traceLine is a line in the making.
type traceLine []byte

func (l traceLine) text(s string) traceLine { return append(l, s...) }

func (l traceLine) num(n uint64) traceLine { return strconv.AppendUint(l, n, 10) }

func (l traceLine) hex(n uint64) traceLine { return strconv.AppendUint(append(l, "0x"...), n, 16) }

// field appends " name value".
func (l traceLine) field(name string, n uint64) traceLine {
	return append(l, ' ').text(name).text(" ").num(n)
}

// maxTracedName cuts names, which may grow tenfold when quoted.
const maxTracedName = 300

// quoted appends names of the body, from off on: printable whatever they are.
func (l traceLine) quoted(op *Op, off, count int) traceLine {
	for range count {
		if off >= len(op.body) {
			return l.text(" (no name)")
		}
		b := op.body[off:]
		for i, c := range b {
			if c == 0 {
				b = b[:i]
				break
			}
		}
		off += len(b) + 1
		l = append(l, ' ')
		b = b[:min(len(b), maxTracedName)]
		l = strconv.AppendQuoteToASCII(l, string(b))
	}
	return l
}

// args appends the arguments of the request. It decodes the private copy anew:
// tracing owes the path without it nothing.
func (l traceLine) args(op *Op) traceLine {
	b := op.body
	switch op.Opcode {
	case OpLookup, OpUnlink, OpRmdir, OpRemoveXattr:
		return l.quoted(op, 0, 1)
	case OpSymlink:
		return l.quoted(op, 0, 2)
	case OpForget:
		return l.field("nlookup", le.Uint64(b))
	case OpBatchForget:
		return l.field("count", uint64(le.Uint32(b)))
	case OpInterrupt:
		return l.field("of", le.Uint64(b))
	case OpInit:
		var in InitIn
		in.decode(b)
		l = l.text(" version ").num(uint64(in.Major)).text(".").num(uint64(in.Minor))
		return l.field("readahead", uint64(in.MaxReadahead)).text(" flags ").hex(in.Flags)
	case OpGetAttr:
		var in GetAttrIn
		in.decode(b)
		if in.Flags&GetAttrFh != 0 {
			l = l.field("fh", in.Fh)
		}
		return l
	case OpSetAttr:
		var in SetAttrIn
		in.decode(b)
		return l.text(" valid ").hex(uint64(in.Valid)).field("size", in.Size).text(" mode ").octal(in.Mode)
	case OpOpen, OpOpenDir:
		return l.text(" flags ").octal(le.Uint32(b))
	case OpRead, OpReadDir, OpReadDirPlus:
		var in ReadIn
		in.decode(b)
		return l.field("fh", in.Fh).field("at", in.Offset).field("size", uint64(in.Size))
	case OpWrite:
		var in WriteIn
		in.decode(b)
		return l.field("fh", in.Fh).field("at", in.Offset).field("size", uint64(in.Size))
	case OpRelease, OpReleaseDir, OpFlush, OpFsync, OpFsyncDir:
		return l.field("fh", le.Uint64(b))
	case OpMknod:
		return l.text(" mode ").octal(le.Uint32(b)).field("rdev", uint64(le.Uint32(b[4:]))).quoted(op, mknodInSize, 1)
	case OpMkdir:
		return l.text(" mode ").octal(le.Uint32(b)).quoted(op, mkdirInSize, 1)
	case OpCreate:
		return l.text(" flags ").octal(le.Uint32(b)).text(" mode ").octal(le.Uint32(b[4:])).quoted(op, createInSize, 1)
	case OpTmpfile:
		return l.text(" flags ").octal(le.Uint32(b)).text(" mode ").octal(le.Uint32(b[4:]))
	case OpLink:
		return l.text(" n").num(le.Uint64(b)).text(" as").quoted(op, linkInSize, 1)
	case OpRename:
		return l.text(" to n").num(le.Uint64(b)).quoted(op, renameInSize, 2)
	case OpRename2:
		return l.text(" to n").num(le.Uint64(b)).text(" flags ").hex(uint64(le.Uint32(b[8:]))).quoted(op, rename2InSize, 2)
	case OpGetXattr:
		return l.field("size", uint64(le.Uint32(b))).quoted(op, getXattrInSize, 1)
	case OpListXattr:
		return l.field("size", uint64(le.Uint32(b)))
	case OpSetXattr:
		off := setXattrInSize
		if op.SessionFlags()&FlagSetXattrExt != 0 {
			off = setXattrExtInSize
		}
		return l.field("size", uint64(le.Uint32(b))).quoted(op, off, 1)
	case OpFallocate:
		var in FallocateIn
		in.decode(b)
		return l.field("fh", in.Fh).field("at", in.Offset).field("length", in.Length).text(" mode ").hex(uint64(in.Mode))
	case OpLseek:
		var in LseekIn
		in.decode(b)
		return l.field("fh", in.Fh).field("at", in.Offset).field("whence", uint64(in.Whence))
	case OpCopyFileRange, OpCopyFileRange64:
		var in CopyFileRangeIn
		in.decode(b)
		l = l.field("fh", in.FhIn).field("at", in.OffIn).text(" to n").num(in.NodeOut)
		return l.field("fh", in.FhOut).field("at", in.OffOut).field("length", in.Len)
	case OpIoctl:
		var in IoctlIn
		in.decode(b)
		return l.field("fh", in.Fh).text(" cmd ").hex(uint64(in.Cmd)).field("in", uint64(in.InSize)).field("out", uint64(in.OutSize))
	case OpGetLk, OpSetLk, OpSetLkW:
		var in LkIn
		in.decode(b)
		l = l.field("fh", in.Fh).field("owner", in.Owner).field("type", uint64(in.Lock.Type))
		return l.field("from", in.Lock.Start).field("to", in.Lock.End)
	}
	return l
}

func (l traceLine) octal(n uint32) traceLine { return strconv.AppendUint(append(l, '0'), uint64(n), 8) }

// result appends what a successful reply tells.
func (l traceLine) result(op *Op) traceLine {
	r := op.reply[outHeaderSize:]
	switch op.Opcode {
	case OpLookup, OpSymlink, OpMknod, OpMkdir, OpLink, OpCreate, OpTmpfile:
		l = l.text(" n").num(op.entry.Node).timeout(op.entry.EntryTimeout)
		if op.entry.Node != 0 {
			l = l.attr(&op.entry.Attr).timeout(op.entry.AttrTimeout)
		}
		if op.Opcode == OpCreate || op.Opcode == OpTmpfile {
			l = l.field("fh", op.opened.Fh).text(" flags ").hex(uint64(op.opened.Flags))
		}
	case OpGetAttr, OpSetAttr:
		l = l.attr(&op.attr.Attr).timeout(op.attr.Timeout)
	case OpOpen, OpOpenDir:
		l = l.field("fh", op.opened.Fh).text(" flags ").hex(uint64(op.opened.Flags))
	case OpInit:
		l = l.text(" version ").num(uint64(le.Uint32(r))).text(".").num(uint64(le.Uint32(r[4:])))
		l = l.text(" flags ").hex(uint64(le.Uint32(r[12:])) | uint64(le.Uint32(r[32:]))<<32)
		l = l.field("write", uint64(le.Uint32(r[20:]))).field("pages", uint64(le.Uint16(r[28:])))
	case OpStatFS:
		l = l.field("blocks", op.statfs.Blocks).field("free", op.statfs.Bfree).field("files", op.statfs.Files)
	case OpWrite, OpCopyFileRange:
		l = l.field("count", uint64(le.Uint32(r)))
	case OpLseek, OpCopyFileRange64:
		l = l.field("offset", le.Uint64(r))
	}
	return l
}

func (l traceLine) attr(a *Attr) traceLine {
	return l.field("ino", a.Ino).text(" mode ").octal(a.Mode).field("size", a.Size).
		field("nlink", uint64(a.Nlink)).field("uid", uint64(a.UID)).field("gid", uint64(a.GID))
}

// timeout appends for how long the reply may be believed.
func (l traceLine) timeout(t Timeout) traceLine {
	return l.text(" for ").num(t.Sec).text("s")
}
