package cache

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rafsd/rafsd/internal/hostfs"
)

// file is one entry of the folder, opened: a data file and the map that speaks
// of it.
type file struct {
	c     *Cache
	name  string
	data  *os.File
	slots *os.File
	epoch uint32 // of this boot
	refs  int    // views; guarded by Cache.mu
	named bool   // its names are on disk; the syncer only
}

// open returns the entry name with one reference more. The caller has entered.
func (c *Cache) open(name string) (*file, error) {
	c.mu.Lock()
	f := c.files[name]
	if f != nil {
		f.refs++
	}
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := c.openPair(name)
	if errors.Is(err, errForeign) {
		c.o.Log.Warn("cache: entry replaced by an empty one", "folder", c.dir.Path(), "entry", name, "reason", err)
		c.stats.rebuilt.Add(1)
		f, err = c.createPair(name)
	} else if errors.Is(err, os.ErrNotExist) {
		f, err = c.createPair(name)
	}
	if err != nil {
		return nil, err
	}
	f.refs = 1
	c.mu.Lock()
	c.files[name] = f
	c.mu.Unlock()
	return f, nil
}

// release gives one reference back.
func (f *file) release() error {
	f.c.mu.Lock()
	f.refs--
	last := f.refs == 0
	if last && f.c.files[f.name] == f {
		delete(f.c.files, f.name)
	}
	f.c.mu.Unlock()
	if !last {
		return nil
	}
	return errors.Join(f.data.Close(), f.slots.Close())
}

// rebuild replaces an entry that turned out to be damaged behind its header.
// Whoever has it open keeps the old files, which are then gone from the folder.
func (c *Cache) rebuild(f *file, why error) (*file, error) {
	c.o.Log.Warn("cache: entry replaced by an empty one", "folder", c.dir.Path(), "entry", f.name, "reason", why)
	c.stats.rebuilt.Add(1)
	c.mu.Lock()
	delete(c.files, f.name) // views that hold it do not need the name
	c.mu.Unlock()
	if err := f.release(); err != nil {
		return nil, err
	}
	n, err := c.createPair(f.name)
	if err != nil {
		return nil, err
	}
	n.refs = 1
	c.mu.Lock()
	c.files[n.name] = n
	c.mu.Unlock()
	return n, nil
}

// errForeign reports files that are not a pair made by this version of us.
var errForeign = errors.New("not an entry of ours")

// openPair opens an entry that should be there.
func (c *Cache) openPair(name string) (_ *file, err error) {
	f := &file{c: c, name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.closeBoth())
		}
	}()
	if f.slots, err = c.openOwn(name + ".map"); err != nil {
		return nil, err
	}
	if f.data, err = c.openOwn(name + ".data"); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: a map without its data file", errForeign)
		}
		return nil, err
	}
	b := make([]byte, headerSize)
	if n, err := f.slots.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	} else if n < len(b) {
		return nil, fmt.Errorf("%w: map of %d bytes", errForeign, n)
	}
	h, err := decodeHeader(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	st, err := hostfs.Stat(f.data)
	if err != nil {
		return nil, err
	}
	switch {
	case h.name != name:
		return nil, fmt.Errorf("%w: map of %q", errForeign, h.name)
	case h.dataIno != st.Ino:
		return nil, fmt.Errorf("%w: map of another data file (inode %d, not %d)", errForeign, h.dataIno, st.Ino)
	case h.boot != c.boot && h.epoch == maxEpoch:
		return nil, fmt.Errorf("%w: epochs are used up", errForeign)
	}
	f.epoch = h.epoch
	if h.boot != c.boot {
		// Ready marks of other boots end to count. The new epoch must be on disk
		// before the first mark of it can be.
		f.epoch++
		h.epoch, h.boot = f.epoch, c.boot
		if _, err := f.slots.WriteAt(h.encode(), 0); err != nil {
			return nil, err
		}
		if err := c.o.Fdatasync(f.slots); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// createPair makes an empty entry in place of whatever has its names.
func (c *Cache) createPair(name string) (_ *file, err error) {
	f := &file{c: c, name: name, epoch: 1}
	if err := errors.Join(c.dir.Remove(name+".map"), c.dir.Remove(name+".data")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.closeBoth(), c.dir.Remove(name+".map"), c.dir.Remove(name+".data"))
		}
	}()
	if f.data, err = c.dir.Open(name+".data", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	st, err := hostfs.Stat(f.data)
	if err != nil {
		return nil, err
	}
	if f.slots, err = c.dir.Open(name+".map", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	h := header{boot: c.boot, epoch: f.epoch, dataIno: st.Ino, name: name}
	if _, err := f.slots.WriteAt(h.encode(), 0); err != nil {
		return nil, err
	}
	return f, nil
}

// openOwn opens a file of the folder that must be ours alone.
func (c *Cache) openOwn(name string) (*os.File, error) {
	f, err := c.dir.Open(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := hostfs.Stat(f)
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Nlink != 1 || st.Mode&0o022 != 0) {
		err = fmt.Errorf("%w: %s has owner %d, %d links, mode %#o", errForeign, name, st.Uid, st.Nlink, st.Mode&0o7777)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *file) closeBoth() error {
	var errs [2]error
	if f.data != nil {
		errs[0] = f.data.Close()
	}
	if f.slots != nil {
		errs[1] = f.slots.Close()
	}
	return errors.Join(errs[:]...)
}
