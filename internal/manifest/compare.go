package manifest

import (
	"fmt"
	"strings"
)

// field is a field's position in a line.
type field int

const (
	fieldPath field = iota
	fieldType
	fieldMode
	fieldUID
	fieldGID
	fieldSize
	fieldRdev
	fieldNlink
	fieldMtime
	fieldTarget
	fieldHardlink
	fieldXattrs
	fieldSHA256
	numFields
)

var fieldNames = [numFields]string{
	"path", "type", "mode", "uid", "gid", "size", "rdev", "nlink", "mtime", "target", "hardlink", "xattrs", "sha256",
}

func (f field) String() string { return fieldNames[f] }

// MountTimes says what "mount.NNNNNNNNN", the mtime that depends on when a tree
// was mounted, is equal to.
type MountTimes int

const (
	MountTimesLiteral MountTimes = iota // only itself
	MountTimesAny                       // every mtime
	MountTimesEpoch                     // itself and 0.NNNNNNNNN: what a reader shows that does not put in the time of mounting
)

// Options of Compare; the zero value compares everything.
type Options struct {
	MountTimes MountTimes
	Ignore     []string // names of fields to leave out, as the package comment has them
	Limit      int      // most differences that are kept, 0 means 30
}

// Difference is one field of one path in which two trees differ. Field is "path"
// when one of them lacks the path: its side is then empty.
type Difference struct {
	Path, Field string
	Got, Want   string // as a manifest shows them
}

func (d Difference) String() string {
	path := Escape(d.Path)
	switch {
	case d.Field == fieldNames[fieldPath] && d.Got == "":
		return path + ": missing"
	case d.Field == fieldNames[fieldPath]:
		return path + ": not wanted"
	}
	return fmt.Sprintf("%s: %s %s, want %s", clip(path), d.Field, clip(d.Got), clip(d.Want))
}

// Differences is what Compare found: the first ones and the number of all.
type Differences struct {
	List  []Difference
	Total int
}

// Equal reports whether nothing differs.
func (d Differences) Equal() bool { return d.Total == 0 }

// String is a text of one line a difference, empty when nothing differs.
func (d Differences) String() string {
	var b strings.Builder
	for _, one := range d.List {
		b.WriteString(one.String())
		b.WriteByte('\n')
	}
	if more := d.Total - len(d.List); more > 0 {
		fmt.Fprintf(&b, "and %d more differences\n", more)
	}
	return b.String()
}

// Compare tells how got differs from want. Both must be sorted by path, as they
// are after Parse, Sort and Collector.Entries. It panics when o.Ignore has a name
// that is no field's: a comparison must not silently leave out the wrong one.
func Compare(got, want []Entry, o Options) Differences {
	var d Differences
	limit := o.Limit
	if limit <= 0 {
		limit = 30
	}
	add := func(path string, f field, got, want string) {
		if d.Total++; len(d.List) < limit {
			d.List = append(d.List, Difference{path, f.String(), got, want})
		}
	}
	var ignore [numFields]bool
	for _, name := range o.Ignore {
		known := false
		for f := fieldType; f < numFields; f++ {
			if fieldNames[f] == name {
				ignore[f], known = true, true
			}
		}
		if !known {
			panic("manifest: no field " + name + " to ignore")
		}
	}
	var bufGot, bufWant []byte
	for len(got) > 0 || len(want) > 0 {
		switch {
		case len(want) == 0 || len(got) > 0 && got[0].Path < want[0].Path:
			add(got[0].Path, fieldPath, Escape(got[0].Path), "")
			got = got[1:]
			continue
		case len(got) == 0 || want[0].Path < got[0].Path:
			add(want[0].Path, fieldPath, "", Escape(want[0].Path))
			want = want[1:]
			continue
		}
		g, w := &got[0], &want[0]
		for f := fieldType; f < numFields; f++ {
			if ignore[f] || f == fieldMtime && o.MountTimes.equal(g.Mtime, w.Mtime) {
				continue
			}
			bufGot, bufWant = g.appendField(bufGot[:0], f), w.appendField(bufWant[:0], f)
			if string(bufGot) != string(bufWant) {
				add(g.Path, f, string(bufGot), string(bufWant))
			}
		}
		got, want = got[1:], want[1:]
	}
	return d
}

func (m MountTimes) equal(a, b Time) bool {
	if a.Mount != b.Mount {
		switch m {
		case MountTimesAny:
			return true
		case MountTimesEpoch:
			return a.Sec == 0 && b.Sec == 0 && a.Nsec == b.Nsec
		}
	}
	return a == b || a.Mount && b.Mount && m == MountTimesAny
}
