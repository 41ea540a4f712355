// Package open opens RAFS images: it tells what a file is, refuses with a clear
// line what this reader does not serve, and lets several mounts of one file
// share one mapping.
//
//	path ─▶ hostfs ─▶ same file, same state open already? ─ yes ─▶ one more holder
//	                       │ no
//	                       ▼
//	                  map ─▶ digest pinned? ─▶ magic ─▶ rafs/v5 or rafs/v6
//
// Two opens share an image if they name one state of one file: device, inode,
// size, mtime and ctime. A bootstrap that was replaced or rewritten is another
// image, also under the old path.
//
// The lock of the table of shared images is a leaf: nothing is opened, read or
// closed under it.
package open
