// Package apisock makes the sockets of the daemon's APIs: for their owner only,
// where a stale one stood, and without a bound that a forgetful caller could use up.
package apisock
