package testguest

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// useKVM decides between KVM and emulation, and says why. That /dev/kvm opens and
// makes virtual machines is not enough: a KVM in software (kvm_pvm) does both, but
// interprets an ordinary guest kernel and fails at the first instruction that it
// does not know, leaving the machine stopped for ever. So the processor must show
// virtualization, and the module that drives it must be there.
// RAFSD_TESTBED_ACCEL=kvm or tcg overrides the answer.
func useKVM() (yes bool, why string) {
	switch v := os.Getenv("RAFSD_TESTBED_ACCEL"); v {
	case "kvm", "tcg":
		return v == "kvm", "RAFSD_TESTBED_ACCEL"
	}
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		return false, fmt.Sprintf("/dev/kvm: %v", err)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return false, err.Error()
	}
	if !slices.ContainsFunc(strings.Fields(string(info)), func(w string) bool { return w == "vmx" || w == "svm" }) {
		return false, "/dev/kvm is there, but the processor shows neither vmx nor svm"
	}
	for _, m := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + m); err == nil {
			return true, m
		}
	}
	return false, "neither kvm_intel nor kvm_amd is loaded"
}
