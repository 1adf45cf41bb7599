#!/usr/bin/env bash
# lint_cuda.sh: looks at the machine code that nvcc has made of cuda/*.cu. Part of make lint where there is nvcc; needs no GPU.
#
#   scripts/lint_cuda.sh build/obj/cuda/*.cu.o
#
# nvcc's warnings are errors of the build (scripts/cuda.mk). What it does not warn of is looked for in every kernel, for every GPU
# that it was compiled for:
#   local memory: numbers that found no register, or an array whose index is not known when compiling
#   kernels made for accesses of 16 bytes that have none
#   attention in bf16 without the tensor cores' instructions, or without copies that run beside them
#   atomic operations: the order of what they add is chance, and the same run would not give the same bits
# build/lint-cuda.txt has a line a kernel: registers, stack, shared memory, and how many of these instructions it has.
set -euo pipefail
[[ $# -gt 0 ]] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }

# Kernels that may use local memory, as a regular expression of their names, with the reason beside it. None does.
may_use_local_memory='^$'
# Kernels for wide accesses that write single numbers: sum_parts a sum a block, delta_kernel one a row.
may_store_narrowly='^(sum_parts|delta_kernel)<'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PATH=${CUDA_HOME:+$CUDA_HOME/bin:}$PATH:/usr/local/cuda/bin
if ! { command -v cuobjdump && command -v nvdisasm; } >/dev/null; then
    VENV=build/venv-sass "$(dirname "$0")/setup.sh" sass
    PATH=$(compgen -G "$PWD/build/venv-sass/lib/python3*/site-packages/nvidia/cu*/bin"):$PATH
fi

for object; do
    cuobjdump -lptx "$object" 2>/dev/null | grep -q '\.ptx$' || { echo "$object: no PTX in it, for GPUs that come later" >&2; exit 1; }
    cuobjdump -res-usage -sass "$object"
done >"$work/code"

# A line a kernel and GPU: architecture, registers, stack, shared memory, then accesses of local memory, loads and stores of 16
# bytes, copies of 16 bytes to shared memory, products on tensor cores, atomic operations, all static counts; then its name.
awk -v OFS='\t' '
    function end_kernel() {
        if (name) print arch, registers[name], stack[name], shared[name], local, loads, stores, copies, products, atomics, name
        name = ""
        local = loads = stores = copies = products = atomics = 0
    }
    $1 == "arch" { end_kernel(); arch = $3 }
    $1 == "Function" && $2 != ":" { described = substr($2, 1, length($2) - 1) }
    /^ *REG:/ {
        split($0, of, /[ :]+/)
        for (i = 1; i in of; i++) {
            if (of[i] == "REG") registers[described] = of[i + 1]
            if (of[i] == "STACK") stack[described] = of[i + 1]
            if (of[i] == "SHARED") shared[described] = of[i + 1]
        }
    }
    $1 == "Function" && $2 == ":" { end_kernel(); name = $3 }
    /^ *\/\*[0-9a-f]+\*\// {
        operation = $2 ~ /^@/ ? $3 : $2
        if (operation ~ /^(LDL|STL)/) local++
        if (operation ~ /^LDG\..*128/) loads++
        if (operation ~ /^STG\..*128/) stores++
        if (operation ~ /^LDGSTS\..*128/) copies++
        if (operation ~ /^HMMA\..*BF16/) products++
        if (operation ~ /^(ATOM|RED|UTMARED|UBLKRED)/ && operation !~ /^REDUX/) atomics++
    }
    END { end_kernel() }' "$work/code" | c++filt | sed -E 's/\t(void )?([^\t(]*)\([^\t]*$/\t\2/; s/ >/>/g' | sort -t$'\t' -k11,11 -k1,1 >"$work/kernels"

mkdir -p build
{
    printf 'arch\tregisters\tstack\tshared\tlocal\tload128\tstore128\tcopy128\tHMMA\tatomic\tkernel\n'
    cat "$work/kernels"
} | column -t -s $'\t' >build/lint-cuda.txt

awk -F '\t' -v may_use_local_memory="$may_use_local_memory" -v may_store_narrowly="$may_store_narrowly" '
    function problem(text) { print $11 " (" $1 "): " text; failed = 1 }
    {
        kernels[$1]++
        if ($2 > most) { most = $2; which = $11 " for " $1 }
        wide = $11 ~ /access<[^>]*, [48]>/ || $11 ~ /^delta_kernel</
        attention = $11 ~ /^(attention_forward_kernel|query_gradient_kernel|key_gradient_kernel)</
    }
    ($3 || $5) && $11 !~ may_use_local_memory { problem($5 " accesses of local memory, a stack of " $3 " bytes") }
    wide && !$6 { problem("no load of 16 bytes") }
    wide && !$7 && $11 !~ may_store_narrowly { problem("no store of 16 bytes") }
    attention && !$9 { problem("no product on tensor cores") }
    attention && /true>/ && !($7 && $8) { problem("no copy to shared memory, or no store, of 16 bytes") }
    $10 { problem($10 " atomic operations") }
    END {
        if (kernels["sm_80"] == 0 || kernels["sm_80"] != kernels["sm_90a"])
            print kernels["sm_80"] + 0 " kernels for sm_80, " kernels["sm_90a"] + 0 " for sm_90a"
        else if (!failed)
            print kernels["sm_80"] " kernels, each for sm_80 and sm_90a, and as PTX; at most " most " registers (" which ")"
        exit failed || kernels["sm_80"] == 0 || kernels["sm_80"] != kernels["sm_90a"]
    }' "$work/kernels"
