#include "textflag.h"

// DMB option: inner shareable domain, all accesses.
#define ISH $11

// func LoadAcquire16(p *uint16) uint16
TEXT ·LoadAcquire16(SB), NOSPLIT, $0-10
	MOVD	p+0(FP), R0
	LDARH	(R0), R1
	MOVH	R1, ret+8(FP)
	RET

// func StoreRelease16(p *uint16, v uint16)
TEXT ·StoreRelease16(SB), NOSPLIT, $0-10
	MOVD	p+0(FP), R0
	MOVHU	v+8(FP), R1
	STLRH	R1, (R0)
	RET

// func StoreFence16(p *uint16, v uint16)
// A plain store is not ordered before a later LDAR: the barrier is needed.
TEXT ·StoreFence16(SB), NOSPLIT, $0-10
	MOVD	p+0(FP), R0
	MOVHU	v+8(FP), R1
	MOVH	R1, (R0)
	DMB	ISH
	RET

// func Fence()
TEXT ·Fence(SB), NOSPLIT, $0-0
	DMB	ISH
	RET

// func StoreRelease32(p *uint32, v uint32)
TEXT ·StoreRelease32(SB), NOSPLIT, $0-12
	MOVD	p+0(FP), R0
	MOVWU	v+8(FP), R1
	STLRW	R1, (R0)
	RET

// func StoreRelease64(p *uint64, v uint64)
TEXT ·StoreRelease64(SB), NOSPLIT, $0-16
	MOVD	p+0(FP), R0
	MOVD	v+8(FP), R1
	STLR	R1, (R0)
	RET
