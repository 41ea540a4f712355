package rafs

// Cursor goes through the entries of a directory. It keeps no resource and may
// be abandoned at any time or used again for another directory; its size is
// that of a name, so callers on hot paths keep one rather than make one.
type Cursor struct {
	dir  EntryReader
	ino  uint64
	pos  uint64
	name [MaxName]byte
}

// EntryReader is the part of an Image that a Cursor needs.
type EntryReader interface {
	// Entry fills d with the entry at pos of directory dir, copying its name to
	// name, and reports whether there was one. Behind the last entry it
	// returns false, and an error that wraps ErrDamaged if entries before pos
	// had to be left out.
	Entry(dir, pos uint64, name *[MaxName]byte, d *Dirent) (bool, error)
}

// Reset places the cursor; it is for implementations of Image.ReadDir.
func (c *Cursor) Reset(dir EntryReader, ino, pos uint64) {
	c.dir, c.ino, c.pos = dir, ino, pos
}

// Next fills d with the next entry and reports whether there was one. After an
// error the cursor stays where it is.
func (c *Cursor) Next(d *Dirent) (bool, error) {
	ok, err := c.dir.Entry(c.ino, c.pos, &c.name, d)
	if ok {
		c.pos = d.Next
	}
	return ok, err
}
