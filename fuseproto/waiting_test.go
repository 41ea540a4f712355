package fuseproto_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/fuseproto/fusetest"
)

// TestSlowRequests: a request is told of when it has become slow, at each doubling of
// its age, and at its end; one that is quick never is.
func TestSlowRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		tree, c := guestOf(t, fuseproto.Config{Slow: time.Second, OnSlow: func(w fuseproto.Waiting, over bool, _ uint64) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintf("%v n%d at %d size %d %v over %v", w.Opcode, w.NodeID, w.Offset, w.Size, w.Age.Round(time.Millisecond), over))
		}})
		tree.MustBlock = func(op *fuseproto.Op) bool { return op.Opcode == fuseproto.OpRead }
		take := 900 * time.Millisecond
		tree.Wait = func(*fuseproto.Op) error { time.Sleep(take); return nil }
		read := func() {
			if r := fusetest.NewClient(t, c.Server).Read(nodeFile, 0, 100); r.Errno != 0 && r.Errno != syscall.EIO {
				t.Errorf("READ: %v", r.Errno)
			}
		}
		read()
		time.Sleep(time.Minute)
		if len(told) != 0 {
			t.Errorf("told of a quick request: %q", told)
		}
		take = 4500 * time.Millisecond
		read()
		synctest.Wait()
		mu.Lock()
		var want []string
		for _, age := range []string{"1s", "2s", "4s"} {
			want = append(want, fmt.Sprintf("READ n%d at 0 size 100 %s over false", nodeFile, age))
		}
		want = append(want, fmt.Sprintf("READ n%d at 0 size 100 4.5s over true", nodeFile))
		if fmt.Sprint(told) != fmt.Sprint(want) {
			t.Errorf("told %q, want %q", told, want)
		}
		told = nil
		mu.Unlock()

		// Many at once: most are left out, and nobody waits for the rest.
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(read)
		}
		wg.Wait()
		synctest.Wait()
		mu.Lock()
		if n := len(told); n < 3 || n > 30 {
			t.Errorf("told %d times of 100 slow requests", n)
		}
		mu.Unlock()
		wg.Go(read)
		synctest.Wait()
		c.Server.Close()
		told = nil
		wg.Wait()
		if len(told) != 0 {
			t.Errorf("told after Close: %q", told)
		}
	})
}
