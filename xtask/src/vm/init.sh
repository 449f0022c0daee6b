#!/bin/sh
# First stage of the emulated machine. The initramfs can't be pivoted away from, which runc does for each container;
# so everything moves to a tmpfs, which becomes the root.
/bin/busybox mount -t tmpfs -o mode=755,size=90% tmpfs /newroot
for entry in bin dev etc init lib lib64 opt proc root run sbin sys tmp usr var; do
    [ ! -e "/$entry" ] || /bin/busybox cp -a "/$entry" /newroot/ || exec /bin/busybox poweroff -f
done
exec /bin/busybox switch_root /newroot /sbin/vm-main
