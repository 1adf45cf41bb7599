#!/usr/bin/env python3
"""How much of cuda/ the tests on the emulated GPU have reached: a line a file, with the lines that were not.

usage: tests/emu/coverage.py [OBJECTS]      the folder with the objects of a build EMU=cov, and the counts beside them

A kernel's line is reached if one instance of its template has reached it. Each .cu and .cuh file, where everything is our own, is a
test for tests/run.py, which fails if a line was not reached; in the .c files some wait for failures of NVIDIA's libraries that nothing
here brings about."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path


def count(objects):
    """{file: {line: times it ran}}"""
    counts = sorted(str(path) for path in Path(objects, "cuda").glob("*.gcda"))
    if not counts:
        sys.exit(f"coverage.py: {objects}/cuda has no counts: run the tests of this build first")
    out = subprocess.run(["gcov", "--json-format", "--stdout", *counts], check=True, capture_output=True, text=True).stdout
    lines = defaultdict(lambda: defaultdict(int))
    for unit in filter(str.strip, out.splitlines()):
        for file in json.loads(unit)["files"]:
            for line in file["lines"] if file["file"].startswith("cuda/") else []:
                lines[file["file"]][line["line_number"]] += line["count"]
    return lines


def ranges(numbers):
    """1, 2, 3, 7 -> "1-3 7" """
    parts = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return " ".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def main():
    lines = count(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.environ.get("BUILD", "build"), "emu-cov/obj"))
    kernels = sorted(file for file in lines if file.endswith((".cu", ".cuh")))
    print(f"report: {'cuda/ on the emulated GPU':32} lines  reached         not reached\n1..{len(kernels)}")
    failed = False
    for number, file in enumerate(kernels + sorted(lines.keys() - kernels), 1):
        missed = [n for n, times in lines[file].items() if not times]
        total = len(lines[file])
        share = 100 * (total - len(missed)) / total
        print(f"report: {file:32} {total:5}    {total - len(missed):5}  {share:5.1f} %  {ranges(missed)}".rstrip())
        if file in kernels:
            print(f"{'not ok' if missed else 'ok'} {number} - {file}")
            failed = failed or bool(missed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
