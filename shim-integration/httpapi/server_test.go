package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/internal/apisock"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon"
	"github.com/rafsd/rafsd/shim-integration/httpapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeService records what the door asks for.
type fakeService struct {
	httpapi.Service // panics where a test asks for more than is here

	mu      sync.Mutex
	info    daemon.Info
	mounts  []daemon.MountRequest
	umounts []string
	err     error
	wait    chan struct{} // if not nil, Mount waits for it
}

func (f *fakeService) Info() daemon.Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.info
}

func (f *fakeService) Mount(_ context.Context, r daemon.MountRequest) error {
	if f.wait != nil {
		<-f.wait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounts = append(f.mounts, r)
	return f.err
}

func (f *fakeService) Umount(_ context.Context, mountpoint string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.umounts = append(f.umounts, mountpoint)
	return f.err
}

// serve starts a server in front of service and returns its socket.
func serve(t testing.TB, service httpapi.Service) string {
	t.Helper()
	// The folder of a test may be too deep for a socket's path.
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "api.sock")
	l, err := apisock.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httpapi.NewServer(service, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket file is still there: %v", err)
		}
	})
	return socket
}

func dial(t testing.TB, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// exchange sends the bytes of one request and returns the answer.
func exchange(t testing.TB, conn net.Conn, r *bufio.Reader, request string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return answer(t, r, request)
}

func answer(t testing.TB, r *bufio.Reader, request string) (*http.Response, string) {
	t.Helper()
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("answer to %q: %v", request, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("body of the answer to %q: %v", request, err)
	}
	return resp, string(body)
}

// once is one request on a connection of its own.
func once(t testing.TB, socket, request string) (*http.Response, string) {
	conn := dial(t, socket)
	return exchange(t, conn, bufio.NewReader(conn), request)
}

const running = `{"version":`

// TestKataGo replays what Kata's Go runtime sends, byte for byte.
func TestKataGo(t *testing.T) {
	f := &fakeService{info: daemon.Info{State: daemon.StateRunning}}
	socket := serve(t, f)
	head := " HTTP/1.1\r\nHost: unix\r\nUser-Agent: Go-http-client/1.1\r\n"
	json := "Content-Length: %d\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n%s"
	post := func(mountpoint, body string) string {
		return "POST /api/v1/mount?mountpoint=" + mountpoint + head + fmt.Sprintf(json, len(body), body)
	}

	resp, body := once(t, socket, "GET /api/v1/daemon"+head+"Accept-Encoding: gzip\r\n\r\n")
	if resp.StatusCode != 200 || !strings.HasPrefix(body, running) || !strings.Contains(body, `"state":"RUNNING"`) {
		t.Errorf("GET daemon: %d %s", resp.StatusCode, body)
	}
	for _, request := range []string{
		post("/containers", `{"fs_type":"passthrough_fs","source":"/run/share/shared","config":""}`),
		post("/rafs/0a1b/lowerdir", `{"fs_type":"rafs","source":"/b/image.boot","config":"{\"version\":2}"}`),
		"DELETE /api/v1/mount?mountpoint=/rafs/0a1b/lowerdir" + head + "Accept-Encoding: gzip\r\n\r\n",
	} {
		resp, body := once(t, socket, request)
		if resp.StatusCode != 204 || body != "" || resp.ContentLength > 0 {
			t.Errorf("%.60q: %d %q, want 204 and nothing", request, resp.StatusCode, body)
		}
	}
	want := []daemon.MountRequest{
		{Mountpoint: "/containers", FSType: "passthrough_fs", Source: "/run/share/shared"},
		{Mountpoint: "/rafs/0a1b/lowerdir", FSType: "rafs", Source: "/b/image.boot", Config: `{"version":2}`},
	}
	if d := cmp.Diff(want, f.mounts); d != "" {
		t.Errorf("mounts (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"/rafs/0a1b/lowerdir"}, f.umounts); d != "" {
		t.Errorf("umounts (-want +got):\n%s", d)
	}
}

// TestKataRust replays what Kata's Rust runtime sends.
func TestKataRust(t *testing.T) {
	f := &fakeService{info: daemon.Info{State: daemon.StateRunning}}
	socket := serve(t, f)
	head := " HTTP/1.1\r\ncontent-type: application/json\r\nhost: 2f72756e2f6170692e736f636b\r\n"
	post := func(mountpoint, body string) string {
		return fmt.Sprintf("POST /api/v1/mount?mountpoint=%s%scontent-length: %d\r\n\r\n%s", mountpoint, head, len(body), body)
	}
	resp, body := once(t, socket, "GET /api/v1/daemon"+head+"\r\n")
	var info struct {
		Version struct {
			PackageVer, GitCommit, BuildTime, Profile, Rustc *string
		}
		State string
	}
	body = strings.NewReplacer("package_ver", "PackageVer", "git_commit", "GitCommit", "build_time", "BuildTime").Replace(body)
	if err := json.Unmarshal([]byte(body), &info); err != nil || resp.StatusCode != 200 {
		t.Fatalf("GET daemon: %d %s: %v", resp.StatusCode, body, err)
	}
	v := info.Version
	for name, s := range map[string]*string{"package_ver": v.PackageVer, "git_commit": v.GitCommit,
		"build_time": v.BuildTime, "profile": v.Profile, "rustc": v.Rustc} {
		if s == nil || *s == "" {
			t.Errorf("version.%s is missing: the runtime would wait for ever", name)
		}
	}
	for _, request := range []string{
		post("%2Fcontainers", `{"fs_type":"passthrough_fs","source":"/s/rw","config":""}`),
		post("%2Frafs%2F0a1b%2Flowerdir", `{"fs_type":"rafs","source":"/b","config":"x","prefetch_files":null,"new":1}`),
		"DELETE /api/v1/mount?mountpoint=%2Frafs%2F0a1b%2Flowerdir" + head + "\r\n",
	} {
		if resp, body := once(t, socket, request); resp.StatusCode != 204 || body != "" {
			t.Errorf("%.60q: %d %q, want 204 and nothing", request, resp.StatusCode, body)
		}
	}
	if f.mounts[0].Mountpoint != "/containers" || f.mounts[1].Mountpoint != "/rafs/0a1b/lowerdir" ||
		f.umounts[0] != "/rafs/0a1b/lowerdir" {
		t.Errorf("mounts %+v, umounts %q: percent-encoding was not undone", f.mounts, f.umounts)
	}
}

func TestDaemonInfo(t *testing.T) {
	c, err := config.Parse(`{"device":{"backend":{"type":"registry","config":{"host":"h","repo":"r","auth":"CANARY"}}},"mode":"direct"}`)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 7, 23, 10, 52, 53, 123456789, time.UTC)
	f := &fakeService{info: daemon.Info{
		ID: "i", Supervisor: "/s", State: daemon.StateRunning,
		Mounts: []daemon.MountInfo{
			{Mountpoint: "/a", FSType: daemon.FSRafs, Mounted: at, Config: c},
			{Mountpoint: "/c", FSType: daemon.FSPassthrough, Mounted: at},
		},
	}}
	resp, body := once(t, serve(t, f), "GET http://localhost/api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	if got := resp.Header.Get("Server"); got != "Nydus API" {
		t.Errorf("Server %q", got)
	}
	if got := resp.Header.Get("Connection"); got != "keep-alive" {
		t.Errorf("Connection %q", got)
	}
	order := []string{`{"version":{"package_ver":`, `"git_commit":`, `"build_time":`, `"profile":"release"`, `"rustc":"go`,
		`"id":"i"`, `"supervisor":"/s"`, `"state":"RUNNING"`, `"backend_collection":{`,
		`"/a":{"backend_type":"Rafs","mountpoint":"/a","mounted_time":"2026-07-23 10:52:53.123456789 +00:00:00","config":{"version":2`,
		`"auth":"***"`, `"/c":{"backend_type":"PassthroughFs"`, `"config":null`}
	rest := body
	for _, part := range order {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Fatalf("%s is missing, or not in its place, in %s", part, body)
		}
		rest = after
	}
	if strings.Contains(body, "CANARY") {
		t.Errorf("a secret is shown: %s", body)
	}

	f.mu.Lock()
	f.info = daemon.Info{State: daemon.StateInit}
	f.mu.Unlock()
	_, body = once(t, serve(t, f), "GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n")
	if !strings.HasSuffix(body, `"id":null,"supervisor":null,"state":"INIT","backend_collection":{}}`) {
		t.Errorf("an empty daemon shows as %s", body)
	}
}

func TestErrors(t *testing.T) {
	good := `{"source":"/b","fs_type":"rafs","config":""}`
	mount := "POST /api/v1/mount?mountpoint=/m"
	tests := map[string]struct {
		line, body string
		err        error // of the service
		status     int
		message    string
	}{
		"unknown path":         {"GET /api/v1/nothing", "", nil, 404, "no such endpoint"},
		"trailing slash":       {"GET /api/v1/daemon/", "", nil, 404, "no such endpoint"},
		"double slash":         {"GET //api/v1/daemon", "", nil, 404, "no such endpoint"},
		"dots":                 {"GET /api/v1/x/../daemon", "", nil, 404, "no such endpoint"},
		"wrong method":         {"POST /api/v1/daemon", "{}", nil, 400, `method "POST"`},
		"PATCH":                {"PATCH /api/v1/mount?mountpoint=/m", "{}", nil, 400, `method "PATCH"`},
		"unknown method":       {"BREW /api/v1/daemon", "", nil, 400, `method "BREW"`},
		"OPTIONS":              {"OPTIONS *", "", nil, 404, "no such endpoint"},
		"body on GET":          {"GET /api/v1/daemon", "{}", nil, 400, "takes no body"},
		"body on DELETE":       {"DELETE /api/v1/mount?mountpoint=/m", "{}", nil, 400, "takes no body"},
		"no body on POST":      {mount, "", nil, 400, "needs a body"},
		"no mountpoint":        {"POST /api/v1/mount", good, nil, 400, "mountpoint is missing"},
		"empty mountpoint":     {"POST /api/v1/mount?mountpoint=", good, nil, 400, "mountpoint is missing"},
		"broken query":         {"POST /api/v1/mount?mountpoint=%zz", good, nil, 400, "query"},
		"mountpoint not UTF-8": {"POST /api/v1/mount?mountpoint=/%ff", good, nil, 400, "not valid UTF-8"},
		"not JSON":             {mount, "not json", nil, 400, "not JSON"},
		"null":                 {mount, "null", nil, 400, "not a JSON object"},
		"a list":               {mount, "[]", nil, 400, "not a JSON object"},
		"not UTF-8":            {mount, "{\"source\":\"\xff\"}", nil, 400, "not valid UTF-8"},
		"no source":            {mount, `{"config":""}`, nil, 400, "key source is missing"},
		"no config":            {mount, `{"source":"/b","fs_type":"rafs"}`, nil, 400, "key config is missing"},
		"config null":          {mount, `{"source":"/b","config":null}`, nil, 400, "key config: want a string"},
		"config an object":     {mount, `{"source":"/b","config":{"auth":"CANARY"}}`, nil, 400, "key config: want a string"},
		"Source in capitals":   {mount, `{"Source":"/b","config":""}`, nil, 400, "key source is missing"},
		"prefetch a string":    {mount, `{"source":"/b","config":"","prefetch_files":"/a"}`, nil, 400, "prefetch_files"},
		"prefetch a number":    {mount, `{"source":"/b","config":"","prefetch_files":[1]}`, nil, 400, "element 0: want a string"},
		"prefetch relative":    {mount, `{"source":"/b","config":"","prefetch_files":["/a","b"]}`, nil, 400, "element 1: want an absolute path"},
		"too long":             {mount, good + strings.Repeat(" ", 1<<20), nil, 400, "longer than 1048576 bytes"},
		"exists":               {mount, good, fmt.Errorf("/m: %w", daemon.ErrExists), 500, "/m: already mounted"},
		"not mounted":          {"DELETE /api/v1/mount?mountpoint=/m", "", fmt.Errorf("/m: %w", daemon.ErrNotMounted), 500, "/m: not mounted"},
		"invalid":              {mount, good, fmt.Errorf("%w: x", daemon.ErrInvalid), 500, "invalid argument: x"},
		"unsupported":          {mount, good, daemon.ErrUnsupported, 501, "not supported yet"},
		"wrong state":          {mount, good, daemon.ErrState, 400, "not possible"},
		"stopping":             {mount, good, daemon.ErrStopping, 503, "stopping"},
		"hostile text":         {mount, good, errors.New("bad \"quote\" \x01 \xff <b>"), 500, `bad "quote"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			socket := serve(t, &fakeService{err: tt.err})
			request := tt.line + " HTTP/1.1\r\nHost: x\r\n"
			if tt.body != "" {
				request += fmt.Sprintf("Content-Length: %d\r\n", len(tt.body))
			}
			resp, body := once(t, socket, request+"\r\n"+tt.body)
			var e map[string]string
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("body %q is not an error: %v", body, err)
			}
			if resp.StatusCode != tt.status || e["code"] != "UNDEFINED" || !strings.Contains(e["message"], tt.message) || len(e) != 2 {
				t.Errorf("%d %s, want %d with %q", resp.StatusCode, body, tt.status, tt.message)
			}
			if strings.Contains(body, "CANARY") {
				t.Errorf("the error repeats the body: %s", body)
			}
		})
	}
}

func TestConnections(t *testing.T) {
	f := &fakeService{info: daemon.Info{State: daemon.StateRunning}}
	socket := serve(t, f)
	get := "GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n"

	silent := dial(t, socket)
	for range 200 {
		dial(t, socket)
	}
	conn := dial(t, socket)
	r := bufio.NewReader(conn)
	for range 2 { // one behind the other
		if resp, _ := exchange(t, conn, r, get); resp.StatusCode != 200 {
			t.Fatalf("GET: %d", resp.StatusCode)
		}
	}
	del := "DELETE /api/v1/mount?mountpoint=/m HTTP/1.1\r\nHost: x\r\n\r\n"
	if _, err := io.WriteString(conn, get+del+get); err != nil { // all at once
		t.Fatal(err)
	}
	for i, want := range []int{200, 204, 200} {
		if resp, _ := answer(t, r, get); resp.StatusCode != want {
			t.Errorf("answer %d of the pipeline: %d, want %d", i, resp.StatusCode, want)
		}
	}
	head := "HEAD /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n"
	if resp, _ := exchange(t, conn, r, head); resp.StatusCode != 400 {
		t.Errorf("HEAD: %d, want 400", resp.StatusCode)
	}
	if resp, _ := exchange(t, conn, r, get); resp.StatusCode != 200 {
		t.Error("the connection is not usable after a HEAD")
	}
	chunked := "POST /api/v1/mount?mountpoint=/m HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	body := `{"source":"/b","config":"` + strings.Repeat("x", 60_000) + `"}`
	if resp, body := exchange(t, conn, r, chunked+fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)); resp.StatusCode != 204 {
		t.Errorf("chunked POST: %d %s", resp.StatusCode, body)
	}
	if resp, _ := exchange(t, conn, r, "DELETE /api/v1/mount?mountpoint=/m HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); resp.StatusCode != 204 {
		t.Errorf("DELETE with Content-Length 0: %d, want 204", resp.StatusCode)
	}
	if resp, _ := exchange(t, conn, r, chunked+"0\r\n\r\n"); resp.StatusCode != 400 {
		t.Errorf("POST with an empty chunked body: %d, want 400", resp.StatusCode)
	}

	// The silent one was never closed, and still works.
	if resp, _ := exchange(t, silent, bufio.NewReader(silent), get); resp.StatusCode != 200 {
		t.Errorf("silent connection: %d", resp.StatusCode)
	}
}

// TestQuestionsDuringAMount: a mount that hangs delays nobody.
func TestQuestionsDuringAMount(t *testing.T) {
	f := &fakeService{wait: make(chan struct{})}
	socket := serve(t, f)
	slow := dial(t, socket)
	body := `{"source":"/b","config":""}`
	if _, err := fmt.Fprintf(slow, "POST /api/v1/mount?mountpoint=/m HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if resp, _ := once(t, socket, "GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode != 200 {
			t.Fatalf("GET: %d", resp.StatusCode)
		}
	}
	close(f.wait)
	if resp, _ := answer(t, bufio.NewReader(slow), "POST"); resp.StatusCode != 204 {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

// TestHangUpMeansDeath: the end of the server is what a silent client sees, at
// once.
func TestHangUpMeansDeath(t *testing.T) {
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := apisock.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httpapi.NewServer(&fakeService{}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	conn := dial(t, socket)
	if resp, _ := once(t, socket, "GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read: %v, want EOF", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Close took %v with a silent client", took)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apisock.Listen(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Listen where somebody listens: %v, want in use", err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	old := syscall.Umask(0)
	l, err := apisock.Listen(path)
	syscall.Umask(old)
	if err != nil {
		t.Fatalf("Listen on a stale socket: %v", err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v, want Srw-------", info.Mode(), err)
	}
	// Somebody else's file at our path is not ours to remove.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("Close removed a file of somebody else: %v", err)
	}
	if _, err := apisock.Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("Listen over a file: %v, want an error", err)
	}
	pad := func(n int) string { return filepath.Join(dir, strings.Repeat("x", n-len(dir)-1)) }
	if _, err := apisock.Listen(pad(108)); err == nil || !strings.Contains(err.Error(), "108 bytes") {
		t.Errorf("path of 108 bytes: %v, want an error that says so", err)
	}
	l, err = apisock.Listen(pad(107))
	if err != nil {
		t.Fatalf("path of 107 bytes: %v", err)
	}
	l.Close()
	if _, err := apisock.Listen(filepath.Join(dir, "absent", "s")); err == nil {
		t.Error("a folder that is not there is no error")
	}
}

// TestClientsOfTheStandardLibrary sends what a Go client with keep-alive sends.
func TestClientsOfTheStandardLibrary(t *testing.T) {
	f := &fakeService{}
	socket := serve(t, f)
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	resp, err := client.Post("http://unix/api/v1/mount?mountpoint=/a+b", "application/json", bytes.NewReader([]byte(`{"source":"s","config":"c"}`)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 204 || f.mounts[0].Mountpoint != "/a b" {
		t.Errorf("%s, mountpoint %q", resp.Status, f.mounts[0].Mountpoint)
	}
}

func FuzzMountBody(f *testing.F) {
	for _, seed := range []string{`{"source":"/b","fs_type":"rafs","config":"{}","prefetch_files":["/a"]}`, `{`, `null`, `[]`,
		`{"source":1}`, `{"config":"\ud800"}`, strings.Repeat(`{"source":`, 100), `{"prefetch_files":[null]}`} {
		f.Add("/m", []byte(seed))
	}
	service := &fakeService{}
	s := httpapi.NewServer(service, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, mountpoint string, body []byte) {
		service.mounts = nil
		r, err := http.NewRequest(http.MethodPost, "http://x/api/v1/mount", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.URL.RawQuery = "mountpoint=" + mountpoint
		w := &recorder{header: http.Header{}}
		s.ServeHTTP(w, r)
		switch {
		case w.status == 204 && len(service.mounts) == 1 && w.body.Len() == 0:
		case w.status == 400 && len(service.mounts) == 0 && json.Valid(w.body.Bytes()):
		default:
			t.Fatalf("%d %q with %d mounts", w.status, w.body.Bytes(), len(service.mounts))
		}
	})
}

// FuzzBodies gives the other bodies to the door: no one gets through that is not of
// its shape, and every answer is JSON.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{`{"log_level":"info"}`, `{"registry_auth":"x"}`, `{"type":"bootstrap","id":"i","config":{}}`, `{"type":"x","id":"i","config_v2":[]}`,
		`{`, `null`, `[]`, `{"log_level":1}`, `{"a":"\ud800"}`, strings.Repeat(`{"a":`, 100)} {
		for route := range byte(3) {
			f.Add(route, []byte(seed))
		}
	}
	service := &bodyService{}
	s := httpapi.NewServer(service, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, route byte, body []byte) {
		path := []string{"/api/v1/daemon", "/api/v1/config?id=x", "/api/v2/blobs"}[route%3]
		r, err := http.NewRequest(http.MethodPut, "http://x"+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		service.calls = 0
		w := &recorder{header: http.Header{}}
		s.ServeHTTP(w, r)
		switch {
		case w.status == 204 && service.calls == 1 && w.body.Len() == 0:
		case (w.status == 400 || w.status == 501) && service.calls == 0 && json.Valid(w.body.Bytes()):
		default:
			t.Fatalf("%s: %d %q with %d calls", path, w.status, w.body.Bytes(), service.calls)
		}
	})
}

// bodyService counts what the bodies ask for.
type bodyService struct {
	httpapi.Service
	calls int
}

func (b *bodyService) SetLogLevel(string) error { b.calls++; return nil }

func (b *bodyService) SetRuntimeConfig(string, map[string]string) error { b.calls++; return nil }

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
