#!/usr/bin/env bash
# lint.sh: the checks that need no running program. Called by make format and make lint, after setup.
#
#   scripts/lint.sh format           formats all C and CUDA files in place
#   scripts/lint.sh check FLAGS...   checks formatting, layers, C files (with the compiler's FLAGS) and shell scripts
#
# All checks run, whatever the earlier ones found; the exit status is 1 if any found something.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

clang_format=build/venv/bin/clang-format
folders=(util ranks cpu cuda model checkpoint data eval distill train)
shopt -s nullglob
c_files=(mobilellm.c)
for folder in "${folders[@]}"; do c_files+=("$folder"/*.c); done
all_files=("${c_files[@]}" ops.h tests/*.[ch] tests/fuzz/*.[ch])
for folder in "${folders[@]}"; do all_files+=("$folder"/*.h "$folder"/*.cu "$folder"/*.cuh); done

if [[ $1 == format ]]; then
    "$clang_format" -i "${all_files[@]}"
    exit
fi
shift

failed=()
check() { # NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    if "$@"; then echo "lint: $name: ok ($((SECONDS - start)) s)"; else failed+=("$name"); fi
}

skipped() { echo "lint: $1: skipped: $2 (make setup-cuda)"; } # NAME WHY

layers() { python3 scripts/lint_layers.py; }

format() {
    "$clang_format" --dry-run -Werror "${all_files[@]}" 2>&1 | grep -oE '^[^ ]+:[0-9]+:' | sort -u -t: -k1,1 | sed 's/$/ is not formatted: make format/'
    [[ ${PIPESTATUS[0]} == 0 ]]
}

tidy() { # FLAGS... ; warnings are the compiler's business here, and error.c is what analyzer.h would redefine
    local flags=(-include scripts/analyzer.h '-DMOBILELLM_VERSION="lint"') flag
    for flag; do [[ $flag == -W* ]] || flags+=("$flag"); done
    each_tidy "${c_files[@]/util\/error.c/}" -- "${flags[@]}"
}

# As the emulator's compiler reads them, because clang 14 does not know the CUDA of the toolkit.
tidy_cuda() {
    each_tidy cuda/*.cu -- -x c++ -std=gnu++17 -DCUEMU -I. -isystem "$CUDA_HEADERS" -Itests/emu/include -include tests/emu/emu.h
}

each_tidy() { # FILE... -- FLAGS...
    local files=() status
    while [[ $1 != -- ]]; do [[ $1 ]] && files+=("$1"); shift; done
    printf '%s\0' "${files[@]}" | xargs -0 -I {} -P "$(nproc)" clang-tidy --quiet --header-filter='\.cuh$' {} "$@" >build/clang-tidy.log 2>&1
    status=$?
    grep -vE '^[0-9]+ warnings? generated|^Suppressed|^Use -header-filter' build/clang-tidy.log
    return $status
}

# Suppressed: headers of libraries are not read (missingInclude*), and what cppcheck takes for uninitialised because it does not see
# the function elsewhere that fills it (uninitvar, legacyUninitvar), ends the program (nullPointerRedundantCheck) or returns before
# anybody looks (autoVariables).
cpp_check() {
    cppcheck --quiet --std=c11 --language=c --enable=warning,performance --inline-suppr --error-exitcode=1 -j "$(nproc)" \
        --suppress=missingInclude --suppress=missingIncludeSystem --suppress=uninitvar --suppress=legacyUninitvar \
        --suppress=autoVariables --suppress=nullPointerRedundantCheck -D_GNU_SOURCE -Dnoreturn=_Noreturn '-DMOBILELLM_VERSION="lint"' -I . "${c_files[@]}"
}

# Both passes of each attention in configs/models, for each GPU that tests/cudnn_plans.c describes.
plans() {
    local program=${CUDNN_PLANS%% *}
    if ! LD_LIBRARY_PATH=${program%/*}:${LD_LIBRARY_PATH-} "$program" configs/models/*.yaml >build/cudnn-plans.txt; then
        grep refused build/cudnn-plans.txt
        return 1
    fi
    grep skipped build/cudnn-plans.txt || true
}

shell() { shellcheck -x scripts/*.sh scripts/launch/*.sh scripts/launch/*.sbatch .ci/run; }

mkdir -p build
check layers layers
check clang-format format
check shellcheck shell
check cppcheck cpp_check
check clang-tidy tidy "$@"
if [[ ${CUDA_HEADERS:-} ]]; then check "clang-tidy of cuda/*.cu" tidy_cuda; else skipped "clang-tidy of cuda/*.cu" "no CUDA headers here"; fi
# shellcheck disable=SC2086 # one word an object
if [[ ${CUDA_KERNELS:-} ]]; then check "machine code of cuda/" scripts/lint_cuda.sh $CUDA_KERNELS; else skipped "machine code of cuda/" "no CUDA compiler here"; fi
if [[ ${CUDNN_PLANS:-} ]]; then check "cuDNN's plans" plans; else skipped "cuDNN's plans" "no cuDNN headers, or not its frontend's, here"; fi

[[ ${#failed[@]} == 0 ]] || { echo "lint: failed: ${failed[*]}"; exit 1; }
