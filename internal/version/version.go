// Package version says which build this is. The linker sets the variables (see
// the Makefile); a plain `go build` falls back to what the toolchain recorded.
package version

import "runtime/debug"

// Set by the linker.
var (
	Version   = "unknown" // git describe
	Commit    = ""        // 40 hex digits
	BuildTime = ""        // ISO 8601
)

func init() {
	if Commit != "" {
		return
	}
	Commit = "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			Commit = s.Value
		case "vcs.time":
			BuildTime = s.Value
		}
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		Version = info.Main.Version
	}
}
