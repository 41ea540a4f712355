package testguest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// packageFiles calls f for each regular file and symbolic link in a Debian package
// that want accepts. Names have no leading "./", and what older packages put into
// /lib, /lib64, /bin and /sbin is named as if it were in /usr.
func packageFiles(ctx context.Context, deb string, want func(name string) bool, f func(name string, h *tar.Header, content io.Reader) error) error {
	// Killing the program when f fails is what ends it early.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := command(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("packages of Debian are unpacked by dpkg-deb: %w", err)
	}
	err = func() error {
		files := tar.NewReader(out)
		for {
			h, err := files.Next()
			if err == io.EOF {
				_, err := io.Copy(io.Discard, out)
				return err
			}
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
			switch top, _, _ := strings.Cut(name, "/"); top {
			case "lib", "lib64", "bin", "sbin":
				name = "usr/" + name
			}
			if (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink) && want(name) {
				if err := f(name, h, files); err != nil {
					return fmt.Errorf("%s: %w", h.Name, err)
				}
			}
		}
	}()
	if err != nil {
		cancel()
		return errors.Join(fmt.Errorf("%s: %w", filepath.Base(deb), err), cmd.Wait())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("dpkg-deb %s: %w%s", filepath.Base(deb), err, lastLines(errs.String(), 3))
	}
	return nil
}

// unpack writes those files of packages that want accepts below dir, at the names
// that packageFiles gives them.
func unpack(ctx context.Context, debs []string, dir string, want func(name string) bool) error {
	root, err := os.OpenRoot(dir) // nothing is written outside, whatever a package says
	if err != nil {
		return err
	}
	defer root.Close()
	for _, deb := range debs {
		err := packageFiles(ctx, deb, want, func(name string, h *tar.Header, content io.Reader) error {
			if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
				return err
			}
			switch h.Typeflag {
			case tar.TypeSymlink:
				return root.Symlink(h.Linkname, name)
			case tar.TypeLink:
				return errors.New("hard links are not unpacked")
			}
			f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644|h.FileInfo().Mode()&0o111)
			if err != nil {
				return err
			}
			if _, err := io.Copy(f, content); err != nil {
				f.Close()
				return err
			}
			return f.Close()
		})
		if err != nil {
			return err
		}
	}
	return nil
}
