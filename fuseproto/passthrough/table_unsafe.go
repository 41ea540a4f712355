package passthrough

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/record"
)

// The tables of nodes and open files in memory that outlives the process (package
// record). They are written with every change of what the guest may name, by a few
// stores and no system call, and read by the next process alone.
//
//	nodes: │ tableHeader │ slot 1 │ slot 2 │ …        128 bytes each
//	files: │ slot 0 unused │ slot 1 │ …                64 bytes each
//
// A slot counts once its id is stored, which is done last, and no more once that is 0,
// which is done first: a process may end between any two stores. A node slot that is
// not a node may be a piece of one: the place of a node without a handle (parent and
// name), or a handle that is too long, in a chain of pieces that is replaced as a
// whole by the one store of nodeSlot.ext. Pieces that no node leads to are free.
//
// Slots that were never touched take no memory. Machine byte order: the next process
// runs on the same machine.
const (
	tableMagic   = 0x52504654
	tableVersion = 1
	nodeSlots    = 1 << 24
	fileSlots    = 1 << 20
	pieceMark    = 1 << 63 // in the place of an id
	pieceSize    = 104
	inlineHandle = 72
)

type tableHeader struct {
	magic, version atomic.Uint32
	nextNode       atomic.Uint64 // the last id given
	nextFile       atomic.Uint64 // the last handle given
	nodesUsed      atomic.Uint32 // no slot from here on was ever used
	filesUsed      atomic.Uint32
	nextMount      atomic.Uint32
	_              [92]byte
}

type nodeSlot struct {
	id        atomic.Uint64 // 0: free; with pieceMark: a piece
	count     atomic.Uint64
	dev, ino  uint64
	btimeSec  int64
	btimeNsec uint32
	mount     uint32
	ext       atomic.Uint32 // first piece, 0 if there is none
	typ       uint16
	handle    uint8 // bytes of it in data; 0 if it is in pieces, or if there is none
	_         uint8
	data      [inlineHandle]byte
}

// nodePiece is a nodeSlot of another use.
type nodePiece struct {
	mark   atomic.Uint64
	next   uint32
	size   uint16 // of data
	kind   uint16
	parent uint64 // id, of a place
	data   [pieceSize]byte
}

// Kinds of pieces.
const (
	piecePlace = iota
	pieceHandle
)

type fileSlot struct {
	id      atomic.Uint64 // 0: free
	node    uint64
	flags   uint32 // of open(2), to open it again
	dir     bool
	reads   readMode
	sync    syncMode
	appends bool
	parked  atomic.Uint32 // its descriptor is in the record
	_       [36]byte
}

const (
	nodeSlotSize = int(unsafe.Sizeof(nodeSlot{}))
	fileSlotSize = int(unsafe.Sizeof(fileSlot{}))
)

// Slots have a fixed size.
var (
	_ [128]byte = [nodeSlotSize]byte{}
	_ [128]byte = [unsafe.Sizeof(nodePiece{})]byte{}
	_ [128]byte = [unsafe.Sizeof(tableHeader{})]byte{}
	_ [64]byte  = [fileSlotSize]byte{}
)

// tables are both tables of an FS.
type tables struct {
	nodes, files []byte
	head         *tableHeader

	mu        sync.Mutex // a leaf
	freeNodes uint32     // first free slot, linked by count; guarded by mu
	freeFiles uint32     // likewise, linked by node; guarded by mu
}

// openTables finds the tables in the record, or makes them.
func openTables(r record.Record, key string) (*tables, error) {
	t := &tables{}
	var err error
	if t.nodes, err = r.Memory(key+"nodes", nodeSlots*int64(nodeSlotSize)); err != nil {
		return nil, err
	}
	if t.files, err = r.Memory(key+"files", fileSlots*int64(fileSlotSize)); err != nil {
		return nil, err
	}
	t.head = (*tableHeader)(unsafe.Pointer(&t.nodes[0]))
	switch m, v := t.head.magic.Load(), t.head.version.Load(); {
	case m == 0:
		t.head.nodesUsed.Store(1)
		t.head.filesUsed.Store(1)
		t.head.nextNode.Store(1)
		t.head.version.Store(tableVersion)
		t.head.magic.Store(tableMagic)
	case m != tableMagic || v != tableVersion:
		return nil, fmt.Errorf("the table of nodes has version %d, this rafsd knows %d: it was written by another release", v, tableVersion)
	}
	if t.head.nodesUsed.Load() > nodeSlots || t.head.filesUsed.Load() > fileSlots {
		return nil, fmt.Errorf("the table of nodes is damaged")
	}
	return t, nil
}

// clear makes every slot free and gives the memory back. Nobody else uses the tables.
func (t *tables) clear() {
	clear(t.nodes[nodeSlotSize:tablePage])
	clear(t.files[:tablePage])
	for _, b := range [][]byte{t.nodes, t.files} {
		if unix.Madvise(b[tablePage:], unix.MADV_REMOVE) != nil {
			clear(b[tablePage:min(len(b), int(max(t.head.nodesUsed.Load(), t.head.filesUsed.Load())+1)*nodeSlotSize+tablePage)])
		}
	}
	t.freeNodes, t.freeFiles = 0, 0
	t.head.nodesUsed.Store(1)
	t.head.filesUsed.Store(1)
}

// tablePage is a multiple of the page size of any machine of ours.
const tablePage = 64 << 10

func (t *tables) node(i uint32) *nodeSlot {
	return (*nodeSlot)(unsafe.Pointer(&t.nodes[int(i)*nodeSlotSize]))
}

func (t *tables) piece(i uint32) *nodePiece {
	return (*nodePiece)(unsafe.Pointer(&t.nodes[int(i)*nodeSlotSize]))
}

func (t *tables) file(i uint32) *fileSlot {
	return (*fileSlot)(unsafe.Pointer(&t.files[int(i)*fileSlotSize]))
}

// takeNode returns a free slot of the nodes, 0 if there is none.
func (t *tables) takeNode() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.freeNodes
	if i != 0 {
		t.freeNodes = uint32(t.node(i).count.Load())
		return i
	}
	if i = t.head.nodesUsed.Load(); i == nodeSlots {
		return 0
	}
	t.head.nodesUsed.Store(i + 1)
	return i
}

// giveNode makes a slot free that no node or piece leads to any more.
func (t *tables) giveNode(i uint32) {
	s := t.node(i)
	s.id.Store(0)
	t.mu.Lock()
	s.count.Store(uint64(t.freeNodes))
	t.freeNodes = i
	t.mu.Unlock()
}

// writePieces keeps b in pieces and returns the first of them, 0 if there is no room.
func (t *tables) writePieces(owner uint64, kind uint16, parent uint64, b []byte) uint32 {
	first := uint32(0)
	// From the end, so that each knows the next.
	for end := len(b); ; {
		begin := max(0, (end-1)/pieceSize*pieceSize)
		i := t.takeNode()
		if i == 0 {
			t.givePieces(first)
			return 0
		}
		p := t.piece(i)
		p.next, p.kind, p.parent = first, kind, parent
		p.size = uint16(copy(p.data[:], b[begin:end]))
		p.mark.Store(pieceMark | owner)
		if first, end = i, begin; begin == 0 {
			return first
		}
	}
}

// readPieces returns what writePieces kept, and visits each piece.
func (t *tables) readPieces(i uint32, owner uint64, visit func(uint32)) (kind uint16, parent uint64, b []byte, ok bool) {
	used := t.head.nodesUsed.Load()
	for n := 0; i != 0; n++ {
		if i >= used || n > 4 {
			return 0, 0, nil, false
		}
		p := t.piece(i)
		if p.mark.Load() != pieceMark|owner || p.size > pieceSize {
			return 0, 0, nil, false
		}
		visit(i)
		kind, parent, b = p.kind, p.parent, append(b, p.data[:p.size]...)
		i = p.next
	}
	return kind, parent, b, true
}

// givePieces makes pieces free that no node leads to any more.
func (t *tables) givePieces(i uint32) {
	for i != 0 {
		next := t.piece(i).next
		t.giveNode(i)
		i = next
	}
}

// addNode writes a node with one reference and returns its slot; 0 if there is no
// room: the next process will not know the node then.
func (t *tables) addNode(n *node) uint32 {
	i := t.takeNode()
	if i == 0 {
		return 0
	}
	s := t.node(i)
	s.dev, s.ino, s.mount, s.typ = n.dev, n.ino, n.mount.index, uint16(n.typ)
	s.btimeSec, s.btimeNsec, s.handle = 0, 0, 0
	ext := uint32(0)
	switch p := n.place.Load(); {
	case p != nil:
		s.btimeSec, s.btimeNsec = p.btime.Sec, p.btime.Nsec
		ext = t.writePieces(n.id, piecePlace, p.parent.id, []byte(p.name))
	case len(n.handle) <= inlineHandle:
		s.handle = uint8(copy(s.data[:], n.handle))
	default:
		ext = t.writePieces(n.id, pieceHandle, 0, []byte(n.handle))
	}
	s.ext.Store(ext)
	s.count.Store(n.count)
	s.id.Store(n.id)
	return i
}

// moveNode writes where a node is looked for from now on.
func (t *tables) moveNode(i uint32, n *node, p *place) {
	t.givePieces(t.node(i).ext.Swap(t.writePieces(n.id, piecePlace, p.parent.id, []byte(p.name))))
}

// dropNode makes the slot of a node free.
func (t *tables) dropNode(i uint32) {
	s := t.node(i)
	s.id.Store(0)
	ext := s.ext.Swap(0)
	t.giveNode(i)
	t.givePieces(ext)
}

// addFile writes an open file and returns its slot, 0 if there is no room.
func (t *tables) addFile(f *file) uint32 {
	t.mu.Lock()
	i := t.freeFiles
	if i != 0 {
		t.freeFiles = uint32(t.file(i).node)
	} else if i = t.head.filesUsed.Load(); i == fileSlots {
		i = 0
	} else {
		t.head.filesUsed.Store(i + 1)
	}
	t.mu.Unlock()
	if i == 0 {
		return 0
	}
	s := t.file(i)
	s.node, s.flags, s.dir = f.node.id, uint32(f.flags&^reopenWithout), f.dir != nil
	s.reads, s.sync, s.appends = f.reads, f.sync, f.appends
	s.parked.Store(0)
	s.id.Store(f.id)
	return i
}

// reopenWithout are flags that did their work when the file was first opened.
const reopenWithout = unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_NONBLOCK | unix.O_TMPFILE&^unix.O_DIRECTORY

// dropFile makes the slot of a file free.
func (t *tables) dropFile(i uint32) {
	s := t.file(i)
	s.id.Store(0)
	t.mu.Lock()
	s.node = uint64(t.freeFiles)
	t.freeFiles = i
	t.mu.Unlock()
}
