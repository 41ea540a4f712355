package wire

import (
	"encoding/binary"
	"fmt"
)

var le = binary.LittleEndian

// Sizes of payloads in bytes.
const (
	U64Size        = 8
	VringStateSize = 8
	VringAddrSize  = 40
	MemRegionSize  = 32
	// SingleRegionSize is the payload of ADD_MEM_REG and REM_MEM_REG.
	SingleRegionSize = 8 + MemRegionSize
	memTableHeader   = 8
	configHeader     = 12
)

// InflightSize is the payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
const InflightSize = 24

// Inflight is that payload.
type Inflight struct {
	MmapSize   uint64
	MmapOffset uint64
	Queues     uint16
	QueueSize  uint16
}

// ParseInflight decodes an Inflight.
func ParseInflight(p []byte) (Inflight, error) {
	if len(p) != InflightSize {
		return Inflight{}, short("in-flight description", len(p), InflightSize)
	}
	return Inflight{
		MmapSize: le.Uint64(p), MmapOffset: le.Uint64(p[8:]),
		Queues: le.Uint16(p[16:]), QueueSize: le.Uint16(p[18:]),
	}, nil
}

// Append appends the encoding of i to b.
func (i Inflight) Append(b []byte) []byte {
	b = le.AppendUint64(b, i.MmapSize)
	b = le.AppendUint64(b, i.MmapOffset)
	b = le.AppendUint16(b, i.Queues)
	b = le.AppendUint16(b, i.QueueSize)
	return le.AppendUint32(b, 0)
}

// MaxConfigSize is the most bytes of configuration space one message may name.
const MaxConfigSize = 256

// MaxTableRegions is the most regions of one SET_MEM_TABLE.
const MaxTableRegions = 8

// ErrPayload is wrapped by every error about a payload whose layout is wrong.
var ErrPayload = fmt.Errorf("malformed payload")

func short(what string, got, want int) error {
	return fmt.Errorf("%s: %d bytes, want %d: %w", what, got, want, ErrPayload)
}

// ParseU64 decodes the payload of messages that carry one number.
func ParseU64(p []byte) (uint64, error) {
	if len(p) != U64Size {
		return 0, short("u64", len(p), U64Size)
	}
	return le.Uint64(p), nil
}

// AppendU64 appends the payload of one number to b.
func AppendU64(b []byte, v uint64) []byte { return le.AppendUint64(b, v) }

// VringState is the payload of SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE
// and SET_VRING_ENABLE.
type VringState struct {
	Index uint32 // of the vring
	Num   uint32 // size, base or 0/1, by the message
}

// ParseVringState decodes a VringState.
func ParseVringState(p []byte) (VringState, error) {
	if len(p) != VringStateSize {
		return VringState{}, short("vring state", len(p), VringStateSize)
	}
	return VringState{Index: le.Uint32(p), Num: le.Uint32(p[4:])}, nil
}

// Append appends the encoded state to b.
func (s VringState) Append(b []byte) []byte {
	return le.AppendUint32(le.AppendUint32(b, s.Index), s.Num)
}

// VringAddr is the payload of SET_VRING_ADDR. The three ring addresses are user
// addresses of the front-end; Log is guest-physical.
type VringAddr struct {
	Index uint32
	Flags uint32 // bit 0: log writes to the used ring
	Desc  uint64
	Used  uint64
	Avail uint64
	Log   uint64
}

// ParseVringAddr decodes a VringAddr.
func ParseVringAddr(p []byte) (VringAddr, error) {
	if len(p) != VringAddrSize {
		return VringAddr{}, short("vring addresses", len(p), VringAddrSize)
	}
	return VringAddr{
		Index: le.Uint32(p),
		Flags: le.Uint32(p[4:]),
		Desc:  le.Uint64(p[8:]),
		Used:  le.Uint64(p[16:]),
		Avail: le.Uint64(p[24:]),
		Log:   le.Uint64(p[32:]),
	}, nil
}

// Append appends the encoded addresses to b.
func (a VringAddr) Append(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, a.Index), a.Flags)
	b = le.AppendUint64(le.AppendUint64(b, a.Desc), a.Used)
	return le.AppendUint64(le.AppendUint64(b, a.Avail), a.Log)
}

// VringFD is the payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
type VringFD struct {
	Index uint8
	NoFD  bool // bit 8: no descriptor comes with the message
}

const (
	vringFDIndexMask = 0xff
	vringFDNone      = 1 << 8
)

// ParseVringFD decodes a VringFD. Bits beyond the two fields are refused.
func ParseVringFD(p []byte) (VringFD, error) {
	v, err := ParseU64(p)
	if err != nil {
		return VringFD{}, err
	}
	if v&^uint64(vringFDIndexMask|vringFDNone) != 0 {
		return VringFD{}, fmt.Errorf("vring descriptor word %#x has unknown bits: %w", v, ErrPayload)
	}
	return VringFD{Index: uint8(v & vringFDIndexMask), NoFD: v&vringFDNone != 0}, nil
}

// Append appends the encoded word to b.
func (f VringFD) Append(b []byte) []byte {
	v := uint64(f.Index)
	if f.NoFD {
		v |= vringFDNone
	}
	return le.AppendUint64(b, v)
}

// MemRegion is one region of guest memory as a front-end describes it. Nothing
// about it has been checked.
type MemRegion struct {
	GuestAddr  uint64 // guest-physical address
	Size       uint64 // bytes
	UserAddr   uint64 // address in the front-end
	MmapOffset uint64 // of the region's first byte in its descriptor's file
}

func parseMemRegion(p []byte) MemRegion {
	return MemRegion{
		GuestAddr:  le.Uint64(p),
		Size:       le.Uint64(p[8:]),
		UserAddr:   le.Uint64(p[16:]),
		MmapOffset: le.Uint64(p[24:]),
	}
}

func (r MemRegion) append(b []byte) []byte {
	b = le.AppendUint64(le.AppendUint64(b, r.GuestAddr), r.Size)
	return le.AppendUint64(le.AppendUint64(b, r.UserAddr), r.MmapOffset)
}

// ParseMemTable decodes the payload of SET_MEM_TABLE. Bytes behind the last
// region are ignored: user-mode Linux 6.1 and 6.12 send room for two regions
// whatever their number.
func ParseMemTable(p []byte) ([]MemRegion, error) {
	if len(p) < memTableHeader {
		return nil, short("memory table", len(p), memTableHeader)
	}
	n := le.Uint32(p)
	if n > MaxTableRegions {
		return nil, fmt.Errorf("memory table of %d regions, at most %d: %w", n, MaxTableRegions, ErrPayload)
	}
	if want := memTableHeader + int(n)*MemRegionSize; len(p) < want {
		return nil, short(fmt.Sprintf("memory table of %d regions", n), len(p), want)
	}
	regions := make([]MemRegion, n)
	for i := range regions {
		regions[i] = parseMemRegion(p[memTableHeader+i*MemRegionSize:])
	}
	return regions, nil
}

// AppendMemTable appends the payload of SET_MEM_TABLE for regions to b.
func AppendMemTable(b []byte, regions []MemRegion) []byte {
	b = le.AppendUint64(b, uint64(uint32(len(regions))))
	for _, r := range regions {
		b = r.append(b)
	}
	return b
}

// ParseSingleRegion decodes the payload of ADD_MEM_REG and REM_MEM_REG.
func ParseSingleRegion(p []byte) (MemRegion, error) {
	if len(p) != SingleRegionSize {
		return MemRegion{}, short("memory region", len(p), SingleRegionSize)
	}
	return parseMemRegion(p[8:]), nil
}

// AppendSingleRegion appends the payload of ADD_MEM_REG or REM_MEM_REG to b.
func AppendSingleRegion(b []byte, r MemRegion) []byte {
	return r.append(le.AppendUint64(b, 0))
}

// Config is the payload of GET_CONFIG and SET_CONFIG.
type Config struct {
	Offset uint32
	Flags  uint32
	Data   []byte // the bytes asked for or given; aliases the parsed payload
}

// ConfigFlagMigration marks a SET_CONFIG that a live migration sends.
const ConfigFlagMigration = 1

// ParseConfig decodes a Config. The payload must hold as many bytes as its size
// field says, also in a request, where their content means nothing.
func ParseConfig(p []byte) (Config, error) {
	if len(p) < configHeader {
		return Config{}, short("config", len(p), configHeader)
	}
	size := le.Uint32(p[4:])
	if size > MaxConfigSize || len(p) != configHeader+int(size) {
		return Config{}, fmt.Errorf("config of %d bytes in a payload of %d: %w", size, len(p), ErrPayload)
	}
	return Config{Offset: le.Uint32(p), Flags: le.Uint32(p[8:]), Data: p[configHeader:]}, nil
}

// Append appends the encoded configuration message to b.
func (c Config) Append(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, c.Offset), uint32(len(c.Data)))
	return append(le.AppendUint32(b, c.Flags), c.Data...)
}
