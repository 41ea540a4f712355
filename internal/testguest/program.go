package testguest

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Command is how to start a program that was fetched with its libraries: it runs
// with its own loader and C library, whatever the host has.
type Command struct {
	Argv []string // the program and its first arguments; more are appended
	Env  []string // KEY=VALUE, to be added to the environment
}

// Cmd is an exec.Cmd that runs the program with more arguments. It is killed, with
// its children, when ctx ends.
func (c Command) Cmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := command(ctx, c.Argv[0], slices.Concat(c.Argv[1:], args)...)
	cmd.Env = append(os.Environ(), c.Env...)
	return cmd
}

// programRecipe says what is kept of a program's packages.
type programRecipe struct {
	suite   suite // default
	pkg     string
	file    string
	data    func(name string) bool // kept in share/, all in one folder
	modules func(name string) bool // libraries that it may load, kept in modules/
	args    func(dir string) []string
	env     func(dir string) []string
}

var programs = map[string]programRecipe{
	"virtiofsd":          {suite: "trixie", pkg: "virtiofsd", file: "usr/libexec/virtiofsd"},
	"stress-ng":          {suite: "trixie", pkg: "stress-ng", file: "usr/bin/stress-ng"},
	"vhost-device-vsock": {suite: "sid", pkg: "vhost-device-vsock", file: "usr/bin/vhost-device-vsock"},
	"qemu": {
		suite: defaultQEMU, pkg: "qemu-system-x86", file: "usr/bin/qemu-system-x86_64",
		// Firmware that a machine needs which boots a kernel directly.
		data: func(name string) bool {
			switch path.Base(name) {
			case "bios-256k.bin", "kvmvapic.bin", "pvh.bin", "linuxboot.bin", "linuxboot_dma.bin", "multiboot.bin", "multiboot_dma.bin":
				return true
			}
			return false
		},
		modules: func(name string) bool {
			return path.Base(path.Dir(name)) == "qemu" && strings.HasPrefix(path.Base(name), "accel-")
		},
		args: func(dir string) []string { return []string{"-L", filepath.Join(dir, "share")} },
		env:  func(dir string) []string { return []string{"QEMU_MODULE_DIR=" + filepath.Join(dir, "modules")} },
	},
}

// Program fetches a program of Debian with all its libraries: virtiofsd (suites
// trixie, the default, and sid), vhost-device-vsock (sid), qemu (see Config). An
// empty suite is the default. Nothing is installed.
func Program(ctx context.Context, name, fromSuite string) (Command, error) {
	r, ok := programs[name]
	if !ok {
		return Command{}, fmt.Errorf("no recipe for program %q", name)
	}
	s := suite(orDefault(fromSuite, string(r.suite)))
	dir, err := entry(ctx, name+"-"+string(s)+".1", func(ctx context.Context, dir string) error {
		progress("fetching %s of %s with its libraries", r.pkg, s)
		debs, err := s.fetch(ctx, dir, true, r.pkg)
		if err != nil {
			return err
		}
		if err := r.keep(ctx, debs, dir); err != nil {
			return err
		}
		return removeAll(debs)
	})
	if err != nil {
		return Command{}, err
	}
	c := Command{Argv: []string{
		filepath.Join(dir, "lib", loaderName), "--library-path", filepath.Join(dir, "lib"),
		"--argv0", path.Base(r.file), filepath.Join(dir, path.Base(r.file)),
	}}
	if r.args != nil {
		c.Argv = append(c.Argv, r.args(dir)...)
	}
	if r.env != nil {
		c.Env = r.env(dir)
	}
	return c, nil
}

const loaderName = "ld-linux-x86-64.so.2"

// keep unpacks packages and keeps the program, its libraries and its data: a tenth
// of what QEMU's packages hold.
func (r programRecipe) keep(ctx context.Context, debs []string, dir string) error {
	all := filepath.Join(dir, "all")
	defer os.RemoveAll(all)
	if err := os.Mkdir(all, 0o755); err != nil {
		return err
	}
	is := func(f func(string) bool, name string) bool { return f != nil && f(name) }
	isLibrary := func(name string) bool {
		return strings.HasPrefix(name, "usr/lib") && strings.Contains(path.Base(name), ".so")
	}
	err := unpack(ctx, debs, all, func(name string) bool {
		return name == r.file || isLibrary(name) || is(r.data, name)
	})
	if err != nil {
		return err
	}

	libs := libraries{files: map[string]string{}, links: map[string]string{}}
	for _, d := range []string{"lib", "share", "modules"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	roots := []string{filepath.Join(all, r.file)}
	err = filepath.WalkDir(all, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(all, file)
		if err != nil {
			return err
		}
		switch {
		case is(r.modules, name):
			roots = append(roots, filepath.Join(dir, "modules", path.Base(name)))
			return os.Rename(file, roots[len(roots)-1])
		case is(r.data, name) && d.Type().IsRegular():
			return os.Rename(file, filepath.Join(dir, "share", path.Base(name)))
		case isLibrary(name):
			return libs.add(file, d)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := libs.closure(roots, filepath.Join(dir, "lib")); err != nil {
		return err
	}
	return os.Rename(roots[0], filepath.Join(dir, path.Base(r.file)))
}

// libraries knows the unpacked shared libraries by the last part of their names.
type libraries struct {
	files, links map[string]string
}

func (l libraries) add(file string, d fs.DirEntry) error {
	if d.Type().IsRegular() {
		l.files[d.Name()] = file
		return nil
	}
	target, err := os.Readlink(file)
	l.links[d.Name()] = filepath.Base(target)
	return err
}

// closure moves to dir whatever the programs need, by the names that they use.
func (l libraries) closure(programs []string, dir string) error {
	done := map[string]bool{}
	for len(programs) > 0 {
		file := programs[0]
		programs = programs[1:]
		f, err := elf.Open(file)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		needed, err := f.ImportedLibraries()
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		for _, name := range append(needed, loaderName) {
			if done[name] {
				continue
			}
			done[name] = true
			real := name
			for range 8 { // links to links
				if next, ok := l.links[real]; ok && l.files[real] == "" {
					real = next
				}
			}
			from, ok := l.files[real]
			if !ok {
				return fmt.Errorf("%s needs %s, which no package brings", filepath.Base(file), name)
			}
			to := filepath.Join(dir, name)
			if err := os.Link(from, to); err != nil { // two names may be one file
				return err
			}
			programs = append(programs, to)
		}
	}
	return nil
}

// StartVirtiofsd serves dir with Debian's virtiofsd on a vhost-user socket, to which
// a front-end can connect when it returns. The program ends with its front-end, with
// ctx, or by stop, which returns when it is gone and must be called.
func StartVirtiofsd(ctx context.Context, socket, dir, tag string, args ...string) (stop func(), err error) {
	program, err := Program(ctx, "virtiofsd", "")
	if err != nil {
		return nil, err
	}
	listener, err := unixListener(socket)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	// The socket listens already when the program starts: nobody has to wait for it.
	cmd := program.Cmd(ctx, append([]string{"--fd=3", "--shared-dir", dir, "--tag", tag, "--sandbox", "none"}, args...)...)
	cmd.ExtraFiles = []*os.File{listener}
	exited, err := start(cmd)
	if err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Cancel() // an error means that it has ended
		<-exited
	}, nil
}

// unixListener makes a listening socket that its user accepts from.
func unixListener(name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: name}), unix.Listen(fd, 1)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
