package testregistry_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/internal/testregistry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o testregistry.Options) *testregistry.Registry {
	t.Helper()
	r, err := testregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func get(t *testing.T, url string, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestServesRangesAndCountsThem(t *testing.T) {
	r := start(t, testregistry.Options{})
	id := r.AddBlob([]byte("0123456789"))
	url := "http://" + r.Host() + "/v2/a/b/blobs/sha256:" + id
	resp, body := get(t, url, map[string]string{"Range": "bytes=2-4"})
	if resp.StatusCode != 206 || string(body) != "234" || resp.Header.Get("Content-Range") != "bytes 2-4/10" {
		t.Errorf("range: %d %q %q", resp.StatusCode, body, resp.Header.Get("Content-Range"))
	}
	if resp, body := get(t, url, nil); resp.StatusCode != 200 || string(body) != "0123456789" {
		t.Errorf("whole: %d %q", resp.StatusCode, body)
	}
	want := testregistry.Counts{Requests: 2, Ranges: 1, Whole: 1, Bytes: 13}
	if got := r.Counts(id); got != want {
		t.Errorf("counts = %+v, want %+v", got, want)
	}
}

func TestBearerTokensExpire(t *testing.T) {
	r := start(t, testregistry.Options{Auth: testregistry.Bearer, User: "u", Password: "p"})
	id := r.AddBlob([]byte("x"))
	url := "http://" + r.Host() + "/v2/a/b/blobs/sha256:" + id
	resp, _ := get(t, url, nil)
	if resp.StatusCode != 401 || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `scope="repository:a/b:pull"`) {
		t.Fatalf("no token: %d %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
	}
	if resp, _ := get(t, "http://"+r.Host()+"/token", nil); resp.StatusCode != 401 {
		t.Errorf("token without a password: %d", resp.StatusCode)
	}
	_, body := get(t, "http://"+r.Host()+"/token", map[string]string{"Authorization": "Basic dTpw"})
	var doc struct{ Token string }
	if err := json.Unmarshal(body, &doc); err != nil || doc.Token == "" {
		t.Fatalf("token: %q %v", body, err)
	}
	bearer := map[string]string{"Authorization": "Bearer " + doc.Token}
	if resp, _ := get(t, url, bearer); resp.StatusCode != 200 {
		t.Errorf("good token: %d", resp.StatusCode)
	}
	r.ExpireTokens()
	if resp, _ := get(t, url, bearer); resp.StatusCode != 401 {
		t.Errorf("expired token: %d", resp.StatusCode)
	}
}

func TestManifest(t *testing.T) {
	r := start(t, testregistry.Options{})
	digest := r.AddManifest("a/b", "latest", "application/vnd.oci.image.manifest.v1+json", []byte("{}"))
	for _, ref := range []string{"latest", digest} {
		resp, body := get(t, "http://"+r.Host()+"/v2/a/b/manifests/"+ref, nil)
		if resp.StatusCode != 200 || string(body) != "{}" || resp.Header.Get("Docker-Content-Digest") != digest {
			t.Errorf("manifest %s: %d %q %v", ref, resp.StatusCode, body, resp.Header)
		}
	}
}

func TestFaultsHitTheRequestsTheyAreFor(t *testing.T) {
	r := start(t, testregistry.Options{})
	one, two := r.AddBlob(bytes.Repeat([]byte("a"), 2000)), r.AddBlob([]byte("other"))
	r.Fail(testregistry.Fault{Kind: testregistry.Status, Status: 503, RetryAfter: "7", Blob: one, Skip: 1, Times: 1})
	url := "http://" + r.Host() + "/v2/a/b/blobs/sha256:"
	for i, want := range []int{200, 503, 200} {
		resp, _ := get(t, url+one, nil)
		if resp.StatusCode != want || want == 503 && resp.Header.Get("Retry-After") != "7" {
			t.Errorf("request %d: %d, want %d (%v)", i+1, resp.StatusCode, want, resp.Header)
		}
	}
	if resp, _ := get(t, url+two, nil); resp.StatusCode != 200 {
		t.Errorf("other blob: %d", resp.StatusCode)
	}
	stop := r.Fail(testregistry.Fault{Kind: testregistry.WrongBytes, Blob: one})
	_, body := get(t, url+one, map[string]string{"Range": "bytes=0-1999"})
	if len(body) != 2000 || bytes.Equal(body, bytes.Repeat([]byte("a"), 2000)) {
		t.Error("WrongBytes sent the right bytes")
	}
	stop()
	if _, body := get(t, url+one, nil); !bytes.Equal(body, bytes.Repeat([]byte("a"), 2000)) {
		t.Error("the fault goes on after it was taken away")
	}
}

func TestDownAndUp(t *testing.T) {
	r := start(t, testregistry.Options{})
	id := r.AddBlob([]byte("x"))
	url := "http://" + r.Host() + "/v2/a/b/blobs/sha256:" + id
	r.Down()
	if resp, err := http.Get(url); err == nil {
		resp.Body.Close()
		t.Error("a registry that is down answers")
	}
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	if resp, _ := get(t, url, nil); resp.StatusCode != 200 {
		t.Errorf("after Up: %d", resp.StatusCode)
	}
}
