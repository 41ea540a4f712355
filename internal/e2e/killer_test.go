package e2e

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// killer kills a daemon's worker again and again, at moments that nobody chose.
type killer struct {
	most time.Duration // that a worker lives

	mu      sync.Mutex // held while a worker may not be killed
	kills   int        // guarded by mu
	ended   chan struct{}
	stopped chan struct{}
	once    sync.Once
}

func (k *killer) start(t *testing.T, d *rafsd) {
	k.ended, k.stopped = make(chan struct{}), make(chan struct{})
	pid := d.cmd.Process.Pid
	go func() {
		defer close(k.stopped)
		last, served := 0, 0
		for {
			select {
			case <-k.ended:
				return
			case <-d.exited:
				return
			case <-time.After(rand.N(k.most)):
			}
			// One that serves, but for one in four: a keeper whose workers are all
			// killed before they serve gives up, and a busy machine is slow.
			now := strings.Count(d.log.String(), "another worker serves")
			if last != 0 && now == served && rand.N(4) > 0 {
				continue
			}
			k.mu.Lock()
			worker, err := vmm.Child(pid, "worker")
			if err == nil && worker != 0 && worker != last {
				err = syscall.Kill(worker, syscall.SIGKILL)
				last, served = worker, now
				k.kills++
			}
			k.mu.Unlock()
			if err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Error(err)
			}
		}
	}()
}

// pause calls f while no worker is killed.
func (k *killer) pause(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

// unmount unmounts what a worker that was killed may keep busy: between opening a file
// and saying so it leaves a handle that nobody has, until the session ends
// (docs/architecture.md, "What survives a process").
func (k *killer) unmount(t *testing.T, at string) {
	t.Helper()
	err := unix.Unmount(at, 0)
	if err == unix.EBUSY {
		t.Logf("%s is busy and unmounted lazily", at)
		err = unix.Unmount(at, unix.MNT_DETACH)
	}
	if err != nil {
		t.Errorf("umount %s: %v", at, err)
	}
}

// stop ends it, the first time, and tells how much it has done.
func (k *killer) stop(t *testing.T) int {
	k.once.Do(func() {
		close(k.ended)
		<-k.stopped
		t.Logf("%d workers killed", k.kills)
	})
	return k.kills
}

// TestWorkerKilledUnderGuest: a real guest reads, walks and executes from an image
// under stock QEMU while the worker is killed all the time, and sees nothing of it.
func TestWorkerKilledUnderGuest(t *testing.T) {
	rounds, least := 1, 20
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds, least = 15, 100
	}
	c := testguest.Need(t, testguest.Config{Kind: testguest.QEMU})
	c.Timeout = 8 * time.Minute
	v := namedVariant(t, "v6-dir-zstd-rootfs")
	d := start(t)
	d.mount(t, "/rafs/c1/lowerdir", v.Bootstrap, localfs(v.Blobs(t), t.TempDir()))
	// What is right, as sha256sum reads it.
	var sums strings.Builder
	files := 0
	for _, e := range v.Truth(t) {
		if e.Type == manifest.Regular && !strings.ContainsAny(e.Path, "\n\\") {
			fmt.Fprintf(&sums, "%s  /mnt/rafs/c1/lowerdir%s\n", hex.EncodeToString(e.SHA256[:]), e.Path)
			files++
		}
	}
	list := filepath.Join(t.TempDir(), "sums")
	if err := os.WriteFile(list, []byte(sums.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Files = map[string]string{"/sums": list}
	c.FS = []testguest.FS{{Socket: d.Socket, Tag: kataTag}}
	c.Script = fmt.Sprintf("rounds=%d\n", rounds) + `
mkdir -p /mnt && mount -t virtiofs kataShared /mnt || exit 1
image=/mnt/rafs/c1/lowerdir
first=
n=0
while [ $n -lt $rounds ]; do
	n=$((n+1))
	echo 3 >/proc/sys/vm/drop_caches
	sha256sum -c /sums >/tmp/out 2>&1 || { grep -v ': OK$' /tmp/out | head; exit 1; }
	walk=$(find $image | sort | sha256sum) || exit 1
	[ "${first:-$walk}" = "$walk" ] || { echo "the tree has changed"; exit 1; }
	first=$walk
	[ "$(chroot $image /bin/cat /bin/cat | sha256sum)" = "$(sha256sum <$image/bin/cat)" ] || { echo "a program does not run"; exit 1; }
done
dmesg | grep -iE 'virtio.?fs|fuse' | grep -iE 'error|fail|bug' && exit 1
umount /mnt || exit 1
echo all is well
`
	k := &killer{most: 120 * time.Millisecond}
	k.start(t, d)
	r, err := testguest.Boot(t.Context(), c)
	kills := k.stop(t)
	if err != nil {
		t.Fatalf("%v\noutput:\n%.2000s\nconsole:\n%.4000s", err, r.Output, r.Console)
	}
	if r.ExitCode != 0 || !strings.HasSuffix(strings.TrimSpace(r.Output), "all is well") {
		t.Errorf("exit code %d\n%.4000s", r.ExitCode, r.Output)
	}
	if kills < least {
		t.Errorf("%d workers were killed, want %d", kills, least)
	}
	t.Logf("%d files, %d rounds in %v", files, rounds, r.Time.Round(time.Millisecond))
}

// TestWorkerKilledInSandbox: a sandbox's whole life, overlays over images that write
// through to a folder of the host included, while the worker is killed all the time.
func TestWorkerKilledInSandbox(t *testing.T) {
	guests := []testguest.Config{{Kind: testguest.UML}}
	if os.Getenv("RAFSD_LONG") == "1" {
		guests = append(guests, testguest.Config{Kind: testguest.QEMU})
	}
	for _, c := range guests {
		t.Run(c.String(), func(t *testing.T) {
			k := kataGo
			k.killer = &killer{most: 80 * time.Millisecond}
			k.life(t, c)
			if k.killer.kills < 20 {
				t.Errorf("only %d workers were killed", k.killer.kills)
			}
		})
	}
}
