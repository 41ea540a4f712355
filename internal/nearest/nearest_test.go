package nearest

import (
	"strings"
	"testing"
)

func TestWord(t *testing.T) {
	right := []string{"--bootstrap", "--blob-dir", "--config", "--data"}
	for word, want := range map[string]string{
		"--bloc-dir":              "--blob-dir",
		"--bootstarp":             "--bootstrap",
		"--conf":                  "--config",
		"--data":                  "--data",
		"zzzzzz":                  "",
		"":                        "",
		strings.Repeat("x", 1000): "",
	} {
		if got := Word(word, right); got != want {
			t.Errorf("Word(%.20q) = %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"abc", "abd", 1},
	} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
