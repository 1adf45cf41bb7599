#!/usr/bin/env bash
# test_gpu.sh: the tests of cuda/ on this machine's GPUs (make test-gpu). Eight minutes at most.
#
#   scripts/test_gpu.sh [FOLDER]
#
# FOLDER holds mobilellm and tests/test_cuda_*: build, what scripts/gpu.mk tells of, or an unpacked bundle. The default is bin inside
# a bundle, and else build. First the C tests, each op beside the CPU's; then training as a whole
# (tests/test_cuda_training.py, or with no pytest and h5py scripts/gpu_parity.py); with several GPUs, the collectives between them;
# then the ops' tests again under compute-sanitizer. What there is no time left for is counted as skipped, what the end of the time
# finds unfinished as failed. The last line is `N passed, N failed, N skipped`.
# Exit status: 0, 1 if something failed, 4 without a GPU. PYTHON: the one to run pytest with.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

folder=${1:-$([[ -x bin/mobilellm ]] && echo bin || echo build)}
[[ -x $folder/bin/mobilellm ]] && folder=$folder/bin # a bundle
folder=$(realpath -m "$folder")
program=$folder/mobilellm
scripts/gpu_check.sh --look "$folder" || exit
end=$((SECONDS + ${TEST_GPU_SECONDS:-470}))
[[ -x $program ]] || { echo "test_gpu: there is a GPU, but no $program: make gpu-programs"; exit 1; }
[[ -x $folder/mpirun ]] && PATH=$folder:$PATH # a bundle's own
[[ -d $folder/lib ]] && export LD_LIBRARY_PATH=$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
gpus=$("$program" --version | grep -c '^  GPU [0-9]')
((gpus)) || { echo "no GPU here: $program sees none, see $program --version"; exit 4; }
[[ $EUID == 0 ]] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe # Open MPI 4, 5
sanitizer=$(command -v compute-sanitizer || compgen -G "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")

passed=0 failed=0 skipped=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

left() { echo $((end - SECONDS)); }
skip() { # N WHAT
    echo "skipped $2"
    skipped=$((skipped + $1))
}
# What a tool's last line counts: `N passed, N failed, N skipped`.
count() { # LINE
    local number name found=
    while read -r number name; do
        case $name in passed) passed=$((passed + number)) found=1 ;; failed) failed=$((failed + number)) ;; skipped) skipped=$((skipped + number)) ;; esac
    done < <(grep -oE '[0-9]+ (passed|failed|skipped)' <<<"$1")
    [[ $found ]]
}

# run.py writes a log beside the test, where it may not: it gets a link in a folder of ours.
c_test() { # PROGRAM
    local name=${1##*/} limit
    limit=$(left)
    ((limit > 5)) || { skip 1 "$name: no time left"; return; }
    ln -sf "$(realpath "$1")" "$work/$name"
    timeout -k 15 "$limit" python3 tests/run.py "$work/$name" >"$work/out" 2>&1
    local status=$?
    ((status == 124)) || sed "s|$work/||; \$d" "$work/out"
    if ! count "$(tail -1 "$work/out")"; then
        echo "FAILED $name: ended with exit status $status$([[ $status == 124 ]] && echo ', no time left')"
        failed=$((failed + 1))
    fi
}

# Under mpirun each rank reports; they agree, and rank 0's report counts.
c_test_ranks() { # PROGRAM RANKS
    local name=${1##*/} status good
    CMOCKA_MESSAGE_OUTPUT=STDOUT timeout -k 15 "$(($(left) > 5 ? $(left) : 5))" mpirun -np "$2" --bind-to none "$1" >"$work/out" 2>&1
    status=$?
    good=$(grep -c '\[       OK \]' "$work/out")
    if [[ $status == 0 ]] && ((good >= $2)); then
        passed=$((passed + good / $2))
        echo "ok     $name on $2 GPUs: $((good / $2)) passed"
    else
        failed=$((failed + 1))
        echo "FAILED $name on $2 GPUs: exit status $status"
        sed 's/^/    | /' "$work/out"
    fi
}

training() {
    local python="" each
    ((($(left)) > 30)) || { skip 1 "training: no time left"; return; }
    for each in ${PYTHON:-build/venv/bin/python python3}; do
        "$each" -c 'import pytest, h5py' 2>/dev/null && python=$each && break
    done
    if [[ $python ]]; then
        echo "training: tests/test_cuda_training.py"
        MOBILELLM_CUDA=$program MOBILELLM_GPUS=$gpus BUILD=$(dirname "$program") timeout -k 15 "$(left)" "$python" -m pytest -v --tb=short -p no:cacheprovider \
            tests/test_cuda_training.py 2>&1 | tee "$work/out" | grep --line-buffered -E 'PASSED|FAILED|ERROR|SKIPPED|^E |passed|failed'
    else
        echo "training: no Python here has pytest and h5py (pip install pytest h5py), so scripts/gpu_parity.py instead"
        timeout -k 15 "$(left)" python3 scripts/gpu_parity.py "$program" 2>&1 | tee "$work/out"
    fi
    grep -qE 'error(s)? in ' <(tail -1 "$work/out") && failed=$((failed + 1))
    count "$(tail -1 "$work/out")" || { echo "FAILED training: ended, or no time left"; failed=$((failed + 1)); }
}

# 99: it found something. Our test's own failures were counted above.
sanitize() { # TOOL PROGRAM
    local name="${2##*/} under compute-sanitizer $1" status limit summary
    limit=$(left)
    ((limit > 10)) || { skip 1 "$name: no time left"; return; }
    ((limit > 100)) && limit=100
    CMOCKA_MESSAGE_OUTPUT=STDOUT timeout -k 15 "$limit" "$sanitizer" --tool "$1" --target-processes all --error-exitcode 99 --report-api-errors no "$2" >"$work/out" 2>&1
    status=$?
    summary=$(grep -E 'SUMMARY' "$work/out" | tail -1 | sed 's/^=* *//')
    if [[ $status == 124 || $status == 137 ]]; then
        skip 1 "$name: more than $limit s; it had found $(grep -cE '^=+ (Invalid|Error|Race|Uninitialized)' "$work/out") errors"
    elif [[ $status == 0 && $summary == *"SUMMARY: 0 "* ]]; then
        echo "ok     $name: $summary"
        passed=$((passed + 1))
    else
        echo "FAILED $name: exit status $status, $summary"
        grep -E '^=' "$work/out" | head -30 | sed 's/^/    | /'
        failed=$((failed + 1))
    fi
}

shopt -s nullglob
tests=("$folder"/tests/test_cuda_*)
for each in "${tests[@]}"; do [[ $each == *.log ]] || c_test "$each"; done
((${#tests[@]})) || skip 1 "the C tests: $folder/tests has none (make gpu-programs makes them)"

training

if ((gpus > 1)) && [[ -x $folder/tests/test_cuda_collectives ]]; then
    for each in collectives token_rows; do
        [[ -x $folder/tests/test_cuda_$each ]] || continue
        for ((n = 2; n <= gpus && n <= 8; n *= 2)); do c_test_ranks "$folder/tests/test_cuda_$each" "$n"; done
    done
else
    skip 1 "collectives between GPUs: one GPU, or no test program"
fi

if [[ -z $sanitizer ]]; then
    skip 1 "memcheck and racecheck: no compute-sanitizer on PATH or in CUDA_HOME"
else
    for each in ops attention; do
        for tool in memcheck racecheck; do
            [[ -x $folder/tests/test_cuda_$each ]] && sanitize "$tool" "$folder/tests/test_cuda_$each"
        done
    done
fi

echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0 && passed > 0))
