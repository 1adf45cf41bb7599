#!/usr/bin/env bash
# coverage.sh: how much of the C code the tests reach, whole-program ones included. Called by make coverage, after setup, with the
# paths of tests (tests/test_x for C, tests/test_x.py).
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/coverage
find "$build" -name '*.gcda' -delete 2>/dev/null || true # counts of an earlier run would be added to
make --no-print-directory -j"$(nproc)" BUILD=$build OPT="-O0 --coverage" all test-programs
tests=()
for test; do case $test in *.py) tests+=("$test") ;; *) tests+=("$build/$test") ;; esac; done
status=0
BUILD=$build build/venv/bin/python tests/run.py "${tests[@]}" || status=$?
build/venv/bin/gcovr --root . --object-directory "$build/obj" --exclude tests/ --html-details "$build/report.html" --txt - "$build/obj" | cut -c1-60 # without the line numbers: those are in the report
echo "line by line: $build/report.html"
exit $status
