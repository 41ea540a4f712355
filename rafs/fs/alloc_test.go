package fs_test

import (
	"testing"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/rafs/fs"
)

// hits are requests that need nothing from outside. base makes what a transport
// keeps from one request to the next and a test does not.
func hits(t testing.TB, variant string) map[string]struct{ base, run func() } {
	f, _ := served(t, variant, fs.Options{})
	path, attr := bySize(t, f, 128<<10)
	if _, err := readAll(f, attr.Ino, attr.Size, 128<<10); err != nil {
		t.Fatal(err)
	}
	root := f.Root()
	name := []byte(path[1:])
	for i, c := range name {
		if c == '/' {
			name = name[:i]
			break
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var (
		op     fuseproto.Op
		entry  fuseproto.Entry
		out    fuseproto.AttrOut
		buf    = make([]byte, 128<<10)
		absent = []byte("no such name")
		in     = fuseproto.ReadIn{Size: 128 << 10}
		sink   *fuseproto.Out
		list   *fuseproto.DirWriter
	)
	none := func() {}
	return map[string]struct{ base, run func() }{
		"getattr":     {none, func() { must(f.GetAttr(&op, attr.Ino, nil, &out)) }},
		"lookup hit":  {none, func() { must(f.Lookup(&op, root, name, &entry)) }},
		"lookup miss": {none, func() { must(f.Lookup(&op, root, absent, &entry)) }},
		"read": {
			func() { sink = fuseproto.NewOut(buf) },
			func() {
				sink = fuseproto.NewOut(buf)
				must(f.Read(&op, attr.Ino, &in, sink))
			},
		},
		"readdirplus": {
			func() { list = fuseproto.NewDirWriter(buf, true) },
			func() {
				list = fuseproto.NewDirWriter(buf, true)
				must(f.ReadDir(&op, root, &fuseproto.ReadIn{}, list))
			},
		},
	}
}

// raceEnabled is set where allocations cannot be counted.
var raceEnabled bool

func TestHitsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools allocate")
	}
	for _, variant := range []string{"v5-dir-zstd-sha256-edge", "v6-dir-zstd-blake3-edge"} {
		for name, h := range hits(t, variant) {
			h.run()
			base, run := testing.AllocsPerRun(100, h.base), testing.AllocsPerRun(100, h.run)
			if run != base {
				t.Errorf("%s %s: %v allocations, want %v", variant, name, run, base)
			}
		}
	}
}

func BenchmarkHits(b *testing.B) {
	for name, h := range hits(b, "v6-dir-zstd-blake3-edge") {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.run()
			}
		})
	}
}
