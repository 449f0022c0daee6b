#!/bin/sh
# Second stage of the emulated machine: mounts what a node has, runs the program, and reports its exit status on the
# second serial port, apart from what is printed.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox mount -t proc proc /proc
for applet in $(/bin/busybox --list); do
    [ -e "/bin/$applet" ] || /bin/busybox ln -s busybox "/bin/$applet"
done
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
[ -e /dev/ptmx ] || ln -s pts/ptmx /dev/ptmx
for name in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    [ -e "/dev/${name%%:*}" ] || ln -s "${name#*:}" "/dev/${name%%:*}"
done
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
hostname -F /etc/hostname
ip link set lo up
chmod 1777 /tmp
# Complaints of the kernel count from here: those of the boot are not ours.
dmesg -c > /dev/null

/sbin/vm-run < /dev/null
status=$?

if dmesg | grep -E 'BUG:|WARNING: |Oops|blocked for more than|general protection'; then
    echo "vm: the kernel complained, see above"
    [ $status -ne 0 ] || status=70
fi
echo "$status" > /dev/ttyS1
sync
poweroff -f
