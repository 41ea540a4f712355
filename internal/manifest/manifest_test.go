package manifest_test

import (
	"bytes"
	"crypto/sha256"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/corpus"
	"github.com/rafsd/rafsd/internal/manifest"
)

// Every manifest of the corpus is written again, byte for byte, from what was
// parsed, also when the entries come in another order.
func TestCorpusRoundTrip(t *testing.T) {
	dir := corpus.Dir(t)
	for _, pattern := range []string{"trees/*.manifest", "served/*.manifest"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) < 10 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, f := range files {
			t.Run(filepath.Base(f), func(t *testing.T) {
				want, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				entries, err := manifest.Parse(want)
				if err != nil {
					t.Fatal(err)
				}
				slices.Reverse(entries)
				var got bytes.Buffer
				if err := manifest.Write(&got, entries); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%d bytes written again as %d other bytes", len(want), got.Len())
				}
			})
		}
	}
}

// The groups of hard links that a Collector finds are the corpus's, whose truth
// is the hardlink field itself: one inode number is given to each group.
func TestCollectorFindsCorpusHardLinks(t *testing.T) {
	want, err := manifest.ReadFile(filepath.Join(corpus.Dir(t), "trees", "edge.manifest"))
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]uint64{}
	var c manifest.Collector
	for i := len(want) - 1; i >= 0; i-- {
		e := want[i]
		name := e.Hardlink
		if name == "" {
			name = e.Path
		}
		if inodes[name] == 0 {
			inodes[name] = uint64(len(inodes) + 1)
		}
		e.Hardlink = "/wrong"
		c.Add(e, manifest.InodeKey{Dev: 7, Ino: inodes[name]})
	}
	if len(inodes) == len(want) {
		t.Fatal("the corpus's edge tree has no hard links")
	}
	if d := manifest.Compare(c.Entries(), want, manifest.Options{}); !d.Equal() {
		t.Errorf("hard links:\n%s", d)
	}
	if rest := c.Entries(); len(rest) != 0 {
		t.Errorf("%d entries left in an emptied collector", len(rest))
	}
}

func TestCollectorKeepsDevicesApart(t *testing.T) {
	var c manifest.Collector
	for _, e := range []struct {
		path string
		typ  manifest.Type
		key  manifest.InodeKey
	}{
		{"/b", manifest.Fifo, manifest.InodeKey{Dev: 1, Ino: 5}},
		{"/a", manifest.Fifo, manifest.InodeKey{Dev: 1, Ino: 5}},
		{"/c", manifest.Fifo, manifest.InodeKey{Dev: 2, Ino: 5}},
		{"/d", manifest.Directory, manifest.InodeKey{Dev: 1, Ino: 5}},
	} {
		c.Add(manifest.Entry{Path: e.path, Type: e.typ}, e.key)
	}
	var got []string
	for _, e := range c.Entries() {
		got = append(got, e.Path+" "+e.Hardlink)
	}
	if want := []string{"/a /a", "/b /a", "/c ", "/d "}; !slices.Equal(got, want) {
		t.Errorf("groups %q, want %q", got, want)
	}
}

// Lines that use each field's odd cases, and the entries that they stand for.
func TestLine(t *testing.T) {
	tests := map[string]struct {
		line  string
		entry manifest.Entry
	}{
		"directory": {
			"/ d 7755 0 4294967295 - - - -1.500000000 - - - -",
			manifest.Entry{Path: "/", Type: 'd', Mode: 0o7755, GID: math.MaxUint32, Mtime: manifest.Time{Sec: -1, Nsec: 500_000_000}},
		},
		"file": {
			`/a\x20\x5c\x01b\xff f 0000 1 2 18446744073709551615 - 3 0.000000001 - /a user.\x2c\x3d\x20=00ff,user.e= ` + strings.Repeat("ab", sha256.Size),
			manifest.Entry{
				Path: "/a \\\x01b\xff", Type: 'f', UID: 1, GID: 2, Size: math.MaxUint64, Nlink: 3, Mtime: manifest.Time{Nsec: 1}, Hardlink: "/a",
				Xattrs: []manifest.Xattr{{Name: "user.,= ", Value: "\x00\xff"}, {Name: "user.e"}},
				SHA256: [32]byte(bytes.Repeat([]byte{0xab}, sha256.Size)),
			},
		},
		"link whose target is a dash": {
			`/l l 0777 0 0 1 - 1 mount.000000009 \x2d - - -`,
			manifest.Entry{Path: "/l", Type: 'l', Mode: 0o777, Size: 1, Nlink: 1, Mtime: manifest.Time{Nsec: 9, Mount: true}, Target: "-"},
		},
		"link whose target starts with a dash": {
			`/l l 0777 0 0 2 - 1 9.000000009 -\x0a - - -`,
			manifest.Entry{Path: "/l", Type: 'l', Mode: 0o777, Size: 2, Nlink: 1, Mtime: manifest.Time{Sec: 9, Nsec: 9}, Target: "-\n"},
		},
		"device": {
			`/n c 0600 0 0 - 4095:1048575 1 -9223372036854775808.999999999 - - - -`,
			manifest.Entry{Path: "/n", Type: 'c', Mode: 0o600, Major: 4095, Minor: 1048575, Nlink: 1, Mtime: manifest.Time{Sec: math.MinInt64, Nsec: 999_999_999}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := manifest.ParseLine(tt.line)
			if err != nil {
				t.Fatal(err)
			}
			if d := manifest.Compare([]manifest.Entry{got}, []manifest.Entry{tt.entry}, manifest.Options{}); !d.Equal() {
				t.Errorf("parsed entry:\n%s", d)
			}
			if got.Path != tt.entry.Path || got.Target != tt.entry.Target {
				t.Errorf("parsed path %q and target %q, want %q and %q", got.Path, got.Target, tt.entry.Path, tt.entry.Target)
			}
			if line := string(tt.entry.AppendLine(nil)); line != tt.line+"\n" {
				t.Errorf("line %q, want %q", line, tt.line)
			}
		})
	}
}

// Lines that Write would not write are refused, and the error names the field.
func TestParseRefuses(t *testing.T) {
	digest := strings.Repeat("0", 64)
	good := "/f f 0644 0 0 1 - 1 1.000000000 - - - " + digest
	if _, err := manifest.ParseLine(good); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ line, field string }{
		"empty":                        {"", "fields"},
		"twelve fields":                {strings.TrimSuffix(good, " "+digest), "12 fields"},
		"fourteen fields":              {good + " -", "14 fields"},
		"relative path":                {strings.Replace(good, "/f", "f", 1), "path"},
		"path with dots":               {strings.Replace(good, "/f", "/a/../f", 1), "path"},
		"path with empty part":         {strings.Replace(good, "/f", "/a//f", 1), "path"},
		"path with slash at the end":   {strings.Replace(good, "/f", "/f/", 1), "path"},
		"path with NUL":                {strings.Replace(good, "/f", `/f\x00`, 1), "path"},
		"needless escape":              {strings.Replace(good, "/f", `/\x66`, 1), "path"},
		"upper-case escape":            {strings.Replace(good, "/f", `/\xFF`, 1), "path"},
		"cut escape":                   {strings.Replace(good, "/f", `/\xf`, 1), "path"},
		"raw byte":                     {strings.Replace(good, "/f", "/\xff", 1), "path"},
		"unknown type":                 {strings.Replace(good, " f ", " x ", 1), "type"},
		"short mode":                   {strings.Replace(good, "0644", "644", 1), "mode"},
		"decimal mode":                 {strings.Replace(good, "0644", "0648", 1), "mode"},
		"uid beyond 32 bits":           {strings.Replace(good, "0644 0", "0644 4294967296", 1), "uid"},
		"gid with sign":                {strings.Replace(good, "0644 0 0", "0644 0 +1", 1), "gid"},
		"size with leading zero":       {strings.Replace(good, " 1 - 1 ", " 01 - 1 ", 1), "size"},
		"size of a directory":          {"/f d 0644 0 0 1 - - 1.000000000 - - - -", "size"},
		"rdev of a file":               {strings.Replace(good, " 1 - 1 ", " 1 1:1 1 ", 1), "rdev"},
		"rdev without minor":           {"/f c 0644 0 0 - 1 1 1.000000000 - - - -", "rdev"},
		"nlink of a directory":         {"/f d 0644 0 0 - - 2 1.000000000 - - - -", "nlink"},
		"nlink missing":                {strings.Replace(good, " 1 - 1 ", " 1 - - ", 1), "nlink"},
		"mtime with eight digits":      {strings.Replace(good, "1.000000000", "1.00000000", 1), "mtime"},
		"mtime of minus zero":          {strings.Replace(good, "1.000000000", "-0.000000000", 1), "mtime"},
		"mtime beyond 64 bits":         {strings.Replace(good, "1.000000000", "9223372036854775808.000000000", 1), "mtime"},
		"target of a file":             {strings.Replace(good, "00 - - - 0", "00 x - - 0", 1), "target"},
		"link without target":          {"/f l 0644 0 0 1 - 1 1.000000000 - - - -", "target"},
		"hard link after its path":     {strings.Replace(good, "00 - - - 0", "00 - /g - 0", 1), "hardlink"},
		"hard link of a directory":     {"/f d 0644 0 0 - - - 1.000000000 - /a - -", "hardlink"},
		"xattr without value":          {strings.Replace(good, "00 - - - 0", "00 - - user.a 0", 1), "xattrs"},
		"xattr without name":           {strings.Replace(good, "00 - - - 0", "00 - - =00 0", 1), "xattrs"},
		"xattr of half a byte":         {strings.Replace(good, "00 - - - 0", "00 - - user.a=0 0", 1), "xattrs"},
		"xattrs not sorted":            {strings.Replace(good, "00 - - - 0", "00 - - user.b=,user.a= 0", 1), "xattrs"},
		"xattr twice":                  {strings.Replace(good, "00 - - - 0", "00 - - user.b=,user.b= 0", 1), "xattrs"},
		"xattr with NUL":               {strings.Replace(good, "00 - - - 0", `00 - - user.\x00= 0`, 1), "xattrs"},
		"digest of a fifo":             {"/f p 0644 0 0 - - 1 1.000000000 - - - " + digest, "sha256"},
		"digest missing":               {strings.Replace(good, digest, "-", 1), "sha256"},
		"digest with upper-case digit": {strings.Replace(good, digest, "A"+digest[1:], 1), "sha256"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.line == good {
				t.Fatal("the case changes nothing")
			}
			e, err := manifest.ParseLine(tt.line)
			if err == nil {
				t.Fatalf("accepted as %+v", e)
			}
			if !strings.Contains(err.Error(), tt.field) {
				t.Errorf("error %q does not name %q", err, tt.field)
			}
		})
	}
}

func TestParseRefusesWholeFiles(t *testing.T) {
	line := func(path string) string { return path + " d 0755 0 0 - - - 0.000000000 - - - -\n" }
	tests := map[string]struct{ text, want string }{
		"cut at the end":        {strings.TrimSuffix(line("/"), "\n"), "line 1 has no newline"},
		"empty line":            {line("/") + "\n", "line 2"},
		"not sorted":            {line("/") + line("/b") + line("/a"), `line 3: path: "/a" does not sort`},
		"path twice":            {line("/") + line("/"), "line 2: path"},
		"sorted by escaped":     {line(`/\x5c`) + line("/]") + line("/[x"), "line 3"},
		"bad field, third line": {line("/") + line("/a") + "/b x\n", "line 3: 2 fields"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := manifest.Parse([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if got, err := manifest.Parse(nil); err != nil || len(got) != 0 {
		t.Errorf("empty file: %d entries, %v", len(got), err)
	}
}

func TestCompare(t *testing.T) {
	base := []manifest.Entry{
		{Path: "/", Type: 'd', Mode: 0o755, Mtime: manifest.Time{Mount: true}},
		{Path: "/f", Type: 'f', Mode: 0o644, Size: 3, Nlink: 1, Mtime: manifest.Time{Nsec: 1, Mount: true}},
		{Path: "/l", Type: 'l', Mode: 0o777, Size: 1, Nlink: 1, Target: "f"},
	}
	change := func(f func(e []manifest.Entry) []manifest.Entry) []manifest.Entry { return f(slices.Clone(base)) }
	tests := map[string]struct {
		got  []manifest.Entry
		opt  manifest.Options
		want string // of Differences
	}{
		"equal": {base, manifest.Options{}, ""},
		"missing and unwanted": {
			change(func(e []manifest.Entry) []manifest.Entry { e[1].Path = "/e x"; return e }),
			manifest.Options{}, "/e\\x20x: not wanted\n/f: missing\n",
		},
		"rest missing": {base[:1], manifest.Options{}, "/f: missing\n/l: missing\n"},
		"several fields": {
			change(func(e []manifest.Entry) []manifest.Entry { e[2].Target, e[2].Size = "g", 2; return e }),
			manifest.Options{}, "/l: size 2, want 1\n/l: target g, want f\n",
		},
		"bounded": {nil, manifest.Options{Limit: 2}, "/: missing\n/f: missing\nand 1 more differences\n"},
		"field of another type is ignored": {
			change(func(e []manifest.Entry) []manifest.Entry { e[0].Size, e[0].Nlink = 4096, 3; return e }),
			manifest.Options{}, "",
		},
		"ignored field": {
			change(func(e []manifest.Entry) []manifest.Entry { e[1].UID, e[1].GID = 1, 2; return e }),
			manifest.Options{Ignore: []string{"uid"}}, "/f: gid 2, want 0\n",
		},
		"mount time, literally": {
			change(func(e []manifest.Entry) []manifest.Entry { e[0].Mtime = manifest.Time{}; return e }),
			manifest.Options{}, "/: mtime 0.000000000, want mount.000000000\n",
		},
		"mount time, any": {
			change(func(e []manifest.Entry) []manifest.Entry { e[0].Mtime = manifest.Time{Sec: 5, Nsec: 7}; return e }),
			manifest.Options{MountTimes: manifest.MountTimesAny}, "",
		},
		"mount time is the epoch": {
			change(func(e []manifest.Entry) []manifest.Entry {
				e[0].Mtime, e[1].Mtime = manifest.Time{}, manifest.Time{Nsec: 1}
				return e
			}),
			manifest.Options{MountTimes: manifest.MountTimesEpoch}, "",
		},
		"mount time is the epoch, wrong nanoseconds": {
			change(func(e []manifest.Entry) []manifest.Entry { e[1].Mtime = manifest.Time{}; return e }),
			manifest.Options{MountTimes: manifest.MountTimesEpoch}, "/f: mtime 0.000000000, want mount.000000001\n",
		},
		"other times are compared still": {
			change(func(e []manifest.Entry) []manifest.Entry { e[2].Mtime.Sec = 1; return e }),
			manifest.Options{MountTimes: manifest.MountTimesAny}, "/l: mtime 1.000000000, want 0.000000000\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := manifest.Compare(tt.got, base, tt.opt)
			if d.String() != tt.want || d.Equal() != (tt.want == "") {
				t.Errorf("differences (equal: %v):\n%swant:\n%s", d.Equal(), d, tt.want)
			}
		})
	}
}

func TestCompareRefusesUnknownField(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an unknown field was ignored")
		}
	}()
	manifest.Compare(nil, nil, manifest.Options{Ignore: []string{"owner"}})
}

func TestTypeOfMode(t *testing.T) {
	got := ""
	for m := uint32(0); m < 16; m++ {
		if typ, ok := manifest.TypeOfMode(m<<12 | 0o7777); ok {
			got += string(typ)
		}
	}
	if got != "pcdbfls" {
		t.Errorf("types in the order of their bits: %q, want pcdbfls", got)
	}
}

// FuzzParse: whatever is accepted is written again byte for byte.
func FuzzParse(f *testing.F) {
	f.Add([]byte("/ d 0755 0 0 - - - 0.000000000 - - - -\n"))
	f.Add([]byte("/a\\x20 f 4755 1 4294967295 0 - 2 -1.999999999 - /a user.a=00,user.b\\x2c= " + strings.Repeat("0f", 32) + "\n"))
	f.Add([]byte("/ d 0755 0 0 - - - mount.000000000 - - - -\n/l l 0777 0 0 1 - 1 1.000000000 \\x2d - - -\n/n b 0600 0 0 - 1:2 1 1.000000000 - - - -\n"))
	f.Add([]byte("/l l 0777 0 0 0 - 1 1.000000000  - - -\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := manifest.Parse(b)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := manifest.Write(&again, entries); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), b) {
			t.Fatalf("parsed %q, written again %q", b, again.Bytes())
		}
		if d := manifest.Compare(entries, entries, manifest.Options{}); !d.Equal() {
			t.Fatalf("differs from itself:\n%s", d)
		}
	})
}
