#include "textflag.h"

// func LoadAcquire16(p *uint16) uint16
// Any load is an acquire on amd64.
TEXT ·LoadAcquire16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), BX
	MOVWLZX	(BX), AX
	MOVW	AX, ret+8(FP)
	RET

// func StoreRelease16(p *uint16, v uint16)
// Any store is a release on amd64.
TEXT ·StoreRelease16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), BX
	MOVWLZX	v+8(FP), AX
	MOVW	AX, (BX)
	RET

// func StoreFence16(p *uint16, v uint16)
// An exchange with memory is locked: store and full barrier in one.
TEXT ·StoreFence16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), BX
	MOVWLZX	v+8(FP), AX
	XCHGW	AX, (BX)
	RET

// func Fence()
// A locked instruction on the own stack is cheaper than MFENCE.
TEXT ·Fence(SB), NOSPLIT, $8-0
	LOCK
	ADDL	$0, 0(SP)
	RET

// func StoreRelease32(p *uint32, v uint32)
TEXT ·StoreRelease32(SB), NOSPLIT, $0-12
	MOVQ	p+0(FP), BX
	MOVL	v+8(FP), AX
	MOVL	AX, (BX)
	RET

// func StoreRelease64(p *uint64, v uint64)
TEXT ·StoreRelease64(SB), NOSPLIT, $0-16
	MOVQ	p+0(FP), BX
	MOVQ	v+8(FP), AX
	MOVQ	AX, (BX)
	RET
