// Package daemon is the one service behind every door: it holds the daemon's
// state and its mounts, and joins the guest's side to the images.
//
//	httpapi, command line ──▶ Daemon ── mounts ──▶ vfs ◀── fuseproto.Server ◀── device ◀── vhostuser
//	                            │ opens
//	                            ▼
//	                          rafs image + blob store (shared by mounts that agree)
//
// A mount never waits for a network: it maps a bootstrap and checks it, and the
// first read of a file is what asks a registry. A mount that fails leaves nothing
// behind.
//
// Ownership: the Daemon owns the tree, the stores and the images under them. What
// is mounted belongs to the tree, which closes it when its last request has left;
// a store is closed with the last mount that uses it.
//
// Succession: with Options.Record, what a further process must know is in the session
// record before anybody can see it (record.go), and New goes on with it (restore.go).
//
// Lock order: Daemon.mu, then the tree's own, then Daemon.savedMu. stores.mu,
// images.mu and lifetime.mu are leaves. None is held while an image is opened, or while a store
// is opened or closed.
//
// Trust: callers may be as good as root, but what they name is not: sources are
// checked by whoever opens them, configurations by package config. Secrets stay in
// a config.Config and the back-ends made from it.
package daemon
