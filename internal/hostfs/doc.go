// Package hostfs is the one way to open a path of the host: a bootstrap, a
// folder of blobs, a file of the cache.
//
//	rafs ──┐
//	cache ─┼─▶ hostfs.Open, hostfs.OpenDir ──▶ (today) openat in this process
//	localfs┘                                    (later) the keeper, by message
//
// A confined worker has no right of its own to open paths: the process that
// keeps its descriptors will open them for it and pass the descriptors on. That
// is why everything here ends in a descriptor, a folder is a value of its own
// whose files are named by one path component, and nothing hands out paths to
// be opened elsewhere.
//
// Trust: a path that reaches this package was chosen by the operator or by a
// caller of the API. A file name below a folder may come from an image; Dir
// checks that it is one component and never follows a symbolic link in it.
package hostfs
