// Package posix holds tests of what a program may expect of a POSIX file system on
// Linux. They judge a directory, whatever is behind it:
//
//	go test ./internal/posix                     a temporary directory of this host
//	RAFSD_POSIX_DIR=/mnt posix.test -test.v      the mount of a guest
//
// On the host they test themselves: what ext4, xfs and tmpfs do is the truth. Built
// with `go test -c` and without cgo the same tests run in a guest (package e2e does
// that) on what a back-end shows it. They want to be root, and change only what they
// make below that directory.
package posix
