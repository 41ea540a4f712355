// Package testguest boots real Linux guests for tests: it fetches a kernel and what
// runs it from Debian's packages, runs a shell script in the guest and returns what
// the script printed and its exit code.
//
//	test ──Boot──▶ initramfs: busybox, modules, rafs-guest, /init, script
//	                  │
//	                  ▼
//	     user-mode Linux, or QEMU + kernel ──vhost-user socket──▶ back-end under test
//	                  │ output device                (rafsd, virtiofsd, …)
//	                  ▼
//	     lines of /init and the script's output ──▶ Result
//
// [Config] says what to boot, [Need] gets it for a test or skips the test, [Boot]
// runs it to its end, [Program] and [StartVirtiofsd] fetch programs to compare with.
// The command in cmd/testguest does the same for people and for CI.
//
// # What is fetched
//
// Packages come from the mirror that this machine's apt uses, or from the one that
// RAFSD_TESTBED_MIRROR names. Nothing is installed and no rights are needed: apt
// works on a state folder of its own, and programs run with their own loader and
// libraries. They are kept below [CacheDir], each by its suite, until somebody
// removes the folder:
//
//	                                   download   kept
//	package lists of a suite           10 MB      21 MB
//	user-mode Linux of sid             38 MB      19 MB   trixie and bookworm less
//	QEMU 11.1 with its libraries       37 MB      67 MB
//	a kernel for QEMU                  16-42 MB   55 MB
//	virtiofsd with its libraries        6 MB       7 MB
//	busybox                             1 MB       2 MB
//
// # Time
//
// With all that in the cache, from Boot to its return with an empty script, on two
// cores that others use too: user-mode Linux 0.3 s (sid, trixie) to 0.7 s
// (bookworm), QEMU without KVM 2.5 s (kernels 6.1 and 6.12) to 4 s (7.2). The first
// Boot of a process also builds rafs-guest (0.3 s). Fetching what the default guests
// need takes some 20 s of processor time.
//
// # Ownership, locks, trust
//
// Boot owns the processes and files of its guest and ends them all before it
// returns; should the whole test process die, the kernel kills them. Boots may run
// in parallel, in one process and in many. Each cache entry has a file lock, held
// while it is made; while one emulated guest runs, its lock makes others wait. No
// lock is taken while another is held, except those of package lists and of busybox
// by the maker of an entry.
//
// The guest is trusted no more than a program under test: its output is bounded,
// its time too. Packages are verified by apt against Debian's keyring.
package testguest
