//go:build race

package nullfs_test

const raceEnabled = true
