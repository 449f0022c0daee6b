# Makes the namespaces that this shell is in a node's: run by `unshare`, it stays as the process that holds them.
#   node.sh PLACE HOSTNAME
# PLACE has the directories that the node has in the place of the machine's own.
set -eu
place=$1
# What is mounted here later reaches the containers, as on a real node; nothing of it reaches the machine.
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$place/lib" /var/lib
mount --bind "$place/log" /var/log
mount -t bpf bpf /sys/fs/bpf
echo "$2" > /proc/sys/kernel/hostname
# The kubelet would set how the machine handles panics and overcommits memory.
for group in kernel vm; do
    mount --bind "/proc/sys/$group" "/proc/sys/$group"
    mount -o remount,bind,ro "/proc/sys/$group"
done
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set lo up
touch "$place/ready"
exec sleep infinity
