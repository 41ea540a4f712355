package e2e

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// nydusctl sends a request as that program's HTTP client does, on a connection of
// its own: the socket's path in hexadecimal as the host, the query as it is, no
// Content-Type. It wants a status below 400, and JSON of each GET. Replayed, not seen.
func (d *rafsd) nydusctl(t *testing.T, method, path, body string, result any) {
	t.Helper()
	conn, err := net.Dial("unix", d.API)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: %s\r\n", method, path, hex.EncodeToString([]byte(d.API)))
	if body != "" {
		request += fmt.Sprintf("content-length: %d\r\n", len(body))
	}
	if _, err := io.WriteString(conn, request+"\r\n"+body); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 400 {
		t.Fatalf("%s %s: status %d, %v: %s", method, path, resp.StatusCode, err, text)
	}
	if method == http.MethodGet {
		if err := json.Unmarshal(text, result); err != nil {
			t.Errorf("%s %s: %v: %s", method, path, err, text)
		}
	}
}

// TestL60_Nydusctl: its info, mount, umount and metrics fsstats work.
func TestL60_Nydusctl(t *testing.T) {
	type info struct {
		Version struct {
			PackageVer string `json:"package_ver"`
			GitCommit  string `json:"git_commit"`
			BuildTime  string `json:"build_time"`
			Profile    string `json:"profile"`
			Rustc      string `json:"rustc"`
		} `json:"version"`
		State    string `json:"state"`
		Backends map[string]struct {
			Type       string          `json:"backend_type"`
			Mountpoint string          `json:"mountpoint"`
			Mounted    string          `json:"mounted_time"`
			Config     json.RawMessage `json:"config"`
		} `json:"backend_collection"`
	}
	d := start(t)
	look := func() (i info) {
		d.nydusctl(t, http.MethodGet, "/api/v1/daemon", "", &i)
		return i
	}
	if i := look(); i.State != "RUNNING" || i.Version.PackageVer == "" || i.Version.GitCommit == "" || i.Version.BuildTime == "" ||
		i.Version.Profile == "" || i.Version.Rustc == "" || len(i.Backends) != 0 {
		t.Errorf("info says %+v", i)
	}
	v := namedVariant(t, "v6-dir-zstd-blake3-small")
	body, err := json.Marshal(map[string]string{"source": v.Bootstrap, "fs_type": "rafs", "config": localfs(v.Blobs(t), t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	d.nydusctl(t, http.MethodPost, "/api/v1/mount?mountpoint=/image", string(body), nil)
	if b, ok := look().Backends["/image"]; !ok || b.Type != "Rafs" || b.Mountpoint != "/image" || b.Mounted == "" || string(b.Config) == "null" {
		t.Errorf("info shows the mount as %+v", b)
	}
	var stats struct {
		ID   string `json:"id"`
		Hits []int  `json:"fop_hits"`
	}
	d.nydusctl(t, http.MethodGet, "/api/v1/metrics", "", &stats)
	if stats.ID != "/image" || len(stats.Hits) != 15 {
		t.Errorf("fsstats are %+v", stats)
	}
	d.nydusctl(t, http.MethodDelete, "/api/v1/mount?mountpoint=/image", "", nil)
	if i := look(); len(i.Backends) != 0 {
		t.Errorf("after umount info shows %+v", i.Backends)
	}
}
