// Package codec turns the stored bytes of a chunk into its uncompressed bytes
// and says what they hash to.
//
//	stored bytes ──Decode──▶ uncompressed bytes ──Sum──▶ digest to compare
//
// Trust: stored bytes come from a registry and are hostile. The caller brings
// the whole output buffer; a stream that would need more, or yields less, is an
// error, so that nothing a stream says decides an allocation. Decoders work in
// bounded memory (see maxWindow) and are pooled.
//
// All functions are safe for concurrent use. Work that burns CPU should run
// between Enter and Leave: no more of it runs at a time than there are
// processors, whoever asks.
package codec
