package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// asRafsd makes the test binary be rafsd: what the tests below start is this
// program with its real command line, signals and descriptors.
const asRafsd = "RAFSD_TEST_AS_RAFSD"

func TestMain(m *testing.M) {
	if os.Getenv(asRafsd) == "1" {
		beFaulty()
		os.Exit(run(os.Args, os.Stdout, os.Stderr))
	}
	if args := os.Getenv(asLoader); args != "" {
		os.Exit(runLoader(args))
	}
	code := m.Run()
	if shippedDir != "" {
		os.RemoveAll(shippedDir)
	}
	os.Exit(code)
}

// patience bounds every wait of these tests; nothing ever takes as long.
const patience = 30 * time.Second

// output gathers what a process writes and tells when a text has come.
type output struct {
	mu  sync.Mutex
	b   bytes.Buffer
	new chan struct{} // of capacity 1
	// ended is closed when the process has ended and all of its output is here.
	ended chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	select {
	case o.new <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// waitFor waits until the output holds text.
func (o *output) waitFor(t testing.TB, text string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for !strings.Contains(o.String(), text) {
		select {
		case <-o.new:
		case <-o.ended:
			if !strings.Contains(o.String(), text) {
				t.Fatalf("the process ended without %q in its output:\n%s", text, o)
			}
			return
		case <-timer.C:
			t.Fatalf("no %q in the output:\n%s", text, o)
		}
	}
}

// waitForLine waits until a line of the output holds all of the words.
func (o *output) waitForLine(words ...string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
	lines:
		for line := range strings.Lines(o.String()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no line of the output has all of %q", words)
		}
	}
}

// waitUntil waits until cond holds.
func waitUntil(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// process is a running rafsd.
type process struct {
	t         testing.TB
	cmd       *exec.Cmd
	dir       string // working directory
	sock, api string
	out       *output
	started   time.Time
	ended     chan struct{} // closed when the process has
	wait      error         // after ended
	client    *http.Client
}

// options change how a process is started.
type options struct {
	binary string // instead of the test binary
	env    []string
	files  []*os.File
	stderr *os.File
	dir    string // working directory and place of the sockets; "" = a new one
	// crashes says that workers are made to crash.
	crashes bool
}

// shortDir returns a new folder with a path short enough for sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rafsd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// launch starts rafsd with args; {sock} and {api} in them stand for the sockets.
// At the end of the test it is killed if it still runs, and its output is held to
// what all of our output is held to.
func launch(t testing.TB, o options, args ...string) *process {
	t.Helper()
	if o.dir == "" {
		o.dir = shortDir(t)
	}
	if o.binary == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		o.binary = exe
	}
	p := &process{
		t: t, dir: o.dir, sock: filepath.Join(o.dir, "v.sock"), api: filepath.Join(o.dir, "a.sock"),
		ended: make(chan struct{}),
	}
	p.out = &output{new: make(chan struct{}, 1), ended: p.ended}
	replace := strings.NewReplacer("{sock}", p.sock, "{api}", p.api, "{dir}", p.dir)
	for i := range args {
		args[i] = replace.Replace(args[i])
	}
	settings := filepath.Join(o.dir, "empty.toml") // not this machine's own
	if err := os.WriteFile(settings, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if len(args) > 0 && args[0] == "virtiofs" && !strings.Contains(strings.Join(args, " "), "--settings") {
		args = append(args, "--settings", settings)
	}
	p.cmd = exec.Command(o.binary, args...)
	p.cmd.Dir = o.dir
	// A process with the race detector sleeps a second at its end by default.
	p.cmd.Env = append(append(os.Environ(), asRafsd+"=1", "GORACE=atexit_sleep_ms=0"), o.env...)
	p.cmd.ExtraFiles = o.files
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if o.stderr != nil {
		p.cmd.Stdout, p.cmd.Stderr = o.stderr, o.stderr
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.api)
	}}
	p.client = &http.Client{Transport: transport, Timeout: patience}
	p.started = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.wait = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		select {
		case <-p.ended:
		default:
			p.cmd.Process.Kill()
			<-p.ended
		}
		text := p.out.String()
		if t.Failed() {
			t.Logf("output of rafsd %v:\n%s", args, text)
		}
		if strings.Contains(text, "DATA RACE") {
			t.Error("the daemon has a data race")
		}
		if o.crashes {
			return
		}
		if strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") {
			t.Error("the daemon panicked")
		}
		if strings.Contains(text, "CANARY") {
			t.Error("a secret is in the output")
		}
		for line := range strings.SplitSeq(text, "\n") {
			if len(line)+1 > 8<<10 || !utf8.ValidString(line) {
				t.Errorf("a line of %d bytes, valid UTF-8 %v", len(line), utf8.ValidString(line))
			}
		}
	})
	return p
}

// exit waits for the end of the process and returns its code.
func (p *process) exit(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		p.t.Fatalf("still running after %v", within)
	}
	var exit *exec.ExitError
	if p.wait != nil && !errors.As(p.wait, &exit) {
		p.t.Fatal(p.wait)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop sends a signal, and fails the test unless the process ends well within a
// second.
func (p *process) stop(sig syscall.Signal) {
	p.t.Helper()
	start := time.Now()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	code := p.exit(patience)
	if took := time.Since(start); took > slack(time.Second) || code != 0 {
		p.t.Errorf("%v: exit code %d after %v, want 0 within 1s", sig, code, took)
	}
}

// slack is what a bound becomes on a machine that runs other tests at the same
// time.
func slack(d time.Duration) time.Duration { return 3 * d }

// call sends one request to the API.
func (p *process) call(method, path, body string) (int, string) {
	p.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, "http://unix"+path, in)
	if err != nil {
		p.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.Contains(string(text), "CANARY") {
		p.t.Errorf("%s %s shows a secret: %s", method, path, text)
	}
	return resp.StatusCode, string(text)
}

// info is what GET /api/v1/daemon answers, as clients read it.
type info struct {
	Version struct {
		PackageVer string `json:"package_ver"`
		GitCommit  string `json:"git_commit"`
	} `json:"version"`
	ID                *string                    `json:"id"`
	Supervisor        *string                    `json:"supervisor"`
	State             string                     `json:"state"`
	BackendCollection map[string]json.RawMessage `json:"backend_collection"`
}

func (p *process) info() info {
	p.t.Helper()
	status, body := p.call("GET", "/api/v1/daemon", "")
	var i info
	if err := json.Unmarshal([]byte(body), &i); err != nil || status != 200 {
		p.t.Fatalf("GET daemon: %d %s: %v", status, body, err)
	}
	return i
}

// ready waits until the API answers, and returns how long that took since exec.
func (p *process) ready() time.Duration {
	p.t.Helper()
	for {
		conn, err := net.Dial("unix", p.api)
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-p.ended:
			p.t.Fatalf("rafsd ended with code %d:\n%s", p.cmd.ProcessState.ExitCode(), p.out)
		case <-time.After(time.Millisecond):
		}
		if time.Since(p.started) > patience {
			p.t.Fatalf("the API does not answer:\n%s", p.out)
		}
	}
	if state := p.info().State; state != "RUNNING" {
		p.t.Fatalf("the first answer says %s, want RUNNING", state)
	}
	return time.Since(p.started)
}

// mount mounts an image by the API and fails the test unless that is 204.
func (p *process) mount(at, bootstrap, config string) {
	p.t.Helper()
	if status, body := p.tryMount(at, bootstrap, config); status != 204 || body != "" {
		p.t.Fatalf("POST mount %s: %d %s", at, status, body)
	}
}

func (p *process) tryMount(at, bootstrap, config string) (int, string) {
	p.t.Helper()
	body, err := json.Marshal(map[string]string{"fs_type": "rafs", "source": bootstrap, "config": config})
	if err != nil {
		p.t.Fatal(err)
	}
	return p.call("POST", "/api/v1/mount?mountpoint="+at, string(body))
}

// guest connects a VMM and mounts the device as a guest does.
func (p *process) guest() (*vmm.VM, *vmm.Client) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	vm, err := vmm.Dial(ctx, p.sock, vmm.Options{Wait: patience})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { vm.Close() })
	c, err := vm.Mount(ctx, vmm.Linux612)
	if err != nil {
		p.t.Fatal(err)
	}
	return vm, c
}

// readFile reads a whole file of the guest's tree.
func readFile(ctx context.Context, c *vmm.Client, path string) ([]byte, error) {
	e, err := c.Resolve(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", path, err)
	}
	open, err := c.Open(ctx, e.NodeID, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var all []byte
	for uint64(len(all)) < e.Attr.Size {
		b, err := c.Read(ctx, e.NodeID, open.Fh, uint64(len(all)), 128<<10)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), c.Release(ctx, e.NodeID, open.Fh))
		}
		if len(b) == 0 {
			break
		}
		all = append(all, b...)
	}
	return all, c.Release(ctx, e.NodeID, open.Fh)
}

// testContext ends with the patience of these tests.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// variant is one image of the corpus.
type variant struct {
	bootstrap, blobs string
	want             []manifest.Entry // what is true of its tree
}

func corpusVariant(t testing.TB, name string) variant {
	t.Helper()
	dir := corpus.Dir(t)
	v := variant{
		bootstrap: filepath.Join(dir, "images", name, "bootstrap"),
		blobs:     filepath.Join(dir, "images", name, "blobs"),
	}
	index, err := os.ReadFile(filepath.Join(dir, "served", "INDEX"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(index)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			matches, err := filepath.Glob(filepath.Join(dir, "served", f[1]+"*.manifest"))
			if err != nil || len(matches) != 1 {
				t.Fatalf("manifest %s of %s: %v, %v", f[1], name, matches, err)
			}
			if v.want, err = manifest.ReadFile(matches[0]); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("the corpus has no variant %s", name)
	return v
}

// localConfig is a version 2 configuration of a folder of blobs.
func localConfig(blobs, workDir string) string {
	return fmt.Sprintf(`{"version":2,"backend":{"type":"localfs","localfs":{"dir":%q}},`+
		`"cache":{"type":"filecache","filecache":{"work_dir":%q}},"rafs":{"enable_xattr":true}}`, blobs, workDir)
}

// rssAnon returns the anonymous memory of a daemon, its worker included, in bytes.
func rssAnon(t testing.TB, pid int) (n int64) {
	t.Helper()
	for _, pid := range vmm.Processes(pid) {
		n += rssAnonOf(t, pid)
	}
	return n
}

func rssAnonOf(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no RssAnon in /proc/PID/status")
	return 0
}

// compareFile holds what was read of a file to its manifest entry.
func compareFile(at string, file manifest.Entry, data []byte) error {
	if uint64(len(data)) != file.Size || sha256.Sum256(data) != file.SHA256 {
		return fmt.Errorf("%s%s: read %d bytes that are not the file's %d", at, file.Path, len(data), file.Size)
	}
	return nil
}
