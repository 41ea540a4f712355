package config

import (
	"fmt"
	"reflect"
)

// SettingsKeys lists the keys of Settings with their sections, in order.
func SettingsKeys() []string {
	var keys []string
	t := reflect.TypeFor[Settings]()
	for i := range t.NumField() {
		section := t.Field(i)
		for j := range section.Type.NumField() {
			keys = append(keys, section.Tag.Get("toml")+"."+section.Type.Field(j).Tag.Get("toml"))
		}
	}
	return keys
}

// suggestion is the end of an "unknown" message: the nearest right word.
func suggestion(word string, right []string) string {
	if near := Nearest(word, right); near != "" {
		return fmt.Sprintf(", did you mean %s?", near)
	}
	return ""
}

// Nearest returns the word of right that is most like word, or "" if none is
// like it at all.
func Nearest(word string, right []string) string {
	best, bestDistance := "", 1+len(word)/2
	for _, r := range right {
		if d := distance(word, r); d < bestDistance {
			best, bestDistance = r, d
		}
	}
	return best
}

// distance is the number of letters to insert, drop or change between a and b,
// for words of a sane length.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
