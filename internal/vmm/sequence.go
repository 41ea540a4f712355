package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sequence names the VMM whose order of messages, feature choice and use of
// need_reply is followed.
type Sequence int

// The VMMs. QEMU's and UML's conversations were traced, Cloud Hypervisor's is
// replayed from its source.
const (
	QEMU72 Sequence = iota
	QEMU11
	CloudHypervisor
	UML72
	UML61 // also 6.12: SET_MEM_TABLE always has room for two regions
)

func (s Sequence) String() string {
	names := [...]string{"QEMU 7.2", "QEMU 11.1", "Cloud Hypervisor", "UML 7.2", "UML 6.1"}
	if s < 0 || int(s) >= len(names) {
		return fmt.Sprintf("sequence %d", int(s))
	}
	return names[s]
}

// Sequences are all of them.
var Sequences = []Sequence{QEMU72, QEMU11, CloudHypervisor, UML72, UML61}

// Resets reports whether the VMM ever starts the rings a second time on one
// connection: UML's driver does not, it closes it.
func (s Sequence) Resets() bool { return !s.uml() }

func (s Sequence) uml() bool { return s == UML72 || s == UML61 }

// talker is one VMM's conversation.
type talker interface {
	realize() error
	start() error
	stop() error
	pause() error
	resume() error
	reset() error
}

func (s Sequence) talk(vm *VM) talker {
	switch s {
	case QEMU11:
		return qemu{VM: vm, eleven: true}
	case CloudHypervisor:
		return cloudHypervisor{vm}
	case UML72, UML61:
		return uml{vm}
	}
	return qemu{VM: vm}
}

const protocolGPAAddresses uint64 = 1 << 21

// ringFeatures are what a Linux guest's driver takes of what is offered.
const ringFeatures = FeatureVersion1 | FeatureIndirect | FeatureEventIdx

// negotiate reads the features and settles those that are acked at SET_FEATURES.
func (vm *VM) negotiate() error {
	offered, err := vm.Control.GetU64(GetFeatures)
	if err != nil {
		return err
	}
	if vm.features != 0 && offered != vm.features {
		return violation("GET_FEATURES answered %#x before and %#x now", vm.features, offered)
	}
	if offered&FeatureVersion1 == 0 || offered&FeatureProtocolFeatures == 0 {
		return fmt.Errorf("the back-end offers %#x: without VERSION_1 or PROTOCOL_FEATURES", offered)
	}
	vm.features = offered
	vm.acked = offered & (ringFeatures | FeatureProtocolFeatures) &^ vm.FeaturesOff
	for _, q := range vm.queues {
		q.mu.Lock()
		q.indirect = vm.acked&FeatureIndirect != 0
		q.eventIdx = vm.acked&FeatureEventIdx != 0
		q.mu.Unlock()
	}
	return nil
}

// negotiateProtocol acks of what is offered those bits that the VMM knows.
func (vm *VM) negotiateProtocol(known uint64) error {
	offered, err := vm.Control.GetU64(GetProtocolFeatures)
	if err != nil {
		return err
	}
	if vm.RequestTag {
		known |= ProtocolConfig
	}
	vm.protocol = offered & known &^ vm.ProtocolOff
	return nil
}

func (vm *VM) askQueueNum(ask bool) error {
	if !ask || vm.protocol&ProtocolMQ == 0 {
		return nil
	}
	n, err := vm.Control.GetU64(GetQueueNum)
	if err != nil {
		return err
	}
	vm.maxQueue = int(n)
	if n < uint64(len(vm.queues)) {
		return fmt.Errorf("the back-end has %d queues, the device %d", n, len(vm.queues))
	}
	return nil
}

// qemu is QEMU's vhost-user-fs device.
type qemu struct {
	*VM
	eleven bool
}

func (v qemu) realize() error {
	if err := v.negotiate(); err != nil {
		return err
	}
	known := ProtocolMQ | ProtocolLogShmFd | ProtocolReplyAck | ProtocolBackendReq | ProtocolBackendSendFd |
		ProtocolInflight | ProtocolResetDevice | ProtocolMemSlots | ProtocolStatus
	if v.eleven {
		known |= ProtocolDeviceState | protocolGPAAddresses
	}
	if err := v.negotiateProtocol(known); err != nil {
		return err
	}
	if err := v.Control.Set(SetProtocolFeatures, false, le64(v.protocol)); err != nil {
		return err
	}
	v.Control.ReplyAck = v.protocol&ProtocolReplyAck != 0
	if err := v.askQueueNum(true); err != nil {
		return err
	}
	if v.protocol&ProtocolMemSlots != 0 {
		slots, err := v.Control.GetU64(GetMaxMemSlots)
		if err != nil {
			return err
		}
		if slots < uint64(len(v.Memory.regions)) {
			return fmt.Errorf("the back-end has %d memory slots for %d regions", slots, len(v.Memory.regions))
		}
	}
	if v.protocol&ProtocolBackendReq != 0 {
		if err := v.giveChannel(); err != nil {
			return err
		}
	}
	if err := v.Control.Set(SetOwner, false, nil); err != nil {
		return err
	}
	if err := v.negotiate(); err != nil {
		return err
	}
	if v.RequestTag && v.protocol&ProtocolConfig != 0 {
		var err error
		if v.config, err = v.readConfig(40); err != nil {
			return err
		}
	}
	// A call descriptor, to be replaced at the start, and the err descriptor of
	// each queue come before memory, rings and features.
	for _, q := range v.queues {
		first, err := newEventfd("the first call descriptor", false)
		if err != nil {
			return err
		}
		err = v.Control.Set(SetVringCall, v.eleven, le64(uint64(q.index)), first.fd)
		first.close()
		if err != nil {
			return err
		}
		if q.fault, err = newEventfd(fmt.Sprintf("the err descriptor of queue %d", q.index), false); err != nil {
			return err
		}
		if err := v.Control.Set(SetVringErr, v.eleven, le64(uint64(q.index)), q.fault.fd); err != nil {
			return err
		}
	}
	return v.resetDevice(1) // the machine's reset before it boots
}

func (v qemu) resetDevice(times int) error {
	if !v.eleven || v.protocol&ProtocolResetDevice == 0 {
		return nil
	}
	for range times {
		if err := v.Control.Set(ResetDevice, false, nil); err != nil {
			return err
		}
	}
	return nil
}

// calls gives all queues the notifier that pick selects.
func (v qemu) calls(pick func(*Queue) *signal) error {
	for _, q := range v.queues[:v.Configured+1] {
		if err := v.hand(SetVringCall, v.eleven, q, pick(q)); err != nil {
			return err
		}
	}
	return nil
}

func masked(q *Queue) *signal   { return q.masked }
func unmasked(q *Queue) *signal { return q.call }

func (v qemu) start() error {
	if err := v.resetDevice(1); err != nil {
		return err
	}
	return v.startRings()
}

func (v qemu) startRings() error {
	if err := v.calls(masked); err != nil {
		return err
	}
	if err := v.Control.Set(SetFeatures, false, le64(v.acked)); err != nil {
		return err
	}
	if v.protocol&ProtocolStatus != 0 {
		if _, err := v.Control.GetU64(GetStatus); err != nil {
			return err
		}
		if err := v.Control.Set(SetStatus, false, le64(8)); err != nil { // FEATURES_OK, and never DRIVER_OK
			return err
		}
	}
	if err := v.giveMemory(); err != nil {
		return err
	}
	for _, q := range v.queues[:v.Configured+1] {
		if err := v.setNum(q, false); err != nil {
			return err
		}
		if err := v.setBase(q, false, q.Base()); err != nil {
			return err
		}
		if err := v.setAddr(q, false); err != nil {
			return err
		}
		if err := v.hand(SetVringKick, v.eleven, q, q.kick); err != nil {
			return err
		}
	}
	if err := v.enableAll(1); err != nil {
		return err
	}
	return v.calls(unmasked)
}

// giveMemory announces the regions: with slots once for the connection's life,
// else as a table at each start.
func (v qemu) giveMemory() error {
	if v.protocol&ProtocolMemSlots == 0 {
		return v.sendMemTable(0)
	}
	if v.announce {
		return nil
	}
	for _, r := range v.Memory.regions {
		if err := v.addRegion(r); err != nil {
			return err
		}
	}
	v.announce = true
	return nil
}

// enableAll switches all queues of the device, also those that the guest never
// set up.
func (v qemu) enableAll(on uint32) error {
	for _, q := range v.queues {
		if err := v.enable(q, v.eleven, on); err != nil {
			return err
		}
		if v.eleven && !v.Control.ReplyAck {
			if err := v.Control.Quiet(); err != nil { // QEMU's fence in place of the acknowledgement
				return err
			}
		}
	}
	return nil
}

func (v qemu) stop() error {
	if err := v.enableAll(0); err != nil {
		return err
	}
	for _, q := range v.queues[:v.Configured+1] {
		if err := v.getBase(q, 0); err != nil {
			return err
		}
	}
	return v.calls(masked)
}

func (v qemu) pause() error  { return v.stop() }
func (v qemu) resume() error { return v.startRings() }
func (v qemu) reset() error  { return v.resetDevice(2) }

// cloudHypervisor is Cloud Hypervisor's virtio-fs device. Once REPLY_ACK is
// agreed it sets need_reply on every message, also on those with a reply.
type cloudHypervisor struct{ *VM }

func (v cloudHypervisor) getFlags() uint32 {
	if v.Control.ReplyAck {
		return NeedReply
	}
	return 0
}

func (v cloudHypervisor) realize() error {
	if err := v.Control.Set(SetOwner, false, nil); err != nil {
		return err
	}
	if err := v.negotiate(); err != nil {
		return err
	}
	if err := v.negotiateProtocol(ProtocolMQ | ProtocolMemSlots | ProtocolReplyAck | ProtocolInflight |
		ProtocolLogShmFd | ProtocolDeviceState); err != nil {
		return err
	}
	if err := v.Control.Set(SetProtocolFeatures, false, le64(v.protocol)); err != nil {
		return err
	}
	v.Control.ReplyAck = v.protocol&ProtocolReplyAck != 0
	if v.RequestTag && v.protocol&ProtocolConfig != 0 {
		var err error
		if v.config, err = v.readConfig(40); err != nil {
			return err
		}
	}
	if v.protocol&ProtocolMQ == 0 {
		return nil
	}
	if err := v.Control.Send(GetQueueNum, v.getFlags(), nil); err != nil {
		return err
	}
	b, fds, err := v.Control.Receive(GetQueueNum, 8)
	if err != nil {
		return err
	}
	closeAll(fds)
	v.maxQueue = int(binary.LittleEndian.Uint64(b))
	if v.maxQueue < len(v.queues) {
		return fmt.Errorf("the back-end has %d queues, the device %d", v.maxQueue, len(v.queues))
	}
	return nil
}

func (v cloudHypervisor) start() error { return v.activate(false) }

// activate sets the rings up, again on another connection or for the first time.
func (v cloudHypervisor) activate(again bool) error {
	if err := v.Control.Set(SetFeatures, true, le64(v.acked)); err != nil {
		return err
	}
	if err := v.sendMemTable(0); err != nil {
		return err
	}
	active := v.queues[:v.Configured+1]
	for _, q := range active {
		if err := v.setNum(q, true); err != nil {
			return err
		}
	}
	if v.protocol&ProtocolInflight != 0 {
		var err error
		if again && v.inflight != nil {
			err = v.Control.Set(SetInflightFd, true, v.inflightArea, v.inflight[0])
		} else {
			err = v.exchangeInflight(len(active))
		}
		if err != nil {
			return err
		}
	}
	for _, q := range active {
		if err := v.setAddr(q, true); err != nil {
			return err
		}
		// What the guest's memory says, not 0; less what a test put there already,
		// which no guest does before the device runs.
		base := uint16(q.loadWord(q.availAt) >> 16)
		if !again {
			base -= uint16(q.Inflight())
		}
		if err := v.setBase(q, true, base); err != nil {
			return err
		}
		if err := v.hand(SetVringCall, true, q, q.call); err != nil {
			return err
		}
		if err := v.hand(SetVringKick, true, q, q.kick); err != nil {
			return err
		}
	}
	return v.enableAll(1)
}

// exchangeInflight asks for the in-flight area and hands it back, as CH does to
// have it for a reconnection.
func (v cloudHypervisor) exchangeInflight(queues int) error {
	describe := make([]byte, inflightDescriptionBytes)
	binary.LittleEndian.PutUint16(describe[16:], uint16(queues))
	binary.LittleEndian.PutUint16(describe[18:], v.QueueSize)
	if err := v.Control.Send(GetInflightFd, v.getFlags(), describe); err != nil {
		return err
	}
	b, fds, err := v.Control.Receive(GetInflightFd, inflightDescriptionBytes)
	if err != nil {
		return err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return violation("the reply to GET_INFLIGHT_FD came with %d descriptors", len(fds))
	}
	closeAll(v.inflight)
	v.inflight, v.inflightArea = fds, b
	return v.Control.Set(SetInflightFd, true, b, fds[0])
}

// reconnect goes on with another process of the back-end on a new connection, with the
// rings as they are.
func (v cloudHypervisor) reconnect() error {
	if err := v.Control.Set(SetOwner, false, nil); err != nil {
		return err
	}
	if err := v.negotiate(); err != nil {
		return err
	}
	if err := v.Control.Set(SetProtocolFeatures, false, le64(v.protocol)); err != nil {
		return err
	}
	v.Control.ReplyAck = v.protocol&ProtocolReplyAck != 0
	return v.activate(true)
}

func (v cloudHypervisor) enableAll(on uint32) error {
	for _, q := range v.queues[:v.Configured+1] {
		if err := v.enable(q, true, on); err != nil {
			return err
		}
	}
	return nil
}

func (v cloudHypervisor) stop() error {
	for _, q := range v.queues[:v.Configured+1] {
		if err := v.enable(q, true, 0); err != nil {
			return err
		}
		if err := v.getBase(q, v.getFlags()); err != nil {
			return err
		}
	}
	return nil
}

func (v cloudHypervisor) pause() error  { return v.enableAll(0) }
func (v cloudHypervisor) resume() error { return v.enableAll(1) }
func (v cloudHypervisor) reset() error  { return nil }

// uml is user-mode Linux's virtio_uml driver. It has no pause; stopping is what
// its driver's removal does.
type uml struct{ *VM }

func (v uml) realize() error {
	if err := v.Control.Set(SetOwner, false, nil); err != nil {
		return err
	}
	if err := v.negotiate(); err != nil {
		return err
	}
	known := ProtocolReplyAck | ProtocolBackendReq | ProtocolConfig
	if v.Sequence == UML72 {
		known |= ProtocolMQ
	}
	if err := v.negotiateProtocol(known); err != nil {
		return err
	}
	// The driver believes in REPLY_ACK from here on: already this message asks.
	v.Control.ReplyAck = v.protocol&ProtocolReplyAck != 0
	if err := v.Control.Set(SetProtocolFeatures, true, le64(v.protocol)); err != nil {
		return err
	}
	if v.protocol&ProtocolBackendReq != 0 {
		if err := v.giveChannel(); err != nil {
			return err
		}
	}
	if err := v.askQueueNum(v.Sequence == UML72); err != nil {
		return err
	}
	if err := v.Control.Set(SetFeatures, true, le64(v.acked)); err != nil {
		return err
	}
	if v.protocol&ProtocolConfig == 0 {
		return fmt.Errorf("the back-end offers no CONFIG, and the driver needs the tag from there")
	}
	// Byte by byte: each read begins at 0 and is one byte longer.
	for _, size := range append(upTo(36), 40) {
		var err error
		if v.config, err = v.readConfig(size); err != nil {
			return err
		}
	}
	return nil
}

func upTo(n uint32) []uint32 {
	var s []uint32
	for i := uint32(1); i <= n; i++ {
		s = append(s, i)
	}
	return s
}

func (v uml) start() error {
	slots := 0
	if v.Sequence == UML61 {
		slots = 2
	}
	if err := v.sendMemTable(slots); err != nil {
		return err
	}
	active := v.queues[:v.Configured+1]
	for _, q := range active {
		if err := v.hand(SetVringCall, true, q, q.call); err != nil {
			return err
		}
		if err := v.setNum(q, true); err != nil {
			return err
		}
		if err := v.setBase(q, true, q.Base()); err != nil {
			return err
		}
		if err := v.setAddr(q, true); err != nil {
			return err
		}
	}
	for _, q := range active {
		if err := v.hand(SetVringKick, true, q, q.kick); err != nil {
			return err
		}
		if err := v.enable(q, true, 1); err != nil {
			return err
		}
	}
	return nil
}

func (v uml) stop() error {
	for i := v.Configured; i >= 0; i-- {
		if err := v.enable(v.queues[i], true, 0); err != nil {
			return err
		}
	}
	return v.Control.Quiet() // its barrier
}

func (v uml) pause() error  { return v.stop() }
func (v uml) resume() error { return errNoReset }
func (v uml) reset() error  { return errNoReset }

var errNoReset = errors.New("user-mode Linux's driver closes the connection when it stops")
