package testregistry

import "time"

// Kind is a way to fail.
type Kind int

// The ways to fail.
const (
	// Status answers with Fault.Status, and Retry-After if that is set.
	Status Kind = iota
	// Truncate promises the range and ends its body in the middle.
	Truncate
	// ShortRange answers with a shorter range than was asked for, and says so.
	ShortRange
	// WrongRange answers with the bytes behind those asked for, and says so.
	WrongRange
	// LyingRange answers with other bytes than it says.
	LyingRange
	// WrongBytes flips a bit of each 512 bytes.
	WrongBytes
	// Whole answers 200 with the whole blob.
	Whole
	// Page answers 200 with a page of HTML, as captive portals do.
	Page
	// Encoded claims that the body is encoded.
	Encoded
	// Hang answers nothing for Fault.Delay, and then as usual.
	Hang
	// HangBody answers the first half of the body, and the rest after Delay.
	HangBody
	// Reset closes the connection without an answer.
	Reset
	// ResetBody closes the connection in the middle of the body.
	ResetBody
	// RedirectLoop redirects to itself.
	RedirectLoop
)

// Fault is a rule for requests for bytes of blobs.
type Fault struct {
	Kind       Kind
	Blob       string // id; empty = any
	AtStorage  bool   // at the second server, not at the first
	Skip       int    // requests that are let pass first
	Times      int    // requests that fail then; 0 = all
	Status     int
	RetryAfter string
	Delay      time.Duration
}

type rule struct {
	Fault
	seen int
}

// Fail adds a rule and returns a function that takes it away again. Of several
// rules that fit a request the first counts.
func (r *Registry) Fail(f Fault) (stop func()) {
	x := &rule{Fault: f}
	r.mu.Lock()
	r.faults = append(r.faults, x)
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := range r.faults {
			if r.faults[i] == x {
				r.faults = append(r.faults[:i:i], r.faults[i+1:]...)
				return
			}
		}
	}
}

// fault returns the rule for a request, or nil.
func (r *Registry) fault(blob string, atStorage bool) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.faults {
		if x.Blob != "" && x.Blob != blob || x.AtStorage != atStorage {
			continue
		}
		x.seen++
		if x.seen > x.Skip && (x.Times == 0 || x.seen <= x.Skip+x.Times) {
			f := x.Fault
			return &f
		}
	}
	return nil
}
