package testguest

import (
	"archive/tar"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// umlKernel is a user-mode Linux: a kernel that is a program of the host.
type umlKernel struct {
	program string
	// loader and libc are those that the program was built for, to be laid over the
	// host's. All are empty if the host's own serve it.
	loader, libc         string
	hostLoader, hostLibc string
	namespaces           bool // it can be run in namespaces of its own
	modules              moduleSet
	busybox              busybox
}

// umlSuites are the suites that have a user-mode Linux, best first.
var umlSuites = []suite{"sid", "trixie", "bookworm"}

// fetchUML gets the user-mode Linux of a suite.
func fetchUML(ctx context.Context, s suite) (umlKernel, error) {
	bb, err := fetchBusybox(ctx, s)
	if err != nil {
		return umlKernel{}, err
	}
	dir, err := entry(ctx, "uml-"+string(s)+".1", func(ctx context.Context, dir string) error {
		progress("fetching user-mode-linux of %s", s)
		debs, err := s.fetch(ctx, dir, false, "user-mode-linux", "libc6")
		if err != nil {
			return err
		}
		programs := map[string]string{ // by the last part of the name in the package
			"linux.uml": "linux", loaderName: "ld.so", "libc.so.6": "libc.so.6",
		}
		modules := newPackedModules("usr/lib/uml/modules/")
		for _, deb := range debs {
			want := func(name string) bool { return programs[path.Base(name)] != "" || modules.wants(name) }
			err := packageFiles(ctx, deb, want, func(name string, h *tar.Header, r io.Reader) error {
				switch file := programs[path.Base(name)]; {
				case h.Typeflag != tar.TypeReg:
					return nil
				case file != "":
					return writeFile(filepath.Join(dir, file), 0o755, r)
				}
				return modules.add(name, r)
			})
			if err != nil {
				return err
			}
		}
		if err := modules.keep(ctx, filepath.Join(dir, "modules"), bb); err != nil {
			return err
		}
		return removeAll(debs)
	})
	if err != nil {
		return umlKernel{}, err
	}
	k := umlKernel{program: filepath.Join(dir, "linux"), busybox: bb, namespaces: haveNamespaces(ctx, bb)}
	if k.modules, err = openModules(filepath.Join(dir, "modules")); err != nil {
		return k, err
	}
	host, err := hostLibc()
	if err != nil {
		return k, err
	}
	serves, err := libcServes(host, k.program)
	if err != nil || serves {
		return k, err
	}
	// Every amd64 program has this name of its loader in it.
	if k.hostLoader, err = filepath.EvalSymlinks("/lib64/ld-linux-x86-64.so.2"); err != nil {
		return k, err
	}
	k.hostLibc, k.loader, k.libc = host, filepath.Join(dir, "ld.so"), filepath.Join(dir, "libc.so.6")
	return k, nil
}

// hostLibc finds the C library of the host.
func hostLibc() (string, error) {
	places := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"}
	for _, f := range places {
		if file, err := filepath.EvalSymlinks(f); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("no C library at %s", strings.Join(places, " or "))
}

// libcServes reports whether a C library has every version of symbols that a
// program asks of it.
func libcServes(libc, program string) (bool, error) {
	lib, err := elf.Open(libc)
	if err != nil {
		return false, err
	}
	defer lib.Close()
	has, err := lib.DynamicVersions()
	if err != nil {
		return false, err
	}
	prog, err := elf.Open(program)
	if err != nil {
		return false, err
	}
	defer prog.Close()
	needs, err := prog.DynamicVersionNeeds()
	if err != nil {
		return false, err
	}
	for _, l := range needs {
		for _, n := range l.Needs {
			if l.Name == "libc.so.6" && !slices.ContainsFunc(has, func(v elf.DynamicVersion) bool { return v.Name == n.Dep }) {
				return false, nil
			}
		}
	}
	return true, nil
}

// shmSize is the size of the tmpfs that holds a guest's memory: all of it and a
// little for the kernel's own image.
func shmSize(memory int) string { return strconv.Itoa(memory+64) + "m" }
