package vmm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testguest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// virtiofsd fetches Debian's virtiofsd once for all tests.
var virtiofsd = sync.OnceValues(func() (testguest.Command, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return testguest.Program(ctx, "virtiofsd", "")
})

// startVirtiofsd serves dir and returns the socket. The program ends with its
// one front-end.
func startVirtiofsd(t testing.TB, dir string, args ...string) string {
	t.Helper()
	program, err := virtiofsd()
	if err != nil {
		t.Skipf("SKIPPED, NOT PROVEN AGAINST A FOREIGN BACK-END: no virtiofsd: %v", err)
	}
	sock := filepath.Join(t.TempDir(), "v.sock")
	var log bytes.Buffer
	cmd := exec.Command(program.Argv[0], slices.Concat(program.Argv[1:], []string{
		"--socket-path", sock, "--shared-dir", dir, "--sandbox", "none", "--seccomp", "none", "--tag", "fs0",
	}, args)...)
	cmd.Env = append(os.Environ(), program.Env...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("virtiofsd said:\n%s", log.String())
		}
	})
	return sock
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestVirtiofsdWalk proves the driver against a back-end that others wrote: what
// the walk sees over the rings is what the host's own system calls see.
func TestVirtiofsdWalk(t *testing.T) {
	dir := t.TempDir()
	want := sampleTree(t, dir)
	for seq, guest := range map[vmm.Sequence]vmm.Guest{
		vmm.QEMU72: vmm.Linux510, vmm.QEMU11: vmm.Linux72, vmm.CloudHypervisor: vmm.Linux61, vmm.UML72: vmm.Linux72UML,
	} {
		t.Run(fmt.Sprintf("%v, %s", seq, guest.Name), func(t *testing.T) {
			sock := startVirtiofsd(t, dir, "--xattr", "--cache", "auto")
			ctx := testContext(t)
			vm, err := vmm.Dial(ctx, sock, vmm.Options{Sequence: seq, Patient: true, Wait: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Kill()
			lives := 1
			if seq.Resets() {
				lives = 2
			}
			for life := range lives {
				c, err := vm.Mount(ctx, guest)
				if err != nil {
					t.Fatal(err)
				}
				got, err := c.Walk(ctx, vmm.Walk{})
				if err != nil {
					t.Fatal(err)
				}
				compare(t, got, want)
				if refs := c.Refs(); len(refs) != 0 {
					t.Errorf("after the walk %d nodes are still looked up", len(refs))
				}
				if life == lives-1 {
					break
				}
				if err := vm.Reset(); err != nil {
					t.Fatal(err)
				}
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestVirtiofsdDestroy: virtiofsd answers DESTROY with nothing, where a guest
// waits for a header. The client must notice.
func TestVirtiofsdDestroy(t *testing.T) {
	ctx := testContext(t)
	vm, err := vmm.Dial(ctx, startVirtiofsd(t, t.TempDir()), vmm.Options{Patient: true, Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		t.Fatal(err)
	}
	var rule *vmm.Violation
	if err := c.Destroy(ctx); !errors.As(err, &rule) {
		t.Errorf("Destroy = %v, want a Violation", err)
	}
	if err := c.Bad(); !errors.As(err, &rule) {
		t.Errorf("Bad = %v, want a Violation", err)
	}
	if _, err := c.Getattr(ctx, vmm.RootID); !errors.As(err, &rule) {
		t.Errorf("Getattr after a violation = %v, want the Violation", err)
	}
}

func compare(t *testing.T, got, want []manifest.Entry) {
	t.Helper()
	var g, w bytes.Buffer
	if err := manifest.Write(&g, got); err != nil {
		t.Fatal(err)
	}
	if err := manifest.Write(&w, want); err != nil {
		t.Fatal(err)
	}
	if g.String() == w.String() {
		return
	}
	gl, wl := strings.Split(g.String(), "\n"), strings.Split(w.String(), "\n")
	for i := range max(len(gl), len(wl)) {
		if i >= len(gl) || i >= len(wl) || gl[i] != wl[i] {
			t.Fatalf("line %d of %d/%d differs:\n got %s\nwant %s", i, len(gl), len(wl), gl[min(i, len(gl)-1)], wl[min(i, len(wl)-1)])
		}
	}
}

// sampleTree fills dir and returns its manifest as the host sees it.
func sampleTree(t testing.TB, dir string) []manifest.Entry {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	big := make([]byte, 1<<20+12345)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	must(os.WriteFile(filepath.Join(dir, "big"), big, 0o640))
	must(os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	must(os.WriteFile(filepath.Join(dir, "small"), []byte("hello\n"), 0o444))
	must(os.Link(filepath.Join(dir, "small"), filepath.Join(dir, "zlink")))
	must(os.Symlink("../"+strings.Repeat("x", 300), filepath.Join(dir, "link")))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o622))
	must(os.MkdirAll(filepath.Join(dir, "d", "deep"), 0o755))
	for i := range 300 { // several pages of READDIRPLUS
		must(os.WriteFile(filepath.Join(dir, "d", fmt.Sprintf("file-%03d-%s", i, strings.Repeat("n", i%200))), []byte{byte(i)}, 0o644))
	}
	var c manifest.Collector
	must(filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		kind, _ := manifest.TypeOfMode(st.Mode)
		rel, _ := filepath.Rel(dir, name)
		e := manifest.Entry{
			Path: filepath.Join("/", rel), Type: kind, Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid,
			Nlink: uint64(st.Nlink), Mtime: manifest.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
		}
		switch kind {
		case manifest.Regular:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			e.Size, e.SHA256 = uint64(len(b)), sha256.Sum256(b)
		case manifest.Symlink:
			e.Target, err = os.Readlink(name)
			e.Size = uint64(len(e.Target))
		}
		c.Add(e, manifest.InodeKey{Dev: uint64(st.Dev), Ino: st.Ino})
		return err
	}))
	return c.Entries()
}

// TestVirtiofsdWrites sends each operation that changes something.
func TestVirtiofsdWrites(t *testing.T) {
	dir := t.TempDir()
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
	file, open, err := c.Create(ctx, vmm.RootID, "new", syscall.O_RDWR, 0o100644)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 1000)
	n, err := c.Write(ctx, file.NodeID, open.Fh, 3, data)
	if err != nil || n != len(data) {
		t.Errorf("Write = %d, %v; want %d", n, err, len(data))
	}
	got, err := c.Read(ctx, file.NodeID, open.Fh, 0, 16<<10)
	if want := append(make([]byte, 3), data...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read = %d bytes, %v; want the %d written", len(got), err, len(want))
	}
	ok("Fallocate", c.Fallocate(ctx, file.NodeID, open.Fh, 0, 1<<20, 0))
	if off, err := c.Lseek(ctx, file.NodeID, open.Fh, 0, 3); err != nil || off != 0 {
		t.Errorf("Lseek = %d, %v; want 0", off, err)
	}
	ok("Fsync", c.Fsync(ctx, file.NodeID, open.Fh))
	ok("Flush", c.Flush(ctx, file.NodeID, open.Fh))
	ok("Release", c.Release(ctx, file.NodeID, open.Fh))
	ok("Setxattr", c.Setxattr(ctx, file.NodeID, "user.key", []byte("value"), 0))
	if x, err := c.Xattrs(ctx, file.NodeID); err != nil || string(x["user.key"]) != "value" {
		t.Errorf("Xattrs = %q, %v; want user.key=value", x, err)
	}
	ok("Removexattr", c.Removexattr(ctx, file.NodeID, "user.key"))
	if _, _, err := c.Getxattr(ctx, file.NodeID, "user.key", 0); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("Getxattr of what was removed: %v, want ENODATA", err)
	}
	a, err := c.Setattr(ctx, file.NodeID, vmm.SetattrIn{Valid: 1 | 8, Mode: 0o600, Size: 5})
	if err != nil || a.Attr.Size != 5 || a.Attr.Mode != 0o100600 {
		t.Errorf("Setattr = size %d mode %#o, %v; want 5, 0100600", a.Attr.Size, a.Attr.Mode, err)
	}
	sub, err := c.Mkdir(ctx, vmm.RootID, "sub", 0o755)
	ok("Mkdir", err)
	_, err = c.Mknod(ctx, sub.NodeID, "pipe", syscall.S_IFIFO|0o600, 0)
	ok("Mknod", err)
	_, err = c.Symlink(ctx, sub.NodeID, "sym", "to/there")
	ok("Symlink", err)
	_, err = c.Link(ctx, file.NodeID, sub.NodeID, "hard")
	ok("Link", err)
	ok("Rename", c.Rename(ctx, vmm.RootID, "new", sub.NodeID, "moved"))
	ok("Rename2", c.Rename2(ctx, sub.NodeID, "moved", sub.NodeID, "again", 1))
	for _, name := range []string{"again", "hard", "sym", "pipe"} {
		ok("Unlink "+name, c.Unlink(ctx, sub.NodeID, name))
	}
	ok("Rmdir", c.Rmdir(ctx, vmm.RootID, "sub"))
	if s, err := c.Statfs(ctx, vmm.RootID); err != nil || s.Bsize == 0 {
		t.Errorf("Statfs = %+v, %v", s, err)
	}
	ok("Syncfs", c.Syncfs(ctx, vmm.RootID))
	if _, err := c.Raw(ctx, 4000, vmm.RootID, nil, 0); !errors.Is(err, syscall.ENOSYS) {
		t.Errorf("opcode 4000: %v, want ENOSYS", err)
	}
	ok("Forget on a request queue", c.On(1).Forget(ctx, file.NodeID, 1))
	ok("ForgetAll", c.ForgetAll(ctx))
	ok("Bad", c.Bad())
	ok("Close", vm.Close())
}
