// Package httpapi serves nydusd's HTTP API on a unix socket: thin over the
// daemon's one service, and byte for byte what clients depend on.
//
//	Kata shim, nydus-snapshotter, curl ──unix──▶ Server ─ table of routes ─▶ Service
//
// What clients depend on (each line has a test):
//   - success without a payload is 204 and empty, never 200;
//   - an error's body is {"code":"UNDEFINED","message":"…"};
//   - the mountpoint in the query comes raw or percent-encoded;
//   - a connection that is silent, for ever, stays open: nydus-snapshotter takes
//     its end for the daemon's death. So there is no time-out of any kind;
//   - a path is matched exactly and never redirected.
//
// Stricter than nydusd: the socket is 0600, no secret is ever shown, and requests
// run at the same time, so that a mount never delays a question for the state.
//
// Trust: who can connect is root or as good as root (mode and folder of the
// socket), but is not trusted to be sane: bodies end at 1 MiB, and no request can
// stop another one.
package httpapi
