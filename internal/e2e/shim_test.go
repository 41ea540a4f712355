package e2e

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// watched keeps what a watcher was told of images, "KIND MOUNTPOINT" each.
type watched struct {
	mu     sync.Mutex
	events []string
}

func (w *watched) add(e *mountv1.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.HasPrefix(e.GetMountpoint(), "/rafs/") {
		w.events = append(w.events, strings.TrimPrefix(e.GetKind().String(), "EVENT_KIND_")+" "+e.GetMountpoint())
	}
	return nil
}

func (w *watched) has(events ...string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		if !slices.Contains(w.events, e) {
			return false
		}
	}
	return true
}

// TestShimDrivesByTTRPC does what a shim would: it mounts, watches, remounts and
// umounts three images by ttrpc while a real guest reads them. A second mount does
// no harm; after a remount of the same bootstrap open files go on, after one of
// another the old ones are stale and the new image is there.
func TestShimDrivesByTTRPC(t *testing.T) {
	shimDrives(t, testguest.Config{Kind: testguest.UML})
}

func shimDrives(t *testing.T, c testguest.Config) {
	c = testguest.Need(t, c)
	c.Timeout = 8 * time.Minute
	l := startLive(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), c.Timeout)
	defer cancel()
	dial := func() *client.Client {
		shim, err := client.Dial(ctx, filepath.Join(filepath.Dir(l.API), "rafsd.ttrpc"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { shim.Close() })
		return shim
	}
	shim, watcher := dial(), dial()
	var w watched
	watching, began := make(chan error, 1), make(chan struct{})
	var first sync.Once
	go func() {
		watching <- watcher.Watch(ctx, func(e *mountv1.Event) error {
			first.Do(func() { close(began) }) // the present state: from here on nothing is missed
			return w.add(e)
		})
	}()
	select {
	case <-began:
	case err := <-watching:
		t.Fatalf("the watch ended at once: %v", err)
	}

	at := func(name string) string { return "/rafs/" + name + "/lowerdir" }
	request := func(name string, v corpus.Variant) *mountv1.MountRequest {
		return &mountv1.MountRequest{Mountpoint: at(name), FsType: "rafs", Source: v.Bootstrap, Config: l.config(v)}
	}
	must := func(_ *mountv1.MountInfo, err error) {
		if err != nil {
			t.Error(err)
		}
	}
	r := l.run(t, c, `
step mount
for i in 0 1 2; do [ "$(sum $(at $i)/data/100k)" = $sum100k ] || { echo "image $i"; exit 1; }; done
echo 3 >/proc/sys/vm/drop_caches
# Open: a file that nobody has read, two folders, and where we are.
exec 5<$(at 0)/data/repeat 6<$(at 1)/data/repeat 7<$(at 1)/dir 8<$(at 2)/data/repeat
cd $(at 1)/data/tiny
step twice
[ "$(sum $(at 0)/data/100k)" = $sum100k ] || { echo "a second mount does harm"; exit 1; }
step remount-equal
cat <&5 | sha256sum | sed 's/^/repeat-0 /'
step remount-other
unreadable 6
stale 'ls /proc/self/fd/7/'
stale 'ls .'
stale 'cat f05'
cd /
[ -e $(at 1)/data/100k ] && { echo "the old image is still there"; exit 1; }
[ -n "$(ls $(at 1)/bin)" ] && cat $(at 1)/bin/* >/dev/null || { echo "the new image is not there"; exit 1; }
cat <&8 | sha256sum | sed 's/^/repeat-2 /'
step umount
[ -e /mnt/rafs ] && { echo "something is left: $(ls /mnt/rafs)"; exit 1; }
stale 'ls /proc/self/fd/7/'
exec 5<&- 6<&- 7<&- 8<&-
`, map[string]func(){
		"mount": func() {
			for _, name := range []string{"0", "1", "2"} {
				must(shim.Mount(ctx, request(name, l.small)))
			}
		},
		"twice": func() {
			if _, err := shim.Mount(ctx, request("0", l.other)); !errors.Is(err, client.ErrExists) {
				t.Errorf("a second mount: %v, want %v", err, client.ErrExists)
			}
		},
		"remount-equal": func() { must(shim.Remount(ctx, request("0", l.small))) },
		"remount-other": func() { must(shim.Remount(ctx, request("1", l.other))) },
		"umount": func() {
			for _, name := range []string{"0", "1", "2"} {
				if err := shim.Umount(ctx, at(name)); err != nil {
					t.Error(err)
				}
			}
		},
	})
	for _, name := range []string{"repeat-0", "repeat-2"} {
		if got := field(t, r.Output, name); !strings.HasPrefix(got, l.truth["/data/repeat"]) {
			t.Errorf("%s, open while others were remounted, reads as %s", name, got)
		}
	}
	l.waitFor(t, "the events of everything that was done", func() bool {
		return w.has("MOUNTED "+at("0"), "MOUNTED "+at("1"), "MOUNTED "+at("2"), "REMOUNTED "+at("0"), "REMOUNTED "+at("1"),
			"UMOUNTED "+at("0"), "UMOUNTED "+at("1"), "UMOUNTED "+at("2"))
	})
	cancel()
	if err := <-watching; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
}
