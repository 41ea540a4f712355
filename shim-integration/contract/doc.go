// Package contract holds rafsd's HTTP API to the real client of nydus-snapshotter. It
// is a module of its own, so that what that client needs stays out of rafsd's own
// modules.
package contract
