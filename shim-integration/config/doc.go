// Package config reads the texts that tell the daemon what to do: the
// configuration of one RAFS mount as nydusd's callers write it, and the
// daemon's own settings.
//
//	JSON v1 ─┐
//	JSON v2 ─┼─▶ tree of keys ─▶ Config (the v2 shape) ─▶ Check ─▶ a mount
//	TOML v2 ─┘
//	rafsd.toml ──────────────────▶ Settings ────────────────────▶ the daemon
//
// The two differ in what they forgive. A mount's configuration comes from
// programs of many ages, so unknown keys are ignored at every level, while a
// value of the wrong type is an error that names its key. Our own settings are
// written by people, so an unknown key is an error that names the nearest right
// one.
//
// Trust: the text comes from whoever may call the API (root, by socket mode) and
// holds credentials. Values never appear in an error, and whatever is secret is a
// Secret or a URL, which print masked in every way there is to print them.
//
// Everything here is a plain value after it was parsed: nothing is shared, there
// is no lock, no goroutine and no I/O but reading the named file.
package config
