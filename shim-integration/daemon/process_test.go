package daemon

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestRaiseNofile(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	low := before
	low.Cur = before.Max / 2
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	get := func() (now unix.Rlimit) {
		t.Helper()
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
			t.Fatal(err)
		}
		return now
	}
	if err := raiseNofile(low.Cur / 2); err != nil || get() != low {
		t.Errorf("asked for less than there is: %v, limit %+v, want it left at %+v", err, get(), low)
	}
	if err := raiseNofile(before.Max); err != nil || get().Cur != before.Max {
		t.Errorf("asked for the hard limit: %v, limit %+v, want %d", err, get(), before.Max)
	}
	// More than the hard limit is granted to the privileged alone; the others get
	// what there is, and are told.
	err := raiseNofile(before.Max + 1)
	if now := get(); now.Cur < before.Max || (err == nil) != (now.Cur > before.Max) {
		t.Errorf("asked for one more than the hard limit %d: %v, limit %+v", before.Max, err, now)
	}
}
