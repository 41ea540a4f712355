package vmm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/vmm"
)

// TestVirtiofsdHostdir sends the requests of hostdir.go to a back-end that others
// wrote and looks at what they did to its directory.
func TestVirtiofsdHostdir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { // the back-end creates with the caller's ids
		t.Fatal(err)
	}
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, startVirtiofsd(t, dir, "--xattr"), vmm.Options{Sequence: vmm.QEMU11, Patient: true, Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// sticky: what a back-end may not know at all, which it says for ever.
	sticky := func(what string, err error) {
		t.Helper()
		if err != nil && !errors.Is(err, syscall.ENOSYS) {
			t.Errorf("%s: %v, want success or ENOSYS", what, err)
		}
	}

	a, open, err := c.As(1000, 1001).Create(ctx, vmm.RootID, "a", syscall.O_RDWR, 0o100640)
	if err != nil {
		t.Fatal(err)
	}
	if a.Attr.UID != 1000 || a.Attr.GID != 1001 || a.Attr.Mode != 0o100640 {
		t.Errorf("Create as 1000:1001 = %d:%d mode %#o", a.Attr.UID, a.Attr.GID, a.Attr.Mode)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	if n, err := c.WriteFlags(ctx, a.NodeID, open.Fh, 0, data, vmm.WriteKillSuidgid); err != nil || n != len(data) {
		t.Errorf("WriteFlags = %d, %v; want %d", n, err, len(data))
	}
	b, bopen, err := c.Create(ctx, vmm.RootID, "b", syscall.O_RDWR, 0o100600)
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.CopyFileRange(ctx, a.NodeID, vmm.CopyRange{FromFh: open.Fh, FromOff: 16, To: b.NodeID, ToFh: bopen.Fh, ToOff: 5, Len: 4000})
	if err != nil || n != 4000 {
		t.Errorf("CopyFileRange = %d, %v; want 4000", n, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "b")); err != nil || !bytes.Equal(got, append(make([]byte, 5), data[16:4016]...)) {
		t.Errorf("the copy has %d bytes, %v", len(got), err)
	}
	sub, err := c.Umask(0o22).Mkdir(ctx, vmm.RootID, "sub", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	od, err := c.Opendir(ctx, sub.NodeID)
	ok("Opendir", err)
	ok("Fsyncdir", c.Fsyncdir(ctx, sub.NodeID, od.Fh))
	ok("Releasedir", c.Releasedir(ctx, sub.NodeID, od.Fh))
	ok("Access", c.Access(ctx, a.NodeID, 4))

	// GETFLAGS: an answer of four bytes, or one of the ways to say no.
	_, flags, err := c.Ioctl(ctx, a.NodeID, open.Fh, 0x80086601, 0, nil, 4)
	if err == nil && len(flags) != 4 || err != nil && !errors.Is(err, syscall.ENOTTY) && !errors.Is(err, syscall.ENOSYS) {
		t.Errorf("Ioctl = %x, %v", flags, err)
	}

	tmp, topen, err := c.Tmpfile(ctx, vmm.RootID, syscall.O_RDWR, 0o100600)
	sticky("Tmpfile", err)
	if err == nil {
		if n, err := c.Write(ctx, tmp.NodeID, topen.Fh, 0, []byte("named")); err != nil || n != 5 {
			t.Errorf("Write to a file without a name = %d, %v", n, err)
		}
		_, err = c.Link(ctx, tmp.NodeID, vmm.RootID, "named")
		ok("Link of a file without a name", err)
		if got, err := os.ReadFile(filepath.Join(dir, "named")); err != nil || string(got) != "named" {
			t.Errorf("the file that got a name has %q, %v", got, err)
		}
	}
	x, err := c.Statx(ctx, a.NodeID, 0xfff)
	sticky("Statx", err)
	if err == nil && (x.Size != uint64(len(data)) || x.UID != 1000 || x.Mode != 0o100640 || x.Btime.Sec == 0) {
		t.Errorf("Statx = %+v", x)
	}

	whole := vmm.FileLock{End: 1<<63 - 1, Type: 1}
	sticky("Setlk", c.Setlk(ctx, a.NodeID, open.Fh, 7, whole, 0))
	_, err = c.Getlk(ctx, a.NodeID, open.Fh, 8, whole)
	sticky("Getlk", err)
	if p, err := c.GoSetlkw(ctx, b.NodeID, bopen.Fh, 7, whole, vmm.LockFlock); err != nil {
		t.Error(err)
	} else {
		_, err := p.Wait(ctx)
		sticky("GoSetlkw", err)
	}
	ok("FlushOwner", c.FlushOwner(ctx, a.NodeID, open.Fh, 7))
	ok("ReleaseOwner", c.ReleaseOwner(ctx, a.NodeID, open.Fh, 7, 2))
	ok("Bad", c.Bad())
	ok("Close", vm.Close())
}
