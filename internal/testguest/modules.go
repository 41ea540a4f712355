package testguest

import (
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

// moduleDirs are the parts of a kernel's module folder that hold what is wanted and
// what it depends on: a whole kernel is some hundred megabytes.
var moduleDirs = []string{
	"arch", "crypto", "lib", "drivers/block", "drivers/char", "drivers/virtio", "net/vmw_vsock",
	"fs/cachefiles", "fs/erofs", "fs/fuse", "fs/netfs", "fs/overlayfs",
}

// packedModules collects the modules of a kernel as they are in its packages.
type packedModules struct {
	below  string                  // where the module folder is
	byName map[string]packedModule // by module name
}

type packedModule struct {
	suffix  string // .ko, and how it is compressed
	content []byte
}

func newPackedModules(below string) *packedModules {
	return &packedModules{below, map[string]packedModule{}}
}

// wants says which files of a package to add: BELOW/RELEASE/kernel/DIR/….
func (p *packedModules) wants(name string) bool {
	rest, ok := strings.CutPrefix(name, p.below)
	_, rest, _ = strings.Cut(rest, "/kernel/")
	return ok && strings.Contains(path.Base(name), ".ko") &&
		slices.ContainsFunc(moduleDirs, func(d string) bool { return strings.HasPrefix(rest, d+"/") })
}

func (p *packedModules) add(name string, content io.Reader) error {
	b, err := io.ReadAll(content)
	mod, suffix, _ := strings.Cut(path.Base(name), ".")
	p.byName[moduleName(mod)] = packedModule{suffix, b}
	return err
}

// keep writes the wanted modules, and what they depend on, to a new folder.
func (p *packedModules) keep(ctx context.Context, dir string, bb busybox) error {
	if len(p.byName) == 0 {
		return fmt.Errorf("no modules below %s", p.below)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	todo := slices.Concat(baseModules, extraModules)
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		m, ok := p.byName[name]
		if !ok {
			continue
		}
		delete(p.byName, name)
		b, err := unpackModule(ctx, m.content, m.suffix, bb)
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
		todo = append(todo, deps...)
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

// openModules reads back what packedModules.keep has written.
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
