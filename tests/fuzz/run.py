#!/usr/bin/env python3
"""Runs fuzz targets, as many at a time as there are processors, each for some seconds, and says what they did and found. Called by `make fuzz` from the root of the repository.

usage: tests/fuzz/run.py BUILD SECONDS [TARGET...]     e.g. build/fuzz 20 tokens pack; without names: all of them

BUILD holds the programs fuzz_TARGET. Inputs that reached new code are kept in BUILD/corpus/TARGET and are where the next run begins;
an input that broke something is kept as BUILD/finding-TARGET-*, and `FUZZ_DIR=$(mktemp -d) BUILD/fuzz_TARGET FILE` runs it again. The
exit status is 1 if there is one.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = {  # the longest input that is tried, bytes
    "tokens": 1024,
    "checkpoint": 40000,
    "config": 4096,
    "overrides": 1024,
    "pack": 4096,
}


def environment(directory):
    env = dict(os.environ, FUZZ_DIR=directory, OMP_NUM_THREADS="1")
    env["ASAN_OPTIONS"] = "detect_leaks=1:quarantine_size_mb=16"
    env["UBSAN_OPTIONS"] = "print_stacktrace=1"
    env["LSAN_OPTIONS"] = f"suppressions={HERE.parent / 'lsan.supp'}:print_suppressions=0"
    return env


def fuzz(build, target, seconds):
    """Fuzzes a target. Returns whether it went well, a line that says so, and all that libFuzzer printed."""
    build = Path(build).resolve()
    corpus = build / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    command = [build / f"fuzz_{target}", f"-max_total_time={seconds}", f"-max_len={TARGETS[target]}", "-timeout=30", "-rss_limit_mb=2048",
               "-print_final_stats=1", f"-artifact_prefix={build}/finding-{target}-", corpus, HERE / "seeds" / target]
    dictionary = HERE / f"{target}.dict"
    if dictionary.exists():
        command.append(f"-dict={dictionary}")
    with tempfile.TemporaryDirectory(prefix="mobilellm-fuzz-", dir="/dev/shm") as directory:
        done = subprocess.run(command, env=environment(directory), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds + 60)
    figures = {name: re.findall(pattern, done.stdout) for name, pattern in
               [("runs", r"number_of_executed_units: (\d+)"), ("edges", r" cov: (\d+)"), ("corpus", r" corp: (\d+)"), ("kept", r"Test unit written to (\S+)")]}
    runs, edges, inputs = (int((figures[name] or [0])[-1]) for name in ("runs", "edges", "corpus"))
    line = f"{target:12} {runs:9,} runs  {runs / seconds:8,.0f}/s  {edges:5,} edges  {inputs:5,} inputs  "
    ok = done.returncode == 0 and runs > 0
    return ok, line + ("nothing found" if ok else f"FAILED, exit {done.returncode}: {' '.join(figures['kept'])}"), done.stdout


def fuzz_all(build, targets, seconds):
    """What `fuzz` returns of each target, in their order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda target: fuzz(build, target, seconds), targets)


def main():
    build, seconds, targets = sys.argv[1], int(sys.argv[2]), sys.argv[3:] or list(TARGETS)
    failed = False
    for ok, line, output in fuzz_all(build, targets, seconds):
        print(line, flush=True)
        if not ok:
            print("".join(f"    | {each}\n" for each in output.splitlines()[-60:]), end="", flush=True)
        failed |= not ok
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
