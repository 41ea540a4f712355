// Package e2e holds no code, only the tests that run the real programs: rafsd as
// a process, its API through the socket, real Linux guests as front-ends, a
// registry over HTTP.
//
//	test ──API──▶ rafsd ◀──vhost-user── guest (UML, QEMU) ──▶ rafs-guest manifest
//	                │
//	                └──ranges──▶ registry in the test's process, with counters
//
// Without packages to boot a guest from the guest tests skip loudly; where
// RAFSD_REQUIRE_GUEST=1 (CI) they fail instead. RAFSD_MATRIX=1 adds every guest
// that we know, RAFSD_LONG=1 long forms, and RAFSD_SHARE_ON says on which file system
// the folders lie that are shared.
package e2e
