package virtqueue

import (
	"testing"
	"unsafe"
)

// TestInflightLayout: the table is read by other versions of this program.
func TestInflightLayout(t *testing.T) {
	var q inflightQueue
	var h inflightHead
	for name, tt := range map[string]struct{ got, want uintptr }{
		"n": {unsafe.Offsetof(q.n), 32}, "wal": {unsafe.Offsetof(q.wal), walAt}, "queue": {unsafe.Sizeof(q), headsAt},
		"marks": {unsafe.Offsetof(h.marks), 12}, "first note": {unsafe.Offsetof(h.notes), 16},
		"second note": {unsafe.Offsetof(h.notes) + unsafe.Sizeof(h.notes[0]), 128}, "head": {unsafe.Sizeof(h), headSize},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %d, want %d", name, tt.got, tt.want)
		}
	}
}
