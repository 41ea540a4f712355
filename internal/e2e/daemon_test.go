package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

// binaries is the folder of the programs under test, built once by TestMain.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "rafsd-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir+"/", "../../cmd/rafsd", "../../cmd/rafs")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		binaries = dir
		return m.Run()
	}())
}

// rafsd is a running daemon.
type rafsd struct {
	cmd    *exec.Cmd
	dir    string
	Socket string // vhost-user
	API    string
	log    *logBuffer
	exited chan struct{}
	err    error // after exited
}

// logBuffer keeps what the daemon prints.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start runs rafsd with an API and the arguments given, waits until it says
// RUNNING, and ends it with the test.
func start(t *testing.T, args ...string) *rafsd {
	t.Helper()
	return startAs(t, append([]string{"virtiofs", "--sock", "{sock}", "--apisock", "{api}"}, args...)...)
}

// startAs is start with a whole command line, in which {sock} and {api} stand for the
// sockets. A daemon without an API is ready when it says so.
func startAs(t *testing.T, args ...string) *rafsd {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	d := &rafsd{dir: dir, Socket: filepath.Join(dir, "fs.sock"), API: filepath.Join(dir, "api.sock"), log: new(logBuffer), exited: make(chan struct{})}
	hasAPI := false
	for i, a := range args {
		hasAPI = hasAPI || a == "{api}"
		args[i] = strings.NewReplacer("{sock}", d.Socket, "{api}", d.API).Replace(a)
	}
	d.cmd = exec.Command(filepath.Join(binaries, "rafsd"), args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		d.stop(t)
		if t.Failed() {
			t.Logf("rafsd %s said:\n%s", strings.Join(args, " "), d.log)
		}
		os.RemoveAll(dir)
	})
	d.waitFor(t, "the state RUNNING", func() bool {
		if !hasAPI {
			return strings.Contains(d.log.String(), "Waiting for vhost-user socket connection")
		}
		var info struct {
			State string `json:"state"`
		}
		body, status, err := d.request(http.MethodGet, "/api/v1/daemon", nil)
		return err == nil && status == http.StatusOK && json.Unmarshal(body, &info) == nil && info.State == "RUNNING"
	})
	return d
}

// stop ends the daemon as Kata does and wants it gone in time.
func (d *rafsd) stop(t *testing.T) {
	t.Helper()
	select {
	case <-d.exited:
		return
	default:
	}
	// One that follows its front-end may end by itself in this moment.
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	select {
	case <-d.exited:
		if d.err != nil {
			t.Errorf("rafsd ended with %v, want exit code 0", d.err)
		}
	case <-time.After(10 * time.Second):
		t.Error("rafsd did not end within 10 s of SIGTERM")
		if err := d.cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-d.exited
	}
}

// waitFor polls until cond holds, the daemon ends, or half a minute is over.
func (d *rafsd) waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		select {
		case <-d.exited:
			t.Fatalf("rafsd ended (%v) before %s:\n%s", d.err, what, d.log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s after 30 s:\n%s", what, d.log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// openFiles is the number of the daemon's descriptors.
func (d *rafsd) openFiles(t *testing.T) int {
	t.Helper()
	n := 0
	for _, pid := range vmm.Processes(d.cmd.Process.Pid) {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		n += len(entries)
	}
	return n
}

// request talks to the API.
func (d *rafsd) request(method, path string, body any) ([]byte, int, error) {
	var reader io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, 0, err
		}
		reader = bytes.NewReader(b)
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.API)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequest(method, "http://unix"+path, reader)
	if err != nil {
		return nil, 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return b, resp.StatusCode, err
}

// mount adds an image to the tree, as Kata does.
func (d *rafsd) mount(t *testing.T, mountpoint, bootstrap, config string) {
	t.Helper()
	body, status, err := d.request(http.MethodPost, "/api/v1/mount?mountpoint="+url.QueryEscape(mountpoint),
		map[string]string{"fs_type": "rafs", "source": bootstrap, "config": config})
	if err != nil || status != http.StatusNoContent {
		t.Fatalf("mount %s: status %d, %v: %s", mountpoint, status, err, body)
	}
}

// umount removes an image from the tree.
func (d *rafsd) umount(t *testing.T, mountpoint string) {
	t.Helper()
	body, status, err := d.request(http.MethodDelete, "/api/v1/mount?mountpoint="+url.QueryEscape(mountpoint), nil)
	if err != nil || status != http.StatusNoContent {
		t.Fatalf("umount %s: status %d, %v: %s", mountpoint, status, err, body)
	}
}

// localfs is the configuration of an image whose blobs lie in a folder.
func localfs(blobs, cache string) string {
	return config(map[string]any{"type": "localfs", "localfs": map[string]any{"dir": blobs}}, cache)
}

// config is a nydusd configuration, version 2.
func config(backend map[string]any, cache string) string {
	b, err := json.Marshal(map[string]any{
		"version": 2,
		"id":      "e2e",
		"backend": backend,
		"cache":   map[string]any{"type": "blobcache", "filecache": map[string]any{"work_dir": cache}},
		"rafs":    map[string]any{"mode": "direct", "enable_xattr": true},
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}
