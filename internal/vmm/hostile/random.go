package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"

	"github.com/rafsd/rafsd/internal/vmm"
)

// Random sends count requests of random content, some in flight at a time, each cut
// into descriptors at random places: opcodes, nodes and names that exist and that do
// not, arguments of noise. Every one must be answered and every answer well-formed.
// The same seed gives the same requests.
func Random(seed uint64, count int) Attack {
	return Attack{
		Name: fmt.Sprintf("random: %d requests, seed %d", count, seed),
		Run: func(ctx context.Context, dial Dial) error {
			if err := random(ctx, dial, seed, count); err != nil {
				return fmt.Errorf("seed %d: %w", seed, err)
			}
			return Survives(ctx, dial)
		},
	}
}

const (
	slotBytes  = 8 << 10 // room for a request, and again for its reply
	slotsInAir = 24
)

// noise makes random requests.
type noise struct {
	rng    *rand.Rand
	nodes  []uint64
	names  []string
	unique uint64
}

// noiseSlot is one request's memory.
type noiseSlot struct {
	vmm.Chain
	in, out vmm.Buffer
	unique  uint64
	op      vmm.Opcode
	number  int
	silent  bool
}

func random(ctx context.Context, dial Dial, seed uint64, count int) error {
	vm, err := dial(ctx, vmm.Options{Memory: vmm.Flat(memorySize)})
	if err != nil {
		return err
	}
	defer vm.Kill()
	c, err := vm.Mount(ctx, vmm.Linux72)
	if err != nil {
		return err
	}
	n := &noise{rng: rand.New(rand.NewPCG(seed, 0)), nodes: []uint64{0, vmm.RootID, 2, 1 << 44, 1<<63 - 1, ^uint64(0)}}
	n.names = []string{"", ".", "..", "a/b", "x", strings.Repeat("n", 255), strings.Repeat("n", 300), "user.x", "system.posix_acl_access"}
	if err := n.explore(ctx, c); err != nil {
		return err
	}
	c.Close()
	q := vm.Queue(1)
	var idle []*noiseSlot
	for range slotsInAir {
		s := &noiseSlot{}
		s.Owner = s
		if s.in, err = vm.Memory.Alloc(slotBytes); err != nil {
			return err
		}
		if s.out, err = vm.Memory.Alloc(slotBytes); err != nil {
			return err
		}
		idle = append(idle, s)
	}
	var batch []*vmm.Chain
	flying := 0
	for sent := 0; sent < count || flying > 0; {
		for sent < count && len(idle) > 0 {
			s := idle[len(idle)-1]
			n.fill(s)
			s.number = sent
			err := q.Submit(&s.Chain)
			if errors.Is(err, vmm.ErrFull) {
				break
			}
			if err != nil {
				return err
			}
			idle = idle[:len(idle)-1]
			sent++
			flying++
		}
		if batch, err = q.Reap(batch[:0]); err != nil {
			return err
		}
		if len(batch) == 0 {
			if !q.EnableCalls() {
				continue
			}
			wait, cancel := context.WithTimeout(ctx, 6*patience)
			err := q.WaitCall(wait)
			cancel()
			if err != nil {
				return fmt.Errorf("%d of %d requests sent, %d unanswered: %w", sent, count, flying, err)
			}
			continue
		}
		for _, c := range batch {
			s := c.Owner.(*noiseSlot)
			if err := s.check(); err != nil {
				return err
			}
			q.Release(c)
			idle = append(idle, s)
			flying--
		}
	}
	return vm.Close()
}

// explore collects nodes and names that exist, as far as directories can be read.
func (n *noise) explore(ctx context.Context, c *vmm.Client) error {
	dirs := []uint64{vmm.RootID}
	for len(dirs) > 0 && len(n.nodes) < 200 {
		dir := dirs[0]
		dirs = dirs[1:]
		var errno syscall.Errno
		open, err := c.Opendir(ctx, dir)
		if errors.As(err, &errno) {
			continue
		}
		if err != nil {
			return err
		}
		list, err := c.ReaddirPlus(ctx, dir, open.Fh, 0, 4*vmm.PageSize)
		if errors.As(err, &errno) {
			continue
		}
		if err != nil {
			return err
		}
		for _, d := range list {
			n.names = append(n.names, d.Name)
			if id := d.Entry.NodeID; id != 0 {
				n.nodes = append(n.nodes, id)
				if d.Type == syscall.DT_DIR {
					dirs = append(dirs, id)
				}
			}
		}
	}
	return nil
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// number is a number as attackers like them: small, near a power of two, or any.
func (n *noise) number() uint64 {
	switch n.rng.IntN(4) {
	case 0:
		return n.rng.Uint64N(16)
	case 1:
		return uint64(1)<<n.rng.IntN(64) + n.rng.Uint64N(3) - 1
	case 2:
		return n.rng.Uint64N(1 << 20)
	}
	return n.rng.Uint64()
}

// fill makes the next request in s.
func (n *noise) fill(s *noiseSlot) {
	op := vmm.Opcode(n.rng.IntN(56))
	switch n.rng.IntN(40) {
	case 0:
		op = vmm.Opcode(n.rng.Uint32())
	case 1, 2, 3, 4, 5, 6, 7, 8:
		op = pick(n.rng, []vmm.Opcode{vmm.OpLookup, vmm.OpGetattr, vmm.OpRead, vmm.OpReaddir, vmm.OpReaddirplus, vmm.OpGetxattr})
	}
	switch {
	case op == vmm.OpSetlkw || op == vmm.OpDestroy: // may wait by right; ends the session
		op = vmm.OpLookup
	case op == vmm.OpInit && n.rng.IntN(10) != 0:
		op = vmm.OpGetattr
	}
	n.unique += 2
	body := s.in.Bytes[40:40]
	if n.rng.IntN(3) == 0 {
		body = n.body(body)
	} else {
		body = n.formed(body, op)
	}
	length := 40 + len(body)
	putHeader(s.in.Bytes, uint32(length), op, n.unique, pick(n.rng, n.nodes))
	if n.rng.IntN(20) == 0 {
		binary.LittleEndian.PutUint32(s.in.Bytes, uint32(n.number()))
	}
	s.op, s.unique = op, n.unique
	room := 0
	s.silent = noReply(op)
	if !s.silent {
		if room = 16 + n.rng.IntN(300); n.rng.IntN(2) == 0 {
			room = 16 + n.rng.IntN(slotBytes-16)
		}
		if n.rng.IntN(50) == 0 {
			room, s.silent = 0, true
		}
	}
	s.Guard = n.rng.IntN(16) == 0
	s.Readable = n.cut(s.Readable[:0], s.in, length)
	s.Writable = n.cut(s.Writable[:0], s.out, room)
	s.Relayout()
}

// formed appends arguments of the shape that op has, with values of all kinds.
func (n *noise) formed(b []byte, op vmm.Opcode) []byte {
	le := binary.LittleEndian
	u32 := func(list ...uint64) {
		for _, v := range list {
			b = le.AppendUint32(b, uint32(v))
		}
	}
	u64 := func(list ...uint64) {
		for _, v := range list {
			b = le.AppendUint64(b, v)
		}
	}
	name := func() { b = append(append(b, pick(n.rng, n.names)...), 0) }
	fh := n.rng.Uint64N(4)
	switch op {
	case vmm.OpLookup, vmm.OpUnlink, vmm.OpRmdir, vmm.OpRemovexattr:
		name()
	case vmm.OpForget:
		u64(n.number())
	case vmm.OpGetattr:
		u32(fh&1, 0)
		u64(fh)
	case vmm.OpSetattr:
		u32(n.number(), 0)
		u64(fh, n.number(), 0, n.number(), n.number(), n.number())
		u32(n.number(), n.number(), n.number(), n.number(), 0, n.number(), n.number(), 0)
	case vmm.OpRead, vmm.OpReaddir, vmm.OpReaddirplus:
		u64(fh, n.number())
		u32(n.number(), 0)
		u64(0)
		u32(0, 0)
	case vmm.OpOpen, vmm.OpOpendir:
		u32(n.number(), 0)
	case vmm.OpRelease, vmm.OpReleasedir, vmm.OpFlush:
		u64(fh, n.number(), 0)
	case vmm.OpFsync, vmm.OpFsyncdir:
		u64(fh, n.number())
	case vmm.OpGetxattr:
		u32(n.rng.Uint64N(3)*uint64(n.rng.IntN(300)), 0)
		name()
	case vmm.OpListxattr:
		u32(n.rng.Uint64N(3)*uint64(n.rng.IntN(300)), 0)
	case vmm.OpSetxattr:
		u32(4, n.number())
		name()
		u32(n.number())
	case vmm.OpLink:
		u64(pick(n.rng, n.nodes))
		name()
	case vmm.OpSymlink:
		name()
		name()
	case vmm.OpMkdir:
		u32(n.number(), n.number())
		name()
	case vmm.OpMknod, vmm.OpCreate, vmm.OpTmpfile:
		u32(n.number(), n.number(), n.number(), 0)
		name()
	case vmm.OpRename:
		u64(pick(n.rng, n.nodes))
		name()
		name()
	case vmm.OpRename2:
		u64(pick(n.rng, n.nodes), n.rng.Uint64N(8))
		name()
		name()
	case vmm.OpLseek:
		u64(fh, n.number())
		u32(n.rng.Uint64N(6), 0)
	case vmm.OpBatchForget:
		u32(2, 0)
		u64(pick(n.rng, n.nodes), n.number(), pick(n.rng, n.nodes), n.number())
	case vmm.OpStatx:
		u32(0, 0)
		u64(fh)
		u32(n.number(), n.number())
	case vmm.OpInit:
		u32(7, n.rng.Uint64N(60), n.number(), n.number(), n.number())
		b = append(b, make([]byte, 44)...)
	default:
		u64(fh, n.number(), n.number(), n.number(), n.number(), n.number(), n.number())
	}
	return b
}

// body appends arguments: numbers, a name or two, or noise.
func (n *noise) body(b []byte) []byte {
	for range n.rng.IntN(8) {
		switch n.rng.IntN(3) {
		case 0:
			b = binary.LittleEndian.AppendUint32(b, uint32(n.number()))
		case 1:
			b = binary.LittleEndian.AppendUint64(b, n.number())
		case 2:
			b = binary.LittleEndian.AppendUint64(b, pick(n.rng, n.nodes))
		}
	}
	for range n.rng.IntN(3) {
		b = append(b, pick(n.rng, n.names)...)
		if n.rng.IntN(10) != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// cut splits the first n bytes of a buffer into a few pieces.
func (n *noise) cut(dst []vmm.Buffer, b vmm.Buffer, length int) []vmm.Buffer {
	at := 0
	for at < length {
		size := length - at
		if len(dst) < 6 && n.rng.IntN(2) == 0 {
			size = 1 + n.rng.IntN(size)
		}
		dst = append(dst, vmm.Buffer{GPA: b.GPA + uint64(at), Bytes: b.Bytes[at : at+size]})
		at += size
	}
	return dst
}

// check holds the answer against what all answers have in common.
func (s *noiseSlot) check() error {
	le := binary.LittleEndian
	b := s.out.Bytes
	length, errno, unique := le.Uint32(b), int32(le.Uint32(b[4:])), le.Uint64(b[8:])
	bad := func(what string) error {
		return fmt.Errorf("request %d (%v, unique %d): %s: used.len %d, length %d, errno %d, unique %d",
			s.number, s.op, s.unique, what, s.Used(), length, errno, unique)
	}
	switch {
	case s.silent && s.Used() != 0:
		return bad("an answer where none belongs")
	case s.silent:
		return nil
	case s.Used() < 16 || length != s.Used():
		return bad("lengths that differ")
	case unique != s.unique:
		return bad("another request's answer")
	case errno > 0 || errno < -511:
		return bad("not an errno")
	case errno != 0 && length != 16:
		return bad("an error with data")
	case errno == 0:
		return s.CheckGuard()
	}
	return nil
}
