package contract

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nydus-snapshotter/pkg/daemon"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testimage"
)

// start starts rafsd as Kata does, built without cgo as it is shipped, and returns
// its API's socket and a channel that is closed when it has ended well.
func start(t *testing.T) (socket string, ended <-chan struct{}) {
	t.Helper()
	dir, err := os.MkdirTemp("", "snap") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "rafsd")
	build := exec.Command("go", "build", "-o", program, "./cmd/rafsd")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	socket = filepath.Join(dir, "api.sock")
	cmd := exec.Command(program, "virtiofs", "--log-level", "info", "--apisock", socket, "--sock", filepath.Join(dir, "vm.sock"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := cmd.Wait(); err != nil {
			t.Errorf("rafsd ended with %v", err)
		}
	}()
	t.Cleanup(func() {
		select {
		case <-done:
		default:
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Error(err)
			}
			<-done
		}
	})
	if err := daemon.WaitUntilSocketExisted(socket, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return socket, done
}

// TestL56_SnapshotterClient: every call of nydus-snapshotter's client, and its watch
// for the daemon's death.
func TestL56_SnapshotterClient(t *testing.T) {
	socket, ended := start(t)
	c, err := daemon.NewNydusClient(socket)
	if err != nil {
		t.Fatal(err)
	}
	// Its watch: a connection that says nothing, and whose end is the daemon's.
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	hungUp := func() (gone bool) {
		if err := raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(p, 0)
			gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLRDHUP) != 0
		}); err != nil {
			t.Fatal(err)
		}
		return gone
	}

	info, err := c.GetDaemonInfo()
	if err != nil || info.DaemonState() != "RUNNING" || info.DaemonVersion().GitCommit == "" {
		t.Fatalf("%+v, %v", info, err)
	}
	dir := t.TempDir()
	tree := testimage.NewTree()
	tree.File("/file", []byte(strings.Repeat("text", 1000)))
	img, err := tree.Write(dir, testimage.Options{Compressor: testimage.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	// What the snapshotter writes for a shared daemon: the id is the mountpoint.
	config := fmt.Sprintf(`{"device":{"id":"/snap1","backend":{"type":"localfs","config":{"dir":%q,"readahead":false,"proxy":{"fallback":false}}},`+
		`"cache":{"type":"blobcache","config":{"work_dir":%q,"disable_indexed_map":false}}},"mode":"direct","digest_validate":false,"enable_xattr":true,`+
		`"fs_prefetch":{"enable":true,"prefetch_all":true,"threads_count":8,"merging_size":1048576}}`, img.BlobDir, dir)
	if err := c.Mount("/snap1", img.Bootstrap, config); err != nil {
		t.Fatal(err)
	}
	if err := c.Mount("/snap1", img.Bootstrap, config); err == nil || !strings.Contains(err.Error(), "already mounted") {
		t.Errorf("a second mount: %v", err)
	}
	m, err := c.GetFsMetrics("snap1")
	if err != nil || m.ID != "/snap1" || len(m.FopHits) != 15 || len(m.BlockCountRead) != 8 {
		t.Errorf("%+v, %v", m, err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		cache, err := c.GetCacheMetrics("snap1")
		if err != nil || len(cache.UnderlyingFiles) != 1 || cache.StorePath != dir {
			t.Fatalf("%+v, %v", cache, err)
		}
		if cache.DataAllReady && cache.PrefetchDataAmount > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the whole image is never there: %+v", cache)
		}
	}
	for what, err := range map[string]error{
		"renew credentials of no registry": c.UpdateConfig("/snap1", map[string]string{"registry_auth": "dTpw"}),
		"take over":                        c.TakeOver(),
		"send the descriptor":              c.SendFd(),
		"start":                            c.Start(),
		"bind a blob":                      c.BindBlob(`{"type":"bootstrap","id":"i","domain_id":"d","config":{"id":"i"}}`),
		"unbind a blob":                    c.UnbindBlob("d", "b"),
		"umount what is not there":         c.Umount("/snap2"),
	} {
		// A refusal that the client can read: code and message, not a parse error.
		if err == nil || !strings.Contains(err.Error(), "error code: UNDEFINED") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Nobody of virtual machines asks this; the client must get over the refusal.
	if _, err := c.GetInflightMetrics(); err == nil || !strings.Contains(err.Error(), "UNDEFINED") {
		t.Errorf("requests in flight: %v", err)
	}
	if err := c.Umount("/snap1"); err != nil {
		t.Error(err)
	}
	if hungUp() {
		t.Error("the silent connection was closed: the snapshotter takes that for the daemon's death")
	}
	if err := c.Exit(); err != nil {
		t.Errorf("exit: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon goes on after exit")
	}
	if !hungUp() {
		t.Error("the daemon has ended, and the silent connection does not tell")
	}
}
