package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// TestWalkOfManyFiles walks through more files than the daemon may have open, with
// every node looked up and none forgotten before the end, as a guest with much
// memory does. Every name must be there once, and nothing may fail.
func TestWalkOfManyFiles(t *testing.T) {
	const perDir, limit = 1000, 4096
	dirs := 50
	if os.Getenv("RAFSD_LONG") == "1" {
		dirs = 2000
	}
	share := t.TempDir()
	began := time.Now()
	for i := range dirs {
		dir := filepath.Join(share, fmt.Sprintf("dir%04d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for j := range perDir {
			if err := unix.Mknodat(fd, fmt.Sprintf("file%04d", j), unix.S_IFREG|0o644, 0); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(fd)
	}
	made := time.Since(began)
	for _, handles := range []string{"prefer", "never"} {
		t.Run("file handles "+handles, func(t *testing.T) {
			d := runVirtiofsd(t, exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, limit), "sh",
				filepath.Join(binaries, "rafsd"), "--shared-dir", share, "--sandbox", "none", "--inode-file-handles", handles))
			var lim unix.Rlimit
			if err := unix.Prlimit(d.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &lim); err != nil || lim.Max != limit {
				t.Fatalf("the daemon may have %d files open, %v", lim.Max, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(dirs)*time.Second)
			defer cancel()
			vm, err := vmm.Dial(ctx, d.Socket, vmm.Options{Patient: true, Wait: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Kill()
			c, err := vm.Mount(ctx, vmm.Linux72)
			if err != nil {
				t.Fatal(err)
			}
			before, most := d.rssAnon(t), 0
			began := time.Now()
			var all []string
			names := func(node uint64, prefix string) (list []vmm.Dirent) {
				t.Helper()
				open, err := c.Opendir(ctx, node)
				if err != nil {
					t.Fatalf("%s: %v", prefix, err)
				}
				for off := uint64(0); ; {
					part, err := c.ReaddirPlus(ctx, node, open.Fh, off, 32<<10)
					if err != nil {
						t.Fatalf("listing of %s: %v", prefix, err)
					}
					if len(part) == 0 {
						break
					}
					off = part[len(part)-1].Off
					for _, e := range part {
						if e.Name == "." || e.Name == ".." {
							continue
						}
						if e.Entry.NodeID == 0 || e.Entry.Attr.Ino != e.Ino {
							t.Fatalf("%s/%s is listed as %+v", prefix, e.Name, e)
						}
						list = append(list, e)
					}
				}
				if err := c.Releasedir(ctx, node, open.Fh); err != nil {
					t.Fatal(err)
				}
				return list
			}
			inodes := map[uint64]bool{}
			for i, dir := range names(vmm.RootID, "") {
				for j, f := range names(dir.Entry.NodeID, dir.Name) {
					if kind, _ := manifest.TypeOfMode(f.Entry.Attr.Mode); kind != manifest.Regular {
						t.Fatalf("%s/%s has mode %#o", dir.Name, f.Name, f.Entry.Attr.Mode)
					}
					inodes[f.Ino] = true
					all = append(all, dir.Name+"/"+f.Name)
					if j%100 == 0 { // and asked for again, and opened
						if a, err := c.Getattr(ctx, f.Entry.NodeID); err != nil || a.Attr.Ino != f.Ino {
							t.Fatalf("%s/%s: inode %d, %v; want %d", dir.Name, f.Name, a.Attr.Ino, err, f.Ino)
						}
						open, err := c.Open(ctx, f.Entry.NodeID, unix.O_RDONLY)
						if err != nil {
							t.Fatalf("open %s/%s: %v", dir.Name, f.Name, err)
						}
						if err := c.Release(ctx, f.Entry.NodeID, open.Fh); err != nil {
							t.Fatal(err)
						}
					}
				}
				if i%10 == 0 {
					most = max(most, d.openFiles(t))
				}
			}
			took, after := time.Since(began), d.rssAnon(t)
			slices.Sort(all)
			if len(all) != dirs*perDir || len(inodes) != len(all) {
				t.Fatalf("%d names and %d inodes were found, want %d", len(all), len(inodes), dirs*perDir)
			}
			for i, name := range all {
				if want := fmt.Sprintf("dir%04d/file%04d", i/perDir, i%perDir); name != want {
					t.Fatalf("name %d is %s, want %s", i, name, want)
				}
			}
			if most > limit {
				t.Errorf("%d descriptors were open", most)
			}
			t.Logf("%d files made in %v, walked in %v with at most %d descriptors; RssAnon %d KiB before, %d KiB with all looked up (%d bytes a file)",
				len(all), made.Round(time.Second), took.Round(time.Millisecond), most, before>>10, after>>10, (after-before)/uint64(len(all)))
			if err := c.Bad(); err != nil {
				t.Error(err)
			}
		})
	}
}
