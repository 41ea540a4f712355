// Package rafstest is what the tests of the metadata readers share: the corpus's
// images with the truth about each, bytes of chunks without a cache between, and
// an image as a manifest.
package rafstest
