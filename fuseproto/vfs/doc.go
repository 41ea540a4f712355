// Package vfs joins file systems to the one tree that a guest sees: pseudo
// directories, made and unmade as mounts come and go, and the mounts in them. It
// is itself a fuseproto.FileSystem and does not know what a mount is.
//
//	1 (pseudo or the root of the mount at "/")
//	├── rafs            pseudo directory, mount id 0, index = hash of its path
//	│   ├── c1 ──────▶ mount 1: node ids 1<<44 | index of the file system
//	│   └── c2 ──────▶ mount 2: node ids 2<<44 | index
//	└── shared ──────▶ mount 3
//
// A node id is the mount id (20 bits) above the index inside the mount (44
// bits). Mount ids are never used twice in the life of an FS, so a node of a
// mount that is gone answers ESTALE for ever and never shows another image's
// file. Node id 1 is the root of the tree, whatever is mounted there. Below a
// mount at "/", pseudo directories are laid over its root, where it has no such
// name.
//
// virtio-fs has no notifications, so no name that may change is cached by the guest:
// entries of pseudo directories and of mounts' roots have time-outs of 0, absent
// names there are ENOENT and not negative entries, and their listings are not kept.
// Attributes of pseudo directories and of mounts' roots last a second: the guest
// needs them at every path that it walks. Inside a mount its file system decides.
//
// Ownership: a table is immutable and published by an atomic pointer; requests
// read it without a lock. Each mount counts the requests in it; one that is
// removed is closed by a goroutine of its own after the last of them, and FS.Close
// waits for those goroutines.
//
// Lock order: FS.changes, then FS.mu. changes is held while a file system is
// asked whether it has a name; mu only while a table is published and Init or
// Destroy are passed on. A request takes neither, but INIT and DESTROY take mu.
package vfs
