package vmm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"path"
	"syscall"

	"github.com/rafsd/rafsd/internal/manifest"
)

// Walk says how to walk a tree. Its zero value reads everything as a guest with
// plain settings does.
type Walk struct {
	// Room is the size of a READDIRPLUS buffer (default one page).
	Room int
	// ReadSize is the size of a READ (default 128 KiB), Ahead how many of one file
	// are in flight (default 2), as by the guest's readahead.
	ReadSize int
	Ahead    int
	// NoData leaves files' contents unread: their hash is zero.
	NoData bool
	// OnError decides about a path that cannot be read (nil: the walk ends). When it
	// returns nil the walk goes on without that path.
	OnError func(path string, err error) error
}

// walker is one walk.
type walker struct {
	Walk
	client *Client
	out    manifest.Collector
	hash   hash.Hash
}

// Walk walks the tree below the root with READDIRPLUS and reads it: attributes,
// targets, extended attributes, contents. The entries are a manifest's. What the
// walk looked up it forgets again.
func (c *Client) Walk(ctx context.Context, how Walk) ([]manifest.Entry, error) {
	if how.Room == 0 {
		how.Room = PageSize
	}
	if how.ReadSize == 0 {
		how.ReadSize = 128 << 10
	}
	if how.Ahead == 0 {
		how.Ahead = 2
	}
	w := &walker{Walk: how, client: c, hash: sha256.New()}
	root, err := c.Getattr(ctx, RootID)
	if err != nil {
		return nil, fmt.Errorf("walk /: %w", err)
	}
	if err := w.visit(ctx, "/", RootID, root.Attr); err != nil {
		return nil, err
	}
	return w.out.Entries(), nil
}

// tolerate passes an error of a path to OnError. A broken rule is no such error.
func (w *walker) tolerate(name string, err error) error {
	if err == nil {
		return nil
	}
	var rule *Violation
	if w.OnError == nil || errors.As(err, &rule) || w.client.Bad() != nil {
		return fmt.Errorf("walk %s: %w", name, err)
	}
	return w.OnError(name, err)
}

// visit adds one path and, for a directory, what is below it.
func (w *walker) visit(ctx context.Context, name string, id uint64, a Attr) error {
	e, err := w.entry(ctx, name, id, a)
	if err != nil {
		return w.tolerate(name, err)
	}
	w.out.Add(e, manifest.InodeKey{Ino: a.Ino})
	if e.Type != manifest.Directory {
		return nil
	}
	return w.tolerate(name, w.list(ctx, name, id))
}

// entry collects all that a manifest says about a path.
func (w *walker) entry(ctx context.Context, name string, id uint64, a Attr) (manifest.Entry, error) {
	kind, ok := manifest.TypeOfMode(a.Mode)
	if !ok {
		return manifest.Entry{}, violation("%s has mode %#o", name, a.Mode)
	}
	e := manifest.Entry{
		Path: name, Type: kind, Mode: uint16(a.Mode & 0o7777), UID: a.UID, GID: a.GID,
		Nlink: uint64(a.Nlink), Mtime: manifest.Time{Sec: int64(a.Mtime), Nsec: a.MtimeNsec},
	}
	if a.MtimeNsec > 999_999_999 {
		return e, violation("%s has %d nanoseconds", name, a.MtimeNsec)
	}
	var err error
	switch kind {
	case manifest.Regular:
		e.Size = a.Size
		if !w.NoData {
			e.SHA256, err = w.content(ctx, id, a.Size)
		}
	case manifest.Symlink:
		e.Size = a.Size
		e.Target, err = w.client.Readlink(ctx, id)
	case manifest.CharDevice, manifest.BlockDevice:
		e.Major, e.Minor = a.Rdev>>8&0xfff, a.Rdev&0xff|a.Rdev>>12&0xfff00
	}
	if err != nil {
		return e, err
	}
	xattrs, err := w.client.Xattrs(ctx, id)
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOSYS) {
		return e, err
	}
	for key, value := range xattrs {
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: key, Value: string(value)})
	}
	e.SortXattrs()
	return e, nil
}

// list walks through a directory.
func (w *walker) list(ctx context.Context, dir string, id uint64) (err error) {
	open, err := w.client.Opendir(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.client.Releasedir(ctx, id, open.Fh)) }()
	for off := uint64(0); ; {
		batch, err := w.client.ReaddirPlus(ctx, id, open.Fh, off, w.Room)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			return nil
		}
		for _, d := range batch {
			if d.Off == off {
				return violation("the cookie of %q in %s is the one before it", d.Name, dir)
			}
			off = d.Off
			if d.Name == "." || d.Name == ".." {
				continue
			}
			if err := w.child(ctx, dir, id, d); err != nil {
				return err
			}
		}
	}
}

// child visits one name of a directory and forgets it.
func (w *walker) child(ctx context.Context, dir string, id uint64, d Dirent) error {
	name := path.Join(dir, d.Name)
	if d.Entry.NodeID == 0 {
		var err error
		if d.Entry, err = w.client.Lookup(ctx, id, d.Name); err != nil {
			return w.tolerate(name, err)
		}
		if d.Entry.NodeID == 0 {
			return w.tolerate(name, syscall.ENOENT)
		}
	}
	if d.Type != d.Entry.Attr.Mode>>12 {
		return violation("%s is listed with type %d and has mode %#o", name, d.Type, d.Entry.Attr.Mode)
	}
	if err := w.visit(ctx, name, d.Entry.NodeID, d.Entry.Attr); err != nil {
		return err
	}
	return w.client.Forget(ctx, d.Entry.NodeID, 1)
}

// content reads a file and hashes it. A read inside the file must be whole.
func (w *walker) content(ctx context.Context, id, size uint64) (sum [sha256.Size]byte, err error) {
	open, err := w.client.Open(ctx, id, 0)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, w.client.Release(ctx, id, open.Fh)) }()
	type part struct {
		*Pending
		off  uint64
		want int
	}
	w.hash.Reset()
	var ahead []part
	for next, done := uint64(0), uint64(0); done < size; {
		for len(ahead) < w.Ahead && next < size {
			n := int(min(uint64(w.ReadSize), size-next))
			// The guest reads whole pages, the last one too.
			p, err := w.client.GoRead(ctx, id, open.Fh, next, (n+PageSize-1)&^(PageSize-1))
			if err != nil {
				return sum, err
			}
			ahead = append(ahead, part{p, next, n})
			next += uint64(n)
		}
		p := ahead[0]
		ahead = ahead[1:]
		b, err := p.Wait(ctx)
		if err != nil {
			return sum, fmt.Errorf("read [%d,+%d): %w", p.off, p.want, err)
		}
		if len(b) != p.want {
			return sum, violation("a read of [%d,+%d) in a file of %d bytes gave %d", p.off, p.want, size, len(b))
		}
		w.hash.Write(b)
		done += uint64(len(b))
	}
	w.hash.Sum(sum[:0])
	return sum, nil
}
