package confine

import "strings"

// names are the kernel's names of capabilities by number, without CAP_.
var names = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
	linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
	sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease
	audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon
	bpf checkpoint_restore`)

// ByName returns the capability of that name: in any case, with or without CAP_.
func ByName(name string) (Set, bool) {
	name = strings.TrimPrefix(strings.ToLower(name), "cap_")
	for i, n := range names {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}
