package passthrough

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// XattrMap renames the guest's extended attributes on the host and hides those of
// the host from the guest, as virtiofsd's --xattrmap. A nil *XattrMap changes
// nothing. It is immutable.
type XattrMap struct {
	rules []xattrRule
}

type xattrAction uint8

const (
	xattrPrefix      xattrAction = iota // client: prepend; server: strip
	xattrOK                             // as it is
	xattrBad                            // client: EPERM; server: hidden
	xattrUnsupported                    // client: EOPNOTSUPP
)

var xattrActions = map[string]xattrAction{
	"prefix": xattrPrefix, "ok": xattrOK, "bad": xattrBad, "unsupported": xattrUnsupported,
}

// xattrRule is one rule; the first one that matches decides.
type xattrRule struct {
	action         xattrAction
	client, server bool
	key            string // prefix of the guest's name (client)
	prepend        string // prefix of the host's name (server), and what is prepended
}

// ParseXattrMap parses rules of the forms
//
//	:type:scope:key:prepend:   type is prefix, ok, bad or unsupported, scope client, server or all
//	:map:key:prepend:          short for prefixing key (or everything) and hiding the rest
//
// in any number, with white space between them. The first character of a rule is
// its separator. There is a final rule after which nothing else is allowed through.
func ParseXattrMap(text string) (*XattrMap, error) {
	m := new(XattrMap)
	for rest := strings.TrimLeftFunc(text, unicode.IsSpace); rest != ""; rest = strings.TrimLeftFunc(rest, unicode.IsSpace) {
		sep := rest[:1]
		n := 4
		fields := strings.SplitN(rest[1:], sep, 6)
		if fields[0] == "map" {
			n = 3
		}
		if len(fields) <= n {
			return nil, fmt.Errorf("xattr map: rule %q is not finished by %q", rest, sep)
		}
		used := 1
		for _, f := range fields[:n] {
			used += len(f) + 1
		}
		if err := m.add(fields[:n]); err != nil {
			return nil, fmt.Errorf("xattr map: rule %q: %w", rest[:used], err)
		}
		rest = rest[used:]
		if fields[0] == "map" && strings.TrimSpace(rest) != "" {
			return nil, fmt.Errorf("xattr map: %q stands behind a map rule, which is always the last", strings.TrimSpace(rest))
		}
	}
	if len(m.rules) == 0 {
		return nil, fmt.Errorf("xattr map: no rules")
	}
	last := m.rules[len(m.rules)-1]
	if last.key != "" || last.prepend != "" || !last.client || !last.server {
		return nil, fmt.Errorf("xattr map: the last rule must be for all names: \":TYPE:all:::\"")
	}
	return m, nil
}

func (m *XattrMap) add(fields []string) error {
	if fields[0] == "map" {
		key, prepend := fields[1], fields[2]
		m.rules = append(m.rules, xattrRule{xattrPrefix, true, true, key, prepend})
		if key != "" {
			// Names that are prefixed already are hidden behind the prefix; all
			// others are as they are.
			m.rules = append(m.rules,
				xattrRule{xattrBad, true, false, prepend, ""},
				xattrRule{xattrBad, false, true, "", key},
				xattrRule{xattrOK, true, true, "", ""})
			return nil
		}
		m.rules = append(m.rules, xattrRule{xattrBad, true, true, "", ""})
		return nil
	}
	action, ok := xattrActions[fields[0]]
	if !ok {
		return fmt.Errorf("type %q is not prefix, ok, bad, unsupported or map", fields[0])
	}
	r := xattrRule{action: action, key: fields[2], prepend: fields[3]}
	switch fields[1] {
	case "client":
		r.client = true
	case "server":
		r.server = true
	case "all":
		r.client, r.server = true, true
	default:
		return fmt.Errorf("scope %q is not client, server or all", fields[1])
	}
	m.rules = append(m.rules, r)
	return nil
}

// toHost returns the host's name for the guest's.
func (m *XattrMap) toHost(name []byte) ([]byte, error) {
	if m == nil {
		return name, nil
	}
	for i := range m.rules {
		r := &m.rules[i]
		if !r.client || !bytes.HasPrefix(name, []byte(r.key)) {
			continue
		}
		switch r.action {
		case xattrPrefix:
			return append([]byte(r.prepend), name...), nil
		case xattrOK:
			return name, nil
		case xattrUnsupported:
			return nil, unix.EOPNOTSUPP
		}
		return nil, unix.EPERM
	}
	return nil, unix.EPERM
}

// toGuest returns the guest's name for the host's, or false if it is hidden.
func (m *XattrMap) toGuest(name []byte) ([]byte, bool) {
	if m == nil {
		return name, true
	}
	for i := range m.rules {
		r := &m.rules[i]
		if !r.server || !bytes.HasPrefix(name, []byte(r.prepend)) {
			continue
		}
		switch r.action {
		case xattrPrefix:
			return name[len(r.prepend):], true
		case xattrOK:
			return name, true
		}
		return nil, false
	}
	return nil, false
}
