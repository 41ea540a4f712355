package fuseproto

// NodeMap turns the indexes of a FileSystem that is mounted in a tree into node
// ids. The zero NodeMap changes nothing.
type NodeMap struct {
	Base      uint64 // added to indexes and inode numbers: mount id << 44
	Root      uint64 // the index of the FileSystem's root, if RootNode != 0
	RootNode  uint64 // the node id that stands for it
	ParentIno uint64 // shown as the inode number of the root's ".." if not 0
	KeepIno   bool   // inode numbers stay what the FileSystem says
	Submounts bool   // so do AttrSubmount flags, below the root
}

// Node returns the node id of an index, or 0 for 0 and for what is no index of a
// mount.
func (m *NodeMap) Node(index uint64) uint64 {
	switch {
	case index == 0 || m.Base != 0 && index>>IndexBits != 0:
		return 0
	case index == m.Root && m.RootNode != 0:
		return m.RootNode
	}
	return m.Base | index
}

// Ino returns the inode number to show for the FileSystem's own. One of more than
// IndexBits bits is hashed to fit beside the mount's: two that meet then cost the
// guest the recognition of hard links between them, nothing else.
func (m *NodeMap) Ino(ino uint64) uint64 {
	switch {
	case m.KeepIno:
		return ino
	case m.Base != 0 && ino>>IndexBits != 0:
		ino *= 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
		ino >>= 64 - IndexBits
	}
	return m.Base | ino
}

// maxPrivateListing is the size of the longest listing that is gathered off the
// queue's goroutine. The guest asks again for the rest.
const maxPrivateListing = 64 << 10

// maxName is the longest name of a directory entry.
const maxName = 255

// DirWriter takes the entries of a directory, for READDIR and READDIRPLUS alike.
// Only whole entries are written. A FileSystem adds entries, beginning behind
// ReadIn.Offset, until one does not fit or the directory ends; a listing that
// adds none is the directory's end.
type DirWriter struct {
	out    *Out
	plus   bool
	full   bool
	nodes  NodeMap
	record [direntPlusSize + (maxName+7)&^7]byte

	// private holds the entries while the method may still wait: entries are
	// looked up one by one, and the guest's memory must not be held meanwhile.
	private Out
	buf     []byte
}

// NewDirWriter returns a DirWriter that fills buf, for callers without a guest.
func NewDirWriter(buf []byte, plus bool) *DirWriter {
	return &DirWriter{out: NewOut(buf), plus: plus}
}

// start prepares w for a reply of op.
func (w *DirWriter) start(op *Op, plus bool) {
	w.plus, w.full, w.nodes = plus, false, NodeMap{}
	w.out = &op.out
	if op.mayBlock {
		w.buf = make([]byte, min(op.out.limit, maxPrivateListing))
		w.private = Out{at: cursor{segs: [][]byte{w.buf}}, opened: true, limit: len(w.buf)}
		w.out = &w.private
	}
}

// publish copies a private listing to the reply. Until it has succeeded, the
// guest holds no reference by it.
func (w *DirWriter) publish(op *Op) error {
	if w.out == &op.out {
		return nil
	}
	_, err := op.out.Write(w.buf[:w.private.n])
	return err
}

// forget gives back the references of a listing that cannot be delivered. It
// reads only private memory: a listing that went straight to the guest is not
// read back.
func (w *DirWriter) forget(op *Op, fs FileSystem) {
	if w.out == &op.out || !w.plus {
		return
	}
	for b := w.buf[:w.private.n]; len(b) >= direntPlusSize; {
		if node := le.Uint64(b); node != 0 {
			fs.Forget(node, 1)
		}
		b = b[(direntPlusSize+int(le.Uint32(b[entryOutSize+16:]))+7)&^7:]
	}
}

// drop forgets every buffer.
func (w *DirWriter) drop() {
	w.private, w.buf = Out{}, nil
}

// Plus tells whether the guest wants attributes with each name. Add is legal
// either way; AddPlus saves the guest a look-up.
func (w *DirWriter) Plus() bool { return w.plus }

// Full tells whether an entry did not fit.
func (w *DirWriter) Full() bool { return w.full }

// Len returns the bytes of the entries written.
func (w *DirWriter) Len() int { return w.out.n }

// Translate makes w turn the nodes and inode numbers of all further entries
// into those of a tree. It is the tree that calls it, before it hands w on.
func (w *DirWriter) Translate(m NodeMap) { w.nodes = m }

// Add adds an entry without attributes and tells whether it fit. "." and ".."
// are always added like this.
func (w *DirWriter) Add(e DirEntry) bool { return w.add(&e, nil) }

// AddPlus adds an entry with the answer to its look-up, which gives the guest a
// reference to entry.Node if that is not 0. It is the same as Add when the guest
// wants no attributes: no reference is given then.
func (w *DirWriter) AddPlus(e DirEntry, entry *Entry) bool {
	if !w.plus || isDot(e.Name) {
		return w.add(&e, nil)
	}
	return w.add(&e, entry)
}

func isDot(name []byte) bool { return len(name) == 1 && name[0] == '.' || isDotDot(name) }

func isDotDot(name []byte) bool { return len(name) == 2 && name[0] == '.' && name[1] == '.' }

func (w *DirWriter) add(e *DirEntry, entry *Entry) bool {
	if len(e.Name) == 0 || len(e.Name) > maxName {
		return true // the guest would refuse the whole listing
	}
	head := direntSize
	if w.plus {
		head = direntPlusSize
	}
	size := (head + len(e.Name) + 7) &^ 7
	if w.full || size > w.out.Room() {
		w.full = true
		return false
	}
	if !w.out.opened && w.out.open() != nil {
		w.full = true // the reply is lost: Op.gone
		return false
	}
	record := w.out.contiguous(size)
	direct := record != nil
	if !direct {
		record = w.record[:size]
	}
	w.encode(record, head, e, entry)
	if direct {
		w.out.Advance(size)
		return true
	}
	_, err := w.out.Write(record)
	return err == nil
}

func (w *DirWriter) encode(b []byte, head int, e *DirEntry, entry *Entry) {
	if w.plus {
		if entry != nil && entry.Node != 0 {
			encodeEntry(b, entry, w.nodes.Node(entry.Node), w.nodes.Ino(entry.Attr.Ino))
			if w.nodes.Base != 0 && !w.nodes.Submounts {
				le.PutUint32(b[entryOutSize-4:], entry.Attr.Flags&^AttrSubmount)
			}
		} else {
			clear(b[:entryOutSize])
		}
	}
	ino := w.nodes.Ino(e.Ino)
	if w.nodes.ParentIno != 0 && isDotDot(e.Name) {
		ino = w.nodes.ParentIno
	}
	d := b[head-direntSize:]
	le.PutUint64(d, ino)
	le.PutUint64(d[8:], e.Off)
	le.PutUint32(d[16:], uint32(len(e.Name)))
	le.PutUint32(d[20:], uint32(e.Type))
	clear(d[direntSize+copy(d[direntSize:], e.Name):])
}
