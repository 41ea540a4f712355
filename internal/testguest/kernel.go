package testguest

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// kernel is what a guest of QEMU boots.
type kernel struct {
	image   string // ELF
	modules moduleSet
	busybox busybox
}

// packages that hold the image and its modules; from 7.x on they are apart, and
// linux-image is an empty shell.
var kernelPackage = regexp.MustCompile(`^linux-(image|binary|modules)-[0-9]`)

// fetchKernel gets the kernel that a suite has for virtual machines.
func fetchKernel(ctx context.Context, s suite) (kernel, error) {
	bb, err := fetchBusybox(ctx, s)
	if err != nil {
		return kernel{}, err
	}
	dir, err := entry(ctx, "kernel-"+string(s)+".1", func(ctx context.Context, dir string) error {
		debs, err := s.fetchKernelPackages(ctx, dir)
		if err != nil {
			return err
		}
		var image []byte
		modules := newPackedModules("usr/lib/modules/")
		isImage := func(name string) bool {
			return strings.HasPrefix(path.Base(name), "vmlinuz") && (path.Dir(name) == "boot" || strings.HasPrefix(name, modules.below))
		}
		for _, deb := range debs {
			err := packageFiles(ctx, deb, func(name string) bool { return isImage(name) || modules.wants(name) }, func(name string, h *tar.Header, r io.Reader) (err error) {
				switch {
				case h.Typeflag != tar.TypeReg:
				case isImage(name):
					image, err = io.ReadAll(r)
				default:
					err = modules.add(name, r)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		vmlinux, err := extractVmlinux(ctx, image, bb)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "vmlinux"), vmlinux, 0o644); err != nil {
			return err
		}
		if err := modules.keep(ctx, filepath.Join(dir, "modules"), bb); err != nil {
			return err
		}
		return removeAll(debs)
	})
	if err != nil {
		return kernel{}, err
	}
	modules, err := openModules(filepath.Join(dir, "modules"))
	return kernel{filepath.Join(dir, "vmlinux"), modules, bb}, err
}

// fetchKernelPackages downloads the kernel that the suite's meta package names now.
// A failed download refreshes the package lists, and then that may be another one.
func (s suite) fetchKernelPackages(ctx context.Context, dir string) (debs []string, err error) {
	const meta = "linux-image-cloud-amd64"
	for range 2 {
		var all, packages []string
		if all, err = s.depends(ctx, meta); err != nil {
			return nil, err
		}
		for _, p := range all {
			if kernelPackage.MatchString(p) {
				packages = append(packages, p)
			}
		}
		if len(packages) == 0 {
			return nil, fmt.Errorf("%s of %s brings no kernel", meta, s)
		}
		progress("fetching %s", strings.Join(packages, " "))
		if debs, err = s.fetch(ctx, dir, false, packages...); err == nil || ctx.Err() != nil {
			break
		}
	}
	return debs, err
}
