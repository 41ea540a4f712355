package fuseproto

import "bytes"

// Extensions of creating requests (struct fuse_ext_header): they stand behind the
// names, and the header's total_extlen tells how long they are in units of 8
// bytes. Guests of 7.36 and 7.37 send a security context without telling; it
// counts only if FlagSecurityCtx was granted.
//
//	{size u32, type u32, …} padded to 8; type up to 31: a security context, whose
//	number of records is the type; 32: groups
//	security context: records {size u32, pad u32, name NUL, value}, each padded to 8
//	groups: {nr u32, gid u32 …}

// extensionsMax is how much of them is looked at: a label of a page, and more
// groups than the one that Linux sends.
const extensionsMax = 8192

const (
	extMaxSecurity = 31
	extGroups      = 32
)

// CreateExt is what a creating request says beside its body.
type CreateExt struct {
	// GID is a group that the caller is in only as a supplementary one, and that
	// the new file is to belong to; it counts only with HasGID.
	GID    uint32
	HasGID bool
	// Label is the security label of the new file under the name of its extended
	// attribute; empty if there is none.
	LabelName, Label []byte
}

// CreateExt returns the extensions of a creating request. What is not well-formed
// is left out. The slices are private memory, valid during the call.
func (op *Op) CreateExt() CreateExt {
	var e CreateExt
	for b := op.ext; len(b) >= 8; {
		size, kind := int(le.Uint32(b)), le.Uint32(b[4:])
		if size < 8 || size > len(b) {
			break
		}
		body := b[8:size]
		switch {
		case kind <= extMaxSecurity:
			e.security(body, kind)
		case kind == extGroups && len(body) >= 8 && le.Uint32(body) >= 1:
			e.GID, e.HasGID = le.Uint32(body[4:]), true
		}
		b = b[min(len(b), (size+7)&^7):]
	}
	return e
}

func (e *CreateExt) security(b []byte, records uint32) {
	if records == 0 || len(b) < 8 {
		return
	}
	size := int(le.Uint32(b))
	name, rest, ok := bytes.Cut(b[8:], []byte{0})
	if !ok || len(name) == 0 || size < 0 || size > len(rest) {
		return
	}
	e.LabelName, e.Label = name, rest[:size]
}

// extensions remembers what stands behind the names of a creating request, which
// end at next of the body.
func (op *Op) extensions(next int) {
	op.ext = nil
	n := int(op.extLen) * 8
	switch {
	case op.cut:
	case n > 0 && n <= len(op.body)-next:
		op.ext = op.body[len(op.body)-n:]
	case n == 0 && op.SessionFlags()&FlagSecurityCtx != 0 && next < len(op.body):
		op.ext = op.body[next:]
	}
}
