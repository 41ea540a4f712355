package show

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rafsd/rafsd/internal/manifest"
	"github.com/rafsd/rafsd/internal/vmm"
)

// frontend is the machine for hosts that can have no guest: internal/vmm speaks to
// the daemon as QEMU and a Linux guest's driver do, and reads what they would.
type frontend struct{}

func (frontend) name() string                  { return "internal/vmm" }
func (frontend) tag() string                   { return "" }
func (frontend) prepare(context.Context) error { return nil }

// session is a visit's machine.
type session struct {
	vm     *vmm.VM
	client *vmm.Client
	visit  visit
	ready  time.Time
}

func openSession(ctx context.Context, socket string) (*session, error) {
	begin := time.Now()
	vm, err := vmm.Dial(ctx, socket, vmm.Options{Sequence: vmm.QEMU11})
	if err != nil {
		return nil, err
	}
	s := &session{vm: vm}
	if s.client, err = vm.Mount(ctx, vmm.Linux612); err != nil {
		vm.Kill()
		return nil, err
	}
	s.ready = time.Now()
	s.visit.who = fmt.Sprintf("internal/vmm, as %v with a guest of %s", vmm.QEMU11, vmm.Linux612.Name)
	s.visit.boot = s.ready.Sub(begin)
	return s, nil
}

// close unmounts; the error is joined to err.
func (s *session) close(ctx context.Context, err *error) {
	*err = errors.Join(*err, s.client.Destroy(ctx), s.client.Bad(), s.vm.Close())
	s.visit.took = time.Since(s.ready)
}

func (frontend) start(ctx context.Context, socket string) (v visit, err error) {
	s, err := openSession(ctx, socket)
	if err != nil {
		return visit{}, err
	}
	defer func() { s.close(ctx, &err); v = s.visit }()
	entries, err := s.client.Walk(ctx, vmm.Walk{NoData: true})
	if err != nil {
		return v, err
	}
	s.visit.names = len(entries)
	s.visit.top = list(entries)
	s.visit.sums = map[read][sha256.Size]byte{}
	for _, r := range startReads {
		if s.visit.sums[r], err = s.sum(ctx, r); err != nil {
			return v, fmt.Errorf("%s: %w", r.path, err)
		}
	}
	return v, nil
}

func (frontend) everything(ctx context.Context, socket string, truth []manifest.Entry) (v visit, err error) {
	s, err := openSession(ctx, socket)
	if err != nil {
		return visit{}, err
	}
	defer func() { s.close(ctx, &err); v = s.visit }()
	seen, err := s.client.Walk(ctx, vmm.Walk{})
	if err != nil {
		return v, err
	}
	s.visit.differences = manifest.Compare(seen, truth, manifest.Options{})
	return v, nil
}

// sum reads a file as a guest does, in pieces of its readahead, and hashes what was
// asked for.
func (s *session) sum(ctx context.Context, r read) (sum [sha256.Size]byte, err error) {
	var e vmm.Entry
	e.NodeID = vmm.RootID
	for name := range strings.SplitSeq(strings.Trim(r.path, "/"), "/") {
		if e, err = s.client.Lookup(ctx, e.NodeID, name); err != nil {
			return sum, err
		}
	}
	open, err := s.client.Open(ctx, e.NodeID, 0)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, s.client.Release(ctx, e.NodeID, open.Fh)) }()
	end := e.Attr.Size
	if r.head > 0 {
		end = min(end, uint64(r.head))
	}
	const piece = 128 << 10
	hash := sha256.New()
	for at := uint64(0); at < end; {
		n := min(piece, end-at)
		pages := (n + vmm.PageSize - 1) / vmm.PageSize * vmm.PageSize
		b, err := s.client.Read(ctx, e.NodeID, open.Fh, at, int(pages))
		if err != nil {
			return sum, fmt.Errorf("read at %d: %w", at, err)
		}
		if uint64(len(b)) < n {
			return sum, fmt.Errorf("read at %d: %d bytes, want %d", at, len(b), n)
		}
		hash.Write(b[:n])
		at += n
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
}

// list is the top of a tree as ls -l shows it.
func list(entries []manifest.Entry) []string {
	var lines []string
	for i := range entries {
		e := &entries[i]
		if e.Path == "/" || strings.Count(e.Path, "/") > 1 {
			continue
		}
		line := fmt.Sprintf("%s %5d %-8d %-8d %9d %s %s", modeString(e), e.Nlink, e.UID, e.GID, e.Size,
			time.Unix(e.Mtime.Sec, 0).UTC().Format("Jan _2 2006"), e.Path[1:])
		if e.Type == manifest.Symlink {
			line += " -> " + manifest.Escape(e.Target)
		}
		lines = append(lines, line)
	}
	return lines
}

// modeString is type and permissions as ls shows them.
func modeString(e *manifest.Entry) string {
	b := []byte("-rwxrwxrwx")
	if e.Type != manifest.Regular {
		b[0] = byte(e.Type)
	}
	for i := range 9 {
		if e.Mode>>(8-i)&1 == 0 {
			b[1+i] = '-'
		}
	}
	for i, c := range []byte("tss") { // sticky, set-group-id, set-user-id
		if e.Mode>>(9+i)&1 == 0 {
			continue
		}
		at := 9 - 3*i
		if b[at] == '-' {
			c -= 'a' - 'A'
		}
		b[at] = c
	}
	return string(b)
}
