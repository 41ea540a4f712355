package fuseproto_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
	"github.com/rafsd/rafsd/fuseproto/vfs"
)

// FuzzRequest feeds requests of any content, cut anywhere, into a session with a
// tree of a mount at "/" and one beside it. Whatever comes: no panic, a frame
// that is right, the length reported is the length told, and nothing is written
// behind it if the request succeeded or behind its room at all.
func FuzzRequest(f *testing.F) {
	for _, o := range everyRequest() {
		room := uint16(o.room + 16)
		f.Add(fusetest.Request(o.op, 2, o.node, o.parts...), room, uint16(40), uint16(16), false)
		f.Add(fusetest.Request(o.op, 2, 1<<44|o.node, o.parts...), room, uint16(1), uint16(1), true)
		f.Add(fusetest.Request(o.op, 2, 2<<44|o.node, o.parts...), uint16(16), uint16(7), uint16(0), false)
	}
	f.Add([]byte{}, uint16(0), uint16(0), uint16(0), false)
	f.Fuzz(func(t *testing.T, request []byte, room, cutRequest, cutRoom uint16, wait bool) {
		root, other := testTree(), testTree()
		root.MustBlock = func(*fuseproto.Op) bool { return wait }
		v := vfs.New(0)
		defer v.Close()
		for path, tree := range map[string]*fusetest.Tree{"/": root, "/other/one": other} {
			if _, err := v.Mount(t.Context(), path, tree, vfs.MountOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		// The lines of the trace are written too, and thrown away.
		log := slog.New(slog.NewTextHandler(discard{}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s := serverOf(t, v, fuseproto.Config{Logger: log})
		fusetest.NewClient(t, s).Init()

		m := fusetest.NewMessage(request, int(room))
		m.CutRequest(min(int(cutRequest), len(request)))
		m.CutRoom(min(int(cutRoom), int(room)))
		var unique uint64
		if len(request) >= 16 {
			unique = le.Uint64(request[8:])
		} else {
			var b [16]byte
			copy(b[:], request)
			unique = le.Uint64(b[8:])
		}
		op := new(fuseproto.Op)
		written, done := s.Serve(op, m)
		if !done {
			if err := m.Untouched(0); err != nil {
				t.Fatalf("request that waits: %v", err)
			}
			var err error
			if written, err = s.ServeBlocking(context.Background(), op, m); err != nil {
				t.Fatal(err)
			}
		}
		r, err := m.Reply(written, unique)
		if err != nil {
			t.Fatal(err)
		}
		if r.Errno == 0 {
			if err := m.Untouched(written); err != nil {
				t.Fatal(err)
			}
		}
		if c := s.Counters(); c.Panics != 0 || c.Faults != 0 || c.InFlight != 0 {
			t.Fatalf("counters %+v", c)
		}
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// FuzzRestore feeds states of any content: they are refused, or their session
// can be served and says the same in its own snapshot.
func FuzzRestore(f *testing.F) {
	s := serverOf(f, testTree(), fuseproto.Config{})
	empty, _ := s.Snapshot()
	f.Add(empty)
	fusetest.NewClient(f, s).Init()
	live, _ := s.Snapshot()
	f.Add(live)
	f.Add(live[:20])
	f.Fuzz(func(t *testing.T, state []byte) {
		s := serverOf(t, testTree(), fuseproto.Config{})
		if s.Restore(state) != nil {
			return
		}
		fusetest.NewClient(t, s).GetAttr(1)
		again, err := s.Snapshot()
		if err != nil || s.Restore(again) != nil {
			t.Fatalf("own snapshot %x: %v", again, err)
		}
	})
}
