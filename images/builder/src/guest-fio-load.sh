#!/bin/sh
# Loads the second disk with fio: `ballast.fio=SECOND,BYTES,READS,RANDOM` on a guest's command line starts it. From that second of
# the guest's time on it keeps 32 requests of BYTES under way, READS per cent of them reads and RANDOM per cent at random places.
# The disk begins with a file system that holds fio (`image = "fio"`); what lies behind its 128 MiB is read and written.
say() { echo "load: $*" >/dev/ttyS0; }
if [ "$1" = wait ]; then
    # fio calls this when it is ready to begin.
    read -r now rest </proc/uptime
    left=$(($2 * 100 - ${now%.*}${now#*.}))
    say "begins in $left hundredths of a second"
    [ $left -le 0 ] || exec sleep $((left / 100)).$((left / 10 % 10))$((left % 10))
    exit 0
fi
IFS=, read -r second bytes reads random <<END
$1
END
tree=/run/fio
mkdir -p $tree
mountpoint -q $tree || mount -t ext4 -o ro /dev/vdb $tree || exec sleep 1000000
# The libraries of the engines that are not used here claim more memory than a small guest has, and touch little of it.
echo 1 >/proc/sys/vm/overcommit_memory
# What fio asks for is what the disk is asked for.
echo none >/sys/block/vdb/queue/scheduler
echo 2 >/sys/block/vdb/queue/nomerges
cd /run
exec $tree/lib/ld-linux-x86-64.so.2 --library-path $tree/lib $tree/fio --name=load --filename=/dev/vdb --offset=128m \
    --allow_mounted_write=1 --direct=1 --ioengine=libaio --iodepth=32 --iodepth_batch_submit=1 --bs="$bytes" --rw=randrw \
    --rwmixread="$reads" --percentage_random="$random" --norandommap --thread --gtod_reduce=1 --eta=never --time_based \
    --runtime=100000 --exec_prerun="$0 wait $second" >/dev/ttyS0 2>&1
