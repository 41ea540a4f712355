package testguest

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Modules that are kept of a kernel, with all that they depend on. What a kernel
// lacks is taken to be built in.
var (
	// baseModules are those that some machine always loads.
	baseModules = []string{"virtio_pci", "virtio_console", "fuse", "virtiofs"}
	// extraModules are loaded when Config.Modules names them.
	extraModules = []string{"overlay", "erofs", "loop", "virtio_blk", "vmw_vsock_virtio_transport"}
)

// moduleSet is the modules that came with a kernel: files NAME.ko in a folder, and
// what each one depends on.
type moduleSet struct {
	dir     string
	depends map[string][]string
}

// keepModules takes the wanted modules out of a kernel's packages. below is the
// folder that they are in there.
func keepModules(ctx context.Context, debs []string, below, dir string, bb busybox) error {
	packed := map[string][]byte{} // by module name
	suffix := map[string]string{}
	for _, deb := range debs {
		isModule := func(name string) bool {
			return strings.HasPrefix(name, below) && strings.Contains(path.Base(name), ".ko")
		}
		err := packageFiles(ctx, deb, isModule, func(name string, _ *tar.Header, content io.Reader) error {
			mod, ext, _ := strings.Cut(path.Base(name), ".")
			mod = moduleName(mod)
			b, err := io.ReadAll(content)
			packed[mod], suffix[mod] = b, ext
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(packed) == 0 {
		return fmt.Errorf("no modules below %s", below)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	seen := map[string]bool{}
	var keep func(name string) error
	keep = func(name string) error {
		b, ok := packed[name]
		if seen[name] || !ok {
			return nil
		}
		seen[name] = true
		b, err := unpackModule(ctx, b, suffix[name], bb)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), b, 0o644); err != nil {
			return err
		}
		deps, err := moduleDepends(b)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := keep(d); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range slices.Concat(baseModules, extraModules) {
		if err := keep(name); err != nil {
			return err
		}
	}
	return nil
}

func unpackModule(ctx context.Context, b []byte, suffix string, bb busybox) ([]byte, error) {
	switch suffix {
	case "ko":
		return b, nil
	case "ko.xz":
		return bb.unxz(ctx, b)
	case "ko.zst":
		d, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(b, nil)
	}
	return nil, fmt.Errorf("unknown compression .%s", suffix)
}

// moduleName is the name as the kernel has it: file names may have dashes.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleDepends reads what a module must find loaded from its .modinfo section:
// strings KEY=VALUE that end with a NUL.
func moduleDepends(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for item := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(item), "=")
		switch key {
		case "depends":
			deps = append(deps, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep": // "pre: A B post: C"
			pre, _, _ := strings.Cut(value, "post:")
			_, pre, _ = strings.Cut(pre, "pre:")
			deps = append(deps, strings.Fields(pre)...)
		}
	}
	for i := range deps {
		deps[i] = moduleName(deps[i])
	}
	return deps, nil
}

// openModules reads back what keepModules has written.
func openModules(dir string) (moduleSet, error) {
	set := moduleSet{dir, map[string][]string{}}
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return set, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return set, err
		}
		name := strings.TrimSuffix(filepath.Base(f), ".ko")
		if set.depends[name], err = moduleDepends(b); err != nil {
			return set, fmt.Errorf("%s: %w", f, err)
		}
	}
	return set, nil
}

// loadOrder returns the modules to load for the wanted ones, each after those that
// it depends on. What is not in the set is built into the kernel.
func (m moduleSet) loadOrder(wanted []string) []string {
	var order []string
	seen := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		deps, ok := m.depends[name]
		if seen[name] || !ok {
			return
		}
		seen[name] = true
		for _, d := range deps {
			visit(d)
		}
		order = append(order, name)
	}
	for _, name := range wanted {
		visit(moduleName(name))
	}
	return order
}
