#!/bin/busybox sh
# First program of a guest: loads the virtio drivers, mounts the root disk, starts its init.
start=$(/bin/tsc)
/bin/busybox mkdir -p /proc /sys /dev /root /bin /sbin
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
read -r words </proc/cmdline
root='' flags=ro mark='' work='' load=''
for word in $words; do
    case $word in
        root=*) root=${word#root=} ;;
        rw) flags=rw ;;
        ro) flags=ro ;;
        ballast.mark) mark=yes ;;
        ballast.work) work=yes ;;
        ballast.load=*) load="load ${word#ballast.load=}" ;;
        ballast.fio=*) load="fio-load ${word#ballast.fio=}" ;;
    esac
done
if [ -n "$mark" ]; then
    # `ballast bench`: the time-stamp counter at the first line of this script.
    echo "BALLAST-INIT $start"
    poweroff -f
fi
if [ -n "$work" ]; then
    # A guest that only computes, for as many instructions each time; what it took by the time-stamp counter. First other VMs
    # get the time to boot.
    sleep 5
    start=$(/bin/tsc)
    dd if=/dev/zero bs=1M count=64 2>/dev/null | sha256sum
    echo "BALLAST-WORK $start $(/bin/tsc)"
    poweroff -f
fi
for module in MODULES; do
    insmod "/modules/$module.ko" || echo "guest-init: module $module was not loaded"
done
if [ -n "$root" ]; then
    tries=0
    while [ ! -b "$root" ] && [ $tries -lt 50 ]; do
        usleep 100000
        tries=$((tries + 1))
    done
    if mount -t ext4 -o "$flags" "$root" /root; then
        if [ -n "$load" ]; then
            mount -o remount,rw /root
            cp "/${load%% *}" /root/usr/local/sbin/ballast-load
            echo "ld:2:respawn:/usr/local/sbin/ballast-load ${load#* }" >/root/etc/inittab.d/load.tab
            mount -o remount,ro /root
        fi
        mount --move /dev /root/dev
        umount /proc /sys
        exec switch_root /root /sbin/init
    fi
    echo "guest-init: $root could not be mounted; this is a shell in the initramfs"
else
    echo "guest-init: no root= on the command line; this is a shell in the initramfs"
fi
exec setsid cttyhack sh
