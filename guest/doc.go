// Package guest is what runs inside a virtual machine and sees the file systems
// that rafsd serves: so far [Manifest], which reports a mounted tree.
//
//	host: rafsd ──virtio-fs──▶ guest kernel ──system calls──▶ rafs-guest manifest /mnt
//
// It knows nothing of the host, of images and of networks, and it uses system
// calls rather than package os, so that names stay bytes, nothing is followed that
// was not asked for, and an error is the errno that the kernel gave.
//
// Trust: the tree may change or lie while it is read; what does not fit together
// (a file that became another one, or that is shorter than its size) is an error,
// never a wrong manifest.
package guest
