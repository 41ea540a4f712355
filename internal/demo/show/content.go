package show

import (
	"bytes"
	"math/rand/v2"
	"strings"
)

// The sample's files are made, not shipped. Three kinds of content stand for what
// images hold; a seed fixes the bytes.

const words = `the of and a to in is that for it as was with be by on not he his but
at are this have from or had an they which one you were all her she there would their
we him been has when who will no more if out so up said what its about than into them
can only other time new some could these two may first then do any like my now over
such our man me even most made after also did many off before must well back through
years where much your way down should because long each just state those people too
mr how little good world make very year still see own work men day get here old life
both between being under three never know same last another while us might great go
come since against right came take used himself few house american use place during
high without again home around small however found mrs part school thought went say`

var vocabulary = strings.Fields(words)

// prose is n bytes of lines of words; it compresses about threefold.
func prose(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, 0, n+16)
	for column := 0; len(out) < n; {
		w := vocabulary[skewed(rng, len(vocabulary))]
		out = append(out, w...)
		if column += len(w) + 1; column > 76 {
			out, column = append(out, '\n'), 0
		} else {
			out = append(out, ' ')
		}
	}
	out = out[:n]
	if n > 0 {
		out[n-1] = '\n'
	}
	return out
}

// instructions are what all programs are made of.
var instructions = func() [][]byte {
	rng := rand.New(rand.NewPCG(2, 2))
	all := make([][]byte, 4096)
	for i := range all {
		all[i] = make([]byte, 3+rng.IntN(8))
		for j := range all[i] {
			all[i][j] = byte(rng.Uint32())
		}
	}
	return all
}()

// program is n bytes that are to a compressor what machine code is: few different
// pieces with an address here and there. It compresses about twofold.
func program(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 3))
	out := make([]byte, 0, n+16)
	out = append(out, "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x3e\x00"...)
	for len(out) < n {
		out = append(out, instructions[skewed(rng, len(instructions))]...)
		if v := rng.Uint32(); v&7 == 0 {
			out = append(out, byte(v>>8), byte(v>>16), byte(v>>24))
		}
	}
	return out[:n]
}

// picture is n bytes that do not compress, as of a file that is compressed already.
func picture(n int, seed uint64) []byte {
	rng := rand.NewChaCha8([32]byte{0: byte(seed), 1: byte(seed >> 8), 2: 4})
	out := make([]byte, n)
	_, _ = rng.Read(out) // never fails
	copy(out, "\x89PNG\r\n\x1a\n")
	return out
}

// catalogue is n bytes of records, the kind of data that an application carries
// with it; it compresses about fivefold.
func catalogue(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 5))
	var out bytes.Buffer
	out.Grow(n + 256)
	for nr := 100_000; out.Len() < n; nr++ {
		out.WriteString(`{"article": "`)
		out.WriteString(decimal(nr))
		out.WriteString(`", "name": "`)
		for i := range 3 {
			if i > 0 {
				out.WriteByte(' ')
			}
			out.WriteString(vocabulary[skewed(rng, len(vocabulary))])
		}
		out.WriteString(`", "price": "`)
		out.WriteString(decimal(rng.IntN(100_000)))
		out.WriteString(`", "currency": "EUR", "available": true, "warehouse": "north"}` + "\n")
	}
	return out.Bytes()[:n]
}

// skewed is a number below n, small ones more often.
func skewed(rng *rand.Rand, n int) int {
	a, b := rng.IntN(n), rng.IntN(n)
	return a * b / n
}
