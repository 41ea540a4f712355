package vmm

import "fmt"

// Violation is a rule of vhost-user, virtio or FUSE that the back-end broke. It
// is kept apart from ordinary failures (a refused message, an errno, a closed
// socket), which a test may well expect.
type Violation struct {
	// Rule says in a few words what must hold, with the numbers seen.
	Rule string
}

func (v *Violation) Error() string { return "the back-end broke a rule: " + v.Rule }

func violation(format string, args ...any) error {
	return &Violation{Rule: fmt.Sprintf(format, args...)}
}
