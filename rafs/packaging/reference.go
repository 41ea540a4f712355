package packaging

import (
	"fmt"
	"net"
	"strings"
)

// Reference names an image in a registry.
type Reference struct {
	Host string // host or host:port
	Repo string // such as library/alpine
	Tag  string // a tag, or a digest: sha256:…
}

func (r Reference) String() string {
	if strings.HasPrefix(r.Tag, "sha256:") {
		return r.Host + "/" + r.Repo + "@" + r.Tag
	}
	return r.Host + "/" + r.Repo + ":" + r.Tag
}

// Loopback tells whether the registry is on this host: such ones are asked
// without TLS, as other tools do.
func (r Reference) Loopback() bool {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ParseReference reads host/repository[:tag][@sha256:digest]. The host is needed:
// its name has a dot or a port, or is localhost. Without tag and digest it is the
// tag latest; with both the digest counts.
func ParseReference(s string) (Reference, error) {
	bad := func(what string) (Reference, error) {
		return Reference{}, fmt.Errorf("image %q: %s (want registry.example/app:tag)", s, what)
	}
	host, rest, ok := strings.Cut(s, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return bad("no registry")
	}
	r := Reference{Host: host, Tag: "latest"}
	name, digest, pinned := strings.Cut(rest, "@")
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name, r.Tag = name[:i], name[i+1:]
	}
	if pinned {
		hex, ok := strings.CutPrefix(digest, "sha256:")
		if !ok || !isHex(hex) {
			return bad("the digest is not sha256 and 64 hex digits")
		}
		r.Tag = digest
	}
	if name == "" || r.Tag == "" {
		return bad("no repository or an empty tag")
	}
	r.Repo = name
	return r, nil
}

func isHex(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
