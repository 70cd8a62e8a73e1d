#!/bin/sh
# Records the sample traces that come with the package, anew. Needs what `asi record` needs, fio and a C compiler.
# Usage: samples/record.sh [FOLDER]      (default: the package's own folder)
# The kernel is Debian 12's for clouds, which is downloaded if need be; another one with KERNEL=VMLINUZ.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../src/asikit/data/samples}
mkdir -p "$out" && out=$(cd "$out" && pwd)
asi=${ASI:-$(cd "$here/.." && pwd)/.venv/bin/asi}
kernel=${KERNEL:-$("$here/../tools/debian-kernel" 6.1)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# Page cache: a file is written to tmpfs (2,048 writes of 4 KiB), then read at random (4,096 reads of 4 KiB).
"$asi" record --overwrite --kernel "$kernel" -o "$out/page-cache.asitrace" -- \
    fio --name=page-cache --filename=/tmp/file --size=8m --io_size=16m --rw=randread --bs=4k --ioengine=psync \
    --thread --norandommap --group_reporting --minimal > /dev/null

# Processes: a shell that starts 150 programs, 100 of them in pipelines.
"$asi" record --overwrite --kernel "$kernel" -o "$out/processes.asitrace" -- busybox sh -c '
    for i in $(busybox seq 50); do
        busybox true
        busybox echo "line $i" | busybox wc -c
    done' > /dev/null

# A KVM guest: 1,024 port writes that the VMM handles, 32 CPUID instructions that the kernel handles.
"${CC:-cc}" -O2 -static -o "$work/kvm_guest" "$here/kvm_guest.c"
PATH=$work:$PATH "$asi" record --overwrite --kernel "$kernel" -o "$out/kvm-guest.asitrace" --module kvm-amd -- kvm_guest 32

# Phases: a file is written (256 writes of 4 KiB), then read: 768 reads, and 256 more by a second process in the middle.
"${CC:-cc}" -O2 -static -I "$here/../src/asikit/record/guest" -o "$work/phases" "$here/phases.c"
PATH=$work:$PATH "$asi" record --overwrite --kernel "$kernel" -o "$out/phases.asitrace" -- phases

du -sh "$out"/*.asitrace
