#!/usr/bin/env python3
"""Runs test files, some at a time, and adds up their counts. Called by `make test` from the root of the repository.

usage: tests/run.py FILE...     pytest files (tests/test_x.py), and programs that report as cmocka does (build/tests/test_x,
                                build/asan/tests/test_x, tests/emu/coverage.py)

Prints a line per file as it ends, what it has to report, and, of a file that failed, all it printed. The last line is
`N passed, N failed[, N skipped]`, over the test functions of all files. A file that crashes, hangs, runs no test or exits with an
error that no test explains counts as one more failure. The exit status is 0 if nothing failed and something passed.

As many files run side by side as there are cores, but at most four, or TEST_JOBS; tests/emu/coverage.py, which tells what the others
have reached, after all of them.

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
LAST = {"tests/emu/coverage.py"}

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


class TestFile:
    """A test file that runs."""

    def __init__(self, path):
        self.path, self.is_pytest = path, re.search(r"(^|/)test_[^/]*\.py$", path)
        base = path if path.startswith("build") else os.path.join("build", path)
        self.log, self.report = base + ".log", base + ".xml"
        os.makedirs(os.path.dirname(base), exist_ok=True)
        if os.path.exists(self.report):
            os.remove(self.report)
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", self.report]
        self.timeout = TIMEOUT["py" if self.is_pytest else "sanitized" if re.search("[/-][at]san/", path) else "c"]
        self.start = time.monotonic()
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen([*pytest, path] if self.is_pytest else [path], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=subprocess.STDOUT, env=environment(), start_new_session=True)

    def has_ended(self):
        """Also when it has taken too long: it is ended then."""
        self.status = self.process.poll()
        if self.status is None and time.monotonic() - self.start > self.timeout:
            self.end()
            self.status = f"timed out after {self.timeout} s"
        return self.status is not None

    def end(self):
        # First gently: the ranks of an mpirun are in groups of their own, and it ends them when it is asked to end.
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass

    def read_report(self):
        """As read_tap, of pytest's report."""
        if not os.path.exists(self.report):
            return Counts(0, 0, 0), "pytest wrote no report"
        suite = xml.etree.ElementTree.parse(self.report).getroot().find("testsuite")
        total, failed, errors, skipped = (int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped"))
        # A test that passes and whose teardown fails is both; pytest's count of tests holds it once.
        return Counts(max(0, total - failed - errors - skipped), failed + errors, skipped), ""

    def tell(self):
        """Prints the line of a file that has ended, and its output if it failed; returns its counts."""
        with open(self.log, errors="replace") as f:
            text = f.read()
        counts, wrong = self.read_report() if self.is_pytest else read_tap(text)
        reasons = [wrong] if wrong else []
        if isinstance(self.status, str):
            reasons.append(self.status)
        elif self.status < 0:
            reasons.append(f"killed by {signal.Signals(-self.status).name}")
        elif self.status != 0 and not counts.failed:
            reasons.append(f"exit status {self.status}")
        elif sum(counts) == 0 and not reasons:
            reasons.append("ran no test")
        if reasons:
            counts = counts._replace(failed=counts.failed + 1)

        verdict = "FAILED" if counts.failed else "ok"
        line = f"{verdict:6} {self.path:40} {summary(counts)}  ({time.monotonic() - self.start:.1f} s)"
        print(line + (": " + "; ".join(reasons) if reasons else ""), flush=True)
        for each in text.splitlines():
            if counts.failed or each.startswith("report: "):
                print(f"    | {each.removeprefix('report: ')}", flush=True)
        return counts


def run_files(paths, jobs):
    """{path: counts}. Files are begun in the order of their names in the list."""
    results, waiting, running = {}, list(paths), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not (waiting[0] in LAST and running):
                running.append(TestFile(waiting.pop(0)))
            time.sleep(0.01)
            for each in [each for each in running if each.has_ended()]:
                running.remove(each)
                results[each.path] = each.tell()
    finally:  # also when we are interrupted ourselves
        for each in running:
            each.end()
    return results


def summary(counts):
    return f"{counts.passed} passed, {counts.failed} failed" + (f", {counts.skipped} skipped" if counts.skipped else "")


def main():
    paths = sys.argv[1:]
    # A test runs in a session of its own, so whatever ends us must reach it through `run`: SIGTERM does as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if any("/emu" in path or path.startswith("tests/test_cuda") for path in paths):
        print(f"CUEMU_SEED={SEED} in the environment repeats this run's random orders on the emulated GPU", flush=True)
    results = run_files(paths, int(os.environ.get("TEST_JOBS") or min(4, len(os.sched_getaffinity(0)))))
    total = Counts(*map(sum, zip(*results.values()))) if results else Counts(0, 0, 0)
    for path in paths:
        if results[path].failed:
            print(f"failed: {path}")
    print(summary(total))
    return 0 if total.passed and not total.failed else 1


if __name__ == "__main__":
    sys.exit(main())
