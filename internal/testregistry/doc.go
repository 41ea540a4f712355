// Package testregistry is an OCI registry in this process, for tests and for the
// demonstration: it serves blobs by range, counts what it served, and fails on
// demand.
//
//	client ──GET──▶ registry ──307──▶ storage     (Options.Redirect: signed, expiring)
//	          ▲        │ 401
//	          └─ token service (Options.Auth = Bearer: tokens expire)
//
// Faults are rules that are asked in their order about each request for a
// blob's bytes, after credentials were checked. All methods may be called at any
// time from any goroutine.
package testregistry
