// Package passthrough shows a directory of the host as a fuseproto.FileSystem, to
// be read and written by a guest that is not trusted.
//
//	guest's number          node                          host
//	17 ──▶ table by id ──▶ {mount, dev, ino, handle} ──▶ open_by_handle_at(mount's fd)
//	                        │            or place ──────▶ openat(parent's fd, name)
//	name ──▶ statx ──▶ table by identity                    │ O_PATH, type and identity checked
//	                                                        ▼
//	fh 5 ──▶ file ◀── open(/proc/self/fd/N) ◀── descriptor, kept while it is in use
//
// No path is ever walked. A name is one component, checked here whatever the
// server checked before, and used with the descriptor of the directory that holds
// it; ".." is never sent to the host. No link is followed. Only regular files and
// directories are opened for use, and only through a descriptor or handle that was
// seen to stand for a file of that type. What the host keeps outside of the
// directory can therefore not be named. A directory that the host itself moves out
// of the tree is ESTALE to the guest a second later (inside); a file stays what the
// guest has looked up, as it stays that of a process which has it open.
//
// Nodes cost no descriptor. A node is known by its file handle where the host's
// file system has them and we may open them (CAP_DAC_READ_SEARCH); else by its
// parent and name, opened again when needed and checked to be the same file by
// mount, device, inode number and time of birth. Descriptors are kept for a while
// (idleSet), at most Options.MaxOpen of them. A removed file that the guest has open
// is reached by that file's descriptor.
//
// Mounts of the host below the directory are crossed by look-ups. A node belongs to
// the mount it was found in and is only ever opened there, so that a read-only
// mount stays read-only. No descriptor is kept that would make the host's umount
// fail: a mount is opened again from (directory, name) and recognised by its
// number; whatever is idle is closed after 200 to 400 ms, or by ReleaseIdle. A mount
// that has gone is ESTALE on its nodes, and what is below it is seen by the next
// look-up.
//
// Sessions: nodes, open files and locks belong to one INIT. The next one, or
// DESTROY, gives all of them back; numbers are never used again, so that a late
// request of an old session finds nothing. Requests that still run keep what they
// hold to their end.
//
// Succession: with Options.Record, nodes, open files and locks are in the session record
// before the guest is told of them, and FS.Restore of the next process goes on with them
// (succession.go, table_unsafe.go); requests that run again do what they do once
// (rerun.go).
//
// Ids: what creates something runs with the file system ids of the guest's caller
// (setfsuid on a locked thread), all else with the daemon's own: the guest's kernel
// has checked permissions. A CREATE_SUPP_GROUP is set as the thread's one
// supplementary group rather than by a chown afterwards, for which the file would
// have the wrong group for a moment and lose its setgid bit. The daemon's umask is
// left alone, since it is the whole process's: where it takes bits away, they are
// put back by a chmod.
//
// Threads: everything that the page cache can answer is done on the queue's
// goroutine; cold reads, syncs, long copies and waiting for locks go through
// ErrWouldBlock. Data are moved between file and guest by one system call, with no
// buffer between.
//
// Lock order: listing.mu (a READDIRPLUS looks up), then a keyShard, then an idShard.
// fileShard.mu, FS.filesMu, FS.mountsMu, idleSet.mu, lockTable.mu, waitList.mu and
// tables.mu are leaves. No system call is made under any but listing.mu and the close of a second
// copy under idleSet.mu and lockTable.mu.
package passthrough
