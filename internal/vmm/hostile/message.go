package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/rafsd/rafsd/internal/vmm"
	"golang.org/x/sys/unix"
)

// messageAttack is a front-end that sends nonsense over the socket after an
// ordinary negotiation.
type messageAttack struct {
	name string
	send func(vm *vmm.VM) error
	// maybe is true where a back-end may as well take the message.
	maybe bool
}

// attack runs it: the back-end refuses the message or closes the connection, and
// serves the next machine.
func (a messageAttack) attack() Attack {
	return Attack{Name: "message: " + a.name, Run: func(ctx context.Context, dial Dial) error {
		vm, err := dial(ctx, vmm.Options{Sequence: vmm.QEMU11, Memory: vmm.Flat(memorySize)})
		if err != nil {
			return err
		}
		defer vm.Kill()
		vm.Control.Timeout = patience
		err = a.send(vm)
		var no *vmm.RefusedError
		switch {
		case errors.As(err, &no), closedByPeer(err):
		case err == nil && a.maybe:
		case err == nil:
			return errors.New("the message was accepted")
		default:
			return fmt.Errorf("neither refused nor closed: %w", err)
		}
		vm.Kill()
		return Survives(ctx, dial)
	}}
}

func closedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// raw sends bytes and then asks for the features: an answer means that the
// connection lives on in good order.
func raw(vm *vmm.VM, b []byte, fds ...int) error {
	if err := vm.Control.SendRaw(b, fds...); err != nil {
		return err
	}
	_, err := vm.Control.GetU64(vmm.GetFeatures)
	return err
}

// get sends a message that has a reply of its own and takes any reply: its own or a
// refusal.
func get(vm *vmm.VM, req vmm.Request, payload []byte) error {
	if err := vm.Control.Send(req, vmm.NeedReply, payload); err != nil {
		return err
	}
	_, _, err := vm.Control.Receive(req, -1)
	return err
}

func message(req vmm.Request, flags, size uint32, payload []byte) []byte {
	return append(le32(uint32(req), flags, size), payload...)
}

// withFd runs f with a descriptor of a file that is no memory and no eventfd.
func withFd(open func() (int, error), f func(fd int) error) error {
	fd, err := open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

func devNull() (int, error)   { return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0) }
func directory() (int, error) { return unix.Open(os.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0) }
func memfd() (int, error)     { return unix.MemfdCreate("attack", unix.MFD_CLOEXEC) }
func pipeEnd() (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	unix.Close(p[1])
	return p[0], nil
}

// grownMemfd is a memfd of 1 MiB.
func grownMemfd() (int, error) {
	fd, err := memfd()
	if err == nil {
		err = unix.Ftruncate(fd, 1<<20)
	}
	return fd, err
}

func messageAttacks() []Attack {
	set := func(req vmm.Request, payload []byte) func(*vmm.VM) error {
		return func(vm *vmm.VM) error { return vm.Control.Set(req, true, payload) }
	}
	setFd := func(req vmm.Request, payload []byte, open func() (int, error)) func(*vmm.VM) error {
		return func(vm *vmm.VM) error {
			return withFd(open, func(fd int) error { return vm.Control.Set(req, true, payload, fd) })
		}
	}
	region := func(v ...uint64) []byte { return append(make([]byte, 8), le64(v...)...) }
	list := []messageAttack{
		{"queue size 0", set(vmm.SetVringNum, le32(0, 0)), false},
		{"queue size 3", set(vmm.SetVringNum, le32(0, 3)), false},
		{"queue size 65536", set(vmm.SetVringNum, le32(0, 65536)), false},
		{"queue size 2^31", set(vmm.SetVringNum, le32(0, 1<<31)), false},
		{"size of queue 255", set(vmm.SetVringNum, le32(255, 64)), false},
		{"size of queue 2^32-1", set(vmm.SetVringNum, le32(^uint32(0), 64)), false},
		{"base of queue 255", set(vmm.SetVringBase, le32(255, 0)), false},
		{"base 2^32-1", set(vmm.SetVringBase, le32(0, ^uint32(0))), true},
		{"address of queue 255", set(vmm.SetVringAddr, append(le32(255, 0), le64(0, 0, 0, 0)...)), false},
		{"address without memory", func(vm *vmm.VM) error {
			if err := vm.Control.Set(vmm.SetVringAddr, true, append(le32(0, 0), le64(0x1000, 0x2000, 0x3000, 0)...)); err != nil {
				return err
			}
			return vm.Control.Set(vmm.SetVringEnable, true, le32(0, 1))
		}, true},
		{"addresses that overflow", set(vmm.SetVringAddr, append(le32(0, 0), le64(^uint64(0)-15, ^uint64(0)-3, ^uint64(0)-1, 0)...)), true},
		{"addresses out of alignment", set(vmm.SetVringAddr, append(le32(0, 0), le64(1, 2, 3, 0)...)), true},
		{"enabling of queue 255", set(vmm.SetVringEnable, le32(255, 1)), false},
		{"enabling with 2", set(vmm.SetVringEnable, le32(0, 2)), true},
		{"base of queue 255 asked", func(vm *vmm.VM) error {
			return get(vm, vmm.GetVringBase, le32(255, 0))
		}, true},
		{"kick of queue 255", setFd(vmm.SetVringKick, le64(255), grownMemfd), false},
		{"kick that is a directory", setFd(vmm.SetVringKick, le64(0), directory), true},
		{"kick that is /dev/null", setFd(vmm.SetVringKick, le64(0), devNull), true},
		{"call that is a regular file", setFd(vmm.SetVringCall, le64(0), grownMemfd), false},
		{"call that is a directory", setFd(vmm.SetVringCall, le64(0), directory), false},
		{"kick without a descriptor", set(vmm.SetVringKick, le64(0)), false},
		{"call without a descriptor", set(vmm.SetVringCall, le64(0)), false},
		{"no memory at all", set(vmm.SetMemTable, le32(0, 0)), true},
		{"regions without descriptors", set(vmm.SetMemTable, append(le32(1, 0), le64(0, 4096, 0, 0)...)), false},
		{"2^32-1 regions", set(vmm.SetMemTable, le32(^uint32(0), 0)), false},
		{"more regions than the message has", set(vmm.SetMemTable, append(le32(8, 0), le64(0, 4096, 0, 0)...)), false},
		{"region of a pipe", setFd(vmm.AddMemReg, region(0, 4096, 0, 0), pipeEnd), false},
		{"region of /dev/null", setFd(vmm.AddMemReg, region(0, 4096, 0, 0), devNull), false},
		{"region of a directory", setFd(vmm.AddMemReg, region(0, 4096, 0, 0), directory), false},
		{"region of an empty file", setFd(vmm.AddMemReg, region(0, 4096, 0, 0), memfd), false},
		{"region of no bytes", setFd(vmm.AddMemReg, region(0, 0, 0, 0), grownMemfd), false},
		{"region of half a page", setFd(vmm.AddMemReg, region(0, 2048, 0, 0), grownMemfd), false},
		{"region of 2^64-4096 bytes", setFd(vmm.AddMemReg, region(0, ^uint64(4095), 0, 0), grownMemfd), false},
		{"region over the end of its file", setFd(vmm.AddMemReg, region(0, 1<<20, 0, 4096), grownMemfd), false},
		{"region with an offset that overflows", setFd(vmm.AddMemReg, region(0, 1<<20, 0, ^uint64(4095)), grownMemfd), false},
		{"region whose guest address wraps", setFd(vmm.AddMemReg, region(^uint64(4095), 1<<20, 0, 0), grownMemfd), false},
		{"region whose user address wraps", setFd(vmm.AddMemReg, region(0, 1<<20, ^uint64(4095), 0), grownMemfd), false},
		{"region twice", func(vm *vmm.VM) error {
			return withFd(grownMemfd, func(fd int) error {
				if err := vm.Control.Set(vmm.AddMemReg, true, region(0, 1<<20, 0, 0), fd); err != nil {
					return fmt.Errorf("the first: %w", noRefusal(err))
				}
				return vm.Control.Set(vmm.AddMemReg, true, region(1<<19, 1<<20, 1<<30, 0), fd)
			})
		}, false},
		{"region without a descriptor", set(vmm.AddMemReg, region(0, 4096, 0, 0)), false},
		{"removal of a region that is not there", set(vmm.RemMemReg, region(0, 4096, 0, 0)), false},
		{"thousand regions", func(vm *vmm.VM) error {
			return withFd(grownMemfd, func(fd int) error {
				for i := range uint64(1000) {
					if err := vm.Control.Set(vmm.AddMemReg, true, region(i<<21, 1<<20, i<<21, 0), fd); err != nil {
						return err
					}
				}
				return nil
			})
		}, false},
		{"descriptors where none belong", func(vm *vmm.VM) error {
			return withFd(devNull, func(fd int) error {
				return vm.Control.Set(vmm.SetVringNum, true, le32(0, 64), fd, fd, fd, fd)
			})
		}, true},
		{"features that were not offered", set(vmm.SetFeatures, le64(^uint64(0))), false},
		{"features without VERSION_1", set(vmm.SetFeatures, le64(vmm.FeatureProtocolFeatures)), false},
		{"protocol features that were not offered", set(vmm.SetProtocolFeatures, le64(^uint64(0))), false},
		{"configuration of 4 GiB", func(vm *vmm.VM) error {
			return get(vm, vmm.GetConfig, le32(0, ^uint32(0), 0))
		}, true},
		{"configuration at 2^32-1", func(vm *vmm.VM) error {
			return get(vm, vmm.GetConfig, append(le32(^uint32(0), 8, 0), make([]byte, 8)...))
		}, true},
		{"unknown requests", func(vm *vmm.VM) error {
			for _, req := range []vmm.Request{0, 19, 999, 1<<32 - 1} {
				if err := vm.Control.Set(req, true, nil); err == nil {
					return nil
				} else if closedByPeer(err) {
					return err
				}
			}
			return &vmm.RefusedError{}
		}, false},
		{"payload of 4097 bytes", func(vm *vmm.VM) error {
			return raw(vm, message(vmm.SetFeatures, 1, 4097, make([]byte, 4097)))
		}, false},
		{"payload of 2^32-1 bytes", func(vm *vmm.VM) error {
			return raw(vm, message(vmm.SetFeatures, 1, ^uint32(0), nil))
		}, false},
		{"payload too short", set(vmm.SetVringAddr, le32(0, 0)), false},
		{"payload too long", set(vmm.SetVringNum, make([]byte, 4000)), true},
		{"no payload", set(vmm.SetVringNum, nil), false},
		{"version 0", func(vm *vmm.VM) error { return raw(vm, message(vmm.GetFeatures, 0, 0, nil)) }, false},
		{"version 3", func(vm *vmm.VM) error { return raw(vm, message(vmm.GetFeatures, 3, 0, nil)) }, false},
		{"noise", func(vm *vmm.VM) error {
			b := make([]byte, 64<<10)
			fillGarbage(b)
			return raw(vm, b)
		}, false},
		{"half a message", func(vm *vmm.VM) error {
			if err := vm.Control.SendRaw(message(vmm.SetMemTable, 9, 264, nil)[:7]); err != nil {
				return err
			}
			vm.Kill()
			return io.EOF
		}, false},
		{"half a payload", func(vm *vmm.VM) error {
			if err := vm.Control.SendRaw(message(vmm.SetMemTable, 9, 264, make([]byte, 100))); err != nil {
				return err
			}
			vm.Kill()
			return io.EOF
		}, false},
		{"a message in single bytes", func(vm *vmm.VM) error {
			for _, b := range message(vmm.GetFeatures, 1, 0, nil) {
				if err := vm.Control.SendRaw([]byte{b}); err != nil {
					return err
				}
			}
			_, _, err := vm.Control.Receive(vmm.GetFeatures, 8)
			return err
		}, true},
		{"two hundred descriptors", func(vm *vmm.VM) error {
			return withFd(devNull, func(fd int) error {
				return raw(vm, message(vmm.SetMemTable, 1, 8, le32(0, 0)), slices.Repeat([]int{fd}, 200)...)
			})
		}, true},
		{"ten thousand messages that need no reply", func(vm *vmm.VM) error {
			b := bytes.Repeat(message(vmm.SetVringBase, 1, 8, le32(0, 0)), 100)
			for range 100 {
				if err := vm.Control.SendRaw(b); err != nil {
					return err
				}
			}
			_, err := vm.Control.GetU64(vmm.GetFeatures)
			return err
		}, true},
	}
	var out []Attack
	for _, a := range list {
		out = append(out, a.attack())
	}
	return out
}

// noRefusal keeps a refusal of the first step from passing for that of the second.
func noRefusal(err error) error { return errors.New(err.Error()) }
