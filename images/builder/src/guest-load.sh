#!/bin/sh
# A mixed load that checks what it reads: `ballast.load=SECONDS,PERCENT` on a guest's command line starts it. SECONDS is the
# pause between two rounds, PERCENT (100 without it) scales the working set. It keeps a working set in a tmpfs whose size changes by phases, of three kinds of pages (random, easy to
# compress, equal in all guests), writes to the disk and reads it back past the page cache. After each round it says
# how many rounds it has done and how many pieces were not as they had been written.
pause=${1%,*} percent=${1#*,}
[ "$percent" = "$1" ] && percent=100
name=$(hostname)
set=/dev/shm/load
mount -o remount,size=80% /dev/shm
mkdir -p $set
cd $set || exit 1
rounds=0 errors=0 next=0 first=0
# Guests begin at different phases.
phase=$(printf '%s' "$name" | cksum | cut -c1-4)
say() { echo "$*" >/dev/ttyS0; }

# Writes piece $1 of 1 MiB and keeps its checksum.
piece() {
    case $(($1 % 4)) in
        0 | 1) head -c 1048576 /dev/urandom ;;
        2) yes "of $name, piece $1, and not a page of it is like another" | head -n 20000 | cat -n | head -c 1048576 ;;
        3) yes "equal in all guests $(($1 / 4 % 8))" | head -c 1048576 ;;
    esac >"$1"
    md5sum "$1" >"$1.sum"
}

check() {
    md5sum -c --status "$1.sum" || {
        errors=$((errors + 1))
        say "load: WRONG $1"
    }
}

say "load: started"
while :; do
    case $(((phase + rounds / 2) % 4)) in
        0) size=40 ;;
        1) size=112 ;;
        2) size=80 ;;
        3) size=16 ;;
    esac
    size=$((size * percent / 100))
    while [ $((next - first)) -lt $size ]; do
        piece $next
        next=$((next + 1))
    done
    while [ $((next - first)) -gt $size ]; do
        check $first
        rm $first $first.sum
        first=$((first + 1))
    done
    at=$((first + rounds % 3))
    while [ $at -lt $next ]; do
        check $at
        at=$((at + 3))
    done
    head -c 2097152 /dev/urandom >/var/tmp/load
    (cd /var/tmp && md5sum load >load.sum && sync)
    echo 3 >/proc/sys/vm/drop_caches
    (cd /var/tmp && md5sum -c --status load.sum) || {
        errors=$((errors + 1))
        say "load: WRONG disk"
    }
    rounds=$((rounds + 1))
    say "load: $rounds rounds, $errors errors, $size MiB"
    sleep "$pause"
done
