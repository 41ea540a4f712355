package export

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/rafsd/rafsd/rafs"
)

// TarOptions of Tar; the zero value is useful.
type TarOptions struct {
	// Skipped is told of every path that a tar cannot hold (sockets).
	Skipped func(path string)
	// Progress is told how many bytes of file content have been written.
	Progress func(n int64)
}

// Tar writes the whole tree of img to w as a PAX archive: the root as "./",
// parents before children, siblings in byte order, each path once, hard links as
// links to the first path of their inode, extended attributes as
// SCHILY.xattr records, times to the nanosecond. Content comes from content and
// has been verified by it.
//
// An error leaves w without the archive's end mark: whoever reads it can tell
// that it is not whole.
func Tar(ctx context.Context, img rafs.Image, content Content, w io.Writer, o TarOptions) error {
	t := tarWriter{img: img, content: content, tw: tar.NewWriter(w), o: o, first: map[uint64]string{}}
	err := walk(ctx, img, func(path string, e *rafs.WalkEntry) error {
		return t.entry(ctx, path, e.Ino, &e.Attr)
	})
	if err != nil {
		return err
	}
	return t.tw.Close()
}

type tarWriter struct {
	img     rafs.Image
	content Content
	tw      *tar.Writer
	o       TarOptions
	first   map[uint64]string // name in the archive of each inode with several names
	buf     []byte            // scratch for link targets
}

func (t *tarWriter) entry(ctx context.Context, path string, ino uint64, a *rafs.Attr) error {
	hdr := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    "." + path,
		Mode:    int64(a.Mode & 0o7777),
		Uid:     int(a.UID),
		Gid:     int(a.GID),
		ModTime: time.Unix(a.Mtime, int64(a.MtimeNsec)),
	}
	switch a.Mode & rafs.ModeType {
	case rafs.ModeDir:
		hdr.Typeflag = tar.TypeDir
		hdr.Name = strings.TrimSuffix(hdr.Name, "/") + "/"
	case rafs.ModeRegular:
		hdr.Typeflag = tar.TypeReg
		hdr.Size = int64(a.Size)
	case rafs.ModeSymlink:
		target, err := t.img.Readlink(ino, t.buf[:0])
		if err != nil {
			return err
		}
		t.buf = target
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, string(target)
	case rafs.ModeChar, rafs.ModeBlock:
		hdr.Typeflag = tar.TypeChar
		if a.Mode&rafs.ModeType == rafs.ModeBlock {
			hdr.Typeflag = tar.TypeBlock
		}
		major, minor := rafs.SplitRdev(a.Rdev)
		hdr.Devmajor, hdr.Devminor = int64(major), int64(minor)
	case rafs.ModeFIFO:
		hdr.Typeflag = tar.TypeFifo
	case rafs.ModeSocket:
		if t.o.Skipped != nil {
			t.o.Skipped(path)
		}
		return nil
	default:
		return fmt.Errorf("mode %#o has no file type", a.Mode)
	}
	if hdr.Typeflag != tar.TypeDir && a.Nlink > 1 {
		if first, ok := t.first[ino]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return t.tw.WriteHeader(hdr)
		}
		t.first[ino] = hdr.Name
	}
	if err := t.xattrs(ino, hdr); err != nil {
		return err
	}
	if err := t.tw.WriteHeader(hdr); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeReg || hdr.Size == 0 {
		return nil
	}
	n, err := io.Copy(progressWriter{t.tw, t.o.Progress}, t.content.Open(ctx, ino, a.Size))
	if err == nil && n != hdr.Size {
		err = fmt.Errorf("content of %d bytes, the inode says %d", n, hdr.Size)
	}
	return err
}

// xattrs fills in the records of ino's extended attributes.
func (t *tarWriter) xattrs(ino uint64, hdr *tar.Header) error {
	return EachXattr(t.img, ino, func(name string, value []byte) {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords["SCHILY.xattr."+name] = string(value)
	})
}

// EachXattr calls f with every extended attribute of ino, in stored order. value
// is valid during the call.
func EachXattr(img rafs.Image, ino uint64, f func(name string, value []byte)) error {
	names, err := img.XattrNames(ino, nil)
	if err != nil {
		return err
	}
	var value []byte
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		if value, err = img.Xattr(ino, []byte(name), value[:0]); err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
		f(name, value)
	}
	return nil
}

// progressWriter tells of each write.
type progressWriter struct {
	w    io.Writer
	tell func(n int64)
}

func (p progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if p.tell != nil {
		p.tell(int64(n))
	}
	return n, err
}
