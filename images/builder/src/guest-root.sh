#!/bin/sh
# Turns a fresh Debian tree ($1) into a guest's root file system image ($2) of $3 MiB.
# Runs inside mmdebstrap, so ownership is right even where the caller is not root.
set -eu
root=$1 image=$2 mib=$3
chroot "$root" passwd -d root >/dev/null
echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults,noatime 0 0\ntmpfs /tmp tmpfs defaults 0 0\n' >"$root/etc/fstab"
cat >"$root/etc/inittab" <<'END'
id:2:initdefault:
si::sysinit:/etc/guest.start
l0:0:wait:/etc/guest.stop halt -d -f -p
l6:6:wait:/etc/guest.stop reboot -d -f
T0:2345:respawn:/sbin/getty -L 115200 ttyS0 vt100
END
# Debian's own boot scripts probe hardware a guest does not have; these do what is left.
cat >"$root/etc/guest.start" <<'END'
#!/bin/sh
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -o remount,rw /
mount -a
mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
hostname -F /etc/hostname
: >/run/utmp
END
cat >"$root/etc/guest.stop" <<'END'
#!/bin/sh
sync
umount -a -r -t nosysfs,noproc,nodevtmpfs,notmpfs
mount -o remount,ro /
sync
exec "$@"
END
chmod 755 "$root/etc/guest.start" "$root/etc/guest.stop"
mkdir -p "$root/etc/inittab.d"
# Checksums of what was installed: the boot test compares them on the running guest.
(cd "$root" && find usr/bin usr/sbin usr/lib -type f | sort | head -n 600 | xargs sha256sum) |
    sed 's#  #  /#' >"$root/root/installed.sha256"
# A serial console has no use for a shell's terminal tricks.
echo 'set enable-bracketed-paste off' >"$root/root/.inputrc"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/locale/*
# mmdebstrap has /proc and /sys mounted in the tree: the copy leaves them out. The guest's /dev is the kernel's own, and
# device files could not be copied without root.
mkdir "$image.tree"
trap 'rm -rf "$image.tree"' EXIT # also after an error: without root only this namespace may remove it
tar -C "$root" --one-file-system --exclude='./dev/*' -cf - . | tar -C "$image.tree" -xpf -
truncate -s "${mib}M" "$image"
/usr/sbin/mkfs.ext4 -q -F -b 4096 -L ballast-root -E lazy_itable_init=0,lazy_journal_init=0 -d "$image.tree" "$image"
chmod 644 "$image"
