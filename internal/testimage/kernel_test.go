package testimage_test

import (
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
	for name, opt := range map[string]testimage.Options{
		"plain":              {},
		"zstd 4 KiB chunks":  {Compressor: testimage.Zstd, ChunkSize: 1 << 12},
		"lz4 16 MiB chunks":  {Compressor: testimage.LZ4, ChunkSize: 1 << 24},
		"gzip sha256":        {Compressor: testimage.Gzip, Digest: testimage.SHA256, ChunkSize: 1 << 16},
		"compact":            {Compact: true, Compressor: testimage.LZ4},
		"seven blobs":        {Blobs: 7, Compressor: testimage.Zstd, ChunkSize: 1 << 16},
		"prefetch, compact":  {Compact: true, Prefetch: []string{"/wide", "/data/text", "/"}},
		"forty blobs, 4 KiB": {Blobs: 40, ChunkSize: 1 << 12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, err := testimage.Sample().Write(t.TempDir(), opt)
			if err != nil {
				t.Fatal(err)
			}
			want, err := img.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			got := hostManifest(t, mountEROFS(t, img))
			if d := manifest.Compare(got, want, manifest.Options{}); !d.Equal() {
				t.Errorf("the kernel shows another tree:\n%v", d)
			}
		})
	}
}
