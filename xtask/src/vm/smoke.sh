#!/bin/sh
# In the place of a test program: is what the agent needs there?
uname -srvm
failed=0
check() {
    if eval "$2"; then echo "ok: $1"; else echo "missing: $1"; failed=1; fi
}
check "BTF" "[ -r /sys/kernel/btf/vmlinux ]"
check "cgroup v2" "[ -r /sys/fs/cgroup/cgroup.controllers ]"
check "a cgroup below the root" "mkdir /sys/fs/cgroup/smoke && rmdir /sys/fs/cgroup/smoke"
check "bpffs" "mkdir /sys/fs/bpf/smoke && rmdir /sys/fs/bpf/smoke"
check "tracefs" "[ -r /sys/kernel/tracing/events/raw_syscalls/sys_exit/id ]"
check "loopback" "ping -c 1 -W 5 127.0.0.1 > /dev/null"
check "sidestep doctor" "sidestep doctor"
exit $failed
