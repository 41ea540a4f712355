package rafs

import (
	"errors"
	"fmt"
)

// DamageError says which structure of a bootstrap is not what the format wants.
// It wraps ErrDamaged.
type DamageError struct {
	Structure string // "inode", "directory", "chunk table", …
	Offset    uint64 // in the bootstrap
	Reason    string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s at offset %#x: %s", e.Structure, e.Offset, e.Reason)
}

// Unwrap makes errors.Is(err, ErrDamaged) true.
func (e *DamageError) Unwrap() error { return ErrDamaged }

// Damaged returns a DamageError with a formatted reason.
func Damaged(structure string, offset uint64, format string, args ...any) error {
	return &DamageError{Structure: structure, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// Unsupported returns an error that names a feature that is recognised and
// refused. It wraps ErrUnsupported.
func Unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// NewFault makes a Fault of an error that an accessor returned; structure and
// offset stand in where the error does not know its own.
func NewFault(structure string, offset uint64, path string, err error) Fault {
	var damage *DamageError
	if errors.As(err, &damage) {
		structure, offset = damage.Structure, damage.Offset
		err = errors.New(damage.Reason)
	}
	return Fault{Structure: structure, Offset: int64(offset), Path: path, Err: err}
}

func (f Fault) String() string {
	s := fmt.Sprintf("%s at offset %#x", f.Structure, f.Offset)
	if f.Path != "" {
		s += fmt.Sprintf(" (%q)", f.Path)
	}
	return s + ": " + f.Err.Error()
}
