package meta

import (
	"errors"
	"fmt"
)

// Errors of this package wrap one of these two.
var (
	// ErrDamaged: the bytes are not what the format wants.
	ErrDamaged = errors.New("damaged chunk information")
	// ErrUnsupported: a kind of chunk information that is recognised and
	// refused.
	ErrUnsupported = errors.New("unsupported chunk information")
)

// Structures that an Error names.
const (
	// StructHeader is the header behind the information, of which Offset counts
	// then.
	StructHeader  = "chunk information header"
	structTable   = "chunk information"
	structEntry   = "chunk information entry"
	structContext = "chunk information context"
	structTOC     = "table of contents"
)

// NoIndex is the Index of an Error that concerns no single chunk.
const NoIndex = -1

// Error says which bytes are damaged. It wraps ErrDamaged.
type Error struct {
	Structure string
	Index     int    // of the chunk in the blob or of the context, or NoIndex
	Offset    uint64 // in the structure: the header, or the uncompressed chunk information
	Reason    string
	Err       error // cause in a decoder, or nil
}

func (e *Error) Error() string {
	s := e.Structure
	if e.Index != NoIndex {
		s = fmt.Sprintf("%s %d", s, e.Index)
	}
	s = fmt.Sprintf("%s at offset %#x: %s", s, e.Offset, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is(err, ErrDamaged) true and shows the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrDamaged}
	}
	return []error{ErrDamaged, e.Err}
}

func badHeader(offset uint64, format string, args ...any) error {
	return &Error{Structure: StructHeader, Index: NoIndex, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}
