package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testregistry"
	"github.com/rafsd/rafsd/internal/vmm"
	"github.com/rafsd/rafsd/shim-integration/mountapi/client"
	"github.com/rafsd/rafsd/vhostuser/keeper"
)

// worker waits for a worker other than old and returns its pid.
func (p *process) worker(old int) (pid int) {
	p.t.Helper()
	waitUntil(p.t, "a worker other than "+strconv.Itoa(old), func() bool {
		var err error
		if pid, err = vmm.Child(p.cmd.Process.Pid, workerWord); err != nil {
			p.t.Fatal(err)
		}
		return pid != 0 && pid != old
	})
	return pid
}

// served is how many workers have taken over so far.
func (p *process) served() int { return strings.Count(p.out.String(), "another worker serves") }

// killWorker kills the worker at a moment that nobody chose, at most so long after it
// has begun: one that serves, but for one in four. A keeper whose workers are all killed
// before they serve gives up, and on a busy machine they take their time.
func (p *process) killWorker(last, served int, most time.Duration) (worker int) {
	p.t.Helper()
	worker = p.worker(last)
	if last != 0 && rand.N(4) > 0 {
		waitUntil(p.t, "another worker serves", func() bool { return p.served() > served })
		worker = p.worker(last)
	}
	time.Sleep(rand.N(most))
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		p.t.Error(err)
	}
	return worker
}

// killWorkers does that n times, and waits until a worker serves.
func (p *process) killWorkers(n int, most time.Duration) {
	p.t.Helper()
	last, served := 0, p.served()
	for range n {
		now := p.served()
		last = p.killWorker(last, served, most)
		served = now
	}
	p.worker(last)
}

// imageLoad reads an image in many ways at once, and compares, until it is told to
// stop.
type imageLoad struct {
	files  []manifest.Entry
	at     string
	reads  atomic.Int64
	stop   atomic.Bool
	failed chan error
	wg     sync.WaitGroup
}

func startImageLoad(ctx context.Context, c *vmm.Client, v variant, at string, readers int) *imageLoad {
	l := &imageLoad{at: at, failed: make(chan error, readers)}
	for _, e := range v.want {
		if e.Type == manifest.Regular {
			l.files = append(l.files, e)
		}
	}
	for range readers {
		l.wg.Go(func() {
			for !l.stop.Load() {
				f := l.files[rand.N(len(l.files))]
				if err := tryFile(ctx, c, at, f); err != nil {
					l.failed <- err
					return
				}
				l.reads.Add(1)
			}
		})
	}
	return l
}

func (l *imageLoad) end(t *testing.T) {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	select {
	case err := <-l.failed:
		t.Error(err)
	default:
	}
	t.Logf("%d files read and compared", l.reads.Load())
}

// TestTransportL48: the worker is killed at random points under load. Every request
// is answered once (the front-end checks that), the data are right, and the VMM sees
// no message.
func TestTransportL48_WorkerKilled(t *testing.T) { workerKilled(t) }

// TestTransportL48_OneProcessor is the same where the scheduler has one to give.
func TestTransportL48_OneProcessor(t *testing.T) { workerKilled(t, "GOMAXPROCS=1") }

func workerKilled(t *testing.T, env ...string) {
	kills, most := 40, 40*time.Millisecond
	if os.Getenv("RAFSD_LONG") == "1" {
		kills = 5000
	}
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	p := launch(t, options{env: env}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/rafs/image", v.bootstrap, localConfig(v.blobs, work))
	vm, c := p.guest()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l := startImageLoad(ctx, c, v, "/rafs/image", 6)
	p.killWorkers(kills, most)
	l.end(t)
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	if got := p.info().BackendCollection; len(got) != 1 {
		t.Errorf("mounts after all: %v", got)
	}
	p.stop(syscall.SIGTERM)
}

// TestTransportL49: without a keeper the daemon itself is killed, and Cloud
// Hypervisor's way of coming back hands the requests in flight to the next one.
func TestTransportL49_DaemonKilledFrontEndReconnects(t *testing.T) {
	kills := 25
	if os.Getenv("RAFSD_LONG") == "1" {
		kills = 2000
	}
	reconnects(t, kills, func(*process) {}, "--keeper", "off")
}

// TestTransportL49_KeeperKilledFrontEndReconnects: a keeper may be killed too, and its
// worker with it. The next keeper learns the guest's session from the front-end, and
// keeps it for workers of its own.
func TestTransportL49_KeeperKilledFrontEndReconnects(t *testing.T) {
	kills := 6
	if os.Getenv("RAFSD_LONG") == "1" {
		kills = 300
	}
	reconnects(t, kills, func(p *process) { p.killWorkers(2, 20*time.Millisecond) })
}

// reconnects kills a daemon with these arguments again and again under load; the
// front-end comes back to each next one, with which then is called.
func reconnects(t *testing.T, kills int, then func(*process), args ...string) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work, dir := shortDir(t), shortDir(t)
	config := filepath.Join(work, "config.json")
	if err := os.WriteFile(config, []byte(localConfig(v.blobs, work)), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := func() *process {
		return launch(t, options{dir: dir}, append([]string{"virtiofs", "--sock", "{sock}", "--bootstrap", v.bootstrap, "--config", config}, args...)...)
	}
	p := begin()
	ctx := t.Context()
	vm, err := vmm.Dial(ctx, p.sock, vmm.Options{Wait: patience, Sequence: vmm.CloudHypervisor, RequestQueues: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	c, err := vm.Mount(ctx, vmm.Linux612)
	if err != nil {
		t.Fatal(err)
	}
	l := startImageLoad(ctx, c, v, "", 6)
	for range kills {
		time.Sleep(rand.N(30 * time.Millisecond))
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.ended
		p = begin()
		if err := vm.Reconnect(ctx, p.sock); err != nil {
			t.Fatal(err)
		}
		then(p)
	}
	l.end(t)
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}

// faultSuffix behind the path of a copy of this program names a file that says what
// is wrong with it.
const faultSuffix = ".fault"

// beFaulty makes a worker fail if it is a copy with a fault.
func beFaulty() {
	exe, err := os.Executable()
	if err != nil || len(os.Args) < 2 || os.Args[1] != workerWord {
		return
	}
	fault, err := os.ReadFile(exe + faultSuffix)
	if err != nil {
		return
	}
	switch string(fault) {
	case "hangs at once":
		select {}
	case "dies after begin":
		_, _ = keeper.Join()
	}
	os.Exit(9)
}

// program makes a copy of this program, with a fault or without.
func program(t *testing.T, fault string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(shortDir(t), "rafsd")
	data, err := os.ReadFile(exe)
	if err == nil {
		err = os.WriteFile(name, data, 0o700)
	}
	if err == nil && fault != "" {
		err = os.WriteFile(name+faultSuffix, []byte(fault), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestTransportL52: the worker is upgraded under load. Programs that are none, that
// crash or that hang are found out, and the old one serves on; nothing is lost.
func TestTransportL52_UpgradeUnderLoad(t *testing.T) {
	rounds := 12
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds = 100
	}
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	work := shortDir(t)
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/rafs/image", v.bootstrap, localConfig(v.blobs, work))
	vm, c := p.guest()
	l := startImageLoad(t.Context(), c, v, "/rafs/image", 4)
	good := []string{program(t, ""), program(t, "")}
	bad := []string{"/bin/false", program(t, "hangs at once"), program(t, "dies after begin"), filepath.Join(work, "absent"), v.bootstrap}
	var pauses []time.Duration
	for i := range rounds {
		path := good[i%2]
		fails := i%10 == 1 || rounds < 100 && i%2 == 1
		if fails {
			path = bad[0]
			bad = append(bad[1:], path)
		}
		before := p.worker(0)
		api, err := client.Dial(t.Context(), filepath.Join(p.dir, defaultTTRPC))
		if err != nil {
			t.Fatal(err)
		}
		r, err := api.Upgrade(t.Context(), path)
		if err := api.Close(); err != nil {
			t.Error(err)
		}
		switch {
		case fails && !errors.Is(err, client.ErrPrecondition):
			t.Errorf("upgrade to %s: %v", path, err)
		case fails:
			t.Log(err)
		case err != nil:
			t.Errorf("upgrade to %s: %v", path, err)
		default:
			pauses = append(pauses, time.Duration(r.GetPauseMicros())*time.Microsecond)
			if now := p.worker(before); now == before {
				t.Errorf("worker %d serves on", now)
			}
		}
		// Whoever serves now dies and is replaced by one of the same program.
		if i%5 == 0 {
			p.killWorkers(1, 5*time.Millisecond)
		}
	}
	l.end(t)
	slices.Sort(pauses)
	t.Logf("%d upgrades, pause median %v, longest %v", len(pauses), pauses[len(pauses)/2], pauses[len(pauses)-1])
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}

// TestTransportL48_KilledWhileTheVMMTalks: workers die while the front-end stops,
// starts, pauses and resets the device: every message is answered, and what runs
// afterwards is right.
func TestTransportL48_KilledWhileTheVMMTalks(t *testing.T) {
	rounds := 12
	if os.Getenv("RAFSD_LONG") == "1" {
		rounds = 400
	}
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	file := someFile(t, v)
	for _, sequence := range []vmm.Sequence{vmm.QEMU72, vmm.QEMU11, vmm.CloudHypervisor} {
		t.Run(sequence.String(), func(t *testing.T) {
			p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
			p.ready()
			p.mount("/image", v.bootstrap, localConfig(v.blobs, shortDir(t)))
			done, killed := make(chan struct{}), make(chan int, 1)
			go func() {
				n, last, served := 0, 0, p.served()
				defer func() { killed <- n }() // also if the test fails here
				for {
					select {
					case <-done:
						return
					default:
					}
					now := p.served()
					last = p.killWorker(last, served, 40*time.Millisecond)
					served = now
					n++
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rounds)*time.Second)
			defer cancel()
			vm, err := vmm.Dial(ctx, p.sock, vmm.Options{Wait: patience, Sequence: sequence, RequestQueues: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Close()
			for range rounds {
				c, err := vm.Mount(ctx, vmm.Linux612)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(tryFile(ctx, c, "/image", file), vm.Pause(), vm.Resume(), tryFile(ctx, c, "/image", file)); err != nil {
					t.Fatal(err)
				}
				if err := vm.Reset(); err != nil {
					t.Fatal(err)
				}
			}
			close(done)
			t.Logf("%d workers killed in %d lives of a guest", <-killed, rounds)
			if err := vm.Broken(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPauseOfADeath measures how long a guest waits when the worker dies, with what an
// ordinary sandbox has mounted. 300 ms is the target; ten times that fails.
func TestPauseOfADeath(t *testing.T) {
	const kills = 15
	v := corpusVariant(t, "v6-dir-zstd-rootfs")
	binary, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, options{binary: binary}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	for _, at := range []string{"/rafs/a", "/rafs/b", "/rafs/c"} {
		p.mount(at, v.bootstrap, localConfig(v.blobs, shortDir(t)))
	}
	if status, body := p.mountDir("/containers", shortDir(t)); status != 204 {
		t.Fatal(status, body)
	}
	_, c := p.guest()
	ctx := testContext(t)
	e, err := c.Resolve(ctx, "/rafs/a"+someFile(t, v).Path)
	if err != nil {
		t.Fatal(err)
	}
	var pauses []time.Duration
	worker := 0
	for range kills {
		worker = p.worker(worker)
		if _, err := c.Getattr(ctx, e.NodeID); err != nil { // it serves
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		died := time.Now()
		if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for p.alive(worker) {
			time.Sleep(100 * time.Microsecond)
		}
		if _, err := c.Getattr(ctx, e.NodeID); err != nil {
			t.Fatal(err)
		}
		pauses = append(pauses, time.Since(died))
	}
	slices.Sort(pauses)
	t.Logf("from death to answer: median %v, longest %v", pauses[kills/2], pauses[kills-1])
	if longest := pauses[kills-1]; longest > 3*time.Second {
		t.Errorf("a guest waited for %v", longest)
	}
	privileges := vmm.Processes(p.cmd.Process.Pid)
	t.Logf("RssAnon: keeper %.1f MiB, worker %.1f MiB", float64(rssAnonOf(t, privileges[0]))/mib, float64(rssAnonOf(t, p.worker(worker)))/mib)
}

// alive tells whether a worker has not been waited for by its keeper.
func (p *process) alive(worker int) bool {
	pid, err := vmm.Child(p.cmd.Process.Pid, workerWord)
	return err == nil && pid == worker
}

// TestTransportL50_PoisonByTheDaemon: a request that is in flight whenever a worker
// crashes is refused in the end, and its neighbours are not.
func TestTransportL50_PoisonByTheDaemon(t *testing.T) {
	v := corpusVariant(t, "v6-dir-zstd-blake3-small")
	r := startRegistry(t, v, testregistry.Options{})
	p := launch(t, options{crashes: true}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/image", v.bootstrap, registryConfig(r, shortDir(t), ""))
	p.mount("/other", v.bootstrap, localConfig(v.blobs, shortDir(t)))
	_, c := p.guest()
	ctx := testContext(t)
	file := someFile(t, v)
	e, err := c.Resolve(ctx, "/image"+file.Path)
	if err != nil {
		t.Fatal(err)
	}
	open, err := c.Open(ctx, e.NodeID, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Fail(testregistry.Fault{Kind: testregistry.Hang, Delay: time.Minute}) // whoever reads waits
	read, err := c.GoRead(ctx, e.NodeID, open.Fh, 0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	worker := 0
	for range 3 {
		worker = p.worker(worker)
		waitUntil(t, "the read is being served", func() bool {
			api, err := client.Dial(ctx, filepath.Join(p.dir, defaultTTRPC))
			if err != nil {
				return false
			}
			defer api.Close()
			ops, err := api.Inflight(ctx)
			return err == nil && len(ops) > 0
		})
		if err := syscall.Kill(worker, syscall.SIGSEGV); err != nil {
			t.Fatal(err)
		}
		for p.alive(worker) {
			time.Sleep(time.Millisecond)
		}
	}
	if _, err := read.Wait(ctx); !errors.Is(err, syscall.EIO) {
		t.Errorf("the request that was there each time: %v, want EIO", err)
	}
	checkFile(t, c, "/other", file)
}

// TestWorkerGoesWithItsKeeper: also when that is killed, and who reads the keeper's
// output to its end does not wait for a worker.
func TestWorkerGoesWithItsKeeper(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := launch(t, options{stderr: w}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p.ready()
	worker := p.worker(0)
	for fd, want := range map[string]string{"0": os.DevNull, "1": os.DevNull} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", worker, fd)); err != nil || got != want {
			t.Errorf("descriptor %s of the worker is %s, %v", fd, got, err)
		}
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Errorf("the output does not end: %v", err)
	}
	waitUntil(t, "the worker is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", worker))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// TestFullDiskWhileWorkersDie: the cache's disk is full and workers are killed. What is
// read meanwhile is right or an error, and all of it is right once there is room.
func TestFullDiskWhileWorkersDie(t *testing.T) {
	needRoot(t)
	v := corpusVariant(t, "v6-dir-zstd-rootfs")
	work := shortDir(t)
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(work, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := launch(t, options{}, "virtiofs", "--sock", "{sock}", "--apisock", "{api}")
	p.ready()
	p.mount("/image", v.bootstrap, localConfig(v.blobs, work))
	vm, c := p.guest()
	ctx := testContext(t)
	read := func() (failed int) {
		for _, e := range v.want {
			if e.Type != manifest.Regular {
				continue
			}
			switch data, err := readFile(ctx, c, "/image"+e.Path); {
			case errors.Is(err, syscall.EIO):
				failed++
			case err != nil:
				t.Fatal(err)
			default:
				if err := compareFile("/image", e, data); err != nil {
					t.Fatal(err)
				}
			}
		}
		return failed
	}
	for range 3 {
		t.Logf("%d files cannot be read on the full disk", read())
		p.killWorkers(2, 10*time.Millisecond)
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", unix.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	if n := read(); n > 0 {
		t.Errorf("%d files cannot be read though there is room", n)
	}
	if err := errors.Join(vm.Broken(), vm.Close()); err != nil {
		t.Error(err)
	}
	p.stop(syscall.SIGTERM)
}
