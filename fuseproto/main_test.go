package fuseproto_test

import (
	"bytes"
	"testing"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A tree for most tests: its root is RootID, since it is served without a vfs.
//
//	1 /
//	2 ├── dir/
//	3 │   └── file   10,000 bytes, user.name = value, user.other = x
//	4 ├── link -> dir/file
//	5 └── empty/
const (
	nodeDir   = 2
	nodeFile  = 3
	nodeLink  = 4
	nodeEmpty = 5
	fileSize  = 10_000
)

var fileData = func() []byte {
	b := make([]byte, fileSize)
	for i := range b {
		b[i] = byte(i>>8 ^ i)
	}
	return b
}()

func testTree() *fusetest.Tree {
	t := fusetest.NewTree(fuseproto.RootID)
	dir := t.Dir(fuseproto.RootID, "dir")
	f := t.File(dir, "file", fileData)
	t.Xattr(f, "user.name", "value")
	t.Xattr(f, "user.other", "x")
	t.LinkTo(fuseproto.RootID, "link", "dir/file")
	t.Dir(fuseproto.RootID, "empty")
	return t
}

func serverOf(t testing.TB, fs fuseproto.FileSystem, cfg fuseproto.Config) *fuseproto.Server {
	t.Helper()
	s, err := fuseproto.NewServer(fs, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// guest returns a tree and a guest in a session with it.
func guest(t testing.TB) (*fusetest.Tree, *fusetest.Client) {
	t.Helper()
	return guestOf(t, fuseproto.Config{})
}

func guestOf(t testing.TB, cfg fuseproto.Config) (*fusetest.Tree, *fusetest.Client) {
	t.Helper()
	tree := testTree()
	c := fusetest.NewClient(t, serverOf(t, tree, cfg))
	c.Init()
	return tree, c
}

// one is a request of each opcode that is valid on testTree, with the room that
// a guest gives it.
type one struct {
	op    fuseproto.Opcode
	node  uint64
	room  int
	parts []any
}

func everyRequest() []one {
	u32, u64 := func(n uint32) any { return n }, func(n uint64) any { return n }
	read := func(size uint32) []byte { return fusetest.ReadBody(0, 0, size) }
	zero := func(n int) []byte { return make([]byte, n) }
	return []one{
		{fuseproto.OpLookup, 1, 128, []any{"dir"}},
		{fuseproto.OpGetAttr, nodeFile, 104, []any{zero(16)}},
		{fuseproto.OpSetAttr, nodeFile, 104, []any{zero(88)}},
		{fuseproto.OpReadlink, nodeLink, 4096, nil},
		{fuseproto.OpSymlink, 1, 128, []any{"new", "target"}},
		{fuseproto.OpMknod, 1, 128, []any{zero(16), "new"}},
		{fuseproto.OpMkdir, 1, 128, []any{zero(8), "new"}},
		{fuseproto.OpUnlink, 1, 0, []any{"link"}},
		{fuseproto.OpRmdir, 1, 0, []any{"empty"}},
		{fuseproto.OpRename, 1, 0, []any{u64(nodeDir), "link", "new"}},
		{fuseproto.OpRename2, 1, 0, []any{u64(nodeDir), u64(1), "link", "new"}},
		{fuseproto.OpLink, nodeDir, 128, []any{u64(nodeFile), "new"}},
		{fuseproto.OpOpen, nodeFile, 16, []any{zero(8)}},
		{fuseproto.OpRead, nodeFile, fileSize, []any{read(fileSize)}},
		{fuseproto.OpWrite, nodeFile, 8, []any{zero(16), u32(5), zero(20), []byte("hello")}},
		{fuseproto.OpStatFS, 1, 80, nil},
		{fuseproto.OpRelease, nodeFile, 0, []any{zero(24)}},
		{fuseproto.OpFsync, nodeFile, 0, []any{zero(16)}},
		{fuseproto.OpSetXattr, nodeFile, 0, []any{u32(5), u32(0), "user.new", []byte("value")}},
		{fuseproto.OpGetXattr, nodeFile, 100, []any{u32(100), u32(0), "user.name"}},
		{fuseproto.OpListXattr, nodeFile, 100, []any{u32(100), u32(0)}},
		{fuseproto.OpRemoveXattr, nodeFile, 0, []any{"user.name"}},
		{fuseproto.OpFlush, nodeFile, 0, []any{zero(24)}},
		{fuseproto.OpInit, 0, 64, []any{fusetest.InitBody(7, 45, fusetest.GuestFlags)}},
		{fuseproto.OpOpenDir, nodeDir, 16, []any{zero(8)}},
		{fuseproto.OpReadDir, 1, 4096, []any{read(4096)}},
		{fuseproto.OpReleaseDir, nodeDir, 0, []any{zero(24)}},
		{fuseproto.OpFsyncDir, nodeDir, 0, []any{zero(16)}},
		{fuseproto.OpGetLk, nodeFile, 24, []any{zero(48)}},
		{fuseproto.OpSetLk, nodeFile, 0, []any{zero(48)}},
		{fuseproto.OpSetLkW, nodeFile, 0, []any{zero(48)}},
		{fuseproto.OpAccess, nodeFile, 0, []any{zero(8)}},
		{fuseproto.OpCreate, 1, 144, []any{zero(16), "new"}},
		{fuseproto.OpBmap, nodeFile, 8, []any{zero(16)}},
		{fuseproto.OpIoctl, nodeFile, 116, []any{zero(24), u32(4), u32(100), []byte("data")}},
		{fuseproto.OpPoll, nodeFile, 8, []any{zero(24)}},
		{fuseproto.OpFallocate, nodeFile, 0, []any{zero(32)}},
		{fuseproto.OpReadDirPlus, 1, 4096, []any{read(4096)}},
		{fuseproto.OpLseek, nodeFile, 8, []any{zero(16), u64(fuseproto.SeekHole)}},
		{fuseproto.OpCopyFileRange, nodeFile, 8, []any{zero(16), u64(nodeFile), zero(32)}},
		{fuseproto.OpCopyFileRange64, nodeFile, 8, []any{zero(16), u64(nodeFile), zero(32)}},
		{fuseproto.OpSetupMapping, nodeFile, 0, []any{zero(40)}},
		{fuseproto.OpSyncFS, 1, 0, []any{zero(8)}},
		{fuseproto.OpTmpfile, nodeDir, 144, []any{zero(16), ""}},
		{fuseproto.OpStatx, nodeFile, 288, []any{zero(24)}},
		{fuseproto.OpForget, nodeFile, 0, []any{u64(1)}},
		{fuseproto.OpBatchForget, 0, 0, []any{u64(2), u64(nodeFile), u64(1), u64(nodeDir), u64(2)}},
		{fuseproto.OpInterrupt, 0, 0, []any{u64(2)}},
		{99, 1, 100, []any{zero(100)}},
		{fuseproto.OpDestroy, 0, 0, nil},
	}
}

func (o one) message(unique uint64) *fusetest.Message {
	room := o.room + 16
	switch o.op {
	case fuseproto.OpForget, fuseproto.OpBatchForget, fuseproto.OpInterrupt:
		room = 0
	}
	return fusetest.NewMessage(fusetest.Request(o.op, unique, o.node, o.parts...), room)
}

func sameBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes differ from the %d wanted\ngot  %.64x\nwant %.64x", what, len(got), len(want), got, want)
	}
}
