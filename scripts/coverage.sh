#!/usr/bin/env bash
# coverage.sh: how much of the C code the tests reach, whole-program ones included. Called by make coverage, after setup, with the
# paths of tests (tests/test_x for C, tests/test_x.py). Fails below LEAST percent of the lines.
#
# Not reached, because no test could bring it about where all others run: what cpu/backend.c says of processors without AVX-512,
# ranks/watch.c of a machine whose network is gone, and branches of failures inside HDF5 (H5Tcopy, H5Pcreate without memory).
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/coverage
LEAST=90
find "$build" -name '*.gcda' -delete 2>/dev/null || true # counts of an earlier run would be added to
# MPI_Abort ends a process without the exit handlers that write the counts.
mkdir -p $build
mpicc -c -o $build/abort.o -x c - <<'END'
#include <mpi.h>
void __gcov_dump(void);
int MPI_Abort(MPI_Comm world, int code) { return __gcov_dump(), PMPI_Abort(world, code); }
END
make --no-print-directory -j"$(nproc)" BUILD=$build OPT="-O0 --coverage" LDFLAGS=$build/abort.o all test-programs
tests=()
for test; do case $test in *.py) tests+=("$test") ;; *) tests+=("$build/$test") ;; esac; done
status=0
BUILD=$build build/venv/bin/python tests/run.py "${tests[@]}" || status=$?
echo "line by line: $build/report.html"
# 0: a line may be run billions of times. cut: without the line numbers, which are in the report.
build/venv/bin/gcovr --root . --object-directory "$build/obj" --exclude tests/ --exclude scripts/ --gcov-suspicious-hits-threshold 0 \
    --fail-under-line $LEAST --html-details "$build/report.html" --txt - "$build/obj" | cut -c1-60
exit $status
