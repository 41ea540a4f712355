package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/fuseproto/vfs"
	"github.com/rafsd/rafsd/internal/record"
	"github.com/rafsd/rafsd/rafs"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// What the daemon keeps in the session record, for the process that goes on when this
// one has died. Everything is there before its effect can be seen: before a guest sees
// a mount, before a reply to INIT, before a caller's answer. A call that the death
// cuts off has happened wholly or not at all.
//
//	daemon/state              stateRecord
//	daemon/session            fuseproto.Server.Snapshot
//	daemon/cache              path of the temporary cache folder
//	daemon/mount/NNNNNNNN     mountRecord, with the bootstrap or directory open
//	daemon/config/NNNNNNNN    configRecord: what was changed since the mount
//	share/N/…                 package passthrough's, of one directory
//
// NNNNNNNN is the mount's place: the id it had first, which a remount keeps. Values
// are JSON whose version a reader compares with its own: keys that it does not know
// count for nothing, so the version grows only when an older reader would go wrong,
// and that one refuses to start. Configurations are there with their secrets: the
// record is memory of our own processes.
const (
	recordPrefix  = "daemon/"
	keyState      = recordPrefix + "state"
	keySession    = recordPrefix + "session"
	keyCache      = recordPrefix + "cache"
	mountPrefix   = recordPrefix + "mount/"
	configPrefix  = recordPrefix + "config/"
	recordVersion = 1

	sharePrefix = "share/"
)

func mountKey(place uint32) string  { return fmt.Sprintf("%s%08d", mountPrefix, place) }
func configKey(place uint32) string { return fmt.Sprintf("%s%08d", configPrefix, place) }

// stateRecord is what holds for the whole daemon.
type stateRecord struct {
	Version int    `json:"version"`
	LastID  uint32 `json:"last_mount_id"`       // the last one ever given; mounts may have later ones
	Level   string `json:"log_level,omitempty"` // if a caller has changed it
}

// mountRecord is one mount.
type mountRecord struct {
	Version    int             `json:"version"`
	Mountpoint string          `json:"mountpoint"`
	ID         uint32          `json:"id"`
	Root       uint64          `json:"root"` // index of its root directory
	FSType     FSType          `json:"fs_type"`
	Source     string          `json:"source"`
	Since      int64           `json:"since"`             // ns since 1970; tells one mount at a place from the next
	Cookies    []uint64        `json:"cookies,omitempty"` // vfs.MountInfo
	Config     json.RawMessage `json:"config,omitempty"`  // config.EncodeClear
	Digest     string          `json:"bootstrap_digest,omitempty"`
	Prefetch   []string        `json:"prefetch_files,omitempty"`
	Bootstrap  *fileRecord     `json:"bootstrap,omitempty"`
	Share      string          `json:"share,omitempty"` // passthrough.Options.RecordKey
}

// fileRecord tells whether a bootstrap is as it was when it was checked.
type fileRecord struct {
	Dev   uint64   `json:"dev"`
	Ino   uint64   `json:"ino"`
	Size  int64    `json:"size"`
	Mtime [2]int64 `json:"mtime"`
	Ctime [2]int64 `json:"ctime"`
}

func fileRecordOf(id rafs.FileID) fileRecord {
	return fileRecord{
		Dev: id.Dev, Ino: id.Ino, Size: id.Size,
		Mtime: [2]int64{int64(id.Mtime.Sec), int64(id.Mtime.Nsec)}, Ctime: [2]int64{int64(id.Ctime.Sec), int64(id.Ctime.Nsec)},
	}
}

// configRecord is a configuration that was changed while its mount was in use.
type configRecord struct {
	Version int             `json:"version"`
	Since   int64           `json:"since"` // of the mount
	Config  json.RawMessage `json:"config"`
}

// remembered is what an earlier process left.
type remembered struct {
	state   stateRecord
	session []byte // nil if there never was one
	mounts  []rememberedMount
	configs map[uint32]configRecord
}

type rememberedMount struct {
	mountRecord
	place uint32
	file  *os.File // the bootstrap or directory; nil if none was kept
}

// close closes what was not taken over.
func (r *remembered) close() {
	for i := range r.mounts {
		if f := r.mounts[i].file; f != nil {
			_ = f.Close() // nothing was written through it
		}
	}
}

// recall reads what an earlier process left; nothing without a record.
func recall(from record.Record) (_ *remembered, err error) {
	r := &remembered{configs: make(map[uint32]configRecord)}
	if from == nil {
		return r, nil
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	err = from.Each(recordPrefix, func(key string, value []byte, fds []int) error {
		var files []*os.File
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), key))
		}
		kept, err := r.add(key, value, files)
		for _, f := range files {
			if f != kept {
				_ = f.Close()
			}
		}
		if err != nil {
			return fmt.Errorf("session record: %s: %w", key, err)
		}
		return nil
	})
	return r, err
}

// add takes one entry over, and at most one of its files.
func (r *remembered) add(key string, value []byte, files []*os.File) (*os.File, error) {
	switch {
	case key == keyState:
		return nil, decodeRecord(value, &r.state)
	case key == keySession:
		r.session = value
	case strings.HasPrefix(key, mountPrefix):
		place, err := placeOf(key, mountPrefix)
		if err != nil {
			return nil, err
		}
		m := rememberedMount{place: place}
		if err := decodeRecord(value, &m.mountRecord); err != nil {
			return nil, err
		}
		if len(files) > 0 {
			m.file = files[0]
		}
		r.mounts = append(r.mounts, m)
		r.state.LastID = max(r.state.LastID, m.ID)
		return m.file, nil
	case strings.HasPrefix(key, configPrefix):
		place, err := placeOf(key, configPrefix)
		if err != nil {
			return nil, err
		}
		var c configRecord
		if err := decodeRecord(value, &c); err != nil {
			return nil, err
		}
		r.configs[place] = c
	}
	return nil, nil
}

func placeOf(key, prefix string) (uint32, error) {
	n, err := strconv.ParseUint(key[len(prefix):], 10, 32)
	if err != nil {
		return 0, errors.New("the key ends in no number")
	}
	return uint32(n), nil
}

// decodeRecord decodes a value. Its errors hold nothing of it: it may be secret.
func decodeRecord(value []byte, to any) error {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return errors.New("the value is damaged")
	}
	if v.Version < 1 || v.Version > recordVersion {
		return fmt.Errorf("the value has version %d, this rafsd knows 1 to %d: it was written by another release", v.Version, recordVersion)
	}
	if err := json.Unmarshal(value, to); err != nil {
		return errors.New("the value is damaged")
	}
	return nil
}

// put keeps a value, if there is a record.
func (d *Daemon) put(key string, value any, fds ...int) error {
	if d.opts.Record == nil {
		return nil
	}
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("session record: %s: %w", key, err)
	}
	return d.opts.Record.Put(key, b, fds...)
}

// putState changes what holds for the whole daemon.
func (d *Daemon) putState(change func(*stateRecord)) error {
	d.savedMu.Lock()
	defer d.savedMu.Unlock()
	s := d.saved
	change(&s)
	s.Version = recordVersion
	if err := d.put(keyState, s); err != nil {
		return err
	}
	d.saved = s
	return nil
}

// remember makes the mount that opts are of known to the next process before a guest
// sees it. place is that of the mount it replaces, 0 for a new one. f, if any, is kept
// open; c is nil for what has no configuration.
func (d *Daemon) remember(opts *vfs.MountOptions, place uint32, m mountRecord, c *config.Config, f *os.File) error {
	if d.opts.Record == nil {
		return nil
	}
	m.Version = recordVersion
	if c != nil {
		b, err := c.EncodeClear()
		if err != nil {
			return err
		}
		m.Config = b
	}
	if m.FSType == FSRafs && f != nil {
		id, err := rafs.StatFile(f)
		if err != nil {
			return err
		}
		b := fileRecordOf(id)
		m.Bootstrap = &b
	}
	var fds []int
	if f != nil {
		fds = append(fds, int(f.Fd()))
	}
	opts.Before = func(i vfs.MountInfo) error {
		if place == 0 {
			place = i.ID
		}
		m.ID, m.Since, m.Cookies, m.Root = i.ID, i.Since.UnixNano(), i.Cookies, i.FS.Root()
		err := d.put(mountKey(place), m, fds...)
		if errors.Is(err, record.ErrTooLarge) && len(m.Prefetch) > 0 {
			// What was to be fetched ahead is what can be done without.
			m.Prefetch = nil
			err = d.put(mountKey(place), m, fds...)
		}
		if err != nil {
			return err
		}
		d.savedMu.Lock()
		d.places[i.Path] = place
		d.savedMu.Unlock()
		return nil
	}
	return nil
}

// placeAt returns the place of the mount at a mountpoint in the record.
func (d *Daemon) placeAt(at string) uint32 {
	d.savedMu.Lock()
	defer d.savedMu.Unlock()
	return d.places[at]
}

// rememberConfig makes a changed configuration of a mount known to the next process.
func (d *Daemon) rememberConfig(at string, since time.Time, c *config.Config) error {
	if d.opts.Record == nil {
		return nil
	}
	b, err := c.EncodeClear()
	if err != nil {
		return err
	}
	return d.put(configKey(d.placeAt(at)), configRecord{Version: recordVersion, Since: since.UnixNano(), Config: b})
}

// forgetMount makes the next process know nothing of a mount but that its id was
// given. d.mu is held.
func (d *Daemon) forgetMount(at string) error {
	if d.opts.Record == nil {
		return nil
	}
	place, last := d.placeAt(at), d.tree.LastID()
	err := d.putState(func(s *stateRecord) { s.LastID = last })
	d.savedMu.Lock()
	delete(d.places, at)
	d.savedMu.Unlock()
	return errors.Join(err, d.opts.Record.Delete(mountKey(place)), d.opts.Record.Delete(configKey(place)))
}

// keptFile opens what a mount needs to be found again by the next process, and nil
// without a record.
func (d *Daemon) keptFile(open func() (*os.File, error)) (*os.File, error) {
	if d.opts.Record == nil {
		return nil, nil
	}
	return open()
}

// closeKept closes a file of keptFile.
func closeKept(f *os.File) {
	if f != nil {
		_ = f.Close() // nothing was written through it
	}
}

// isTemp tells whether dir is a folder of ours, still there.
func isTemp(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid()
}
