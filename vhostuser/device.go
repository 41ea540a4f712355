package vhostuser

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/session"
	"github.com/rafsd/rafsd/vhostuser/virtqueue"
	"github.com/rafsd/rafsd/vhostuser/wire"
)

// Device is the data half of a back-end: guest memory and the vrings, which it
// serves with a Handler. A session.Session drives it; its methods are those of
// session.Device, plus Close. They may be called by several goroutines.
type Device struct {
	handler Handler
	opts    Options

	mu       sync.Mutex                     // before vring.mu
	table    *guestmem.Table                // guarded by mu; nil before the first memory
	features uint64                         // guarded by mu
	vrings   []*vring                       // immutable
	used     bool                           // guarded by mu; the Handler may know something of the guest
	inflight atomic.Pointer[inflightMemory] // written under mu; nil = requests end with the process
	suspect  int                            // how many ends of a process a request may be in; guarded by mu
	closed   bool                           // guarded by mu
	trial    sync.Mutex                     // held while a request that may end us runs; before vring.mu
}

var _ session.Device = (*Device)(nil)

// errClosed is what happens to a Device that is used after its end.
var errClosed = errors.New("device is closed")

// NewDevice returns a Device without memory whose vrings are all stopped. Close
// must be called in the end.
func NewDevice(h Handler, o Options) (*Device, error) {
	o, _, err := o.complete(h)
	if err != nil {
		return nil, err
	}
	return newDevice(h, o), nil
}

// newDevice takes options that were completed.
func newDevice(h Handler, o Options) *Device {
	d := &Device{handler: h, opts: o, vrings: make([]*vring, o.Queues)}
	for i := range d.vrings {
		d.vrings[i] = newVring(i, h, &o, &o.Counters.vrings[i], &d.trial, d.memoryGone)
	}
	if h, ok := h.(Stateful); ok {
		h.SaveState(d.saveState)
	}
	return d
}

// Close stops all vrings, ends all requests and frees memory and descriptors. It
// returns when the Handler has returned from everything. The Handler learns by
// Reset that the guest is gone.
func (d *Device) Close() { d.close(true) }

// Abandon is Close for a device that another process goes on with: the guest
// notices nothing, and the Handler is not told that it is gone.
func (d *Device) Abandon() { d.close(false) }

func (d *Device) close(gone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	d.pauseLocked()
	if h, ok := d.handler.(Stateful); ok {
		h.SaveState(nil) // that the front-end is gone is no news to who takes over
	}
	for _, v := range d.vrings {
		v.forget()
		v.inflight = nil
	}
	if d.used && gone {
		d.handler.Reset()
	}
	d.used = false
	if m := d.inflight.Swap(nil); m != nil {
		m.unmap()
	}
	for _, v := range d.vrings {
		v.setKick(nil)
		v.setCall(notifier{})
		v.setFailure(notifier{})
	}
	if d.table != nil {
		d.table.Release()
		d.table = nil
	}
}

// Stats returns what the vrings have done.
func (d *Device) Stats() []VringStats {
	return d.opts.Counters.Read()
}

// SetFeatures implements session.Device.
func (d *Device) SetFeatures(features uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.features = features
}

// SetMemory implements session.Device. Running vrings pause meanwhile, so that
// nobody holds the old memory when it is given up.
func (d *Device) SetMemory(regions []guestmem.Source) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	next, err := guestmem.NewTable(d.table, regions)
	if err != nil {
		return err
	}
	old := d.table
	d.table = next
	for _, v := range d.pauseLocked() {
		if err := v.resume(next); err != nil {
			// The rings lie in memory that was taken away: the vring stays
			// paused until it is set up anew.
			v.giveUp(fmt.Errorf("memory changed under the rings: %w", err))
		}
	}
	if old != nil {
		old.Release()
	}
	return nil
}

// pauseLocked pauses all vrings and returns those that were running.
func (d *Device) pauseLocked() (were []*vring) {
	// All are told first, so that they stop at the same time.
	for _, v := range d.vrings {
		if v.running {
			were = append(were, v)
			v.stop(haltPause)
		}
	}
	for _, v := range were {
		v.pause()
	}
	return were
}

// memoryGone ends all vrings: a fault has shown that the file behind guest memory
// was truncated. It is called by the goroutines of vrings and takes no lock that
// somebody holds who waits for them.
func (d *Device) memoryGone() {
	for _, v := range d.vrings {
		v.stop(haltFault)
	}
}

// SetKick implements session.Device.
func (d *Device) SetKick(i, fd int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	var k *kick
	if fd >= 0 {
		var err error
		if k, err = newKick(fd); err != nil {
			return fmt.Errorf("vring %d: %w", i, err)
		}
	}
	d.vrings[i].pause()
	d.vrings[i].setKick(k)
	return nil
}

// SetCall implements session.Device.
func (d *Device) SetCall(i, fd int) error { return d.setNotifier(i, fd, (*vring).setCall) }

// SetErr implements session.Device.
func (d *Device) SetErr(i, fd int) error { return d.setNotifier(i, fd, (*vring).setFailure) }

func (d *Device) setNotifier(i, fd int, set func(*vring, notifier)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	n, err := newNotifier(fd)
	if err != nil {
		return fmt.Errorf("vring %d: %w", i, err)
	}
	set(d.vrings[i], n)
	return nil
}

// prepare sets vring v up to run from r on. What it finds in guest memory and in the
// table of requests in flight may be gone: that is an error, not a panic.
func (d *Device) prepare(v *vring, r session.Ring) (fresh bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if err = d.table.Fault(p); err == nil {
				err = d.inflight.Load().fault(p)
			}
			if err == nil {
				panic(p)
			}
		}
	}()
	return v.prepare(d.table, r, d.config(r), d.suspect)
}

// config returns how a vring at r is set up.
func (d *Device) config(r session.Ring) virtqueue.Config {
	return virtqueue.Config{
		Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used,
		EventIdx: d.features&wire.FeatureEventIdx != 0,
		Indirect: d.features&wire.FeatureIndirectDesc != 0,
		MaxBytes: d.opts.MaxRequestBytes,
	}
}

// StartVring implements session.Device.
func (d *Device) StartVring(i int, r session.Ring) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	v := d.vrings[i]
	v.pause()
	if d.table == nil {
		return fmt.Errorf("vring %d: no guest memory: %w", i, session.ErrVring)
	}
	if v.kick == nil {
		return fmt.Errorf("vring %d: no kick", i)
	}
	wasSetUp := v.setUp
	fresh, err := d.prepare(v, r)
	if err != nil {
		err = fmt.Errorf("vring %d: %w", i, err)
		v.giveUp(err)
		if guestFault(err) {
			err = fmt.Errorf("%w: %w", session.ErrVring, err)
		}
		return err
	}
	if fresh && wasSetUp {
		d.driverRestarted(v)
	}
	d.used = true
	v.launch(d.table)
	return nil
}

// driverRestarted is called when v is about to begin anew though it was set up
// before: the driver has reset the device without a message that says so, as with
// every reboot under QEMU 7.2. If nothing was served since, the Handler is told;
// otherwise the driver is at work again already, and the Handler sees from the
// requests what has become of it.
func (d *Device) driverRestarted(v *vring) {
	running := d.pauseLocked()
	quiet := d.used
	for _, r := range running {
		if r.queue.Base() != r.place.Base || r.waits() {
			quiet = false
		}
	}
	if quiet {
		for _, other := range d.vrings {
			if other != v && !slices.Contains(running, other) {
				other.forget()
				other.clearInflight()
				other.setUp = false
			}
		}
		d.handler.Reset()
	}
	for _, r := range running {
		r.launch(d.table) // the same memory as a moment ago
	}
}

// StopVring implements session.Device.
func (d *Device) StopVring(i int) uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vrings[i]
	v.pause()
	if v.queue == nil {
		return 0
	}
	return v.queue.Base()
}

// Reset implements session.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resetLocked()
}

func (d *Device) resetLocked() {
	d.pauseLocked()
	for _, v := range d.vrings {
		v.forget()
		v.clearInflight()
		v.setUp = false
	}
	if d.used {
		d.used = false
		d.handler.Reset()
	}
}
