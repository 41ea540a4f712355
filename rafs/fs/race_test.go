//go:build race

package fs_test

// Under the race detector sync.Pool throws things away at random.
func init() { raceEnabled = true }
