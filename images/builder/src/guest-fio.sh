#!/bin/sh
# Makes an ext4 image ($2) of $3 MiB with fio of an extracted Debian tree ($1) and every library it needs.
# Runs inside mmdebstrap, so ownership is right even where the caller is not root.
set -eu
root=$1 image=$2 mib=$3
loader=/lib64/ld-linux-x86-64.so.2
mkdir -p "$image.tree/lib"
trap 'rm -rf "$image.tree"' EXIT # also after an error: without root only this namespace may remove it
cp "$root/usr/bin/fio" "$image.tree/fio"
# Lines "NAME => PATH (ADDRESS)", and the loader itself.
chroot "$root" $loader --list /usr/bin/fio | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' >"$image.list"
echo $loader >>"$image.list"
while read -r library; do
    cp -L "$root$library" "$image.tree/lib/"
done <"$image.list"
rm "$image.list"
truncate -s "${mib}M" "$image"
/usr/sbin/mkfs.ext4 -q -F -b 4096 -L ballast-fio -E lazy_itable_init=0,lazy_journal_init=0 -d "$image.tree" "$image"
chmod 644 "$image"
