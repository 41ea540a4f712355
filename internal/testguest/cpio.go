package testguest

import (
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// cpioWriter writes an initramfs: a cpio archive in the "newc" format of
// Documentation/driver-api/early-userspace/buffer-format.rst. Everything in it
// belongs to root; folders come into being by what is put into them.
type cpioWriter struct {
	w       io.Writer
	written int64
	inode   uint32
	dirs    map[string]bool
	err     error // the first one; nothing is written after it
}

func newCpioWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{".": true}}
}

// header writes an entry without its content. Mode has the bits of stat(2).
func (c *cpioWriter) header(name string, mode uint32, size int64, major, minor uint32) {
	if size > math.MaxUint32 {
		c.fail(fmt.Errorf("%s: %d bytes are too many for an initramfs", name, size))
		return
	}
	c.inode++
	const magic, uid, gid, nlink, mtime, check = "070701", 0, 0, 1, 0, 0
	c.print("%s%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", magic, c.inode, mode, uid, gid, nlink, mtime, size, 0, 0, major, minor, len(name)+1, check, name)
	c.pad()
}

func (c *cpioWriter) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *cpioWriter) print(format string, a ...any) {
	if c.err == nil {
		n, err := fmt.Fprintf(c.w, format, a...)
		c.written += int64(n)
		c.err = err
	}
}

// pad fills up to a multiple of four bytes.
func (c *cpioWriter) pad() {
	for c.err == nil && c.written%4 != 0 {
		c.print("\x00")
	}
}

// parents makes the folders that name is in.
func (c *cpioWriter) parents(name string) {
	if dir := path.Dir(name); !c.dirs[dir] {
		c.dir(dir)
	}
}

func (c *cpioWriter) dir(name string) {
	name = path.Clean(name)
	if c.dirs[name] {
		return
	}
	c.parents(name)
	c.dirs[name] = true
	c.header(name, 0o040755, 0, 0, 0)
}

func (c *cpioWriter) charDevice(name string, mode, major, minor uint32) {
	c.parents(name)
	c.header(name, 0o020000|mode, 0, major, minor)
}

func (c *cpioWriter) symlink(name, target string) {
	c.parents(name)
	c.header(name, 0o120777, int64(len(target)), 0, 0)
	c.print("%s", target)
	c.pad()
}

func (c *cpioWriter) text(name string, mode uint32, content string) {
	c.parents(name)
	c.header(name, 0o100000|mode, int64(len(content)), 0, 0)
	c.print("%s", content)
	c.pad()
}

// file copies a regular file of the host; its content must not change meanwhile.
func (c *cpioWriter) file(name string, mode uint32, hostFile string) {
	c.parents(name)
	f, err := os.Open(hostFile)
	if err != nil {
		c.fail(err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		c.fail(err)
		return
	}
	c.header(name, 0o100000|mode, st.Size(), 0, 0)
	if c.err != nil {
		return
	}
	n, err := io.Copy(c.w, f)
	c.written += n
	if err == nil && n != st.Size() {
		err = fmt.Errorf("%s: read %d bytes of %d", hostFile, n, st.Size())
	}
	c.fail(err)
	c.pad()
}

// tree copies a file, or a folder with all its files, folders and symbolic links.
// A symbolic link given as host is followed.
func (c *cpioWriter) tree(name, host string) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	host, err := filepath.EvalSymlinks(host)
	if err != nil {
		c.fail(err)
		return
	}
	c.fail(filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to := path.Join(name, rel)
		switch info.Mode().Type() {
		case fs.ModeDir:
			c.dir(to)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			c.symlink(to, target)
		case 0:
			c.file(to, uint32(info.Mode().Perm()), p)
		default:
			return fmt.Errorf("%s: a %v is not put into a guest", p, info.Mode().Type())
		}
		return c.err
	}))
}

// close writes the end of the archive and returns the first error of all calls.
func (c *cpioWriter) close() error {
	c.inode = 0
	c.header("TRAILER!!!", 0, 0, 0, 0)
	return c.err
}
