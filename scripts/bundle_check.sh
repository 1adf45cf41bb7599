#!/usr/bin/env bash
# bundle_check.sh: unpacks a bundle where nothing is installed, and trains there with two ranks. Needs root (chroot, mounts).
#
#   scripts/bundle_check.sh ARCHIVE.tar.xz
#
# "Nothing" is a C library, a shell, env and readlink. With bash, make and a few tools besides, each test of cuda/ and each script
# for GPUs must say that there is none; it is the only thing that is to stop them.
set -euo pipefail
[[ $# == 1 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
[[ $EUID == 0 ]] || { echo "bundle_check.sh: needs root, for chroot" >&2; exit 2; }
root=$(mktemp -d)
mounts=()
cleanup() {
    for mount in "${mounts[@]}"; do umount -l "$mount"; done
    rm -rf --one-file-system "$root"
}
trap cleanup EXIT

mkdir -p "$root"/{bin,etc,opt,tmp,root,proc,sys,dev}
copy() { mkdir -p "$root$(dirname "$1")" && cp -L "$1" "$root$1"; }
for library in c m dl rt pthread resolv util; do
    copy "$(find /lib /usr/lib -name "lib$library.so.[0-9]" -path '*x86_64*' | head -1)"
done
copy /lib64/ld-linux-x86-64.so.2
for tool in sh env readlink; do cp -L "$(command -v "$tool")" "$root/bin/$tool"; done
echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
printf '127.0.0.1 localhost\n127.0.0.1 %s\n' "$(hostname)" >"$root/etc/hosts"
tar -C "$root/opt" -xJf "$1"
for ((i = 0; i < 2000; i++)); do echo "{\"text\": \"The square of $i is $((i * i)).\"}"; done >"$root/tmp/text.jsonl"

for what in proc sys dev; do
    mount --rbind "/$what" "$root/$what"
    mount --make-rslave "$root/$what"
    mounts+=("$root/$what")
done
# In the bundle's folder, with nothing of our environment.
# shellcheck disable=SC2016 # expanded inside
inside() {
    chroot "$root" /bin/env -i PATH=/bin:/usr/bin HOME=/root OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        /bin/sh -c 'cd /opt/* && exec "$@"' sh "$@"
}
# shellcheck disable=SC2016 # expanded inside
inside sh -ec '
    PATH=$PWD/bin:$PATH
    mobilellm --version
    mobilellm data pack /tmp/text /tmp/text.jsonl
    mpirun -np 2 --oversubscribe mobilellm train configs/runs/tiny.yaml "data.train=[/tmp/text]" "data.heldout=[/tmp/text]" \
        checkpoint.dir=/tmp/run batch.tokens=1024 train.tokens=4096 schedule.warmup_tokens=0
    mobilellm inspect /tmp/run --verify >/tmp/inspected'
echo "bundle_check.sh: $1 trained and wrote a checkpoint where nothing is installed"
[[ -d $(echo "$root"/opt/*/bin/tests) ]] || { echo "bundle_check.sh: it is for CPUs alone"; exit 0; }

refuses() { # TEXT COMMAND...: must fail, and say why
    local text=$1 status=0 said
    shift
    said=$(inside "$@" 2>&1) || status=$?
    [[ $status != 0 && $said == *"$text"* ]] && return
    printf 'bundle_check.sh: %s should fail and say "%s". It ended with %s and said:\n%s\n' "$*" "$text" "$status" "$said" >&2
    exit 1
}
for each in "$root"/opt/*/bin/tests/test_cuda_*; do
    [[ $each == *_libraries ]] && continue # they need no GPU
    refuses "needs an NVIDIA GPU" "bin/tests/${each##*/}"
done
inside bin/tests/test_cuda_libraries >/dev/null 2>&1
refuses "needs an NVIDIA GPU" bin/bench/gpu_kernels device
for tool in env bash make grep sed dirname realpath cat; do
    copy "$(command -v "$tool")"
    ldd "$(command -v "$tool")" | awk '$2 == "=>" {print $3}' | while read -r library; do [[ -e $root$library ]] || copy "$library"; done
done
for each in scripts/gpu_check.sh scripts/test_gpu.sh; do refuses "no GPU here: " "$each"; done
for each in gpu-check test-gpu bench-gpu; do refuses "no GPU here: " make "$each"; done
echo "bundle_check.sh: its tests and scripts for GPUs start, and miss nothing but a GPU"
