package vfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/fuseproto"
)

// Errors of Mount, Remount and Unmount; they come wrapped, with the path.
var (
	ErrExists     = errors.New("there is something at the path")
	ErrNotMounted = errors.New("nothing is mounted at the path")
	ErrStatic     = errors.New("the tree has one mount for its whole life")
	ErrPath       = errors.New("not a path for a mount")
	ErrExhausted  = errors.New("exhausted")
	ErrClosed     = errors.New("the tree is closed")
)

// FS is one tree of pseudo directories and mounts.
//
// Its methods are safe for any number of goroutines.
type FS struct {
	table  atomic.Pointer[table]
	pseudo pseudo

	changes sync.Mutex        // one change of the tree at a time
	mounts  map[string]*mount // by path; guarded by changes
	nextID  uint32            // guarded by changes
	static  bool              // guarded by changes
	closed  bool              // guarded by changes

	mu    sync.Mutex // table's store together with live and flags
	live  bool       // there is a session; guarded by mu
	flags uint64     // of it; guarded by mu

	closing sync.WaitGroup
}

var _ fuseproto.FileSystem = (*FS)(nil)

// MountOptions are what a mount is told once.
type MountOptions struct {
	// ID is the mount's id, if one has been given it by an earlier process that
	// served the same guest; 0 takes the next that was never used.
	ID uint32
	// Static, at "/" only, promises that nothing else is ever mounted, so that
	// the guest may cache all of the root; if the session allows it, files are
	// opened without a request. The tree cannot be changed after that.
	Static bool
	// KeepIno shows the file system's own inode numbers, which must then be
	// unique among all mounts.
	KeepIno bool
	// Submounts passes on where the file system says that another one begins
	// below its root (fuseproto.AttrSubmount). The mount's own root is never
	// announced.
	Submounts bool
	// Since is when it was mounted, and Cookies are those of the names of its path
	// (MountInfo.Cookies), if ID was given by an earlier process: what the guest saw
	// of the directories above stays as it was. With an ID nothing is asked of file
	// systems: the tree is one that was there already.
	Since   time.Time
	Cookies []uint64
	// Before, if set, is called with what the mount is going to be, when nothing can
	// fail any more and the guest sees nothing of it yet; an error of its is the
	// outcome. It must not call the FS.
	Before func(MountInfo) error
	// Stop, if set, is called when the mount has been removed from the tree, and
	// should make the requests that wait in it end soon.
	Stop func()
}

// MountInfo describes a mount.
type MountInfo struct {
	ID    uint32
	Path  string
	FS    fuseproto.FileSystem
	Since time.Time
	// Cookies are those of the names of Path, from the top.
	Cookies []uint64
	// Requests is how many requests have come to it in this process.
	Requests uint64
}

// New returns a tree without a mount. Mount ids begin behind lastID, the last
// one that an earlier process has given; 0 if there was none.
func New(lastID uint32) *FS {
	v := &FS{mounts: make(map[string]*mount), nextID: lastID + 1}
	v.pseudo.v = v
	m := &mount{fs: &v.pseudo, root: fuseproto.RootID, node: fuseproto.RootID, parent: fuseproto.RootID}
	m.gate.init()
	v.table.Store(newTable(m))
	return v
}

// Mount puts fs at path. The directories on the way are made; they vanish with
// the last mount below them. ctx bounds what file systems may be asked meanwhile.
//
// From here on fs belongs to the tree: if it is an io.Closer, it is closed after
// it was unmounted and the last request has left it. If Mount fails, it still is
// the caller's.
func (v *FS) Mount(ctx context.Context, path string, fs fuseproto.FileSystem, opts MountOptions) (MountInfo, error) {
	path, err := clean(path)
	if err != nil {
		return MountInfo{}, err
	}
	v.changes.Lock()
	defer v.changes.Unlock()
	if err := v.mayChange(path); err != nil {
		return MountInfo{}, err
	}
	if opts.Static && (path != "/" || len(v.mounts) > 0) {
		return MountInfo{}, fmt.Errorf("mount %s: a static mount is alone, at /: %w", path, ErrStatic)
	}
	t := v.table.Load()
	if err := v.isFree(ctx, t, path, fs, opts.ID != 0); err != nil {
		return MountInfo{}, err
	}
	id, err := v.newID(path, opts.ID)
	if err != nil {
		return MountInfo{}, err
	}
	m, err := newMount(id, path, fs, opts)
	if err != nil {
		return MountInfo{}, err
	}
	t = t.clone()
	t.setMount(id, m)
	if path == "/" {
		t.root = m
	} else if err := t.place(m); err != nil {
		return MountInfo{}, fmt.Errorf("mount %s: %w", path, err)
	}
	if opts.Before != nil {
		if err := opts.Before(m.info()); err != nil {
			return MountInfo{}, fmt.Errorf("mount %s: %w", path, err)
		}
	}
	v.nextID = max(v.nextID, id+1)
	v.static = opts.Static
	v.mounts[path] = m
	v.publish(t, m, nil)
	return m.info(), nil
}

// Remount puts fs in the place of what is mounted at path. If sameNodes, the
// nodes that the guest knows go on to mean the same in fs; else they are stale.
// The old file system is treated as by Unmount.
func (v *FS) Remount(ctx context.Context, path string, fs fuseproto.FileSystem, sameNodes bool, opts MountOptions) (MountInfo, <-chan error, error) {
	path, err := clean(path)
	if err != nil {
		return MountInfo{}, nil, err
	}
	v.changes.Lock()
	defer v.changes.Unlock()
	if err := v.mayChange(path); err != nil {
		return MountInfo{}, nil, err
	}
	old := v.mounts[path]
	switch {
	case old == nil:
		return MountInfo{}, nil, fmt.Errorf("remount %s: %w", path, ErrNotMounted)
	case opts.Static:
		return MountInfo{}, nil, fmt.Errorf("remount %s: %w", path, ErrStatic)
	}
	id := old.id
	if !sameNodes {
		if id, err = v.newID(path, opts.ID); err != nil {
			return MountInfo{}, nil, err
		}
	}
	m, err := newMount(id, path, fs, opts)
	if err != nil {
		return MountInfo{}, nil, err
	}
	m.parent, m.cookies = old.parent, old.cookies
	t := v.table.Load()
	if path == "/" {
		if err := rootIsFree(ctx, t, fs); err != nil {
			return MountInfo{}, nil, err
		}
	}
	t = t.clone()
	t.setMount(old.id, nil)
	t.setMount(id, m)
	if path == "/" {
		t.root = m
	} else {
		names := split(path)
		t.change(m.parent, m.since).lookup([]byte(names[len(names)-1])).mount = m
	}
	if opts.Before != nil {
		if err := opts.Before(m.info()); err != nil {
			return MountInfo{}, nil, fmt.Errorf("remount %s: %w", path, err)
		}
	}
	v.nextID = max(v.nextID, id+1)
	v.mounts[path] = m
	return m.info(), v.publish(t, m, old), nil
}

// Unmount takes what is mounted at path out of the tree: no new request finds
// it, and its nodes are stale. The channel yields the outcome of closing the file
// system once the last request has left it.
func (v *FS) Unmount(path string) (<-chan error, error) {
	path, err := clean(path)
	if err != nil {
		return nil, err
	}
	v.changes.Lock()
	defer v.changes.Unlock()
	if err := v.mayChange(path); err != nil {
		return nil, err
	}
	m := v.mounts[path]
	if m == nil {
		return nil, fmt.Errorf("unmount %s: %w", path, ErrNotMounted)
	}
	return v.remove(m), nil
}

// remove removes m. v.changes is held.
func (v *FS) remove(m *mount) <-chan error {
	t := v.table.Load().clone()
	t.setMount(m.id, nil)
	if m.path == "/" {
		t.root = nil
	} else {
		t.unplace(m)
	}
	delete(v.mounts, m.path)
	return v.publish(t, nil, m)
}

// publish makes t the tree. fresh, which is new in it, is told of the session
// there may be; gone, which is no longer in it, is closed when its last request
// has left. v.changes is held.
func (v *FS) publish(t *table, fresh, gone *mount) <-chan error {
	v.mu.Lock()
	live := v.live
	if fresh != nil && live {
		fresh.fs.Init(v.flags)
	}
	v.table.Store(t)
	v.mu.Unlock()
	if gone == nil {
		return nil
	}
	done := make(chan error, 1)
	v.closing.Go(func() {
		if gone.opts.Stop != nil {
			gone.opts.Stop()
		}
		gone.gate.shut()
		if live {
			gone.fs.Destroy()
		}
		if c, ok := gone.fs.(io.Closer); ok {
			done <- c.Close()
		}
		close(done)
	})
	return done
}

// Close unmounts everything and waits until all is closed. The tree cannot be
// changed after that.
func (v *FS) Close() error {
	v.changes.Lock()
	v.closed = true
	var done []<-chan error
	for _, m := range v.mounts {
		done = append(done, v.remove(m))
	}
	v.changes.Unlock()
	var errs []error
	for _, d := range done {
		errs = append(errs, <-d)
	}
	v.closing.Wait()
	return errors.Join(errs...)
}

// List returns the mounts in the order of their paths.
func (v *FS) List() []MountInfo {
	v.changes.Lock()
	defer v.changes.Unlock()
	list := make([]MountInfo, 0, len(v.mounts))
	for _, m := range v.mounts {
		list = append(list, m.info())
	}
	slices.SortFunc(list, func(a, b MountInfo) int { return cmp.Compare(a.Path, b.Path) })
	return list
}

// LastID returns the last mount id given: what New of a process wants that takes
// over.
func (v *FS) LastID() uint32 {
	v.changes.Lock()
	defer v.changes.Unlock()
	return v.nextID - 1
}

func (m *mount) info() MountInfo {
	return MountInfo{m.id, m.path, m.fs, m.since, m.cookies, m.gate.came()}
}

// mayChange returns an error if the tree is fixed. v.changes is held.
func (v *FS) mayChange(path string) error {
	switch {
	case v.closed:
		return fmt.Errorf("mount point %s: %w", path, ErrClosed)
	case v.static:
		return fmt.Errorf("mount point %s: %w", path, ErrStatic)
	}
	return nil
}

// newID returns the id of a new mount: the wanted one, if it was not given
// before. v.changes is held.
func (v *FS) newID(path string, wanted uint32) (uint32, error) {
	id := v.nextID
	if wanted != 0 {
		if id = wanted; v.table.Load().mount(uint64(id)) != nil {
			return 0, fmt.Errorf("mount %s: mount id %d: %w", path, id, ErrExists)
		}
	}
	if id > maxID {
		return 0, fmt.Errorf("mount %s: mount ids are %d at most: %w", path, maxID, ErrExhausted)
	}
	return id, nil
}

// isFree returns an error unless fs can be mounted at path. File systems are not asked
// if it was there before.
func (v *FS) isFree(ctx context.Context, t *table, path string, fs fuseproto.FileSystem, before bool) error {
	top := t.dirs[fuseproto.RootID]
	if path == "/" {
		if t.root != nil {
			return fmt.Errorf("mount /: %w", ErrExists)
		}
		if before {
			return nil
		}
		return rootIsFree(ctx, t, fs)
	}
	names := split(path)
	if t.root != nil && !before && top.lookup([]byte(names[0])) == nil {
		if err := absent(ctx, path, t.root.fs, []byte(names[0])); err != nil {
			return err
		}
	}
	at := top
	for i, name := range names {
		e := at.lookup([]byte(name))
		switch {
		case e == nil:
			return nil
		case e.mount != nil:
			return fmt.Errorf("mount %s: %s is mounted: %w", path, e.mount.path, ErrExists)
		case i == len(names)-1:
			return fmt.Errorf("mount %s: directory of other mounts: %w", path, ErrExists)
		}
		at = t.dirs[e.dir]
	}
	return nil
}

// rootIsFree returns an error unless the pseudo directories can be laid over the
// root of fs.
func rootIsFree(ctx context.Context, t *table, fs fuseproto.FileSystem) error {
	for _, e := range t.dirs[fuseproto.RootID].entries {
		if err := absent(ctx, "/", fs, e.name); err != nil {
			return err
		}
	}
	return nil
}

// absent returns an error unless the root of fs has no such name.
func absent(ctx context.Context, path string, fs fuseproto.FileSystem, name []byte) error {
	var e fuseproto.Entry
	switch err := fs.Lookup(fuseproto.NewOp(ctx), fs.Root(), name, &e); {
	case err == syscall.ENOENT:
		return nil
	case err != nil:
		return fmt.Errorf("mount %s: does the file system at / have a name %q: %w", path, name, err)
	case e.Node == 0:
		return nil
	}
	fs.Forget(e.Node, 1)
	return fmt.Errorf("mount %s: the file system at / has a name %q: %w", path, name, ErrExists)
}
