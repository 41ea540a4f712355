package manifest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
)

// ReadFile parses the manifest in the named file.
func ReadFile(name string) ([]Entry, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	entries, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return entries, nil
}

// Parse reads a whole manifest. It accepts exactly what Write writes: an error
// names the line, counted from 1, and the field. A manifest whose end was cut off
// inside a line is an error too. The entries do not refer to b.
func Parse(b []byte) ([]Entry, error) {
	entries := make([]Entry, 0, bytes.Count(b, []byte{'\n'}))
	for n := 1; len(b) > 0; n++ {
		line, rest, ended := bytes.Cut(b, []byte{'\n'})
		if !ended {
			return nil, fmt.Errorf("line %d has no newline at its end", n)
		}
		b = rest
		e, err := ParseLine(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(entries) > 0 && entries[len(entries)-1].Path >= e.Path {
			return nil, fmt.Errorf("line %d: path: %q does not sort after the line before", n, clip(e.Path))
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// ParseLine reads one line, given without its newline.
func ParseLine(line string) (Entry, error) {
	var e Entry
	rest := line
	for f := range numFields {
		text, after, more := strings.Cut(rest, " ")
		if more != (f < numFields-1) {
			return Entry{}, fmt.Errorf("%d fields, want %d", strings.Count(line, " ")+1, int(numFields))
		}
		rest = after
		if err := e.parseField(f, text); err != nil {
			return Entry{}, fmt.Errorf("%s: %q: %w", f, clip(text), err)
		}
	}
	return e, nil
}

var (
	errAbsent   = errors.New("must be - for this type")
	errNumber   = errors.New("not a plain decimal number in range")
	errEscape   = errors.New(`not escaped as \xNN where needed, and only there`)
	errNotClean = errors.New("not a clean absolute path")
)

// parseField sets one field of e; those before it in the line are set already.
func (e *Entry) parseField(f field, s string) (err error) {
	// only returns an error unless s is "-", for fields that the type lacks.
	absent := func() error {
		if s != "-" {
			return errAbsent
		}
		return nil
	}
	switch f {
	case fieldPath:
		e.Path, err = parsePath(s)
	case fieldType:
		if len(s) != 1 || !Type(s[0]).valid() {
			return errors.New("no such type")
		}
		e.Type = Type(s[0])
	case fieldMode:
		m, perr := strconv.ParseUint(s, 8, 12)
		if perr != nil || len(s) != 4 {
			return errors.New("not four octal digits")
		}
		e.Mode = uint16(m)
	case fieldUID:
		e.UID, err = parseUint32(s)
	case fieldGID:
		e.GID, err = parseUint32(s)
	case fieldSize:
		if !e.Type.hasSize() {
			return absent()
		}
		e.Size, err = parseUint(s, math.MaxUint64)
	case fieldRdev:
		if !e.Type.hasRdev() {
			return absent()
		}
		major, minor, _ := strings.Cut(s, ":")
		if e.Major, err = parseUint32(major); err == nil {
			e.Minor, err = parseUint32(minor)
		}
	case fieldNlink:
		if e.Type == Directory {
			return absent()
		}
		e.Nlink, err = parseUint(s, math.MaxUint64)
	case fieldMtime:
		e.Mtime, err = parseTime(s)
	case fieldTarget:
		if e.Type != Symlink {
			return absent()
		}
		switch s {
		case "-":
			return errors.New("a symbolic link has a target")
		case `\x2d`:
			e.Target = "-"
		default:
			e.Target, err = unescape(s, false)
		}
	case fieldHardlink:
		if s == "-" {
			return nil
		}
		if e.Type == Directory {
			return errAbsent
		}
		if e.Hardlink, err = parsePath(s); err == nil && e.Hardlink > e.Path {
			return errors.New("the first path of a group sorts after this one")
		}
	case fieldXattrs:
		if s == "-" {
			return nil
		}
		e.Xattrs, err = parseXattrs(s)
	case fieldSHA256:
		if e.Type != Regular {
			return absent()
		}
		if len(s) != hex.EncodedLen(len(e.SHA256)) {
			return fmt.Errorf("has %d digits, want %d", len(s), hex.EncodedLen(len(e.SHA256)))
		}
		for i := range e.SHA256 {
			if e.SHA256[i], err = parseHexByte(s[2*i], s[2*i+1]); err != nil {
				return err
			}
		}
	}
	return err
}

func parsePath(s string) (string, error) {
	p, err := unescape(s, false)
	if err != nil {
		return "", err
	}
	if p == "/" {
		return p, nil
	}
	name, rooted := strings.CutPrefix(p, "/")
	if !rooted || strings.IndexByte(p, 0) >= 0 {
		return "", errNotClean
	}
	for more := true; more; {
		var part string
		if part, name, more = strings.Cut(name, "/"); part == "" || part == "." || part == ".." {
			return "", errNotClean
		}
	}
	return p, nil
}

func parseXattrs(s string) ([]Xattr, error) {
	list := make([]Xattr, 0, strings.Count(s, ",")+1)
	for more := true; more; {
		var one string
		one, s, more = strings.Cut(s, ",")
		escaped, digits, ok := strings.Cut(one, "=")
		if !ok || escaped == "" || len(digits)%2 != 0 {
			return nil, errors.New("not a list of name=hex")
		}
		name, err := unescape(escaped, true)
		if err != nil {
			return nil, err
		}
		if strings.IndexByte(name, 0) >= 0 {
			return nil, errors.New("a name holds a NUL")
		}
		if n := len(list); n > 0 && list[n-1].Name >= name {
			return nil, errors.New("names are not sorted")
		}
		value := make([]byte, len(digits)/2)
		for i := range value {
			if value[i], err = parseHexByte(digits[2*i], digits[2*i+1]); err != nil {
				return nil, err
			}
		}
		list = append(list, Xattr{name, string(value)})
	}
	return list, nil
}

func parseTime(s string) (t Time, err error) {
	errForm := errors.New("not SEC.NNNNNNNNN or mount.NNNNNNNNN")
	sec, nsec, ok := strings.Cut(s, ".")
	if !ok || len(nsec) != 9 {
		return Time{}, errForm
	}
	for i := range len(nsec) {
		if nsec[i] < '0' || nsec[i] > '9' {
			return Time{}, errForm
		}
		t.Nsec = t.Nsec*10 + uint32(nsec[i]-'0')
	}
	if sec == "mount" {
		t.Mount = true
		return t, nil
	}
	t.Sec, err = strconv.ParseInt(sec, 10, 64)
	if err != nil || strconv.FormatInt(t.Sec, 10) != sec {
		return Time{}, errForm
	}
	return t, nil
}

func parseUint32(s string) (uint32, error) {
	v, err := parseUint(s, math.MaxUint32)
	return uint32(v), err
}

// parseUint reads digits without sign or leading zeros.
func parseUint(s string, limit uint64) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v > limit || strconv.FormatUint(v, 10) != s {
		return 0, errNumber
	}
	return v, nil
}

func unescape(s string, inXattrName bool) (string, error) {
	var b []byte // nil while s is free of escapes
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case plain(c, inXattrName):
			if b != nil {
				b = append(b, c)
			}
		case c == '\\' && i+3 < len(s) && s[i+1] == 'x':
			v, err := parseHexByte(s[i+2], s[i+3])
			if err != nil || plain(v, inXattrName) {
				return "", errEscape
			}
			if b == nil {
				b = append(make([]byte, 0, len(s)), s[:i]...)
			}
			b = append(b, v)
			i += 3
		default:
			return "", errEscape
		}
	}
	if b == nil {
		return s, nil
	}
	return string(b), nil
}

func parseHexByte(hi, lo byte) (byte, error) {
	h, l := strings.IndexByte(hexDigits, hi), strings.IndexByte(hexDigits, lo)
	if h < 0 || l < 0 {
		return 0, errors.New("not lower-case hex digits")
	}
	return byte(h<<4 | l), nil
}

// clip bounds a text that is quoted in a message.
func clip(s string) string {
	const most = 160
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
