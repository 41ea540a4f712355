package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/rafsd/rafsd/internal/vmm"
)

// fuseAttack sends requests through an honest driver: the rings are right, what is
// in them is not. Each request must be answered, with an errno where one is named.
type fuseAttack struct {
	name string
	run  func(ctx context.Context, c *vmm.Client) error
}

func (a fuseAttack) attack() Attack {
	return Attack{Name: "fuse: " + a.name, Run: func(ctx context.Context, dial Dial) error {
		vm, err := dial(ctx, vmm.Options{Memory: vmm.Flat(memorySize)})
		if err != nil {
			return err
		}
		defer vm.Kill()
		mountCtx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		c, err := vm.Mount(mountCtx, vmm.Linux72)
		if err != nil {
			return err
		}
		if err := a.run(ctx, c); err != nil {
			return err
		}
		if err := c.Bad(); err != nil {
			return err
		}
		// The same queue must work: nothing of this is a fault of the ring.
		after, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if _, err := c.Init(after); err != nil {
			return fmt.Errorf("INIT after the attack: %w", err)
		}
		if _, err := c.Getattr(after, vmm.RootID); err != nil {
			return fmt.Errorf("GETATTR after the attack: %w", err)
		}
		if err := vm.Close(); err != nil {
			return err
		}
		return Survives(ctx, dial)
	}}
}

// answer sends one request and wants an answer: one of the errnos, or anything if
// none is given.
func answer(ctx context.Context, c *vmm.Client, op vmm.Opcode, node uint64, body []byte, room int, want ...syscall.Errno) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := c.Raw(ctx, op, node, body, room)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		return err
	}
	if len(want) == 0 {
		return nil
	}
	for _, w := range want {
		if errno == w {
			return nil
		}
	}
	return fmt.Errorf("%v of node %#x with %d bytes %q: answered with %d (%v), want %v",
		op, node, len(body), head(body, 60), int(errno), errno, want)
}

func head(b []byte, n int) []byte { return b[:min(len(b), n)] }

func le64(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func le32(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

// noReply are the requests that the protocol never answers.
func noReply(op vmm.Opcode) bool {
	return op == vmm.OpForget || op == vmm.OpBatchForget || op == vmm.OpInterrupt
}

// refused are the errnos with which a name may be refused.
var refused = []syscall.Errno{syscall.EINVAL, syscall.ENOENT, syscall.ENAMETOOLONG}

func fuseAttacks() []Attack {
	list := []fuseAttack{
		{"unknown opcodes", func(ctx context.Context, c *vmm.Client) error {
			for _, op := range []vmm.Opcode{0, 7, 19, 54, 63, 64, 255, 1000, 4096, 1 << 31, 1<<32 - 1} {
				for _, body := range [][]byte{nil, make([]byte, 8), make([]byte, 3000)} {
					if err := answer(ctx, c, op, vmm.RootID, body, 4096, syscall.ENOSYS); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"every opcode with arguments of every short length", func(ctx context.Context, c *vmm.Client) error {
			for op := vmm.Opcode(1); op <= 60; op++ {
				if op == vmm.OpDestroy || op == vmm.OpSetlkw {
					continue // the one ends the session, the other may wait by right
				}
				for n := range 66 {
					room := 4096
					if noReply(op) {
						room = -1
					}
					if err := answer(ctx, c, op, vmm.RootID, bytes.Repeat([]byte{0xff}, n), room); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"names that are none", func(ctx context.Context, c *vmm.Client) error {
			bad := [][]byte{
				nil, {0}, []byte("no-end"), []byte("a/b\x00"), []byte("/\x00"), []byte("../x\x00"), []byte("/etc/passwd\x00"),
				[]byte("a\x00b\x00"), []byte(strings.Repeat("n", 256) + "\x00"), []byte(strings.Repeat("n", 5000) + "\x00"),
				bytes.Repeat([]byte{'/'}, 4096), make([]byte, 4096),
			}
			for _, name := range bad {
				// What lies behind the NUL is not the name: "a\0b\0" is the name a.
				if err := answer(ctx, c, vmm.OpLookup, vmm.RootID, name, 128, append(refused, 0)...); err != nil {
					return err
				}
				for _, op := range []vmm.Opcode{vmm.OpUnlink, vmm.OpRmdir, vmm.OpRemovexattr} {
					if err := answer(ctx, c, op, vmm.RootID, name, 0); err != nil {
						return err
					}
				}
			}
			for _, name := range []string{"a/b\x00", "/\x00", "../x\x00", "no-end"} {
				if err := answer(ctx, c, vmm.OpLookup, vmm.RootID, []byte(name), 128, refused...); err != nil {
					return err
				}
			}
			return nil
		}},
		{"nodes that are none", func(ctx context.Context, c *vmm.Client) error {
			for _, node := range []uint64{0, 2, 1 << 20, 1 << 43, 1 << 44, 1<<44 | 1, 1<<63 - 1, 1 << 63, ^uint64(0)} {
				for _, r := range []struct {
					op   vmm.Opcode
					body []byte
					room int
				}{
					{vmm.OpGetattr, make([]byte, 16), 104}, {vmm.OpLookup, []byte("x\x00"), 128}, {vmm.OpReadlink, nil, 4095},
					{vmm.OpOpen, make([]byte, 8), 16}, {vmm.OpOpendir, make([]byte, 8), 16}, {vmm.OpRead, readArgs(0, 0, 4096), 4096},
					{vmm.OpReaddirplus, readArgs(0, 0, 4096), 4096}, {vmm.OpGetxattr, append(le32(100, 0), "user.x\x00"...), 100},
					{vmm.OpListxattr, le32(0, 0), 8}, {vmm.OpStatfs, nil, 80}, {vmm.OpLink, append(le64(node), "x\x00"...), 128},
					{vmm.OpForget, le64(^uint64(0)), -1},
				} {
					if err := answer(ctx, c, r.op, node, r.body, r.room); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"reads at impossible places", func(ctx context.Context, c *vmm.Client) error {
			for _, off := range []uint64{0, 1<<63 - 1, 1 << 63, ^uint64(0), ^uint64(0) - 4095} {
				for _, size := range []uint32{0, 1, 4096, 1 << 20, 1 << 31, ^uint32(0)} {
					for _, op := range []vmm.Opcode{vmm.OpRead, vmm.OpReaddir, vmm.OpReaddirplus} {
						for _, fh := range []uint64{0, 1, ^uint64(0)} {
							if err := answer(ctx, c, op, vmm.RootID, readArgs(fh, off, size), 4096); err != nil {
								return err
							}
						}
					}
				}
			}
			return nil
		}},
		{"directory buffers of every small size", func(ctx context.Context, c *vmm.Client) error {
			open, err := c.Opendir(ctx, vmm.RootID)
			if err != nil {
				return err
			}
			for room := 1; room < 400; room += 7 {
				for _, list := range []func(context.Context, uint64, uint64, uint64, int) ([]vmm.Dirent, error){c.Readdir, c.ReaddirPlus} {
					_, err := list(ctx, vmm.RootID, open.Fh, 0, room)
					var errno syscall.Errno
					if err != nil && !errors.As(err, &errno) {
						return fmt.Errorf("a buffer of %d bytes: %w", room, err)
					}
				}
			}
			return c.ForgetAll(ctx)
		}},
		{"counts that do not match", func(ctx context.Context, c *vmm.Client) error {
			if err := answer(ctx, c, vmm.OpBatchForget, 0, le32(^uint32(0), 0), -1); err != nil {
				return err
			}
			if err := answer(ctx, c, vmm.OpBatchForget, 0, append(le32(3, 0), le64(2, 1)...), -1); err != nil {
				return err
			}
			for _, r := range []struct {
				op   vmm.Opcode
				body []byte
			}{
				{vmm.OpGetxattr, append(le32(^uint32(0), 0), "user.x\x00"...)},
				{vmm.OpListxattr, le32(^uint32(0), 0)},
				{vmm.OpSetxattr, append(le32(^uint32(0), 0), "user.x\x00v"...)},
				{vmm.OpSetxattr, append(le32(0, 0), "user.x"...)},
				{vmm.OpWrite, append(le64(0, 0), append(le32(^uint32(0), 0), le64(0, 0)...)...)},
				{vmm.OpSymlink, []byte("only-one\x00")},
				{vmm.OpRename, append(le64(1), "only-one\x00"...)},
				{vmm.OpRename2, append(le64(1, ^uint64(0)), "a\x00b"...)},
				{vmm.OpIoctl, append(le64(0), append(le32(0, 0), append(le64(0), le32(^uint32(0), ^uint32(0))...)...)...)},
				{vmm.OpCopyFileRange, le64(0, 0, ^uint64(0), 0, 0, ^uint64(0), 0)},
				{vmm.OpFallocate, le64(0, ^uint64(0), ^uint64(0), 0)},
				{vmm.OpLseek, le64(0, ^uint64(0), ^uint64(0))},
			} {
				if err := answer(ctx, c, r.op, vmm.RootID, r.body, 4096); err != nil {
					return err
				}
			}
			return nil
		}},
		{"forgets beyond all counts", func(ctx context.Context, c *vmm.Client) error {
			for _, node := range []uint64{0, vmm.RootID, 2, ^uint64(0)} {
				for range 100 {
					if err := c.Forget(ctx, node, ^uint64(0)); err != nil {
						return err
					}
					if err := c.On(1).Forget(ctx, node, 1); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"requests outside a session", func(ctx context.Context, c *vmm.Client) error {
			if err := answer(ctx, c, vmm.OpDestroy, 0, nil, 0, 0); err != nil {
				return err
			}
			return answer(ctx, c, vmm.OpGetattr, vmm.RootID, make([]byte, 16), 104, syscall.EIO)
		}},
		{"INIT of other worlds", func(ctx context.Context, c *vmm.Client) error {
			for _, r := range []struct {
				body []byte
				want []syscall.Errno
			}{
				{nil, []syscall.Errno{syscall.EINVAL, syscall.EIO, syscall.EPROTO}},
				{le32(7), []syscall.Errno{syscall.EINVAL, syscall.EIO, syscall.EPROTO}},
				{le32(6, 1, 0, 0), []syscall.Errno{syscall.EPROTO}},
				{le32(0, 0, 0, 0), []syscall.Errno{syscall.EPROTO}},
				{le32(8, 0, 0, 0), []syscall.Errno{0}},
				{le32(^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)), []syscall.Errno{0}},
				{append(le32(7, ^uint32(0), ^uint32(0), ^uint32(0)), bytes.Repeat([]byte{0xff}, 48)...), []syscall.Errno{0}},
				{append(le32(7, 31, 0, 1<<30), bytes.Repeat([]byte{0xff}, 3)...), nil},
			} {
				if err := answer(ctx, c, vmm.OpInit, 0, r.body, 64, r.want...); err != nil {
					return err
				}
			}
			return nil
		}},
		{"a thousand sessions without an end", func(ctx context.Context, c *vmm.Client) error {
			for range 1000 {
				if _, err := c.Init(ctx); err != nil {
					return err
				}
				if _, err := c.Opendir(ctx, vmm.RootID); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	var out []Attack
	for _, a := range list {
		out = append(out, a.attack())
	}
	return append(out, headerAttacks()...)
}

func readArgs(fh, off uint64, size uint32) []byte {
	return append(append(le64(fh, off), le32(size, 0)...), make([]byte, 16)...)
}

// headerAttacks spoil the request's header itself.
func headerAttacks() []Attack {
	list := []chainAttack{
		{name: "length less than a header", expect: fails, make: func(r *rig) error {
			putHeader(r.in.Bytes, 39, vmm.OpGetattr, 2, vmm.RootID)
			return r.direct(r.read(), r.write())
		}},
		{name: "length 0", expect: fails, make: func(r *rig) error {
			putHeader(r.in.Bytes, 0, vmm.OpGetattr, 2, vmm.RootID)
			return r.direct(r.read(), r.write())
		}},
		{name: "length beyond the request", expect: fails, make: func(r *rig) error {
			putHeader(r.in.Bytes, getattrIn+1, vmm.OpGetattr, 2, vmm.RootID)
			return r.direct(r.read(), r.write())
		}},
		{name: "length 2^32-1", expect: fails, make: func(r *rig) error {
			putHeader(r.in.Bytes, ^uint32(0), vmm.OpGetattr, 2, vmm.RootID)
			return r.direct(r.read(), r.write())
		}},
		{name: "length short of the arguments", expect: fails, make: func(r *rig) error {
			putHeader(r.in.Bytes, 48, vmm.OpGetattr, 2, vmm.RootID)
			return r.direct(r.read(), r.write())
		}},
		{name: "bytes behind the request", expect: replies, make: func(r *rig) error {
			big, err := r.vm.Memory.Alloc(vmm.PageSize)
			if err != nil {
				return err
			}
			copy(big.Bytes, r.in.Bytes)
			fillGarbage(big.Bytes[getattrIn:])
			return r.direct(vmm.Desc{Addr: big.GPA, Len: uint32(len(big.Bytes))}, r.write())
		}},
		{name: "garbage for a header", expect: either, make: func(r *rig) error {
			fillGarbage(r.in.Bytes)
			return r.direct(r.read(), r.write())
		}},
		{name: "INIT in the other byte order", expect: either, make: func(r *rig) error {
			putHeader(r.in.Bytes, getattrIn, 0x1a000000, 2, 0)
			return r.direct(r.read(), r.write())
		}},
		{name: "extensions longer than the request", expect: either, make: func(r *rig) error {
			binary.LittleEndian.PutUint16(r.in.Bytes[36:], 0xffff)
			return r.direct(r.read(), r.write())
		}},
	}
	var out []Attack
	for _, a := range list {
		b := a.attack()
		b.Name = "fuse: header: " + a.name
		out = append(out, b)
	}
	return out
}

// fillGarbage fills b with the same noise each time.
func fillGarbage(b []byte) {
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
}
