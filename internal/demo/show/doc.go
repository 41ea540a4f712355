// Package show is the whole of `make demo`: a container image in a registry, a
// daemon that serves it, a virtual machine that reads it, and a table that says
// how little of it came over the network.
//
//	sample image ──blob──▶ OCI registry (in this process, counts what it gives)
//	     │                      ▲ range requests
//	     │ bootstrap            │
//	     └──────────────▶ rafsd (the real program, a child of ours)
//	                            ▲ vhost-user socket
//	                            │
//	      machine: a guest of internal/testguest, or internal/vmm without one
//
// A machine visits the image twice, each time from its start: the first visit
// lists all names and reads what the start of a container reads, the second reads
// every file. The daemon runs through both, so that the second finds in its cache
// what the first has fetched. What a visit brings back is compared with the
// manifest of the image, which is made from the same tree and not from the image.
//
// Ownership: Run owns the folder, the registry, the daemon and the machine, and
// all of them are gone when it returns, for whatever reason. The daemon and guests
// are told by the kernel to end if this process dies.
//
// Trust: everything here is our own except the guest's kernel and tools, which
// come from Debian's signed packages.
package show
