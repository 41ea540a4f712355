package posix

import "unsafe"

func pointer(list []uint32) uintptr { return uintptr(unsafe.Pointer(&list[0])) }
