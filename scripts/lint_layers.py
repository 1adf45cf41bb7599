#!/usr/bin/env python3
"""Checks that each folder includes only from what stands below it. Run from the root of the repository; prints what breaks it.
Tests may include anything.

The order is the design: a folder that does not know the ones above it can be read, tested and replaced without them.
"""

import glob
import re
import sys

LAYERS = [  # the house, from the roof down; what stands on one line does not know each other
    ["mobilellm.c"],
    ["search"],
    ["train"],
    ["distill"],
    ["eval"],
    ["data"],
    ["checkpoint"],
    ["model"],
    ["cpu", "cuda"],
    ["ops.h"],
    ["ranks"],
    ["util"],
]
# What the others may know of a backend is ops.h.
BACKENDS = ["cpu", "cuda"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')

DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}


def complaint(path, included):
    """What is wrong with `path` including `included`, or None."""
    here, there = path.split("/")[0], included.split("/")[0]
    if there not in DEPTH:
        return "is in no folder of ours: name it from the root of the repository"
    if here == there:
        return None
    if DEPTH[there] <= DEPTH[here]:
        return f"{there} does not stand below {here}"
    if there in BACKENDS:
        return f"only {there}/ may know it; include ops.h"
    return None


def main():
    broken = 0
    paths = [path for pattern in ("*.[ch]", "*/*.[ch]", "*/*.cu", "*/*.cuh") for path in glob.glob(pattern)]
    for path in sorted(path for path in paths if path.split("/")[0] in DEPTH):
        with open(path) as f:
            for number, line in enumerate(f, 1):
                include = INCLUDE.match(line)
                wrong = complaint(path, include.group(1)) if include else None
                if wrong:
                    broken += 1
                    print(f'{path}:{number}: includes "{include.group(1)}": {wrong}')
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
