package vmm

import (
	"encoding/binary"
	"fmt"
)

// Files are small files in one directory, which loads make, rename and remove, in
// this order. A unit of each load is what a guest sends for one file:
//
//	OpCreate  CREATE, WRITE of Size bytes, FLUSH, RELEASE
//	OpRename  RENAME2 in the directory
//	OpUnlink  UNLINK, FORGET
//
// They belong to the loads of one VM, of which one runs at a time.
type Files struct {
	Dir    uint64 // the directory's nodeid
	Prefix string // of all names
	Count  int
	Size   int // bytes in each

	nodes []uint64
	stage Opcode // the load that went through them last, 0 if there are none
}

// Stage is the load that went through the files last: OpUnlink or 0 means that
// there are none.
func (f *Files) Stage() Opcode { return f.stage }

// begin checks that a load finds what it needs.
func (f *Files) begin(op Opcode) error {
	before := map[Opcode]Opcode{OpCreate: OpUnlink, OpRename: OpCreate, OpUnlink: OpRename}[op]
	if f.stage != before && (op != OpCreate || f.stage != 0) {
		return fmt.Errorf("a load of %v of files after %v", op, f.stage)
	}
	if f.nodes == nil {
		f.nodes = make([]uint64, f.Count)
	}
	f.stage = op
	return nil
}

func (f *Files) steps(op Opcode) []Opcode {
	switch op {
	case OpCreate:
		return []Opcode{OpCreate, OpWrite, OpFlush, OpRelease}
	case OpRename:
		return []Opcode{OpRename2}
	}
	return []Opcode{OpUnlink, OpForget}
}

// name is a file's name, before or after its renaming: always as long.
func (f *Files) name(kind byte) string { return fmt.Sprintf("%s-%c-%08d", f.Prefix, kind, 0) }

// digits writes n where the number in a name stands: the name ends at end.
func digits(b []byte, end, n int) {
	for i := range 8 {
		b[end-1-i] = byte('0' + n%10)
		n /= 10
	}
}

// layout is the arguments of a step, the size of its reply, and of its data.
func (f *Files) layout(op Opcode) (args []byte, fixed, data int) {
	switch op {
	case OpCreate:
		return pack(uint32(0o100002|oLargefile), uint32(0o100644), uint32(0), uint32(0), f.name('a')), entrySize + openOutSize, 0
	case OpWrite:
		return writeIn(0, 0, f.Size, 0), 8, f.Size
	case OpFlush:
		return make([]byte, 24), 0, 0
	case OpRelease:
		return pack(uint64(0), uint32(oLargefile|2), uint32(0), uint64(0)), 0, 0
	case OpRename2:
		return pack(f.Dir, uint32(1), uint32(0), f.name('a'), f.name('b')), 0, 0
	case OpUnlink:
		return pack(f.name('b')), 0, 0
	case OpForget:
		return pack(uint64(1)), 0, 0
	}
	return nil, 0, 0
}

// prepare writes into a step what is of its file.
func (f *Files) prepare(s *loadSlot) {
	le := binary.LittleEndian
	node := f.Dir
	u := s.unit
	switch s.op {
	case OpCreate, OpUnlink:
		digits(s.args, len(s.args)-1, u.file)
	case OpRename2:
		digits(s.args, len(s.args)-1, u.file)
		digits(s.args, len(s.args)-2-len(f.name('b')), u.file)
	case OpWrite, OpFlush, OpRelease:
		node = u.nodeID
		copy(s.args, u.steps[0].body[entrySize:entrySize+8]) // the handle
	case OpForget:
		node = f.nodes[u.file]
	}
	le.PutUint64(s.head[16:], node)
}

// took takes from a reply what later steps need.
func (f *Files) took(s *loadSlot) {
	if s.op == OpCreate {
		s.unit.nodeID = binary.LittleEndian.Uint64(s.body)
		f.nodes[s.unit.file] = s.unit.nodeID
	}
}
