package passthrough

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IDMap turns user or group ids of the guest into those of the host and back.
// The zero IDMap changes nothing. It is immutable.
type IDMap struct {
	ranges []idRange
}

// idRange is one rule. Rules of the same direction do not overlap.
type idRange struct {
	guest, host, count uint32
	toHost, toGuest    bool
	squash             bool // every id of the source side becomes the one target
	forbid             bool // every id of the source side is an error
}

// noID is what no user has: (uid_t)-1, which system calls take for "as it is".
const noID = ^uint32(0)

// ParseIDMap parses the rules of virtiofsd's --translate-uid and --translate-gid,
// separated by commas or white space; each is one of
//
//	guest:GUEST:HOST:COUNT           guest ids to host ids only
//	host:HOST:GUEST:COUNT            host ids to guest ids only
//	map:GUEST:HOST:COUNT             both ways, one to one
//	squash-guest:GUEST:HOST:COUNT    all of the guest's become one of the host's
//	squash-host:HOST:GUEST:COUNT     all of the host's become one of the guest's
//	forbid-guest:GUEST:COUNT         refused with EPERM
//
// An id that no rule names stays as it is.
func ParseIDMap(s string) (IDMap, error) {
	var m IDMap
	for _, rule := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		r, err := parseIDRule(rule)
		if err != nil {
			return IDMap{}, fmt.Errorf("id map rule %q: %w", rule, err)
		}
		for _, o := range m.ranges {
			if r.toHost && o.toHost && overlap(r.guest, o.guest, r.count, o.count) ||
				r.toGuest && o.toGuest && overlap(r.host, o.host, r.count, o.count) {
				return IDMap{}, fmt.Errorf("id map rule %q names ids that an earlier rule names", rule)
			}
		}
		m.ranges = append(m.ranges, r)
	}
	return m, nil
}

func overlap(a, b, na, nb uint32) bool {
	return uint64(a) < uint64(b)+uint64(nb) && uint64(b) < uint64(a)+uint64(na)
}

func parseIDRule(rule string) (idRange, error) {
	fields := strings.Split(rule, ":")
	want := 4
	if fields[0] == "forbid-guest" {
		want = 3
	}
	if len(fields) != want {
		return idRange{}, fmt.Errorf("has %d fields, want %d", len(fields), want)
	}
	var n [3]uint32
	for i, f := range fields[1:] {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return idRange{}, fmt.Errorf("%q is no id", f)
		}
		n[i] = uint32(v)
	}
	r := idRange{guest: n[0], host: n[1], count: n[want-2]}
	switch fields[0] {
	case "guest":
		r.toHost = true
	case "host":
		r.toGuest, r.guest, r.host = true, n[1], n[0]
	case "map":
		r.toHost, r.toGuest = true, true
	case "squash-guest":
		r.toHost, r.squash = true, true
	case "squash-host":
		r.toGuest, r.squash, r.guest, r.host = true, true, n[1], n[0]
	case "forbid-guest":
		r.toHost, r.forbid = true, true
	default:
		return idRange{}, fmt.Errorf("%q is not guest, host, map, squash-guest, squash-host or forbid-guest", fields[0])
	}
	switch {
	case r.count == 0:
		return idRange{}, fmt.Errorf("names no id: the count is 0")
	case uint64(n[0])+uint64(r.count) > uint64(noID):
		return idRange{}, fmt.Errorf("goes beyond the last id")
	case !r.squash && !r.forbid && uint64(n[1])+uint64(r.count) > uint64(noID):
		return idRange{}, fmt.Errorf("goes beyond the last id")
	}
	return r, nil
}

// toHost returns the host's id for one of the guest's. noID stays noID.
func (m *IDMap) toHost(id uint32) (uint32, error) {
	if len(m.ranges) == 0 || id == noID {
		return id, nil
	}
	for i := range m.ranges {
		r := &m.ranges[i]
		if !r.toHost || id < r.guest || id-r.guest >= r.count {
			continue
		}
		switch {
		case r.forbid:
			return 0, unix.EPERM
		case r.squash:
			return r.host, nil
		}
		return r.host + (id - r.guest), nil
	}
	return id, nil
}

// toGuest returns the guest's id for one of the host's.
func (m *IDMap) toGuest(id uint32) uint32 {
	for i := range m.ranges {
		r := &m.ranges[i]
		if !r.toGuest || id < r.host || id-r.host >= r.count {
			continue
		}
		if r.squash {
			return r.guest
		}
		return r.guest + (id - r.host)
	}
	return id
}
