//go:build race

package passthrough_test

const raceEnabled = true
