package backend_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

func TestCheckID(t *testing.T) {
	good := []string{"a", strings.Repeat("f", 64), "A.b_c-9", "-x", "_"}
	bad := []string{"", ".", "..", ".x", "a/b", "a\x00", "a b", "a%2e", "é", "a\n", "a:b", strings.Repeat("f", 65), "../../etc/passwd"}
	for _, id := range good {
		if err := backend.CheckID(id); err != nil {
			t.Errorf("CheckID(%q) = %v, want nil", id, err)
		}
	}
	for _, id := range bad {
		if err := backend.CheckID(id); !errors.Is(err, backend.ErrID) {
			t.Errorf("CheckID(%q) = %v, want ErrID", id, err)
		}
	}
}

func TestClassify(t *testing.T) {
	asked := &backend.Error{Kind: backend.Temporary, RetryAfter: 7 * time.Second, Err: io.EOF}
	tests := map[string]struct {
		err   error
		kind  backend.Kind
		after time.Duration
	}{
		"no class":             {io.ErrClosedPipe, backend.Temporary, 0},
		"asked to wait":        {asked, backend.Temporary, 7 * time.Second},
		"wrapped":              {fmt.Errorf("blob x: %w", asked), backend.Temporary, 7 * time.Second},
		"no such blob":         {backend.Errorf(backend.Permanent, "404"), backend.Permanent, 0},
		"denied, with a cause": {backend.Errorf(backend.Denied, "%w", io.EOF), backend.Denied, 0},
	}
	for name, tt := range tests {
		if k, after := backend.Classify(tt.err); k != tt.kind || after != tt.after {
			t.Errorf("%s: Classify = %v, %v, want %v, %v", name, k, after, tt.kind, tt.after)
		}
	}
	if !errors.Is(backend.Errorf(backend.Denied, "%w", io.EOF), io.EOF) {
		t.Error("the cause of an Error is lost")
	}
}
