package mountapi_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	mountv1 "github.com/rafsd/rafsd/shim-integration/mountapi/v1"
)

// released describes version 1 as clients out there know it. It only grows: run this
// test with -released after something was added.
const released = "testdata/mount.v1.json"

var update = flag.Bool("released", false, "write what is there now to "+released)

func present() *descriptorpb.FileDescriptorProto {
	return protodesc.ToFileDescriptorProto(mountv1.File_v1_mount_proto)
}

// TestOldClientsStillWork: nothing that a client of an earlier release knows has
// gone, moved or changed its type.
func TestOldClientsStillWork(t *testing.T) {
	if *update {
		b, err := protojson.MarshalOptions{Multiline: true, Indent: " "}.Marshal(present())
		if err != nil {
			t.Fatal(err)
		}
		// protojson varies its white space on purpose.
		text := strings.ReplaceAll(string(b), ":  ", ": ") + "\n"
		if err := os.WriteFile(released, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old := load(t)
	for _, what := range broken(old, present()) {
		t.Error(what)
	}
}

func load(t *testing.T) *descriptorpb.FileDescriptorProto {
	t.Helper()
	b, err := os.ReadFile(released)
	if err != nil {
		t.Fatal(err)
	}
	old := &descriptorpb.FileDescriptorProto{}
	if err := protojson.Unmarshal(b, old); err != nil {
		t.Fatal(err)
	}
	if len(old.GetMessageType()) < 20 || len(old.GetService()) != 1 {
		t.Fatalf("%s describes %d messages", released, len(old.GetMessageType()))
	}
	return old
}

// broken lists what in now breaks who knows old.
func broken(old, now *descriptorpb.FileDescriptorProto) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if old.GetPackage() != now.GetPackage() {
		say("the package is %s, was %s", now.GetPackage(), old.GetPackage())
	}
	messages := map[string]map[int32]*descriptorpb.FieldDescriptorProto{}
	for _, m := range now.GetMessageType() {
		messages[m.GetName()] = map[int32]*descriptorpb.FieldDescriptorProto{}
		for _, f := range m.GetField() {
			messages[m.GetName()][f.GetNumber()] = f
		}
	}
	for _, m := range old.GetMessageType() {
		fields, ok := messages[m.GetName()]
		if !ok {
			say("message %s is gone", m.GetName())
			continue
		}
		for _, f := range m.GetField() {
			n := fields[f.GetNumber()]
			switch {
			case n == nil:
				say("field %d (%s) of %s is gone", f.GetNumber(), f.GetName(), m.GetName())
			case n.GetName() != f.GetName() || n.GetType() != f.GetType() || n.GetLabel() != f.GetLabel() || n.GetTypeName() != f.GetTypeName():
				say("field %d of %s is %s %v, was %s %v", f.GetNumber(), m.GetName(), n.GetName(), n.GetType(), f.GetName(), f.GetType())
			}
		}
	}
	enums := map[string]int32{}
	for _, e := range now.GetEnumType() {
		for _, v := range e.GetValue() {
			enums[v.GetName()] = v.GetNumber()
		}
	}
	for _, e := range old.GetEnumType() {
		for _, v := range e.GetValue() {
			if n, ok := enums[v.GetName()]; !ok || n != v.GetNumber() {
				say("value %s is gone or renumbered", v.GetName())
			}
		}
	}
	methods := map[string]*descriptorpb.MethodDescriptorProto{}
	for _, s := range now.GetService() {
		for _, m := range s.GetMethod() {
			methods[s.GetName()+"/"+m.GetName()] = m
		}
	}
	for _, s := range old.GetService() {
		for _, m := range s.GetMethod() {
			n := methods[s.GetName()+"/"+m.GetName()]
			if n == nil || n.GetInputType() != m.GetInputType() || n.GetOutputType() != m.GetOutputType() || n.GetServerStreaming() != m.GetServerStreaming() {
				say("method %s/%s is gone or changed", s.GetName(), m.GetName())
			}
		}
	}
	return out
}

// TestBrokenIsSeen: the test above would notice.
func TestBrokenIsSeen(t *testing.T) {
	old := load(t)
	for what, change := range map[string]func(f *descriptorpb.FileDescriptorProto){
		"a message": func(f *descriptorpb.FileDescriptorProto) { f.MessageType = f.MessageType[1:] },
		"a field":   func(f *descriptorpb.FileDescriptorProto) { m := f.MessageType[0]; m.Field = m.Field[1:] },
		"a number":  func(f *descriptorpb.FileDescriptorProto) { f.MessageType[0].Field[0].Number = proto.Int32(99) },
		"a name":    func(f *descriptorpb.FileDescriptorProto) { f.MessageType[0].Field[0].Name = proto.String("x") },
		"a type": func(f *descriptorpb.FileDescriptorProto) {
			f.MessageType[0].Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
		},
		"an enum's value": func(f *descriptorpb.FileDescriptorProto) { f.EnumType[0].Value[1].Number = proto.Int32(77) },
		"a method":        func(f *descriptorpb.FileDescriptorProto) { s := f.Service[0]; s.Method = s.Method[1:] },
		"a stream":        func(f *descriptorpb.FileDescriptorProto) { f.Service[0].Method[5].ServerStreaming = proto.Bool(false) },
		"the package":     func(f *descriptorpb.FileDescriptorProto) { f.Package = proto.String("rafsd.mount.v2") },
	} {
		now := proto.Clone(old).(*descriptorpb.FileDescriptorProto)
		change(now)
		if len(broken(old, now)) == 0 {
			t.Errorf("%s is gone or changed, and nobody notices", what)
		}
	}
	more := proto.Clone(old).(*descriptorpb.FileDescriptorProto)
	more.MessageType[0].Field = append(more.MessageType[0].Field, &descriptorpb.FieldDescriptorProto{Name: proto.String("new"), Number: proto.Int32(50)})
	if what := broken(old, more); what != nil {
		t.Errorf("a new field breaks: %v", what)
	}
}
