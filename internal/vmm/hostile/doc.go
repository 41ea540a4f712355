// Package hostile attacks a back-end the way a malicious guest, or a broken VMM,
// could: through descriptors, ring indexes, FUSE requests and vhost-user messages.
//
// Each Attack runs against whatever listens behind dial and ends with an error if
// the back-end did not do its part: answer what can be answered, break only the
// queue that is broken (with a signal on its err descriptor), keep the other queues
// alive, and serve the next machine on the same socket as if nothing had been.
// Attacks expect a back-end that accepts again after a front-end has gone, and a
// file system that nobody minds to be changed.
package hostile
