package fuseproto_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// Every request that waits answers the same as one that does not.
func TestWaitingGivesTheSameReply(t *testing.T) {
	for _, o := range everyRequest() {
		_, c := guest(t)
		at := c.Send(o.message(2), 2)
		body := bytes.Clone(at.Body)
		tree, c := guest(t)
		tree.MustBlock = func(*fuseproto.Op) bool { return true }
		waited := c.Send(o.message(2), 2)
		if waited.Errno != at.Errno || !bytes.Equal(waited.Body, body) {
			t.Errorf("%v: %v and %d bytes after waiting, %v and %d without", o.op, waited.Errno, len(waited.Body), at.Errno, len(body))
		}
		if want := min(tree.Calls(o.op), 1); c.Blocked != want {
			t.Errorf("%v left the queue %d times, want %d", o.op, c.Blocked, want)
		}
	}
}

// While a method waits, the guest's memory is not held: Attach comes after.
func TestAttachComesAfterTheWait(t *testing.T) {
	tree, c := guest(t)
	tree.MustBlock = func(*fuseproto.Op) bool { return true }
	for _, o := range []one{
		{fuseproto.OpRead, nodeFile, 100, []any{fusetest.ReadBody(0, 0, 100)}},
		{fuseproto.OpReadDirPlus, 1, 1000, []any{fusetest.ReadBody(0, 0, 1000)}},
		{fuseproto.OpGetAttr, nodeFile, 104, []any{make([]byte, 16)}},
		{fuseproto.OpGetXattr, nodeFile, 100, []any{uint64(100), "user.name"}},
	} {
		m := o.message(2)
		tree.Wait = func(*fuseproto.Op) error {
			if m.Attached != 0 {
				t.Errorf("%v: attached while it waits", o.op)
			}
			return nil
		}
		if r := c.Send(m, 2); r.Errno != 0 {
			t.Errorf("%v: %v", o.op, r.Errno)
		}
		if m.Attached != 1 {
			t.Errorf("%v: attached %d times, want 1", o.op, m.Attached)
		}
	}
}

// What the guest changes in its request meanwhile changes nothing.
func TestRequestIsReadOnce(t *testing.T) {
	tree, c := guest(t)
	tree.MustBlock = func(*fuseproto.Op) bool { return true }
	m := fusetest.NewMessage(fusetest.Request(fuseproto.OpLookup, 2, 1, "dir"), 144)
	tree.Wait = func(*fuseproto.Op) error {
		clear(m.Readable()[0])
		return nil
	}
	if r := c.Send(m, 2); r.Errno != 0 || fusetest.DecodeEntry(t, r.Body).Node != nodeDir {
		t.Errorf("LOOKUP: %v, want node %d", r.Errno, nodeDir)
	}
}

// A reply that cannot be delivered is an error, and gives its references back.
func TestUndeliverableReplies(t *testing.T) {
	gone := errors.New("the front-end has gone")
	for _, o := range everyRequest() {
		tree, c := guest(t)
		tree.MustBlock = func(*fuseproto.Op) bool { return true }
		m := o.message(2)
		m.OnAttach = func() error { return gone }
		_, done := c.Server.Serve(c.Op, m)
		if done {
			continue // it needs no method that could wait
		}
		written, err := c.Server.ServeBlocking(t.Context(), c.Op, m)
		if written != 0 || err != gone {
			t.Errorf("%v: %d bytes, error %v; want none and %v", o.op, written, err, gone)
		}
		if refs := tree.Refs(); len(refs) != 0 {
			t.Errorf("%v: references %v that the guest never got", o.op, refs)
		}
		if err := m.Untouched(0); err != nil {
			t.Errorf("%v: %v", o.op, err)
		}
		if n := c.Server.Counters(); n.InFlight != 0 || n.Dropped != 1 {
			t.Errorf("%v: in flight %d, dropped %d; want 0 and 1", o.op, n.InFlight, n.Dropped)
		}
		// The Op is good for the next request.
		tree.MustBlock = nil
		if _, r := c.GetAttr(1); r.Errno != 0 {
			t.Errorf("GETATTR after %v: %v", o.op, r.Errno)
		}
	}
}

// A transport that gives other room than it did is not written to.
func TestRoomMustNotChange(t *testing.T) {
	tree, c := guest(t)
	tree.MustBlock = func(*fuseproto.Op) bool { return true }
	for _, opcode := range []fuseproto.Opcode{fuseproto.OpRead, fuseproto.OpReadDirPlus} {
		request := fusetest.Request(opcode, 2, 1, fusetest.ReadBody(0, 0, 1000))
		m := fusetest.NewMessage(request, 1016)
		m.OnAttach = func() error { m.Set(request, 100); return nil }
		if _, done := c.Server.Serve(c.Op, m); done {
			t.Fatalf("%v did not wait", opcode)
		}
		written, err := c.Server.ServeBlocking(t.Context(), c.Op, m)
		if err == nil || written != 0 {
			t.Errorf("%v into changed room: %d bytes, error %v", opcode, written, err)
		}
		if err := m.Untouched(0); err != nil {
			t.Error(err)
		}
	}
}

// F35: one request hangs until its deadline; the others of the guest go on.
func TestF35_OthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, c := guest(t)
		tree.MustBlock = func(op *fuseproto.Op) bool { return op.Opcode == fuseproto.OpRead }
		tree.Wait = func(op *fuseproto.Op) error {
			ctx, cancel := context.WithTimeout(op.Context(), time.Minute)
			defer cancel()
			<-ctx.Done()
			return fmt.Errorf("blob abc at 0x1000: %w", ctx.Err())
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			r := fusetest.NewClient(t, c.Server).Read(nodeFile, 0, 100)
			if r.Errno != syscall.EIO {
				t.Errorf("READ that hangs: %v, want EIO", r.Errno)
			}
		})
		synctest.Wait()
		if _, r := c.GetAttr(nodeFile); r.Errno != 0 {
			t.Errorf("GETATTR beside it: %v", r.Errno)
		}
		time.Sleep(time.Second)
		w := c.Server.Waiting()
		if len(w) != 1 || w[0].Opcode != fuseproto.OpRead || w[0].NodeID != nodeFile || w[0].Age != time.Second || w[0].PID != 4321 {
			t.Errorf("Waiting() = %+v, want the READ of node %d for 1 s", w, nodeFile)
		}
		if n := c.Server.Counters().InFlight; n != 1 {
			t.Errorf("%d in flight, want 1", n)
		}
		wg.Wait()
		if w := c.Server.Waiting(); len(w) != 0 {
			t.Errorf("Waiting() = %+v after the end", w)
		}
	})
}

func TestContextOfARequest(t *testing.T) {
	tree, c := guest(t)
	ctx, cancel := context.WithCancel(t.Context())
	tree.MustBlock = func(*fuseproto.Op) bool { return true }
	tree.Wait = func(op *fuseproto.Op) error {
		cancel()
		<-op.Context().Done()
		return op.Context().Err()
	}
	m := fusetest.NewMessage(fusetest.Request(fuseproto.OpGetAttr, 2, 1, make([]byte, 16)), 120)
	if _, done := c.Server.Serve(c.Op, m); done {
		t.Fatal("it did not wait")
	}
	written, err := c.Server.ServeBlocking(ctx, c.Op, m)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := m.Reply(written, 2); err != nil || r.Errno != syscall.EIO {
		t.Errorf("cancelled request: %v, %v; want EIO", r.Errno, err)
	}
}

// logOf returns a logger and what it has written.
func logOf(level slog.Level) (*slog.Logger, *lockedBuffer) {
	b := new(lockedBuffer)
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: level})), b
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestPanicIsOneRequests(t *testing.T) {
	log, text := logOf(slog.LevelInfo)
	tree := testTree()
	tree.Fail = func(op *fuseproto.Op) error {
		if op.Opcode == fuseproto.OpLookup {
			panic("planted in a test")
		}
		return nil
	}
	c := fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{Logger: log}))
	c.Init()
	for range 100 {
		if _, r := c.Lookup(1, "dir"); r.Errno != syscall.EIO {
			t.Fatalf("LOOKUP: %v, want EIO", r.Errno)
		}
	}
	if _, r := c.GetAttr(1); r.Errno != 0 {
		t.Errorf("GETATTR after the panic: %v", r.Errno)
	}
	n := c.Server.Counters()
	if n.Panics != 100 || n.InFlight != 0 || n.Ops[fuseproto.OpLookup].Errors != 100 {
		t.Errorf("counters %+v", n)
	}
	logged := strings.Count(text.String(), "planted in a test")
	if logged == 0 || logged > 20 {
		t.Errorf("%d of 100 panics were logged, want the first few", logged)
	}
	if !strings.Contains(text.String(), "blocking_test.go") || !strings.Contains(text.String(), "op=LOOKUP") {
		t.Errorf("log has no stack or request:\n%.1000s", text)
	}
}

func TestFailuresAreLoggedOnceAtALimitedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, text := logOf(slog.LevelInfo)
		tree := testTree()
		tree.Fail = func(op *fuseproto.Op) error {
			return fmt.Errorf("fetch chunk: blob %s [0x1000,+64): 503 \xff%s", "abc", strings.Repeat("y", 20_000))
		}
		c := fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{Logger: log}))
		c.Init()
		for range 1000 {
			if r := c.Read(nodeFile, 0, 1); r.Errno != syscall.EIO {
				t.Fatalf("READ: %v, want EIO", r.Errno)
			}
		}
		lines := strings.Split(strings.TrimSpace(text.String()), "\n")
		if len(lines) != 10 {
			t.Errorf("%d lines for 1000 failures at once, want 10", len(lines))
		}
		for _, l := range lines {
			if len(l) > 8<<10 || !strings.Contains(l, "blob abc") || !strings.Contains(l, "op=READ") || !strings.Contains(l, "node=3") {
				t.Errorf("line of %d bytes: %.200s", len(l), l)
			}
		}
		time.Sleep(2 * time.Second)
		c.Read(nodeFile, 0, 1)
		if last := text.String()[strings.LastIndex(strings.TrimSpace(text.String()), "\n"):]; !strings.Contains(last, "suppressed=990") {
			t.Errorf("the line after a while does not tell what was left out: %.300s", last)
		}
	})
}

func TestErrnosAreNotLogged(t *testing.T) {
	log, text := logOf(slog.LevelInfo)
	c := fusetest.NewClient(t, serverOf(t, stub{err: syscall.ENOENT}, fuseproto.Config{Logger: log}))
	c.Init()
	for _, o := range everyRequest() {
		c.Send(o.message(2), 2)
	}
	if text.String() != "" {
		t.Errorf("logged: %s", text)
	}
}

// mapped returns a mapping of n bytes whose file has been cut to nothing: every
// touch of it faults.
func mapped(t *testing.T, n int) (memory []byte, cut func()) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n)); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	name := f.Name()
	return b, func() {
		if err := os.Truncate(name, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// A file that shrinks under its mapping is an error of the requests for it.
func TestFaultInTheData(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	log, text := logOf(slog.LevelInfo)
	data, cut := mapped(t, 8192)
	tree := fusetest.NewTree(fuseproto.RootID)
	file := tree.File(fuseproto.RootID, "file", data)
	c := fusetest.NewClient(t, serverOf(t, tree, fuseproto.Config{Logger: log}))
	c.Init()
	if r := c.Read(file, 0, 8192); r.Errno != 0 {
		t.Fatalf("READ before: %v", r.Errno)
	}
	cut()
	for _, wait := range []bool{false, true} {
		tree.MustBlock = func(op *fuseproto.Op) bool { return wait }
		r := c.Call(fuseproto.OpRead, file, 8192, fusetest.ReadBody(0, 0, 8192))
		if r.Errno != syscall.EIO {
			t.Errorf("READ of what is gone (wait %v): %v, want EIO", wait, r.Errno)
		}
	}
	if n := c.Server.Counters(); n.Faults != 2 || n.Panics != 0 || n.InFlight != 0 {
		t.Errorf("counters %+v, want 2 faults", n)
	}
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	var addr uintptr
	_, rest, _ := strings.Cut(text.String(), "memory at ")
	if _, err := fmt.Sscanf(rest, "0x%x has gone", &addr); err != nil || addr < begin || addr >= begin+8192 {
		t.Errorf("log does not tell an address in [%#x,+8192): %s", begin, text)
	}
}

// gonePart is a message whose room is partly memory that faults.
type gonePart struct {
	*fusetest.Message
	room [][]byte
}

func (g gonePart) Writable() [][]byte { return g.room }

// A fault on the request's own memory is the transport's.
func TestFaultInTheGuestsMemory(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	_, c := guest(t)
	memory, cut := mapped(t, 4096)
	cut()
	serve := func(m fuseproto.Message) (written uint32, fault bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(interface{ Addr() uintptr }); !ok {
					panic(r)
				}
				fault = true
			}
		}()
		written, _ = c.Server.Serve(c.Op, m)
		return written, false
	}
	read := fusetest.Request(fuseproto.OpRead, 2, nodeFile, fusetest.ReadBody(0, 0, 100))

	// The data's place is gone, the header's is not: an error reply.
	m := fusetest.NewMessage(read, 16)
	written, fault := serve(gonePart{m, [][]byte{m.Room(), memory[:100]}})
	if r, err := m.Reply(written, 2); fault || err != nil || r.Errno != syscall.EIO {
		t.Errorf("data faults: %v, %v, fault %v; want EIO", r.Errno, err, fault)
	}
	// The header's place is gone.
	if _, fault := serve(gonePart{m, [][]byte{memory[:16], make([]byte, 100)}}); !fault {
		t.Error("header faults: no panic reached the transport")
	}
	// The request itself is gone.
	if _, fault := serve(goneRequest{m, memory[:80]}); !fault {
		t.Error("request faults: no panic reached the transport")
	}
	if _, r := c.GetAttr(1); r.Errno != 0 {
		t.Errorf("GETATTR afterwards: %v", r.Errno)
	}
}

type goneRequest struct {
	*fusetest.Message
	request []byte
}

func (g goneRequest) Readable() [][]byte { return [][]byte{g.request} }

// writer is a file system that takes writes, and reads by preadv.
type writer struct {
	stub
	t    *testing.T
	got  []byte
	wait bool
	fd   int
}

func (w *writer) Write(op *fuseproto.Op, _ uint64, in *fuseproto.WriteIn, data fuseproto.Payload) (uint32, error) {
	if w.wait && !op.MayBlock() {
		return 0, fuseproto.ErrWouldBlock
	}
	segs, err := data.Segments(nil)
	if err != nil {
		return 0, err
	}
	w.got = w.got[:0]
	for _, s := range segs {
		w.got = append(w.got, s...)
	}
	if data.Len() != int(in.Size) || len(w.got) != data.Len() {
		w.t.Errorf("payload of %d bytes, %d in segments, size %d", data.Len(), len(w.got), in.Size)
	}
	return uint32(len(w.got)), nil
}

func (w *writer) Read(op *fuseproto.Op, _ uint64, in *fuseproto.ReadIn, out *fuseproto.Out) error {
	segs, err := out.Segments(int(in.Size))
	if err != nil || len(segs) == 0 {
		return err
	}
	n, err := unix.Preadv(w.fd, segs, int64(in.Offset))
	if err != nil {
		return err
	}
	out.Advance(n)
	return nil
}

func TestWritePayload(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789"), 500)
	body := make([]byte, 40)
	le.PutUint32(body[16:], uint32(len(payload)))
	for _, wait := range []bool{false, true} {
		w := &writer{t: t, wait: wait}
		c := fusetest.NewClient(t, serverOf(t, w, fuseproto.Config{}))
		c.Init()
		for _, size := range []int{1, 39, 40, 41, 80, 81, 4096, 1 << 20} {
			request := fusetest.Request(fuseproto.OpWrite, 2, 1, body, payload, []byte("behind"))
			m := fusetest.NewMessage(request, 24)
			m.CutRequest(fusetest.CutEvery(len(request), size)...)
			r := c.Send(m, 2)
			if r.Errno != 0 || le.Uint32(r.Body) != uint32(len(payload)) {
				t.Errorf("WRITE in pieces of %d: %v %x", size, r.Errno, r.Body)
			}
			sameBytes(t, "payload", w.got, payload)
		}
	}
}

func TestWriteThatLies(t *testing.T) {
	w := &writer{t: t}
	c := fusetest.NewClient(t, serverOf(t, w, fuseproto.Config{MaxWrite: 8192}))
	c.Init()
	for name, tt := range map[string]struct {
		off  uint64
		size uint32
		have int
		want syscall.Errno
	}{
		"as much as it says":    {0, 100, 100, 0},
		"more than it says":     {0, 100, 200, 0},
		"less than it says":     {0, 101, 100, syscall.EINVAL},
		"size 2^32-1":           {0, 1<<32 - 1, 100, syscall.EINVAL},
		"more than was agreed":  {0, 8193, 8193, syscall.EINVAL},
		"as much as was agreed": {0, 8192, 8192, 0},
		"end at 2^63-1":         {1<<63 - 1 - 100, 100, 100, 0},
		"end at 2^63":           {1<<63 - 100, 100, 100, syscall.EINVAL},
		"begin far behind 2^63": {1<<64 - 50, 100, 100, syscall.EINVAL},
		"nothing":               {0, 0, 0, 0},
	} {
		body := make([]byte, 40)
		le.PutUint64(body[8:], tt.off)
		le.PutUint32(body[16:], tt.size)
		if r := c.Call(fuseproto.OpWrite, 1, 8, body, make([]byte, tt.have)); r.Errno != tt.want {
			t.Errorf("WRITE of %s: %v, want %v", name, r.Errno, tt.want)
		}
	}
}

// preadv(2) fills the guest's pages in place, whatever they are cut into.
func TestReadByPreadv(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(fileData); err != nil {
		t.Fatal(err)
	}
	c := fusetest.NewClient(t, serverOf(t, &writer{t: t, fd: int(f.Fd())}, fuseproto.Config{}))
	c.Init()
	for _, cut := range []int{1000, 4096, 1 << 20} {
		for _, off := range []uint64{0, 1, fileSize - 5, fileSize} {
			m := fusetest.NewMessage(fusetest.Request(fuseproto.OpRead, 2, 1, fusetest.ReadBody(0, off, 8192)), 16+8192)
			m.CutRoom(append([]int{5, 16, 16}, fusetest.CutEvery(16+8192, cut)...)...)
			r := c.Send(m, 2)
			want := fileData[off:min(fileSize, off+8192)]
			sameBytes(t, fmt.Sprintf("READ at %d in pieces of %d: %v", off, cut, r.Errno), r.Body, want)
		}
	}
}
