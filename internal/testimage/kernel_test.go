package testimage_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// mountEROFS mounts the image with the host's kernel on a new folder, with its
// uncompressed blobs as devices, and returns the folder. It skips t where the
// host cannot.
func mountEROFS(t *testing.T, img *testimage.Image) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, KERNEL NOT ASKED: mounting EROFS needs root")
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\terofs\n") {
		t.Skip("SKIPPED, KERNEL NOT ASKED: the kernel has no EROFS")
	}
	devices, err := img.WriteUncompressed(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = mountDevices(img.Bootstrap, dir, devices)
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EPERM) {
		t.Skipf("SKIPPED, KERNEL NOT ASKED: no file-backed EROFS mounts (Linux 6.12) here: %v", err)
	}
	if err != nil {
		t.Fatalf("mount %s: %v", img.Bootstrap, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// mountDevices mounts an EROFS image with its devices on dir. It does without
// mount(2), whose one page of options is too short for many devices.
func mountDevices(image, dir string, devices []string) error {
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetString(fd, "source", image); err != nil {
		return err
	}
	for _, d := range devices {
		if err := unix.FsconfigSetString(fd, "device", d); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// hostManifest returns the manifest of a host directory.
func hostManifest(t *testing.T, root string) []manifest.Entry {
	t.Helper()
	var all manifest.Collector
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		kind, _ := manifest.TypeOfMode(st.Mode)
		e := manifest.Entry{
			Path: "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/"),
			Type: kind, Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid,
			Size: uint64(st.Size), Nlink: uint64(st.Nlink),
			Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)),
			Mtime: manifest.Time{Sec: int64(st.Mtim.Sec), Nsec: uint32(st.Mtim.Nsec)},
		}
		names := make([]byte, 65536)
		n, err := unix.Llistxattr(path, names)
		if err != nil {
			return err
		}
		for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
			if name == "" {
				continue
			}
			value := make([]byte, 65536)
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return err
			}
			e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: name, Value: string(value[:n])})
		}
		e.SortXattrs()
		switch kind {
		case manifest.Symlink:
			if e.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case manifest.Regular:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			e.SHA256 = [32]byte(h.Sum(nil))
		}
		all.Add(e, manifest.InodeKey{Dev: st.Dev, Ino: st.Ino})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.Entries()
}

func TestKernelShowsTheTree(t *testing.T) {
	empty := func() *testimage.Tree {
		tree := testimage.NewTree()
		tree.File("/a/empty", nil)
		return tree
	}
	for name, tt := range map[string]struct {
		tree func() *testimage.Tree
		opt  testimage.Options
	}{
		"plain":              {testimage.Sample, testimage.Options{}},
		"zstd 4 KiB chunks":  {testimage.Sample, testimage.Options{Compressor: testimage.Zstd, ChunkSize: 1 << 12}},
		"lz4 16 MiB chunks":  {testimage.Sample, testimage.Options{Compressor: testimage.LZ4, ChunkSize: 1 << 24}},
		"compact prefetch":   {testimage.Sample, testimage.Options{Compact: true, Prefetch: []string{"/wide", "/"}}},
		"seven blobs":        {testimage.Sample, testimage.Options{Blobs: 7, Compressor: testimage.Zstd, ChunkSize: 1 << 16}},
		"forty blobs, 4 KiB": {testimage.Sample, testimage.Options{Blobs: 40, ChunkSize: 1 << 12}},
		"no blob":            {empty, testimage.Options{}},
		"nothing":            {testimage.NewTree, testimage.Options{Compact: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := write(t, tt.tree(), tt.opt)
			dir := mountEROFS(t, img)
			if d := manifest.Compare(hostManifest(t, dir), imageManifest(t, img), manifest.Options{}); !d.Equal() {
				t.Errorf("the kernel shows another tree:\n%v", d)
			}
			// And back: the tree that the kernel shows gives the same image.
			tree, err := testimage.FromDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			again := write(t, tree, tt.opt)
			x, errX := os.ReadFile(img.Bootstrap)
			y, errY := os.ReadFile(again.Bootstrap)
			if errX != nil || errY != nil || !bytes.Equal(x, y) && !tt.opt.Compact { // a compact root lost its mtime
				t.Errorf("bootstraps differ from byte %d on (%v, %v)", firstDifference(x, y), errX, errY)
			}
		})
	}
}

// TestHugeFiles writes files of more than 4 GiB, in both versions, and reads
// them around 4 GiB through the kernel.
func TestHugeFiles(t *testing.T) {
	const size = 5<<30 + 4321
	content := testimage.Pattern(size, 5)
	tree := testimage.NewTree()
	tree.SizedFile("/huge", size, 5)
	tree.FileOf("/zeros", testimage.Zeros(4<<30))
	for name, opt := range map[string]testimage.Options{
		"v5": {Version: 5, Compressor: testimage.LZ4},
		"v6": {Compressor: testimage.LZ4, Compact: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := write(t, tree, opt)
			m, err := checkBootstrap(img.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.checkBlobs(img.BlobDir, true); err != nil {
				t.Error(err)
			}
			if got := m.byPath["/huge"].size; got != size {
				t.Errorf("size %d, want %d", got, size)
			}
			if stored := img.Blobs[0].Size; stored > 16<<20 {
				t.Errorf("blob of %d bytes: chunks were not shared", stored)
			}
			if opt.Version == testimage.V5 {
				return
			}
			f, err := os.Open(filepath.Join(mountEROFS(t, img), "huge"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, off := range []int64{0, 1<<31 - 100, 1<<32 - 5000, 1 << 32, 1<<32 + 3<<20, size - 6000} {
				got, want := make([]byte, 10_000), make([]byte, 10_000)
				n, _ := f.ReadAt(got, off)
				k, _ := content.ReadAt(want, off)
				if n != k || !bytes.Equal(got[:n], want[:k]) {
					t.Errorf("%d bytes at %d: the kernel reads %d others", k, off, n)
				}
			}
		})
	}
}
