package passthrough

import (
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto"
	"github.com/rafsd/rafsd/internal/record"
)

// CacheMode is how much the guest may believe without asking again.
type CacheMode int

// The modes of virtiofsd's --cache.
const (
	CacheAuto     CacheMode = iota // names and attributes for 1 s; pages until the next open
	CacheNever                     // nothing: time-outs of 0, files past the guest's page cache
	CacheMetadata                  // names and attributes for 1 s; files past the guest's page cache
	CacheAlways                    // everything for a day, pages from one open to the next
)

var cacheModes = map[string]CacheMode{
	"auto": CacheAuto, "never": CacheNever, "none": CacheNever, "metadata": CacheMetadata, "always": CacheAlways,
}

// ParseCacheMode parses auto, never (or none), metadata and always.
func ParseCacheMode(s string) (CacheMode, error) {
	m, ok := cacheModes[s]
	if !ok {
		return 0, fmt.Errorf("cache mode %q is not auto, never, metadata or always", s)
	}
	return m, nil
}

// timeout is how long names and attributes hold. "metadata" is 1 s here and a day
// in virtiofsd: only "always" may hide for longer than that what the host does.
func (m CacheMode) timeout() fuseproto.Timeout {
	switch m {
	case CacheNever:
		return fuseproto.Timeout{}
	case CacheAlways:
		return fuseproto.Timeout{Sec: 86400}
	}
	return fuseproto.Timeout{Sec: 1}
}

// HandleMode says whether nodes are remembered by file handles.
type HandleMode int

// The modes of virtiofsd's --inode-file-handles.
const (
	HandlesPrefer    HandleMode = iota // where the host file system and our privileges allow
	HandlesNever                       // by parent and name everywhere
	HandlesMandatory                   // or not at all
)

// Options are what an FS is told once. The zero value is what a mount of nydusd's
// API wants.
type Options struct {
	Cache    CacheMode
	ReadOnly bool // everything that would change the host answers EROFS
	NoXattr  bool // extended attributes answer EOPNOTSUPP
	// XattrMap renames extended attributes; nil leaves names as they are.
	XattrMap *XattrMap
	// PosixACL passes system.posix_acl_* on and applies the umask ourselves. It
	// needs a session with FlagPosixACL, FlagDontMask and FlagSetXattrExt.
	PosixACL bool
	// NoKillprivV2 leaves it to the guest to clear set-id bits.
	NoKillprivV2 bool
	// Writeback lets the guest keep writes to itself. Nobody else may change the
	// directory then.
	Writeback bool
	// Submounts announces where another host mount begins, so that the guest
	// shows a device number of its own for it.
	Submounts   bool
	FileHandles HandleMode
	// UIDMap and GIDMap turn the guest's ids into the host's and back.
	UIDMap, GIDMap IDMap
	// AllowMmap allows shared mappings where files are past the page cache.
	AllowMmap bool
	// AllowDirectIO hands the guest's O_DIRECT to the host.
	AllowDirectIO bool
	// PreserveNoatime hands the guest's O_NOATIME to the host.
	PreserveNoatime bool
	// PosixLocks and Flock make the guest's locks locks of the host, for
	// directories that others lock too. Without them locks are the guest's own.
	PosixLocks, Flock bool
	// SecurityLabel stores the label that the guest sends with what it creates.
	SecurityLabel bool
	// MaxOpen is how many descriptors are kept open for nodes that are in no use
	// at the moment; 0 takes a quarter of RLIMIT_NOFILE, 4096 at most.
	MaxOpen int
	// Proc is /proc/self/fd, opened by somebody who saw /proc: the process may have
	// lost sight of it (pivot_root). nil lets New open it. It stays the caller's.
	Proc *os.File
	// Record, if set, takes what the process that goes on after this one must know of
	// the session, under keys that begin with RecordKey, which no other FS uses.
	// fuseproto.Server.Restore makes New's result go on with it.
	Record    record.Record
	RecordKey string
	// Log takes what the guest is not told; nil logs nothing.
	Log *slog.Logger
}

// SessionFlags returns what fuseproto.Config.Flags should hold for a session of
// this file system alone.
func (o Options) SessionFlags() uint64 {
	f := uint64(fuseproto.FlagsPassthrough)
	add := func(want bool, bits uint64) {
		if want {
			f |= bits
		}
	}
	add(o.Cache != CacheNever, fuseproto.FlagReadDirPlusAuto)
	if o.Cache == CacheNever {
		f &^= fuseproto.FlagDoReadDirPlus
	}
	add(o.Cache == CacheAlways, fuseproto.FlagCacheSymlinks)
	add(o.PosixACL, fuseproto.FlagPosixACL|fuseproto.FlagDontMask|fuseproto.FlagSetXattrExt)
	add(!o.NoKillprivV2, fuseproto.FlagHandleKillprivV2)
	add(o.Writeback, fuseproto.FlagWritebackCache)
	add(o.Submounts, fuseproto.FlagSubmounts)
	add(o.AllowMmap, fuseproto.FlagDirectIOAllowMmap)
	add(o.PosixLocks, fuseproto.FlagPosixLocks)
	add(o.Flock, fuseproto.FlagFlockLocks)
	add(o.SecurityLabel, fuseproto.FlagSecurityCtx)
	return f
}

// limits returns how many idle descriptors are kept and how many files the guest
// may have open. The rest of RLIMIT_NOFILE is the daemon's own: a guest that uses
// up its share gets ENFILE, and everything else goes on.
func (o *Options) limits() (idle, files int) {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil || lim.Cur > 1<<20 {
		lim.Cur = 1 << 20
	}
	idle, files = o.MaxOpen, int(lim.Cur/2)
	if idle <= 0 {
		idle = max(16, min(4096, int(lim.Cur/4)))
	}
	return idle, max(files, 16)
}
