package config_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/shim-integration/config"
)

// What one process encodes the next one decodes, secrets included.
func TestClearRoundTrip(t *testing.T) {
	texts := map[string]string{
		"snapshotter": snapshotter,
		"oss": `{"version":2,"backend":{"type":"oss","oss":{"endpoint":"https://u:p@oss.test?token=t","bucket_name":"b",
"access_key_id":"i","access_key_secret":"s"}},"cache":{"type":"blobcache","filecache":{"work_dir":"/c"}},"rafs":{"mode":"direct"}}`,
		"localfs": `{"version":2,"backend":{"type":"localfs","localfs":{"dir":"/b"}},"rafs":{}}`,
	}
	all := map[string]*config.Config{"dir": config.LocalDir("/blobs")}
	for name, text := range texts {
		c, err := config.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = c
	}
	for name, c := range all {
		b, err := c.EncodeClear()
		if err != nil {
			t.Fatal(err)
		}
		got, err := config.DecodeClear(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got, c) || got.StoreKey() != c.StoreKey() {
			t.Errorf("%s: %#v, want %#v; from %s", name, got, c, b)
		}
		more := bytes.Replace(b, []byte("{"), []byte(`{"of_a_later_version":[1],`), 1)
		if got, err := config.DecodeClear(more); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%s with an unknown key: %v", name, err)
		}
	}
	if _, err := config.DecodeClear([]byte(`{"version":"secret"}`)); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("of no configuration: %v", err)
	}
}
