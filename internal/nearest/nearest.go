// Package nearest finds the word that a person most likely meant: "unknown flag
// --bloc-dir, did you mean --blob-dir?".
package nearest

// longest bounds the work that a caller's word can cause.
const longest = 64

// Word returns the word of right that is most like word, or "" if none is like it
// at all: at most half of the letters, and one, may differ.
func Word(word string, right []string) string {
	best, bestDistance := "", 2+len(word)/2
	for _, r := range right {
		if d := distance(word, r); d < bestDistance {
			best, bestDistance = r, d
		}
	}
	return best
}

// distance is the number of bytes to insert, drop or change to make b of a.
func distance(a, b string) int {
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
