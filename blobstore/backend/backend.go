// Package backend says what the store wants of a place that holds blobs, and how
// such a place reports what went wrong.
//
//	blobstore ──ReadRange(off, n)──▶ Source ──▶ localfs   a folder of files
//	                                       └──▶ registry  OCI distribution, mirrors, redirects
//
// A backend fetches; it does not retry for long, cache, decode or verify: the
// store does, and decides by an error's Kind whether to ask again. A backend
// tries what only it knows of (a mirror, a fresh token, the address behind a
// redirect) within one call.
//
// Trust: what comes out of a Source is hostile until it is verified. A Source
// promises only this: the reader of ReadRange(off, n) yields n bytes that the
// other side says are those at off, or an error; never more.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Backend is a place that holds blobs. Its methods are safe for concurrent use.
type Backend interface {
	// Blob returns the source of one blob. It asks nobody, and checks the id.
	Blob(id string) (Source, error)
	// Name tells this place from others, without secrets, for messages and for
	// keeping apart what cannot be verified: "registry https://host/repo".
	Name() string
	// Close gives up what the backend holds. No reader may be open.
	Close() error
}

// Source is one blob at a backend. Its methods are safe for concurrent use.
type Source interface {
	// ReadRange reads the n bytes at off, n > 0. The caller closes the reader,
	// which ends with io.EOF exactly when all n bytes were read; a body that
	// ends early or stands still is an *Error. Cancelling ctx ends a read that
	// waits.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Size returns the size of the blob in bytes.
	Size(ctx context.Context) (int64, error)
}

// Rejecter is implemented by readers of a Source that have more than one way to
// the blob. Reject is called before Close when the bytes turned out to be wrong;
// the next request then goes another way, if there is one.
type Rejecter interface {
	Reject()
}

// Kind says what a caller may do about an error.
type Kind uint8

const (
	// Temporary: the other side is down, busy or unreachable. Ask again.
	Temporary Kind = iota
	// BadAnswer: the other side answers, but not what was asked for (another
	// range, a body cut short, a page instead of data). Ask again a few times.
	BadAnswer
	// Denied: the credentials do not open this blob.
	Denied
	// Permanent: asking again now gives the same answer (no such blob).
	Permanent
)

func (k Kind) String() string {
	switch k {
	case Temporary:
		return "temporary"
	case BadAnswer:
		return "bad answer"
	case Denied:
		return "denied"
	case Permanent:
		return "permanent"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Error is an error of a backend with its class.
type Error struct {
	Kind       Kind
	RetryAfter time.Duration // what the other side asked for; 0 = nothing
	Err        error         // what happened and where, without secrets
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of a kind, with a message as of fmt.Errorf.
func Errorf(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Classify returns the kind of err and the wait that the other side asked for.
// An error without a class is Temporary: whatever it was, it may pass, and the
// reader's deadline bounds the tries.
func Classify(err error) (Kind, time.Duration) {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind, e.RetryAfter
	}
	return Temporary, 0
}

// MaxID is the longest blob id.
const MaxID = 64

// ErrID reports a blob id that must not become part of a path or an address.
var ErrID = errors.New("not a blob id (1 to 64 of [0-9A-Za-z._-], no leading dot)")

// CheckID returns an error that wraps ErrID unless id is safe to be a file name
// and a path segment of an address.
func CheckID(id string) error {
	ok := id != "" && len(id) <= MaxID && id[0] != '.'
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '.' || c == '_' || c == '-'
	}
	if !ok {
		shown := id
		if len(shown) > MaxID {
			shown = shown[:MaxID]
		}
		return fmt.Errorf("%q: %w", shown, ErrID)
	}
	return nil
}
