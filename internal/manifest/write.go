package manifest

import (
	"encoding/hex"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Write sorts entries in place and writes them as a manifest.
func Write(w io.Writer, entries []Entry) error {
	byPath := func(a, b Entry) int { return strings.Compare(a.Path, b.Path) }
	if !slices.IsSortedFunc(entries, byPath) {
		Sort(entries)
	}
	buf := make([]byte, 0, 64<<10)
	for i := range entries {
		buf = entries[i].AppendLine(buf)
		if len(buf) >= 48<<10 || i == len(entries)-1 {
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	return nil
}

// AppendLine appends the line of e, with its newline, to dst.
func (e *Entry) AppendLine(dst []byte) []byte {
	for f := range numFields {
		if f > 0 {
			dst = append(dst, ' ')
		}
		dst = e.appendField(dst, f)
	}
	return append(dst, '\n')
}

// appendField appends one field as a line shows it.
func (e *Entry) appendField(dst []byte, f field) []byte {
	absent := func() []byte { return append(dst, '-') }
	switch f {
	case fieldPath:
		return appendEscaped(dst, e.Path, false)
	case fieldType:
		return append(dst, byte(e.Type))
	case fieldMode:
		m := e.Mode & 0o7777
		return append(dst, '0'+byte(m>>9), '0'+byte(m>>6&7), '0'+byte(m>>3&7), '0'+byte(m&7))
	case fieldUID:
		return strconv.AppendUint(dst, uint64(e.UID), 10)
	case fieldGID:
		return strconv.AppendUint(dst, uint64(e.GID), 10)
	case fieldSize:
		if !e.Type.hasSize() {
			return absent()
		}
		return strconv.AppendUint(dst, e.Size, 10)
	case fieldRdev:
		if !e.Type.hasRdev() {
			return absent()
		}
		dst = strconv.AppendUint(dst, uint64(e.Major), 10)
		return strconv.AppendUint(append(dst, ':'), uint64(e.Minor), 10)
	case fieldNlink:
		if e.Type == Directory {
			return absent()
		}
		return strconv.AppendUint(dst, e.Nlink, 10)
	case fieldMtime:
		return e.Mtime.append(dst)
	case fieldTarget:
		switch {
		case e.Type != Symlink:
			return absent()
		case e.Target == "-":
			return append(dst, `\x2d`...)
		}
		return appendEscaped(dst, e.Target, false)
	case fieldHardlink:
		if e.Hardlink == "" || e.Type == Directory {
			return absent()
		}
		return appendEscaped(dst, e.Hardlink, false)
	case fieldXattrs:
		if len(e.Xattrs) == 0 {
			return absent()
		}
		for i, x := range e.Xattrs {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendEscaped(dst, x.Name, true), '=')
			for j := range len(x.Value) {
				dst = append(dst, hexDigits[x.Value[j]>>4], hexDigits[x.Value[j]&15])
			}
		}
		return dst
	case fieldSHA256:
		if e.Type != Regular {
			return absent()
		}
		return hex.AppendEncode(dst, e.SHA256[:])
	}
	panic("manifest: no field " + strconv.Itoa(int(f)))
}

func (t Time) append(dst []byte) []byte {
	if t.Mount {
		dst = append(dst, "mount"...)
	} else {
		dst = strconv.AppendInt(dst, t.Sec, 10)
	}
	dst = append(dst, '.')
	for div := uint32(100_000_000); div > 0; div /= 10 {
		dst = append(dst, '0'+byte(t.Nsec/div%10))
	}
	return dst
}

const hexDigits = "0123456789abcdef"

// plain reports whether a byte stands for itself in a manifest.
func plain(c byte, inXattrName bool) bool {
	return c > 0x20 && c < 0x7f && c != '\\' && !(inXattrName && (c == ',' || c == '='))
}

func appendEscaped(dst []byte, s string, inXattrName bool) []byte {
	for i := range len(s) {
		if c := s[i]; plain(c, inXattrName) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return dst
}

// Escape returns s as a manifest shows a path: without spaces, line ends and
// bytes that are not printable ASCII. Messages that name a path use it.
func Escape(s string) string { return string(appendEscaped(nil, s, false)) }
