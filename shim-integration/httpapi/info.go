package httpapi

import (
	"encoding/json"
	"runtime"

	"github.com/rafsd/rafsd/internal/version"
	"github.com/rafsd/rafsd/shim-integration/config"
	"github.com/rafsd/rafsd/shim-integration/daemon"
)

// Version is what the API and --version say of this build. Kata's Rust runtime
// waits for ever for a daemon that leaves one of the five out, and
// nydus-snapshotter compares GitCommit with what --version prints.
type Version struct {
	PackageVer string `json:"package_ver"`
	GitCommit  string `json:"git_commit"`
	BuildTime  string `json:"build_time"`
	Profile    string `json:"profile"`
	Rustc      string `json:"rustc"` // our toolchain stands in its place
}

// BuildVersion returns the Version of this build; none of its fields is empty.
func BuildVersion() Version {
	known := func(s string) string {
		if s == "" {
			return "unknown"
		}
		return s
	}
	return Version{
		PackageVer: known(version.Version),
		GitCommit:  known(version.Commit),
		BuildTime:  known(version.BuildTime),
		Profile:    "release",
		Rustc:      runtime.Version(),
	}
}

// infoReply is the answer to GET /api/v1/daemon, keys in nydusd's order.
type infoReply struct {
	Version           Version              `json:"version"`
	ID                *string              `json:"id"`
	Supervisor        *string              `json:"supervisor"`
	State             daemon.State         `json:"state"`
	BackendCollection map[string]mountItem `json:"backend_collection"`
}

type mountItem struct {
	BackendType string         `json:"backend_type"`
	Mountpoint  string         `json:"mountpoint"`
	MountedTime string         `json:"mounted_time"`
	Config      *config.Config `json:"config"`
}

func daemonInfo(info daemon.Info) infoReply {
	reply := infoReply{
		Version:           BuildVersion(),
		ID:                optional(info.ID),
		Supervisor:        optional(info.Supervisor),
		State:             info.State,
		BackendCollection: make(map[string]mountItem, len(info.Mounts)),
	}
	for _, m := range info.Mounts {
		kind := "Rafs"
		if m.FSType == daemon.FSPassthrough {
			kind = "PassthroughFs"
		}
		reply.BackendCollection[m.Mountpoint] = mountItem{
			BackendType: kind,
			Mountpoint:  m.Mountpoint,
			MountedTime: m.Mounted.UTC().Format("2006-01-02 15:04:05.999999999 -07:00:00"),
			Config:      m.Config,
		}
	}
	return reply
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// errorReply is the body of every answer that is not a success.
type errorReply struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func errorBody(message string) []byte {
	b, err := json.Marshal(errorReply{Code: "UNDEFINED", Message: message})
	if err != nil { // two strings always marshal
		panic(err)
	}
	return b
}
