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
# The kubelet sets how a machine handles panics, memory and keys: here it gets files of its own to write that to.
mkdir -p "$place/settings"
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    own=$place/settings/$(basename "$setting")
    cat "/proc/sys/$setting" > "$own"
    mount --bind "$own" "/proc/sys/$setting"
done
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set lo up
touch "$place/ready"
exec sleep infinity
