package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/rafsd/rafsd/shim-integration/config"
)

// canary is in every secret of the texts below; it must come out nowhere.
const canary = "CANARY"

var canaryTexts = map[string]string{
	"registry": `{"version":2,"backend":{"type":"registry","registry":{"host":"u:CANARY@h","repo":"r","auth":"CANARY",
		"registry_token":"CANARY","blob_redirected_host":"CANARY@h","proxy":{"url":"http://u:CANARY@p/x?sig=CANARY","ping_url":"http://CANARY@p"},
		"mirrors":[{"host":"https://u:CANARY@m","ping_url":"https://m/?t=CANARY","headers":{"Authorization":"Bearer CANARY"}}]}},
		"external_backends":[{"type":"x","patch":{"a":"CANARY"},"config":{"key":"CANARY"}}],
		"cache":{"type":"blobcache","filecache":{"encryption_key":"CANARY"}},"rafs":{}}`,
	"oss": `{"device":{"backend":{"type":"oss","config":{"endpoint":"CANARY@e","bucket_name":"b","access_key_id":"CANARY",
		"access_key_secret":"CANARY"}}},"mode":"direct"}`,
	"s3": `{"device":{"backend":{"type":"s3","config":{"endpoint":"e?CANARY","region":"r","bucket_name":"b","access_key_id":"CANARY",
		"access_key_secret":"CANARY"}}},"mode":"direct"}`,
	"http-proxy": `{"version":2,"backend":{"type":"http-proxy","http-proxy":{"addr":"http://CANARY@p"}},"rafs":{}}`,
}

func TestSecretsPrintNowhere(t *testing.T) {
	for name, text := range canaryTexts {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			hidden := struct{ c config.Config }{*c} // no method of the unexported field is called
			for _, v := range []any{c, *c, hidden, c.Backend, *c.Backend} {
				fmt.Fprintf(&out, "%v %+v %#v %s %q %x %d\n", v, v, v, v, v, v, v)
			}
			if err := json.NewEncoder(&out).Encode(c); err != nil {
				t.Fatal(err)
			}
			if err := toml.NewEncoder(&out).Encode(c.Backend); err != nil {
				t.Fatal(err)
			}
			for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
				slog.New(h).Info("config", "c", c, "backend", c.Backend)
			}
			if r := c.Backend.Registry; r != nil {
				s := r.Auth
				fmt.Fprintf(&out, "%v %+v %#v %s %q %x %v\n", s, s, s, s, s, s, &s)
				slog.New(slog.NewTextHandler(&out, nil)).Info("auth", "auth", s, "url", r.Proxy.URL)
			}
			// %x of the text itself would be hex.
			for _, leak := range []string{canary, fmt.Sprintf("%x", canary), strings.ToLower(canary)} {
				if i := strings.Index(out.String(), leak); i >= 0 {
					t.Errorf("leaked: …%s…", out.String()[max(0, i-80):min(out.Len(), i+40)])
				}
			}
		})
	}
}

func TestErrorsHoldNoValues(t *testing.T) {
	for name, text := range map[string]string{
		"wrong type behind a secret": `{"version":2,"backend":{"type":"registry","registry":{"host":"h","repo":"r","auth":"CANARY","timeout":"CANARY"}}}`,
		"TOML without quotes":        "version = 2\nauth = CANARY CANARY",
		"TOML with an open string":   "version = 2\nauth = \"CANARY",
		"TOML with a bad escape":     "version = 2\nauth = \"CANARY\\q CANARY\"",
		"TOML with a number":         "version = 2\nauth = 12CANARY",
		"JSON cut":                   `{"auth":"CANARY`,
		"JSON with a bad escape":     `{"auth":"CANARY\q"}`,
		"JSON without quotes":        `{"auth":CANARY}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse(text)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error repeats the text: %v", err)
			}
		})
	}
}

func TestURLMask(t *testing.T) {
	for in, want := range map[string]string{
		"http://proxy:65001":           "http://proxy:65001",
		"http://u:p@proxy:65001/a":     "http://***@proxy:65001/a",
		"http://u:p/w@x@proxy":         "http://***@proxy",
		"http://u:p?w@proxy":           "http://***@proxy",
		"https://h/b?sig=1&Expires=2":  "https://h/b?***",
		"registry.test:5000":           "registry.test:5000",
		"u:p@registry.test":            "***@registry.test",
		"":                             "",
		"/run/agent.sock":              "/run/agent.sock",
		"https://h/b?redirect=a@b&c=d": "https://***@b&c=d",
	} {
		if got := config.NewURL(in).String(); got != want {
			t.Errorf("NewURL(%q).String() = %q, want %q", in, got, want)
		}
	}
	if _, err := config.NewURL("http://u:CANARY@[::1").Parse(); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("Parse of a bad URL: %v, want an error without the password", err)
	}
}
