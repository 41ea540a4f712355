package backends

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/shim-integration/config"
)

func TestSecretsStayInTheBackend(t *testing.T) {
	for name, keys := range map[string]string{
		"host":         `"host":"u:CANARY@h"`,
		"host and URL": `"host":"h/%zz?CANARY"`,
		"auth":         `"host":"h","auth":"CANARY"`,
		"proxy":        `"host":"h","proxy":{"url":"http://u:CANARY@[::1"}`,
		"mirror":       `"host":"h","mirrors":[{"host":"http://u:CANARY@m/?CANARY"}]`,
		"redirect":     `"host":"h","blob_redirected_host":"u:CANARY@h"`,
	} {
		c, err := config.Parse(`{"version":2,"backend":{"type":"registry","registry":{"repo":"r",` + keys + `}},"rafs":{}}`)
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(c.Backend, slog.New(slog.DiscardHandler))
		if err == nil {
			if strings.Contains(b.Name(), "CANARY") {
				t.Errorf("%s: the name shows a secret: %s", name, b.Name())
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSeconds(t *testing.T) {
	if seconds(5).String() != "5s" || seconds(0) != 0 || seconds(1<<63) <= 0 || seconds(1<<64-1) <= 0 {
		t.Errorf("seconds: %v %v %v", seconds(5), seconds(0), seconds(1<<63))
	}
}
