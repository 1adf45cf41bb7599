#!/usr/bin/env bash
# gpu_check.sh: the first thing to run on a machine with GPUs (make gpu-check). Two minutes.
#
#   scripts/gpu_check.sh [FOLDER]          driver, libraries, speeds, links between GPUs, a few training steps
#   scripts/gpu_check.sh --look [FOLDER]   only whether there is a GPU: silent, or a line and exit status 4
#
# FOLDER holds mobilellm and bench/gpu_kernels: build, what scripts/gpu.mk tells of, or an unpacked bundle. The default is bin
# inside a bundle, and else build. A line a check: ok, left out (and why), or FAILED (and what to do). Exit status: 0, 1 if a check
# failed, 4 without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

look=
[[ ${1-} == --look ]] && look=1 && shift
folder=${1:-$([[ -x bin/mobilellm ]] && echo bin || echo build)}
[[ -x $folder/bin/mobilellm ]] && folder=$folder/bin # a bundle
folder=$(realpath -m "$folder")
program=$folder/mobilellm
[[ -x $folder/mpirun ]] && PATH=$folder:$PATH # a bundle's own
[[ -d $folder/lib ]] && export LD_LIBRARY_PATH=$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
kernels=$folder/bench/gpu_kernels
[[ $EUID == 0 ]] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

report=$([[ -x $program ]] && "$program" --version 2>&1)
gpus=$(grep -c '^  GPU [0-9]' <<<"$report")
# A build without CUDA sees none: the device files tell whether it is worth making another.
if ((gpus == 0)) && { [[ -z $look ]] || ! { [[ -e /dev/nvidia0 || -e /dev/dxg ]] || nvidia-smi -L; } >/dev/null 2>&1; }; then
    reason=$(sed -n 's/^  GPU  *none: *//p; s/^CUDA: *//p' <<<"$report")
    [[ -x $program || -n $look ]] || reason="$program is not there: make gpu-programs"
    echo "no GPU here: ${reason:-this machine shows no /dev/nvidia0 and nvidia-smi names none}"
    exit 4
fi
[[ $look ]] && exit 0

failed=0
ok() { printf 'ok        %s\n' "$1"; }
left_out() { printf 'left out  %s\n' "$1"; }
fail() { # WHAT ADVICE
    printf 'FAILED    %s\n          %s\n' "$1" "$2"
    failed=1
}
indented() { sed 's/^/          /'; }
figure() { sed -n "s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" <<<"$1"; } # JSON NAME
giga() { awk -v n="$1" -v unit="$2" 'BEGIN {printf "%.1f", n / unit}'; }
below() { awk -v a="$1" -v b="$2" 'BEGIN {exit !(a < b)}'; }

driver() {
    local text
    if ! command -v nvidia-smi >/dev/null; then
        left_out "driver: no nvidia-smi here, so nothing of clocks, power and neighbours; the program sees $gpus GPU(s)"
        return
    fi
    if ! text=$(timeout 30 nvidia-smi --query-gpu=index,name,driver_version,memory.used,memory.total,power.limit,clocks.max.sm,ecc.errors.uncorrected.volatile.total --format=csv 2>&1); then
        fail "driver: nvidia-smi fails: ${text%%$'\n'*}" "Load the driver, or start the container with its GPUs; dmesg | grep -i nvrm tells of broken ones."
        return
    fi
    ok "driver: nvidia-smi answers"
    indented <<<"$text"
    ((gpus > 1)) && timeout 30 nvidia-smi topo -m 2>/dev/null | indented
}

libraries() {
    indented <<<"$report"
    if grep -Eq '^  cuBLASLt +[0-9]' <<<"$report"; then ok "cuBLASLt"; else fail "cuBLASLt is not found" "Install it (the CUDA toolkit, or a Python environment with PyTorch) or name its folder in LD_LIBRARY_PATH."; fi
    if grep -Eq '^  NCCL +[0-9]' <<<"$report"; then
        ok "NCCL"
    elif ((gpus > 1)); then
        fail "NCCL is not found" "Several GPUs need it: install libnccl2 or name its folder in LD_LIBRARY_PATH."
    else
        left_out "NCCL is not found; one GPU needs none"
    fi
    if grep -Eq '^  cuDNN +[0-9]' <<<"$report"; then ok "cuDNN"; else left_out "cuDNN is not found: attention runs by our own kernels, which are slower"; fi
}

device() {
    local text status gemm copy peak
    text=$(timeout 60 "$kernels" device ${GPU_CHECK_TINY:+gemm=128 mib=1 seconds=0.003} 2>&1)
    status=$?
    gemm=$(figure "$text" gemm_flops) copy=$(figure "$text" copy_bytes_per_s) peak=$(figure "$text" peak_flops)
    if [[ $status != 0 || -z $gemm ]]; then
        fail "GPU 0 does not compute (exit status $status): ${text##*$'\n'}" "Is it in use by another (nvidia-smi)? Run $kernels device."
        return
    fi
    if [[ $peak == 0 ]]; then
        ok "GEMM: $(giga "$gemm" 1e12) TFLOP/s in bf16; the data sheet's peak of this GPU is not known"
    elif below "$gemm" "$(awk -v p="$peak" 'BEGIN {print p / 2}')"; then
        fail "GEMM: $(giga "$gemm" 1e12) TFLOP/s in bf16, less than half of the data sheet's $(giga "$peak" 1e12)" \
            "nvidia-smi -q -d PERFORMANCE,POWER,CLOCK tells what slows it: heat, a power limit, another program."
    else
        ok "GEMM: $(giga "$gemm" 1e12) TFLOP/s in bf16; the data sheet says $(giga "$peak" 1e12)"
    fi
    if [[ $peak != 0 ]] && below "$copy" 100e9; then
        fail "memory: a copy reads and writes $(giga "$copy" 1e9) GB/s" "That is slower than any such GPU's: look for other programs and, with nvidia-smi -q -d ECC, for errors."
    else
        ok "memory: a copy reads and writes $(giga "$copy" 1e9) GB/s"
    fi
}

links() {
    local text status least
    text=$(OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe timeout -k 5 100 mpirun -np "$gpus" --bind-to none "$kernels" links ${GPU_CHECK_TINY:+mib=1} 2>&1)
    status=$?
    least=$(sed -n 's/.*"bus_bytes_per_s": \([0-9.e+]*\).*/\1/p' <<<"$text" | tail -2 | sort -g | head -1)
    sed -n 's/^{"collective": "\([a-z-]*\)".*"bytes": \([0-9]*\), "seconds": \([0-9.e+-]*\), "bus_bytes_per_s": \([0-9.e+]*\)}/\1 \2 \3 \4/p' <<<"$text" |
        awk '{printf "          %-15s %8.2f MiB %10.1f us %8.1f GB/s\n", $1, $2 / 1048576, $3 * 1e6, $4 / 1e9}'
    if [[ $status != 0 || -z $least ]]; then
        fail "NCCL: the collectives between $gpus GPUs end with exit status $status: $(grep -v '^{\|^ *$\|^---' <<<"$text" | head -1)" \
            "Run NCCL_DEBUG=INFO mpirun -np $gpus $kernels links and read what it says; in containers, --ipc=host or a larger /dev/shm."
    else
        ok "NCCL: $(giga "$least" 1e9) GB/s bus bandwidth between $gpus GPUs (H100 by NVLink: some 330; by PCIe: 10 to 40)"
    fi
}

steps() {
    local text
    if text=$(timeout -k 5 100 python3 scripts/gpu_parity.py --quick "$program" 2>&1); then
        ok "training: ${text%%$'\n'*}"
    else
        text=$(tail -1 <<<"$text")
        fail "training: ${text:-not done within 100 s}" "Run scripts/gpu_parity.py $program, and make test-gpu to see which op is wrong."
    fi
}

driver
libraries
if [[ -x $kernels ]]; then
    device
    if ((gpus == 1)); then left_out "NCCL: one GPU"; elif command -v mpirun >/dev/null; then links; else left_out "NCCL: no mpirun"; fi
else
    left_out "speeds and links: $kernels is not there (make gpu-programs)"
fi
steps
((failed)) && echo "gpu_check: something FAILED" || echo "gpu_check: all is well"
exit "$failed"
