package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/shim-integration/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeImages opens file systems that have nothing but a root.
type fakeImages struct {
	open   atomic.Int32
	closed atomic.Bool
	begun  chan struct{} // if not nil, tells that an open has begun
	wait   chan struct{} // if not nil, an open waits for it
}

type fakeFS struct {
	fuseproto.ReadOnly
	images *fakeImages
}

func (f *fakeImages) openImage(_ context.Context, b bootstrap, _ *config.Config) (fuseproto.FileSystem, func(), error) {
	if f.begun != nil {
		f.begun <- struct{}{}
		<-f.wait
	}
	if b.path == "/broken" {
		return nil, nil, fmt.Errorf("open image %s: not a RAFS bootstrap", b.path)
	}
	f.open.Add(1)
	return &fakeFS{images: f}, func() {}, nil
}

func (f *fakeImages) Close() error {
	f.closed.Store(true)
	return nil
}

func (f *fakeFS) Root() uint64 { return 1 }
func (f *fakeFS) Lookup(_ *fuseproto.Op, _ uint64, name []byte, _ *fuseproto.Entry) error {
	return syscall.ENOENT
}
func (f *fakeFS) GetAttr(*fuseproto.Op, uint64, *fuseproto.GetAttrIn, *fuseproto.AttrOut) error {
	return nil
}
func (f *fakeFS) Read(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.Out) error { return nil }
func (f *fakeFS) ReadDir(*fuseproto.Op, uint64, *fuseproto.ReadIn, *fuseproto.DirWriter) error {
	return nil
}
func (f *fakeFS) Readlink(*fuseproto.Op, uint64, *fuseproto.Out) error { return syscall.EINVAL }
func (f *fakeFS) Close() error {
	f.images.open.Add(-1)
	return nil
}

func testDaemon(t *testing.T, images *fakeImages, o Options) *Daemon {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	d, err := newDaemon(o, images)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if n := images.open.Load(); n != 0 {
			t.Errorf("%d file systems are still open", n)
		}
		if !images.closed.Load() {
			t.Error("the images were not closed")
		}
	})
	return d
}

const localText = `{"version":2,"backend":{"type":"localfs","localfs":{"dir":"/b"}},"rafs":{}}`

func request(mountpoint string) MountRequest {
	return MountRequest{Mountpoint: mountpoint, FSType: "rafs", Source: "/image", Config: localText}
}

func TestStates(t *testing.T) {
	d := testDaemon(t, &fakeImages{}, Options{ID: "i", Supervisor: "s"})
	if info := d.Info(); info.State != StateInit || info.ID != "i" || info.Supervisor != "s" || len(info.Mounts) != 0 {
		t.Errorf("a new daemon: %+v", info)
	}
	if err := d.Start(); err != nil || d.Info().State != StateRunning {
		t.Errorf("after Start: %v, %s", err, d.Info().State)
	}
	if err := d.Start(); !errors.Is(err, ErrState) || d.Info().State != StateRunning {
		t.Errorf("second Start: %v, %s, want ErrState and no change", err, d.Info().State)
	}
	if err := d.Close(); err != nil || d.Info().State != StateStopped {
		t.Errorf("after Close: %v, %s", err, d.Info().State)
	}
	if err := d.Mount(t.Context(), request("/a")); !errors.Is(err, ErrStopping) {
		t.Errorf("Mount after Close: %v, want ErrStopping", err)
	}
}

func TestTransitions(t *testing.T) {
	for _, from := range []State{StateInit, StateReady, StateRunning, StateStopped} {
		for _, e := range []event{eventMount, eventStart, eventStop, eventExit, "Takeover"} {
			want := map[string]State{
				"INIT Mount": StateReady, "INIT Stop": StateStopped, "READY Start": StateRunning,
				"READY Stop": StateStopped, "READY Exit": StateStopped, "RUNNING Stop": StateReady,
			}[string(from)+" "+string(e)]
			to, err := from.after(e)
			if want == "" {
				if !errors.Is(err, ErrState) || to != from {
					t.Errorf("%s in %s: %s, %v, want to be refused", e, from, to, err)
				}
			} else if err != nil || to != want {
				t.Errorf("%s in %s: %s, %v, want %s", e, from, to, err, want)
			}
		}
	}
}

func TestMountAndUmount(t *testing.T) {
	d := testDaemon(t, &fakeImages{}, Options{})
	if err := d.Mount(t.Context(), request("/rafs/c1/../c1/./lowerdir/")); err != nil {
		t.Fatal(err)
	}
	if err := d.Mount(t.Context(), request("/a")); err != nil {
		t.Fatal(err)
	}
	info := d.Info()
	if len(info.Mounts) != 2 || info.Mounts[0].Mountpoint != "/a" || info.Mounts[1].Mountpoint != "/rafs/c1/lowerdir" {
		t.Fatalf("mounts %+v", info.Mounts)
	}
	if m := info.Mounts[1]; m.FSType != FSRafs || m.Source != "/image" || m.Config == nil || m.Mounted.IsZero() {
		t.Errorf("mount %+v", m)
	}
	if err := d.Mount(t.Context(), request("/rafs/c1/lowerdir")); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "/rafs/c1/lowerdir") {
		t.Errorf("mount where one is: %v, want ErrExists", err)
	}
	// The tree itself sees what our list cannot: a directory of other mounts.
	if err := d.Mount(t.Context(), request("/rafs")); !errors.Is(err, ErrExists) {
		t.Errorf("mount over a directory of others: %v, want ErrExists", err)
	}
	if err := d.Umount(t.Context(), "/rafs/c1/lowerdir/"); err != nil {
		t.Errorf("Umount: %v", err)
	}
	if err := d.Umount(t.Context(), "/rafs/c1/lowerdir"); !errors.Is(err, ErrNotMounted) {
		t.Errorf("second Umount: %v, want ErrNotMounted", err)
	}
	if err := d.Mount(t.Context(), request("/rafs/c1/lowerdir")); err != nil {
		t.Errorf("mount again: %v", err)
	}
}

func TestMountFaults(t *testing.T) {
	d := testDaemon(t, &fakeImages{}, Options{})
	change := func(f func(*MountRequest)) MountRequest {
		r := request("/m")
		f(&r)
		return r
	}
	for name, tt := range map[string]struct {
		r    MountRequest
		is   error
		want string
	}{
		"relative":          {request("m"), ErrInvalid, `"m" is not an absolute path`},
		"NUL":               {request("/m\x00"), ErrInvalid, "no path may hold"},
		"long":              {request("/" + strings.Repeat("x", 5000)), ErrInvalid, "5001 bytes"},
		"a long name":       {request("/" + strings.Repeat("x", 256)), ErrInvalid, ""},
		"no fs_type":        {change(func(r *MountRequest) { r.FSType = "" }), ErrInvalid, "neither rafs nor passthrough_fs"},
		"another fs_type":   {change(func(r *MountRequest) { r.FSType = "ext4" }), ErrInvalid, `"ext4"`},
		"passthrough":       {change(func(r *MountRequest) { r.FSType, r.Source = "passthrough_fs", "/nowhere" }), nil, "/nowhere: no such file"},
		"passthrough file":  {change(func(r *MountRequest) { r.FSType, r.Source = "passthrough", "/proc/self/exe" }), nil, "not a directory"},
		"passthrough none":  {change(func(r *MountRequest) { r.FSType, r.Source = "passthroughfs", "" }), ErrInvalid, "source is empty"},
		"config broken":     {change(func(r *MountRequest) { r.Config = "{" }), config.ErrInvalid, "line 1"},
		"config of oss":     {change(func(r *MountRequest) { r.Config = strings.Replace(ossText, "KEY", "k", 1) }), config.ErrUnsupported, "oss"},
		"no source":         {change(func(r *MountRequest) { r.Source = "" }), ErrInvalid, "source is empty"},
		"broken bootstrap":  {change(func(r *MountRequest) { r.Source = "/broken" }), nil, "not a RAFS bootstrap"},
		"umount of no path": {request(""), ErrInvalid, "absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			err := d.Mount(t.Context(), tt.r)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Mount: %v, want %v with %q", err, tt.is, tt.want)
			}
			if n := len(d.Info().Mounts); n != 0 {
				t.Errorf("a failed mount left %d mounts", n)
			}
		})
	}
	if err := d.Mount(t.Context(), request("/m")); err != nil {
		t.Errorf("a good mount after all the bad ones: %v", err)
	}
}

const ossText = `{"version":2,"backend":{"type":"oss","oss":{"endpoint":"e","bucket_name":"b","access_key_id":"KEY"}},"rafs":{}}`

// TestAMountThatIsBeingMade is neither mounted nor free.
func TestAMountThatIsBeingMade(t *testing.T) {
	images := &fakeImages{begun: make(chan struct{}), wait: make(chan struct{})}
	d := testDaemon(t, images, Options{})
	done := make(chan error, 1)
	go func() { done <- d.Mount(context.Background(), request("/m")) }()
	<-images.begun
	if err := d.Mount(t.Context(), request("/m")); !errors.Is(err, ErrExists) {
		t.Errorf("second mount meanwhile: %v, want ErrExists", err)
	}
	if err := d.Umount(t.Context(), "/m"); !errors.Is(err, ErrNotMounted) {
		t.Errorf("umount meanwhile: %v, want ErrNotMounted", err)
	}
	if n := len(d.Info().Mounts); n != 0 {
		t.Errorf("it is shown as mounted")
	}
	close(images.wait)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAloneRefusesMore(t *testing.T) {
	d := testDaemon(t, &fakeImages{}, Options{Alone: true})
	c, err := config.Parse(localText)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.MountImage(t.Context(), "/", "/image", c, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Mount(t.Context(), request("/a")); !errors.Is(err, ErrState) {
		t.Errorf("a further mount: %v, want ErrState", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	d := testDaemon(t, &fakeImages{}, Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				at := fmt.Sprintf("/rafs/c%d-%d/lowerdir", i, j)
				if err := d.Mount(t.Context(), request(at)); err != nil {
					t.Error(err)
				}
				d.Info()
				if j%2 == 0 {
					if err := d.Umount(t.Context(), at); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := len(d.Info().Mounts); n != 8*25 {
		t.Errorf("%d mounts, want %d", n, 8*25)
	}
}
