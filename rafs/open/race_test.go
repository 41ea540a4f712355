//go:build race

package open_test

const raceDetector = true
