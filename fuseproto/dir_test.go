package fuseproto_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

func dirNames(list []fusetest.Dirent) []string {
	var s []string
	for _, d := range list {
		s = append(s, d.Name)
	}
	return s
}

// tree of n names of growing length in /big, which has node 2.
func bigTree(n int) (*fusetest.Tree, []string) {
	t := fusetest.NewTree(fuseproto.RootID)
	dir := t.Dir(fuseproto.RootID, "big")
	names := []string{".", ".."}
	for i := range n {
		name := fmt.Sprintf("%d-%s", i, strings.Repeat("x", i%250))
		t.Dir(dir, name)
		names = append(names, name)
	}
	return t, names
}

func TestF15_OnlyWholeEntries(t *testing.T) {
	_, c := guest(t)
	for size := range uint32(1000) {
		for _, plus := range []bool{false, true} {
			record := uint32(24)
			if plus {
				record = 152
			}
			list, r := c.ReadDir(1, 0, size, plus) // decodes as strictly as the kernel
			if r.Errno != 0 {
				t.Fatalf("size %d, plus %v: %v", size, plus, r.Errno)
			}
			// ".", "..", "dir", "link", "empty": each in one unit of 8 beside the record.
			if want := min(int(size/(record+8)), 5); len(list) != want {
				t.Errorf("size %d, plus %v: %d entries, want %d", size, plus, len(list), want)
			}
		}
	}
	if list, _ := c.ReadDir(1, 0, 175, true); len(list) != 1 {
		t.Errorf("READDIRPLUS of 175 bytes: %d entries, want 1", len(list))
	}
}

func TestF16_ResumeAtEachCookie(t *testing.T) {
	tree, want := bigTree(100)
	c := fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{}))
	c.Init()
	const room = 128 << 10 // for all of it
	all := c.List(2, room, false)
	if got := dirNames(all); !slices.Equal(got, want) {
		t.Fatalf("listing: %d names, want %d", len(got), len(want))
	}
	for i, d := range all {
		for _, plus := range []bool{false, true} {
			rest, _ := c.ReadDir(2, d.Off, room, plus)
			if got := dirNames(rest); !slices.Equal(got, want[i+1:]) {
				t.Fatalf("behind %q: %d names, want %d", d.Name, len(got), len(want)-i-1)
			}
		}
	}
	// READDIR and READDIRPLUS in turn, in buffers of all sizes.
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var got []string
		for off := uint64(0); ; {
			list, _ := c.ReadDir(2, off, 432+rng.Uint32N(3000), rng.IntN(2) == 0)
			if len(list) == 0 {
				break
			}
			got = append(got, dirNames(list)...)
			off = list[len(list)-1].Off
		}
		if !slices.Equal(got, want) {
			t.Fatalf("mixed listing: %d names, want %d", len(got), len(want))
		}
	}
}

func TestF17_SmallAndLarge(t *testing.T) {
	_, c := guest(t)
	if got := dirNames(c.List(nodeEmpty, 4096, true)); !slices.Equal(got, []string{".", ".."}) {
		t.Errorf("empty directory: %q", got)
	}
	n := 20_000
	if os.Getenv("RAFSD_LONG") == "1" {
		n = 1_000_000
	}
	tree := fusetest.NewTree(fuseproto.RootID)
	for i := range n {
		tree.Dir(fuseproto.RootID, fmt.Sprintf("%0255d", i))
	}
	c = fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{}))
	c.Init()
	list := c.List(1, 128<<10, false)
	if len(list) != n+2 {
		t.Fatalf("%d entries, want %d", len(list), n+2)
	}
	for i, d := range list[2:] {
		if d.Name != fmt.Sprintf("%0255d", i) {
			t.Fatalf("entry %d is %q", i, d.Name)
		}
	}
}

func TestF13_LookupCounts(t *testing.T) {
	tree, c := guest(t)
	held := make(map[uint64]int64)
	grant := func(node uint64) {
		if node != 0 {
			held[node]++
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for step := range 3000 {
		switch rng.IntN(7) {
		case 0, 1:
			dir := []uint64{1, nodeDir, nodeEmpty}[rng.IntN(3)]
			e, r := c.Lookup(dir, []string{"dir", "file", "link", "absent"}[rng.IntN(4)])
			if r.Errno == 0 {
				grant(e.Node)
			}
		case 2:
			for _, plus := range []bool{false, true} {
				list, _ := c.ReadDir(1, uint64(rng.IntN(5)), uint32(rng.IntN(1000)), plus)
				for _, d := range list {
					if plus && (d.Name == "." || d.Name == "..") != (d.Entry.Node == 0) {
						t.Fatalf("step %d: %q has node %d", step, d.Name, d.Entry.Node)
					}
					grant(d.Entry.Node)
				}
			}
		case 3: // F14: a FORGET as it comes on the high-priority queue: one segment
			for node, n := range held {
				k := 1 + rng.Int64N(n)
				held[node] -= k
				c.Call(fuseproto.OpForget, node, 0, uint64(k))
				break
			}
		case 4: // and as it comes on a request queue: two segments
			for node, n := range held {
				held[node] = 0
				m := fusetest.NewMessage(fusetest.Request(fuseproto.OpForget, 2, node, uint64(n)), 0)
				m.CutRequest(40)
				c.Send(m, 2)
				break
			}
		case 5:
			body := []any{uint64(len(held))}
			for node, n := range held {
				body = append(body, node, uint64(n))
				held[node] = 0
			}
			c.Call(fuseproto.OpBatchForget, 0, 0, body...)
		case 6: // not counted
			c.Lookup(1, "absent")
			c.GetAttr(1)
			c.Call(fuseproto.OpForget, fuseproto.RootID, 0, uint64(5))
		}
		maps.DeleteFunc(held, func(_ uint64, n int64) bool { return n == 0 })
		if got := tree.Refs(); !maps.Equal(got, held) {
			t.Fatalf("step %d: references %v, want %v", step, got, held)
		}
	}
}

func TestBatchForgetThatLies(t *testing.T) {
	tree, c := guest(t)
	c.Lookup(1, "dir")
	// It claims 2^32-1 elements and has one and a half.
	c.Call(fuseproto.OpBatchForget, 0, 0, uint64(0xffffffff), uint64(nodeDir), uint64(1), uint64(nodeFile))
	if refs := tree.Refs(); len(refs) != 0 {
		t.Errorf("references %v, want none", refs)
	}
	// What stands behind the request's length is not of it.
	request := fusetest.Request(fuseproto.OpBatchForget, 2, 0, uint64(2), uint64(nodeDir), uint64(1), uint64(nodeDir), uint64(1))
	le.PutUint32(request, 40+8+16)
	c.Lookup(1, "dir")
	c.Send(fusetest.NewMessage(request, 0), 2)
	if refs := tree.Refs(); len(refs) != 0 {
		t.Errorf("references %v, want none", refs)
	}
	// A long one that is true.
	body := []any{uint64(20_000)}
	for range 20_000 {
		body = append(body, uint64(nodeDir), uint64(1))
	}
	c.Call(fuseproto.OpBatchForget, 0, 0, body...)
	if refs := tree.Refs(); refs[nodeDir] != -20_000 {
		t.Errorf("references %v, want -20000 of node %d", refs, nodeDir)
	}
}

// dirFS lists entries of the test's making.
type dirFS struct {
	stub
	list func(op *fuseproto.Op, in *fuseproto.ReadIn, w *fuseproto.DirWriter) error
}

func (d dirFS) ReadDir(op *fuseproto.Op, _ uint64, in *fuseproto.ReadIn, w *fuseproto.DirWriter) error {
	return d.list(op, in, w)
}

func TestErrorBehindEntriesWaits(t *testing.T) {
	add := func(w *fuseproto.DirWriter) {
		w.Add(fuseproto.DirEntry{Name: []byte("a"), Ino: 7, Off: 1, Type: fuseproto.DTReg})
	}
	for name, tt := range map[string]struct {
		list func(*fuseproto.Op, *fuseproto.ReadIn, *fuseproto.DirWriter) error
		want syscall.Errno
		n    int
	}{
		"error behind an entry": {func(_ *fuseproto.Op, _ *fuseproto.ReadIn, w *fuseproto.DirWriter) error { add(w); return syscall.EIO }, 0, 1},
		"error at once":         {func(*fuseproto.Op, *fuseproto.ReadIn, *fuseproto.DirWriter) error { return syscall.EIO }, syscall.EIO, 0},
		"waits behind an entry": {func(_ *fuseproto.Op, _ *fuseproto.ReadIn, w *fuseproto.DirWriter) error {
			add(w)
			return fuseproto.ErrWouldBlock
		}, 0, 1},
		"names that no guest takes": {func(_ *fuseproto.Op, _ *fuseproto.ReadIn, w *fuseproto.DirWriter) error {
			for _, n := range []int{0, 256, 5000} {
				if !w.Add(fuseproto.DirEntry{Name: make([]byte, n), Ino: 1, Off: 1}) {
					return syscall.EIO
				}
			}
			add(w)
			return nil
		}, 0, 1},
	} {
		c := fusetest.NewClient(t, serverOf(t, dirFS{list: tt.list}, fuseproto.Config{}))
		c.Init()
		list, r := c.ReadDir(1, 0, 4096, false)
		if r.Errno != tt.want || len(list) != tt.n || c.Blocked != 0 {
			t.Errorf("%s: %v, %d entries, left the queue %d times; want %v and %d", name, r.Errno, len(list), c.Blocked, tt.want, tt.n)
		}
	}
}

// Entries are looked up one by one, so a listing off the queue's goroutine holds
// the guest's memory only when it has all of them; and one that is longer than it
// may be goes on with the next request.
func TestListingThatWaitsBetweenEntries(t *testing.T) {
	m := fusetest.NewMessage(fusetest.Request(fuseproto.OpReadDirPlus, 2, 1, fusetest.ReadBody(0, 0, 1<<20)), 16+1<<20)
	added := 0
	c := fusetest.NewClient(t, serverOf(t, dirFS{list: func(op *fuseproto.Op, _ *fuseproto.ReadIn, w *fuseproto.DirWriter) error {
		if !op.MayBlock() {
			return fuseproto.ErrWouldBlock
		}
		e := fuseproto.Entry{Node: 7}
		for w.AddPlus(fuseproto.DirEntry{Name: []byte("name"), Ino: 7, Off: 1, Type: fuseproto.DTReg}, &e) {
			added++
			if m.Attached != 0 {
				t.Fatal("attached in the middle of a listing")
			}
		}
		return nil
	}}, fuseproto.Config{}))
	c.Init()
	r := c.Send(m, 2)
	list := fusetest.DecodeDirents(t, r.Body, true)
	if m.Attached != 1 || len(list) != added || added != 64<<10/160 {
		t.Errorf("attached %d times, %d entries of %d added, want 1 and %d", m.Attached, len(list), added, 64<<10/160)
	}
}

// Behind an entry that did not fit, none is written that would: the guest goes on
// behind the last one it got.
func TestFullStaysFull(t *testing.T) {
	w := fuseproto.NewDirWriter(make([]byte, 100), false)
	long := fuseproto.DirEntry{Name: make([]byte, 200), Off: 1}
	short := fuseproto.DirEntry{Name: []byte("a"), Off: 2}
	if w.Full() || w.Add(long) || !w.Full() || w.Add(short) || w.Len() != 0 {
		t.Errorf("full %v, %d bytes; want full and nothing", w.Full(), w.Len())
	}
}

func TestDirWriterTranslates(t *testing.T) {
	const base = 5 << 44
	m := fuseproto.NodeMap{Base: base, Root: 36, RootNode: 1, ParentIno: 99}
	c := fusetest.NewClient(t, serverOf(t, dirFS{list: func(_ *fuseproto.Op, in *fuseproto.ReadIn, w *fuseproto.DirWriter) error {
		if in.Offset > 0 {
			return nil
		}
		w.Translate(m)
		entry := func(node uint64) *fuseproto.Entry {
			return &fuseproto.Entry{Node: node, Attr: fuseproto.Attr{Ino: node}}
		}
		w.AddPlus(fuseproto.DirEntry{Name: []byte("."), Ino: 36, Off: 1}, entry(36))
		w.AddPlus(fuseproto.DirEntry{Name: []byte(".."), Ino: 36, Off: 2}, entry(36))
		w.AddPlus(fuseproto.DirEntry{Name: []byte("child"), Ino: 37, Off: 3}, entry(37))
		w.AddPlus(fuseproto.DirEntry{Name: []byte("root"), Ino: 36, Off: 4}, entry(36))
		w.AddPlus(fuseproto.DirEntry{Name: []byte("bare"), Ino: 38, Off: 5}, nil)
		wide := entry(40)
		wide.Attr.Ino, wide.Attr.Flags = 1<<60|40, fuseproto.AttrSubmount
		w.AddPlus(fuseproto.DirEntry{Name: []byte("wide"), Ino: 1<<60 | 40, Off: 7}, wide)
		m.KeepIno = true
		w.Translate(m)
		w.AddPlus(fuseproto.DirEntry{Name: []byte("kept"), Ino: 39, Off: 6}, entry(39))
		return nil
	}}, fuseproto.Config{}))
	c.Init()
	type row struct{ node, attrIno, ino uint64 }
	want := map[string]row{
		".": {0, 0, base | 36}, "..": {0, 0, 99}, "child": {base | 37, base | 37, base | 37},
		"root": {1, base | 36, base | 36}, "bare": {0, 0, base | 38}, "kept": {base | 39, 39, 39},
	}
	for _, d := range c.List(1, 4096, true) {
		if d.Name == "wide" {
			// Hashed to what is left beside the mount's number, and not announced.
			if d.Ino>>fuseproto.IndexBits != base>>fuseproto.IndexBits || d.Ino == base|40 || d.Ino != d.Entry.Attr.Ino || d.Entry.Attr.Flags != 0 {
				t.Errorf("wide: inode number %#x and %#x, flags %#x", d.Ino, d.Entry.Attr.Ino, d.Entry.Attr.Flags)
			}
			continue
		}
		if got := (row{d.Entry.Node, d.Entry.Attr.Ino, d.Ino}); got != want[d.Name] {
			t.Errorf("%s: %x, want %x", d.Name, got, want[d.Name])
		}
	}
}
