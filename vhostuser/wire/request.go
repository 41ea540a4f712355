package wire

import "fmt"

// Request is the number of a message from the front-end to the back-end.
type Request uint32

// The messages that a front-end may send to a virtio-fs back-end.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SetBackendReqFD     Request = 21
	IOTLBMsg            Request = 22
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
	SetDeviceStateFD    Request = 42
	CheckDeviceState    Request = 43
	GetShmemConfig      Request = 44
)

var requestNames = map[Request]string{
	GetFeatures:         "GET_FEATURES",
	SetFeatures:         "SET_FEATURES",
	SetOwner:            "SET_OWNER",
	ResetOwner:          "RESET_OWNER",
	SetMemTable:         "SET_MEM_TABLE",
	SetLogBase:          "SET_LOG_BASE",
	SetLogFD:            "SET_LOG_FD",
	SetVringNum:         "SET_VRING_NUM",
	SetVringAddr:        "SET_VRING_ADDR",
	SetVringBase:        "SET_VRING_BASE",
	GetVringBase:        "GET_VRING_BASE",
	SetVringKick:        "SET_VRING_KICK",
	SetVringCall:        "SET_VRING_CALL",
	SetVringErr:         "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum:         "GET_QUEUE_NUM",
	SetVringEnable:      "SET_VRING_ENABLE",
	SetBackendReqFD:     "SET_BACKEND_REQ_FD",
	IOTLBMsg:            "IOTLB_MSG",
	GetConfig:           "GET_CONFIG",
	SetConfig:           "SET_CONFIG",
	GetInflightFD:       "GET_INFLIGHT_FD",
	SetInflightFD:       "SET_INFLIGHT_FD",
	ResetDevice:         "RESET_DEVICE",
	GetMaxMemSlots:      "GET_MAX_MEM_SLOTS",
	AddMemReg:           "ADD_MEM_REG",
	RemMemReg:           "REM_MEM_REG",
	SetStatus:           "SET_STATUS",
	GetStatus:           "GET_STATUS",
	SetDeviceStateFD:    "SET_DEVICE_STATE_FD",
	CheckDeviceState:    "CHECK_DEVICE_STATE",
	GetShmemConfig:      "GET_SHMEM_CONFIG",
}

// String returns the name of the request in the protocol's text, or its number.
func (r Request) String() string {
	if s, ok := requestNames[r]; ok {
		return s
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// HasOwnReply reports whether r is answered by a message of its own, so that
// need_reply changes nothing for it. SET_LOG_BASE counts here too: its reply
// repeats the payload.
func (r Request) HasOwnReply() bool {
	switch r {
	case GetFeatures, GetProtocolFeatures, GetQueueNum, GetVringBase, GetConfig,
		GetInflightFD, GetMaxMemSlots, GetStatus, SetLogBase,
		SetDeviceStateFD, CheckDeviceState, GetShmemConfig:
		return true
	}
	return false
}

// Flags is the flags word of a message header.
type Flags uint32

// The bits of Flags.
const (
	FlagVersion   Flags = 1      // the only protocol version
	FlagReply     Flags = 1 << 2 // back-end to front-end answer
	FlagNeedReply Flags = 1 << 3 // the sender waits for an answer (REPLY_ACK)

	versionMask Flags = 3
	// ReplyFlags is what a reply carries, exactly: front-ends compare for equality.
	ReplyFlags = FlagVersion | FlagReply
)

// Virtio feature bits (SET_FEATURES) that a virtio-fs device meets.
const (
	FeatureNotifyOnEmpty    uint64 = 1 << 24
	FeatureLogAll           uint64 = 1 << 26
	FeatureIndirectDesc     uint64 = 1 << 28
	FeatureEventIdx         uint64 = 1 << 29
	FeatureProtocolFeatures uint64 = 1 << 30
	FeatureVersion1         uint64 = 1 << 32
	FeatureAccessPlatform   uint64 = 1 << 33
	FeatureRingPacked       uint64 = 1 << 34
	FeatureInOrder          uint64 = 1 << 35
	FeatureOrderPlatform    uint64 = 1 << 36
	FeatureNotificationData uint64 = 1 << 38
	FeatureRingReset        uint64 = 1 << 40
)

// Protocol feature bits (SET_PROTOCOL_FEATURES).
const (
	ProtocolMQ                uint64 = 1 << 0
	ProtocolLogSHMFD          uint64 = 1 << 1
	ProtocolReplyAck          uint64 = 1 << 3
	ProtocolBackendReq        uint64 = 1 << 5
	ProtocolPageFault         uint64 = 1 << 8
	ProtocolConfig            uint64 = 1 << 9
	ProtocolBackendSendFD     uint64 = 1 << 10
	ProtocolInflightSHMFD     uint64 = 1 << 12
	ProtocolResetDevice       uint64 = 1 << 13
	ProtocolConfigureMemSlots uint64 = 1 << 15
	ProtocolStatus            uint64 = 1 << 16
	ProtocolDeviceState       uint64 = 1 << 19
	ProtocolGPAAddresses      uint64 = 1 << 21
	ProtocolSHMEM             uint64 = 1 << 22
)
