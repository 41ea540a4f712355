// Package registry is the backend of blobs in an OCI registry, read by range.
//
//	ReadRange ─▶ mirror 1 ─▶ mirror 2 ─▶ proxy ─▶ origin      the first that answers right
//	               │                                │
//	               └── GET /v2/REPO/blobs/sha256:ID ┘
//	                     │ 401: token or password, once more
//	                     │ 3xx: storage, without credentials; remembered until it fails
//	                     ▼
//	               206 with the range asked for, or an error
//
// One call tries each route once (and again RetryLimit times); the store repeats
// it as long as somebody waits. A route that failed FailureLimit times in a row
// is left alone for its check interval, and the origin is never left alone unless
// a proxy without fallback stands before it.
//
// # Answers
//
// A 206 must carry exactly the range that was asked for. A 200 is let pass for a
// range at the beginning of the blob, of which no more is read than was asked
// for. Everything else is refused before a byte of its body is believed. A body
// that yields nothing for Options.Timeout is cut.
//
// # Credentials
//
// They go to the origin, to the token service that it names, and to mirrors of
// the operator's list when these ask for them; never where a redirect leads
// that leaves the origin (scheme, host and port), and never from https down to
// http. Errors and logs name hosts and paths, but no query, no user
// information, and no body of an answer: addresses of storage are signed, and a
// signature is a credential.
//
// Nothing of oras-go's client is used here: it refuses token services at private
// addresses, which is where most registries of clusters have theirs, and asks
// for tokens only after they have expired.
package registry
