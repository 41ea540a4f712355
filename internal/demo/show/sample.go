package show

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/testimage"
)

// server is the sample's application: its large program, of which a start reads
// the beginning only.
const server = "/opt/shop/bin/shop-server"

// libDir is where the sample's libraries are.
const libDir = "/usr/lib/x86_64-linux-gnu"

// read is one read of a container's start.
type read struct {
	path string
	head int // so many bytes from the beginning; 0 is the whole file
}

// startReads is what a container reads until its application runs: the shell that
// is its entry point, the loader, the libraries, the files that a C library looks
// into, the application's configuration and the beginning of its program.
var startReads = []read{
	{path: "/usr/bin/dash"},
	{path: libDir + "/ld-linux-x86-64.so.2"},
	{path: libDir + "/libc.so.6"},
	{path: "/etc/ld.so.cache"},
	{path: "/etc/nsswitch.conf"},
	{path: "/etc/passwd"},
	{path: "/etc/group"},
	{path: "/etc/hosts"},
	{path: "/opt/shop/etc/shop.toml"},
	{path: server, head: 64 << 10},
}

// sample is the image of the demo, and what is true about it.
type sample struct {
	*testimage.Image
	truth []manifest.Entry

	files int   // regular files by name
	bytes int64 // their sizes
	blob  int64 // size of the one blob in the registry

	sums map[read][sha256.Size]byte // of startReads
	// startFiles is their number, startBytes how much they read.
	startFiles int
	startBytes int64
}

// writeSample writes the sample as a v6 image with zstd to dir. It is the same
// image each time. Sizes are divided by shrink; it is 1 but in tests. Writing stops
// soon after ctx ends.
func writeSample(ctx context.Context, dir string, shrink int) (*sample, error) {
	tree, program := sampleTree(ctx, shrink)
	img, err := tree.Write(dir, testimage.Options{Version: testimage.V6, Compressor: testimage.Zstd})
	if err != nil {
		return nil, err
	}
	if len(img.Blobs) != 1 {
		return nil, fmt.Errorf("sample image: %d blobs, want 1", len(img.Blobs))
	}
	s := &sample{Image: img, blob: int64(img.Blobs[0].Size), sums: map[read][sha256.Size]byte{}}
	if s.truth, err = img.Manifest(); err != nil {
		return nil, err
	}
	byPath := map[string]*manifest.Entry{}
	for i := range s.truth {
		e := &s.truth[i]
		if e.Type == manifest.Regular {
			s.files++
			s.bytes += int64(e.Size)
			byPath[e.Path] = e
		}
	}
	for _, r := range startReads {
		e, ok := byPath[r.path]
		if !ok {
			return nil, fmt.Errorf("sample image: no file %s", r.path)
		}
		s.startFiles++
		if r.head == 0 {
			s.sums[r] = e.SHA256
			s.startBytes += int64(e.Size)
		} else {
			s.sums[r] = sha256.Sum256(program[:r.head])
			s.startBytes += int64(r.head)
		}
	}
	return s, nil
}

// sampleTree is a small Debian-like root file system with an application on top of
// it; serverProgram is the content of server. Reading the large files fails when
// ctx has ended.
func sampleTree(ctx context.Context, shrink int) (t *testimage.Tree, serverProgram []byte) {
	t = testimage.NewTree()
	rng := rand.New(rand.NewPCG(9, 9))
	seed := uint64(0)
	next := func() uint64 { seed++; return seed }
	bytes := func(n int) int { return max(n/shrink, 64) }
	between := func(low, high int) int { return bytes(low + rng.IntN(high-low)) }
	const exec = 0o755

	for _, name := range []string{"bin", "lib", "sbin"} {
		t.Symlink("/"+name, "usr/"+name)
	}
	t.Symlink("/lib64", "usr/lib/x86_64-linux-gnu")
	for _, name := range []string{"/boot", "/home", "/media", "/mnt", "/proc", "/run", "/srv", "/sys"} {
		t.Dir(name)
	}
	t.Dir("/root", testimage.Mode(0o700))
	t.Dir("/tmp", testimage.Mode(0o1777))
	t.Device("/dev/console", false, 5, 1, testimage.Mode(0o600))
	t.Device("/dev/null", false, 1, 3, testimage.Mode(0o666))
	t.Fifo("/run/initctl", testimage.Mode(0o600))

	t.File("/etc/debian_version", []byte("12.11\n"))
	t.File("/etc/hostname", []byte("shop\n"))
	t.File("/etc/hosts", []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n"))
	t.File("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nshop:x:1000:1000::/opt/shop:/bin/sh\n"))
	t.File("/etc/group", []byte("root:x:0:\nshadow:x:42:\nshop:x:1000:\n"))
	t.File("/etc/shadow", []byte("root:*:19700:0:99999:7:::\n"), testimage.Mode(0o640), testimage.Owner(0, 42))
	t.File("/etc/nsswitch.conf", []byte("passwd: files\ngroup: files\nhosts: files dns\n"))
	t.File("/etc/ld.so.cache", prose(bytes(9_000), next()))
	t.File("/etc/ssl/certs/ca-certificates.crt", picture(bytes(210_000), next()))
	for i := range 60 {
		t.File(fmt.Sprintf("/etc/default/service-%02d", i), prose(between(80, 3_000), next()))
	}

	t.File("/usr/bin/dash", program(bytes(126_000), next()), testimage.Mode(exec))
	t.Symlink("/usr/bin/sh", "dash")
	t.File("/usr/bin/perl", program(bytes(2_900_000), next()), testimage.Mode(exec))
	t.Link("/usr/bin/perl5.36.0", "/usr/bin/perl")
	t.File("/usr/bin/su", program(bytes(72_000), next()), testimage.Mode(0o4755))
	t.File("/usr/bin/ping", program(bytes(77_000), next()), testimage.Mode(exec),
		testimage.Xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	for i := range 110 {
		t.File(fmt.Sprintf("/usr/bin/tool-%03d", i), program(between(15_000, 90_000), next()), testimage.Mode(exec))
	}
	t.File("/usr/sbin/ldconfig", program(bytes(900_000), next()), testimage.Mode(exec))

	t.File(libDir+"/ld-linux-x86-64.so.2", program(bytes(210_000), next()), testimage.Mode(exec))
	t.File(libDir+"/libc.so.6", program(bytes(1_920_000), next()), testimage.Mode(exec))
	t.File(libDir+"/libcrypto.so.3", program(bytes(3_700_000), next()))
	t.File(libDir+"/libssl.so.3", program(bytes(690_000), next()))
	t.File(libDir+"/libstdc++.so.6", program(bytes(2_190_000), next()))
	for i := range 45 {
		name := fmt.Sprintf("%s/libpart%02d.so.1", libDir, i)
		t.FileOf(name+".0.0", whileAlive{testimage.Bytes(program(between(20_000, 180_000), next())), ctx})
		t.Symlink(name, fmt.Sprintf("libpart%02d.so.1.0.0", i))
	}
	for i := range 420 {
		t.File(fmt.Sprintf("/usr/share/perl/5.36/Part%02d/Module%03d.pm", i/20, i), prose(between(900, 24_000), next()))
	}
	for i := range 160 {
		t.File(fmt.Sprintf("/usr/share/doc/package-%03d/copyright", i), prose(between(1_000, 12_000), next()))
	}
	for i := range 330 {
		t.File(fmt.Sprintf("/usr/share/zoneinfo/Area%02d/City%03d", i/30, i), picture(between(120, 2_400), next()))
	}

	serverProgram = program(bytes(9<<20), next())
	t.FileOf(server, whileAlive{testimage.Bytes(serverProgram), ctx}, testimage.Mode(exec))
	owner := testimage.Owner(1000, 1000)
	t.File("/opt/shop/etc/shop.toml", []byte("listen = \":8080\"\ncatalogue = \"/opt/shop/data/catalogue.json\"\n"), owner)
	t.FileOf("/opt/shop/data/catalogue.json", whileAlive{testimage.Bytes(catalogue(bytes(8<<20), next())), ctx}, owner)
	for i := range 60 {
		t.File(fmt.Sprintf("/opt/shop/static/picture-%02d.png", i), picture(between(20_000, 150_000), next()), owner)
	}
	t.Dir("/opt/shop/data", owner, testimage.Xattr("user.comment", "made for the demo"))

	t.File("/var/lib/dpkg/status", prose(bytes(330_000), next()))
	for i := range 160 {
		t.File(fmt.Sprintf("/var/lib/dpkg/info/package-%03d.list", i), prose(between(200, 6_000), next()))
	}
	return t, serverProgram
}

// whileAlive is content that cannot be read any more when ctx has ended.
type whileAlive struct {
	testimage.Content
	ctx context.Context
}

func (w whileAlive) ReadAt(p []byte, off int64) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.Content.ReadAt(p, off)
}
