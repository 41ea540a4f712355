// Package layers holds no code, only the test that keeps the project's imports
// pointing one way:
//
//	cmd ──▶ shim-integration ──▶ fuseproto/vfs ──▶ fuseproto
//	                     │              rafs/fs ──▶ rafs, blobstore, fuseproto
//	                     └──▶ vhostuser ──▶ session, virtqueue ──▶ guestmem, wire
//
// A package may know what stands below it and nothing beside or above it. See
// docs/architecture.md for what each one may know, and why.
package layers
