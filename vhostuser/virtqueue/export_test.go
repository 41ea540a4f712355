package virtqueue

// OnStep makes f be called between any two stores to the table and to the used
// ring: where a process may end.
func (f *Inflight) OnStep(crash func()) { f.crash = crash }
