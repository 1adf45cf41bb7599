#!/usr/bin/env python3
"""Runs test files one after the other and adds up their counts. Called by `make test` from the root of the repository.

usage: tests/run.py FILE...     pytest files (tests/test_x.py), and programs that report as cmocka does (build/tests/test_x,
                                build/asan/tests/test_x, tests/emu/coverage.py)

Prints a line per file, what it has to report, and, of a file that failed, all it printed. The last line is `N passed, N failed[, N skipped]`, over the
test functions of all files. A file that crashes, hangs, runs no test or exits with an error that no test explains counts as one
more failure. The exit status is 0 if nothing failed and something passed.

cmocka reports as TAP, which is written test by test and so survives a crash. Its lines are looked for at the end of what a test
prints, because a test may leave a line unfinished; and only the number that is due counts, because anything may be printed.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections import namedtuple

TIMEOUT = {"c": 300, "sanitized": 900, "py": 900}  # seconds a file

# Of the orders in which the emulated GPU runs threads, blocks and streams (tests/emu): others in each run.
SEED = os.environ.get("CUEMU_SEED") or str(random.SystemRandom().randrange(1, 10**9))

Counts = namedtuple("Counts", "passed failed skipped")

TAP_PLAN = re.compile(r"^1\.\.(\d+)$")
TAP_RESULT = re.compile(r"(not ok|ok) (\d+)((?: - | # ).*)$")


def environment():
    env = dict(os.environ)
    env["CMOCKA_MESSAGE_OUTPUT"] = "TAP"
    env["CUEMU_SEED"] = SEED
    if os.geteuid() == 0:  # containers and CI; Open MPI refuses root otherwise
        env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    # More ranks than cores: allowed, and waiting ranks and threads give the core away. Open MPI 4 reads OMPI_, 5 also PRTE_.
    env["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    env["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    env["OMPI_MCA_mpi_yield_when_idle"] = "1"
    env.setdefault("OMP_WAIT_POLICY", "passive")
    # Copies between ranks by ptrace-like calls are forbidden in containers, and Open MPI complains before it falls back.
    env["OMPI_MCA_btl_vader_single_copy_mechanism"] = "none"
    env["OMPI_MCA_smsc"] = "^cma,xpmem"
    env["OMPI_MCA_btl_base_warn_component_unused"] = "0"
    env["HWLOC_HIDE_ERRORS"] = "2"  # a container or chroot may show hwloc no topology
    # Whole stacks, or the suppressions would not see which library allocated; cmocka would catch signals that ASan must see.
    env["ASAN_OPTIONS"] = "detect_leaks=1:fast_unwind_on_malloc=0:handle_segv=2:handle_sigbus=2:handle_sigfpe=2:handle_sigill=2"
    env["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
    env["TSAN_OPTIONS"] = "ignore_noninstrumented_modules=1"  # what MPI and oneDNN do among themselves, it cannot know
    env["LSAN_OPTIONS"] = "suppressions=" + os.path.abspath("tests/lsan.supp") + ":print_suppressions=0"
    return env


def run(command, log, timeout):
    """Runs command with its output in the file log. Returns its exit status, or 'timed out after N s'."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"timed out after {timeout} s"
    finally:  # also when we are interrupted ourselves
        if process.poll() is None:
            end(process)


def end(process):
    # First gently: the ranks of an mpirun are in groups of their own, and it ends them when it is asked to end.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def read_tap(text):
    """Counts of a cmocka program's output, and what is wrong with it ('' if nothing is)."""
    passed = failed = skipped = 0
    planned = seen = due = 0
    for line in text.splitlines():
        plan = TAP_PLAN.match(line)
        if plan:  # one a group
            planned += int(plan.group(1))
            due = 1
            continue
        result = TAP_RESULT.search(line)
        if not result or int(result.group(2)) not in (due, 0):
            continue
        seen += 1
        due += 1
        if "# SKIP" in result.group(3):  # cmocka 1.1 writes "not ok 3 # SKIP name", 2.0 "ok 3 - name # SKIP"
            skipped += 1
        elif result.group(1) == "ok":
            passed += 1
        else:  # number 0: the setup of a group failed
            failed += 1
    wrong = f"{planned - seen} of {planned} tests did not finish" if seen < planned else ""
    return Counts(passed, failed, skipped), wrong


def run_cmocka(path):
    log = (path if path.startswith("build") else os.path.join("build", path)) + ".log"
    os.makedirs(os.path.dirname(log), exist_ok=True)
    status = run([path], log, TIMEOUT["sanitized" if re.search("[/-][at]san/", path) else "c"])
    with open(log, errors="replace") as f:
        text = f.read()
    counts, wrong = read_tap(text)
    return counts, wrong, status, text


def run_pytest(path):
    base = os.path.join("build", path)
    os.makedirs(os.path.dirname(base), exist_ok=True)
    report = base + ".xml"
    if os.path.exists(report):
        os.remove(report)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", report, path]
    status = run(command, base + ".log", TIMEOUT["py"])
    with open(base + ".log", errors="replace") as f:
        text = f.read()
    counts, wrong = Counts(0, 0, 0), "" if os.path.exists(report) else "pytest wrote no report"
    if not wrong:
        suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
        total, failed, errors, skipped = (int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped"))
        # A test that passes and whose teardown fails is both; pytest's count of tests holds it once.
        counts = Counts(max(0, total - failed - errors - skipped), failed + errors, skipped)
    return counts, wrong, status, text


def run_file(path):
    """Runs one test file, prints its line (and its output if it failed), returns its counts."""
    start = time.monotonic()
    is_pytest = re.search(r"(^|/)test_[^/]*\.py$", path)
    counts, wrong, status, text = (run_pytest if is_pytest else run_cmocka)(path)
    reasons = [wrong] if wrong else []
    if isinstance(status, str):
        reasons.append(status)
    elif status < 0:
        reasons.append(f"killed by {signal.Signals(-status).name}")
    elif status != 0 and not counts.failed:
        reasons.append(f"exit status {status}")
    elif sum(counts) == 0 and not reasons:
        reasons.append("ran no test")
    if reasons:
        counts = counts._replace(failed=counts.failed + 1)

    verdict = "FAILED" if counts.failed else "ok"
    line = f"{verdict:6} {path:40} {summary(counts)}  ({time.monotonic() - start:.1f} s)"
    print(line + (": " + "; ".join(reasons) if reasons else ""), flush=True)
    for each in text.splitlines():
        if counts.failed or each.startswith("report: "):
            print(f"    | {each.removeprefix('report: ')}", flush=True)
    return counts


def summary(counts):
    return f"{counts.passed} passed, {counts.failed} failed" + (f", {counts.skipped} skipped" if counts.skipped else "")


def main():
    paths = sys.argv[1:]
    # A test runs in a session of its own, so whatever ends us must reach it through `run`: SIGTERM does as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if any("/emu" in path or path.startswith("tests/test_cuda") for path in paths):
        print(f"CUEMU_SEED={SEED} in the environment repeats this run's random orders on the emulated GPU", flush=True)
    results = [run_file(path) for path in paths]
    total = Counts(*(sum(column) for column in zip(*results))) if results else Counts(0, 0, 0)
    for path, counts in zip(paths, results):
        if counts.failed:
            print(f"failed: {path}")
    print(summary(total))
    return 0 if total.passed and not total.failed else 1


if __name__ == "__main__":
    sys.exit(main())
