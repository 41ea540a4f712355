package fs

import (
	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/rafs"
)

// Cookies of a directory: 1 is behind ".", 2 behind "..", and the image's
// positions follow, so they are the same for every session, below 1<<31.
const (
	behindDot    = 1
	behindDotDot = 2
)

var dot, dotDot = []byte("."), []byte("..")

// ReadDir implements fuseproto.FileSystem. A damaged directory lists what is
// sound in it and ends in EIO.
func (f *FS) ReadDir(_ *fuseproto.Op, node uint64, in *fuseproto.ReadIn, out *fuseproto.DirWriter) error {
	s := scratches.Get().(*scratch)
	err := f.readDir(s, node, in.Offset, out)
	s.release()
	if err != nil && out.Len() > 0 {
		return nil // the guest asks again behind what it got, and is told then
	}
	return errno(err)
}

func (f *FS) readDir(s *scratch, node, off uint64, out *fuseproto.DirWriter) error {
	pos := uint64(0)
	if off > behindDotDot {
		pos = off - behindDotDot
	}
	if err := f.img.ReadDir(node, pos, &s.cursor); err != nil {
		return err
	}
	if off < behindDot && !out.Add(fuseproto.DirEntry{Name: dot, Ino: node, Off: behindDot, Type: typeDir}) {
		return nil
	}
	if off < behindDotDot {
		parent, err := f.img.Parent(node)
		if err != nil {
			return err
		}
		if !out.Add(fuseproto.DirEntry{Name: dotDot, Ino: parent, Off: behindDotDot, Type: typeDir}) {
			return nil
		}
	}
	for {
		ok, err := s.cursor.Next(&s.dirent)
		if err != nil || !ok {
			return err
		}
		d := &s.dirent
		e := fuseproto.DirEntry{Name: d.Name, Ino: d.Ino, Off: d.Next + behindDotDot, Type: d.Type}
		// An entry whose attributes cannot be had is listed without: looking it
		// up will say why.
		if out.Plus() && f.entry(s, d.Ino, &s.entry) == nil && rafs.DirentType(s.attr.Mode) == d.Type {
			ok = out.AddPlus(e, &s.entry)
		} else {
			ok = out.Add(e)
		}
		if !ok {
			return nil
		}
	}
}

const typeDir = rafs.ModeDir >> 12 // DT_DIR
