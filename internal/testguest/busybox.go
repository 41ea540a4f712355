package testguest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// busybox is Debian's statically linked busybox: the guest's shell and tools, and
// the host's unxz and mount.
type busybox struct {
	file    string
	applets []string // the names that it answers to
}

// fetchBusybox takes busybox from whichever suite is asked for first: it is the
// same tool in all of them, and so no lists are fetched for it alone.
func fetchBusybox(ctx context.Context, s suite) (busybox, error) {
	dir, err := entry(ctx, "busybox.1", func(ctx context.Context, dir string) error {
		debs, err := s.fetch(ctx, dir, false, "busybox-static")
		if err != nil {
			return err
		}
		file := filepath.Join(dir, "busybox")
		found := errors.New("found")
		err = packageFiles(ctx, debs[0], func(name string) bool { return name == "usr/bin/busybox" }, func(_ string, _ *tar.Header, content io.Reader) error {
			if err := writeFile(file, 0o755, content); err != nil {
				return err
			}
			return found
		})
		if !errors.Is(err, found) {
			return fmt.Errorf("no busybox in %s: %w", filepath.Base(debs[0]), err)
		}
		list, err := command(ctx, file, "--list").Output()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "applets"), list, 0o644); err != nil {
			return err
		}
		return removeAll(debs)
	})
	if err != nil {
		return busybox{}, err
	}
	list, err := os.ReadFile(filepath.Join(dir, "applets"))
	return busybox{filepath.Join(dir, "busybox"), strings.Fields(string(list))}, err
}

// unxz decompresses an .xz file.
func (b busybox) unxz(ctx context.Context, data []byte) ([]byte, error) {
	cmd := command(ctx, b.file, "unxz", "-c")
	var errs strings.Builder
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("unxz: %w%s", err, lastLines(errs.String(), 1))
	}
	return out, nil
}

func writeFile(name string, mode os.FileMode, content io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func removeAll(files []string) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, os.Remove(f))
	}
	return errors.Join(errs...)
}
