package rafs

// SplitRdev takes a device number in the kernel's new_encode_dev form apart:
// major in bits 8 to 19, minor in bits 0 to 7 and 20 to 31.
func SplitRdev(rdev uint32) (major, minor uint32) {
	return rdev >> 8 & 0xfff, rdev&0xff | rdev>>12&0xfff00
}
