package fuseproto

import (
	"sync/atomic"
)

// shardCount is how many sets of counters there are, so that queues served at
// the same time seldom write the same cache line.
const shardCount = 8

// shard is one set of counters.
type shard struct {
	requests   [opcodeCount]atomic.Uint64 // index 0: opcodes unknown
	errors     [opcodeCount]atomic.Uint64
	wouldBlock [opcodeCount]atomic.Uint64
	done       atomic.Uint64
	panics     atomic.Uint64
	faults     atomic.Uint64
	dropped    atomic.Uint64
	_          [128]byte
}

func (op *Op) counterIndex() Opcode {
	if op.Opcode < opcodeCount {
		return op.Opcode
	}
	return 0
}

// OpCounters are the counters of one opcode since the Server began.
type OpCounters struct {
	Requests   uint64
	Errors     uint64 // answered with an errno, ENOENT and the like included
	WouldBlock uint64 // of Requests: those that left the queue's goroutine
}

// Counters are a Server's counters. They are read one by one while requests go
// on, so sums need not agree to the last.
type Counters struct {
	Ops      map[Opcode]OpCounters // only those seen; 0 stands for unknown opcodes
	InFlight uint64
	Panics   uint64 // requests that panicked
	Faults   uint64 // requests that met memory that is no longer there
	Dropped  uint64 // replies that could not be delivered
}

// Counters sums up.
func (s *Server) Counters() Counters {
	c := Counters{Ops: make(map[Opcode]OpCounters)}
	var requests, done uint64
	for i := range s.shards {
		sh := &s.shards[i]
		// done before requests: InFlight never comes out below the truth by a
		// request that ended in between.
		done += sh.done.Load()
		c.Panics += sh.panics.Load()
		c.Faults += sh.faults.Load()
		c.Dropped += sh.dropped.Load()
		for op := range Opcode(opcodeCount) {
			n := OpCounters{
				Requests:   sh.requests[op].Load(),
				Errors:     sh.errors[op].Load(),
				WouldBlock: sh.wouldBlock[op].Load(),
			}
			if n == (OpCounters{}) {
				continue
			}
			requests += n.Requests
			sum := c.Ops[op]
			sum.Requests += n.Requests
			sum.Errors += n.Errors
			sum.WouldBlock += n.WouldBlock
			c.Ops[op] = sum
		}
	}
	c.InFlight = requests - min(done, requests)
	return c
}
