// Package manifest reads, writes and compares manifests: text files that say,
// one line a path, everything about a file tree that a reader can see. They are
// how the project compares an image, the tree that a guest sees and the truth.
//
// A line has thirteen fields, each separated from the next by one space:
//
//	path type mode uid gid size rdev nlink mtime target hardlink xattrs sha256
//	/bin/sh l 0777 0 0 4 - 1 1700000000.000000000 dash - - -
//
//	path      absolute inside the tree, "/" is the root
//	type      f d l c b p s, see [Type]
//	mode      four octal digits: permissions, set-id bits and sticky bit
//	uid gid   decimal
//	size      decimal for f and l, else -
//	rdev      major:minor for c and b, else -
//	nlink     decimal, - for directories, where file systems differ
//	mtime     SEC.NNNNNNNNN, the seconds rounded down, so they may be negative;
//	          mount.NNNNNNNNN is the unknown second in which it was mounted
//	target    of a symbolic link, else -; a target that is just "-" is \x2d
//	hardlink  the first path of the group that shares one inode, - if alone
//	xattrs    name=hex joined by ",", by name; - if there are none
//	sha256    of the content for f, else -
//
// Lines are sorted bytewise by the unescaped path, and each ends with a newline.
// In paths, targets and xattr names every byte outside 0x21..0x7e, and the
// backslash, is written \xNN in lower case; xattr names escape "," and "=" too.
// No other escape exists, so each tree has exactly one manifest: [Parse] refuses
// whatever [Write] would not have written.
//
// Entries hold raw bytes in strings; nothing here interprets them as text.
// No function keeps its arguments, except [Collector.Add] the entry, and none is
// safe for concurrent use on the same data. The package imports nothing beyond
// small parts of the standard library, because it is part of the guest's binary.
package manifest
