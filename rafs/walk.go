package rafs

import (
	"errors"
	"fmt"
)

// MaxDepth is how deep Walk goes. The kernel's longest path has 4,096 bytes and
// so at most 2,048 names.
const MaxDepth = 2048

// SkipDir, returned by the function that Walk calls for a directory, leaves out
// what is below it.
var SkipDir = errors.New("skip this directory") //lint:ignore ST1012 named as io/fs has it

// WalkEntry is one path of an image.
type WalkEntry struct {
	Path  []byte // absolute inside the image, "/" for the root; valid during the call
	Name  []byte // the last part of Path; empty for the root
	Ino   uint64
	Type  uint8 // DT_*, as the directory says; the root's is that of a directory
	Depth int   // 0 for the root
	// Attr are the attributes, if Err is nil.
	Attr Attr
	// Err says that this path is damaged: its attributes cannot be had, or, in
	// a second call for a directory, its listing is not complete.
	Err error
}

// Walk calls fn for every path of an image: the root first, a directory before
// what is below it, the names of a directory in the image's order, which is
// bytewise ascending. An image gives the same sequence every time.
//
// What is damaged is handed to fn with WalkEntry.Err set, and the walk goes on
// with the rest if fn returns nil. A directory that is named twice is damage at
// its second name: so a walk ends even where directories form a loop. Walk
// returns the first error of fn, SkipDir apart, or an error of its own if the
// image has more names than its size can hold.
func Walk(img Image, fn func(*WalkEntry) error) error {
	w := &walker{img: img, fn: fn, seen: map[uint64]struct{}{}}
	// No entry of either version takes less than 12 bytes; a bootstrap that
	// yields more lists the same bytes again and again.
	w.budget = uint64(img.Info().Size)/12 + 1
	w.entry.Path = append(w.entry.Path, '/')
	return w.visit(img.Root(), DirentType(ModeDir), 0, nil)
}

type walker struct {
	img    Image
	fn     func(*WalkEntry) error
	seen   map[uint64]struct{} // directories that were entered
	budget uint64              // names that may still come
	entry  WalkEntry
}

// visit handles the path that entry.Path holds, and all below it; name is its
// last part.
func (w *walker) visit(ino uint64, typ uint8, depth int, name []byte) error {
	e := &w.entry
	e.Name, e.Ino, e.Type, e.Depth = name, ino, typ, depth
	e.Attr = Attr{}
	e.Err = w.img.Attr(ino, &e.Attr)
	isDir := e.Err == nil && e.Attr.Mode&ModeType == ModeDir
	switch {
	case errors.Is(e.Err, ErrStale):
		e.Err = fmt.Errorf("%w: directory entry of inode %d, which is none", ErrDamaged, ino)
	case e.Err != nil:
	case DirentType(e.Attr.Mode) != typ:
		e.Err = fmt.Errorf("%w: directory entry of type %d, inode %d has mode %#o", ErrDamaged, typ, ino, e.Attr.Mode)
		isDir = false
	case isDir:
		if _, twice := w.seen[ino]; twice {
			e.Err = fmt.Errorf("%w: the directory %d is named twice", ErrDamaged, ino)
			isDir = false
		} else if depth == MaxDepth {
			e.Err = fmt.Errorf("%w: directories nested more than %d deep", ErrDamaged, MaxDepth)
			isDir = false
		}
	}
	if !isDir {
		return w.fn(e)
	}
	w.seen[ino] = struct{}{}
	attr := e.Attr
	if err := w.fn(e); err == SkipDir {
		return nil
	} else if err != nil {
		return err
	}
	err := w.list(ino, depth)
	var damage listingError
	if !errors.As(err, &damage) {
		return err
	}
	e.Name, e.Ino, e.Type, e.Depth, e.Attr, e.Err = name, ino, typ, depth, attr, damage.error
	if err := w.fn(e); err != nil && err != SkipDir {
		return err
	}
	return nil
}

// listingError marks an error of a listing, as opposed to one of fn.
type listingError struct{ error }

// list visits the entries of a directory whose path entry.Path holds.
func (w *walker) list(dir uint64, depth int) error {
	var c Cursor
	if err := w.img.ReadDir(dir, 0, &c); err != nil {
		return listingError{err}
	}
	parent := len(w.entry.Path)
	var d Dirent
	for {
		ok, err := c.Next(&d)
		if err != nil {
			return listingError{err}
		}
		if !ok {
			return nil
		}
		if w.budget == 0 {
			return fmt.Errorf("%w: more names than %d bytes of metadata can hold", ErrDamaged, w.img.Info().Size)
		}
		w.budget--
		if depth > 0 {
			w.entry.Path = append(w.entry.Path, '/')
		}
		start := len(w.entry.Path)
		w.entry.Path = append(w.entry.Path, d.Name...)
		err = w.visit(d.Ino, d.Type, depth+1, w.entry.Path[start:])
		w.entry.Path = w.entry.Path[:parent]
		if err != nil {
			return err
		}
	}
}
